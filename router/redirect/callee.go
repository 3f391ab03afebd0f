package redirect

import (
	"bytes"
	"net/netip"
	"strings"
	"sync/atomic"

	"github.com/emiago/sipgo/sip"

	"pbxmesh"
)

// callee returns whom a Request-URI names, the addresses to look up in turn (zero
// ones are to be left out), or the status that refuses it.
func (s *Server) callee(raw []byte) (candidates [2]pbxmesh.AOR, code int) {
	// sipgo takes letters only for a scheme, RFC 3986 section 3.1 digits, +, - and . too.
	if scheme, _, ok := bytes.Cut(raw, []byte(":")); ok && isToken(scheme) &&
		!equalFold(scheme, "sip") && !equalFold(scheme, "sips") && !equalFold(scheme, "tel") {
		return candidates, statusUnsupportedScheme
	}
	var uri sip.Uri
	if err := sip.ParseUri(string(raw), &uri); err != nil || uri.Wildcard {
		return candidates, sip.StatusBadRequest
	}
	switch uri.Scheme {
	case "sip":
	case "tel":
		aor, ok := s.numbers.lookup(telNumber(string(raw)))
		if !ok {
			return candidates, sip.StatusNotFound
		}
		candidates[0] = aor
		return candidates, 0
	default:
		// sips among them: the nodes do not promise TLS on every hop (RFC 5630).
		return candidates, statusUnsupportedScheme
	}
	// Headers in a Request-URI would be put into the next request by whoever follows
	// our answer (RFC 3261 section 19.1.5 forbids them here).
	if len(uri.Headers) > 0 || uri.HierarhicalSlashes || strings.ContainsRune(string(raw), '?') {
		return candidates, sip.StatusBadRequest
	}
	// Parameters of a telephone number ("+1716;npdi=yes@") name no other callee.
	user, _, _ := strings.Cut(uri.User, ";")
	if aor, ok := s.numbers.lookup(user); ok {
		candidates[0] = aor
		return candidates, 0
	}
	// An error leaves the zero AOR: an address that nobody can register is not found.
	candidates[0], _ = pbxmesh.NewAOR(user, uri.Host)
	if s.opt.Domain != "" {
		if _, err := netip.ParseAddr(strings.Trim(uri.Host, "[]")); err == nil {
			candidates[1], _ = pbxmesh.NewAOR(user, s.opt.Domain)
		}
	}
	return candidates, 0
}

// telNumber returns the number of a tel URI without its parameters and visual
// separators (RFC 3966 section 5.1.1).
func telNumber(uri string) string {
	_, number, _ := strings.Cut(uri, ":")
	number, _, _ = strings.Cut(number, ";")
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("-.()", r) {
			return -1
		}
		return r
	}, number)
}

// recentSize is how many INVITEs are remembered for their CANCEL: 0.8 s at 10,000 a
// second. A CANCEL comes within that or hardly ever, as the answer is final.
const recentSize = 8192

// recent remembers which INVITEs were answered. A newer one takes the place of an
// older one without a word: the CANCEL of that is then answered with 481.
type recent [recentSize]atomic.Uint64

func (t *recent) add(hash uint64) { t[hash%recentSize].Store(hash) }

func (t *recent) has(hash uint64) bool { return t[hash%recentSize].Load() == hash }
