package native

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Errors of reading the mesh profile's rows.
var (
	// errNoProfile reports that the profile is not running.
	errNoProfile = errors.New("the mesh profile is not running: check that the switch has it (`sofia status`) and start it with `sofia profile <name> start`")

	errSnapshot = errors.New("unreadable list of registrations")
)

// switchRow is one registration as `sofia xmlstatus profile P reg` prints it.
type switchRow struct {
	callID  string
	user    string // user@domain
	contact string
	agent   string
	host    string        // the switchname of the switch that wrote it
	left    time.Duration // until it expires; 0 when unknown
}

// scanSnapshot calls fn for every registration of an xmlstatus reply, in its
// order, without building a tree: 50,000 rows are some 40 MB. A reply that is cut
// off is an error before fn is called, because what it lacks would look lost.
func scanSnapshot(reply string, fn func(switchRow)) error {
	if strings.HasPrefix(strings.TrimSpace(reply), "Invalid Profile") {
		return errNoProfile
	}
	_, rest, ok := strings.Cut(reply, "<registrations>")
	if !ok {
		return fmt.Errorf("%w: no <registrations>", errSnapshot)
	}
	end := strings.LastIndex(rest, "</registrations>")
	if end < 0 {
		return fmt.Errorf("%w: it is cut off", errSnapshot)
	}
	rest = rest[:end]
	for {
		_, after, ok := strings.Cut(rest, "<registration>")
		if !ok {
			return nil
		}
		block, after, ok := strings.Cut(after, "</registration>")
		if !ok {
			return fmt.Errorf("%w: a registration does not end", errSnapshot)
		}
		rest = after
		fn(switchRow{
			callID:  element(block, "call-id"),
			user:    element(block, "user"),
			contact: element(block, "contact"),
			agent:   element(block, "agent"),
			host:    element(block, "host"),
			left:    expirySeconds(element(block, "status")),
		})
	}
}

// element returns the text of the first <name> in block, "" without one.
func element(block, name string) string {
	_, rest, ok := strings.Cut(block, "<"+name+">")
	if !ok {
		return ""
	}
	text, _, ok := strings.Cut(rest, "</"+name+">")
	if !ok {
		return ""
	}
	if strings.IndexByte(text, '&') < 0 {
		return text
	}
	return unescape.Replace(text)
}

// unescape undoes what the switch escapes.
var unescape = strings.NewReplacer("&quot;", `"`, "&lt;", "<", "&gt;", ">", "&apos;", "'", "&#39;", "'", "&amp;", "&")

// expirySeconds reads "... expsecs(299)"; a missing or negative one is 0.
func expirySeconds(status string) time.Duration {
	_, rest, ok := strings.Cut(status, "expsecs(")
	if !ok {
		return 0
	}
	digits, _, _ := strings.Cut(rest, ")")
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(n) * time.Second
}
