package dialplan

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"pbxmesh/internal/meshcontext"
	"pbxmesh/router"
)

// form holds the parameters that we read of what mod_xml_curl posts.
type form map[string]string

// formKeys are those parameters. A call's form has hundreds more, with text of the
// caller's choice in many of them; they are not even decoded.
var formKeys = map[string]bool{
	"section": true, "tag_name": true, "key_name": true, "key_value": true,
	"Hunt-Destination-Number": true, "Caller-Destination-Number": true,
	"Hunt-Context": true, "Caller-Context": true,
	"variable_domain_name": true, "variable_sip_req_host": true, "variable_sip_to_host": true,
	"variable_sofia_profile_name": true, "variable_" + varTried: true,
	"variable_hangup_after_bridge": true, "variable_continue_on_fail": true,
	"variable_" + meshcontext.ExcludeVariable: true,
	"variable_" + router.VarDisposition:       true, "variable_" + router.VarTransferred: true,
}

// maxValue bounds a value that we read, in bytes as it was sent.
const maxValue = 2048

var errAmbiguous = errors.New("the form gives two values for one parameter")

// parseForm reads an application/x-www-form-urlencoded body.
//
// FreeSWITCH encodes values but not the names of variables, and some names come
// from callers (sip_h_X-...). A parameter that we read and that stands there twice
// with different values is therefore an error and not a choice. A '+' is itself:
// FreeSWITCH writes %20 for a space and %2B for a plus.
func parseForm(body string) (form, error) {
	f := form{}
	for part := range strings.SplitSeq(body, "&") {
		name, raw, _ := strings.Cut(part, "=")
		if !formKeys[name] {
			continue
		}
		if len(raw) > maxValue {
			return nil, fmt.Errorf("the parameter %s has %d bytes, at most %d are read", name, len(raw), maxValue)
		}
		value, err := url.PathUnescape(raw)
		if err != nil {
			return nil, fmt.Errorf("the parameter %s cannot be decoded", name)
		}
		if old, twice := f[name]; twice && old != value {
			return nil, fmt.Errorf("%w: %s", errAmbiguous, name)
		}
		f[name] = value
	}
	return f, nil
}

// first returns the first of names that is there and not empty.
func (f form) first(names ...string) string {
	for _, n := range names {
		if v := f[n]; v != "" {
			return v
		}
	}
	return ""
}
