package dialplan

import (
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
)

// The doors: what was asked for, and so in which form every answer is, errors too.
const (
	doorNone       = ""
	doorDialstring = "dialstring"
	doorRoute      = "route"
	doorXML        = "xml"
)

// doorOf reads the path as it was sent: nothing is decoded or cleaned before the
// door is known.
func doorOf(r *http.Request) string {
	path := r.URL.EscapedPath()
	switch {
	case strings.HasPrefix(path, "/dialstring/"):
		return doorDialstring
	case strings.HasPrefix(path, "/route/") && !wantsDialstring(r):
		return doorRoute
	case path == "/xml":
		return doorXML
	default:
		return doorNone
	}
}

// wantsDialstring reports whether mod_curl asks without naming JSON. The address
// that it asks for may hold a dialled "../route/...", which curl resolves before it
// sends, and JSON would be read as a dial string.
func wantsDialstring(r *http.Request) bool {
	return strings.HasPrefix(r.UserAgent(), "freeswitch-curl/") && !strings.Contains(r.Header.Get("Accept"), "application/json")
}

// answer writes one answer in the form of its door.
type answer struct {
	w    http.ResponseWriter
	door string
	done bool
}

// give answers with an outcome that rings nobody.
func (a *answer) give(o Outcome, why string) {
	a.w.Header().Set("X-Pbxmesh-Result", string(o))
	a.w.Header().Set("X-Pbxmesh-Cause", o.cause())
	code := http.StatusOK
	switch o {
	case NotRegistered:
		code = http.StatusNotFound
	case Invalid:
		code = http.StatusBadRequest
	case Unreachable, Unavailable, Overloaded:
		code = http.StatusServiceUnavailable
		a.w.Header().Set("Retry-After", "1")
	}
	if a.door == doorXML && o != Overloaded {
		code = http.StatusOK // anything else is an error line in the switch's log
	}
	a.fail(code, o.cause(), why)
}

// refuse answers a request that is no question.
func (a *answer) refuse(code int, why string) {
	a.fail(code, Invalid.cause(), why)
}

// fail writes what makes the switch go on: a dial string that fails with cause, the
// "not found" document, or JSON.
func (a *answer) fail(code int, cause, why string) {
	if why != "" {
		a.w.Header().Set("X-Pbxmesh-Error", printable(why))
	}
	switch a.door {
	case doorXML:
		a.write(code, typeXML, notFound)
	case doorRoute:
		body, err := json.Marshal(struct {
			Message string `json:"error"`
		}{why})
		if err != nil {
			body = []byte("{}")
		}
		a.write(code, typeJSON, append(body, '\n'))
	default:
		a.write(code, typeText, errorLeg(cause))
	}
}

const (
	typeText = "text/plain; charset=utf-8"
	typeXML  = "text/xml; charset=utf-8"
	typeJSON = "application/json"
)

// write writes the answer once: after a panic half an answer may be out.
func (a *answer) write(code int, contentType string, body []byte) {
	if a.done {
		return
	}
	a.done = true
	a.w.Header().Set("Content-Type", contentType)
	a.w.WriteHeader(code)
	_, _ = a.w.Write(body) // a switch that went away is told nothing
}

// onlyQuery reads the query and refuses parameters that nobody reads: a misspelt
// one would change the answer in silence.
func onlyQuery(r *http.Request, allowed ...string) (map[string]string, string) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, "the query cannot be read"
	}
	got := make(map[string]string, len(query))
	for name, values := range query {
		known := false
		for _, a := range allowed {
			known = known || a == name
		}
		if !known || len(values) > 1 {
			return nil, "a parameter is not taken: there are, once each, " + strings.Join(allowed, " and ")
		}
		got[name] = values[0]
	}
	return got, ""
}

// printable keeps hostile text from adding a header line, and bounds it.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s[:min(len(s), 300)])
}
