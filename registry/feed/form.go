package feed

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	"pbxmesh"
)

// Fields are the values of one registration as the switch holds them, whichever way
// it told them: an event or a row of a snapshot. Both are brought into this form
// first and read by the same functions afterwards, so that they mean the same.
//
// An event percent-encodes every value, but leaves alone what already looks
// encoded; decoded, `fs_path=%3Csip%3A...` of the table reads `fs_path=<sip:...`. What
// the table really had cannot be told from that. So the event's form is the one, and
// a row is put through sofia.Shown.
type fields struct {
	user, host, callID, contact, agent, status, ip, port string
}

// parseContact splits `"name" <uri>` as the switch composes it. What follows the last
// ">" is no part of the URI; an earlier one is, as in `fs_path=<sip:192.0.2.7;lr>`.
// Without brackets all of it is the URI. The switch cuts contacts at 1,023 bytes, so
// the last bracket may be missing.
func parseContact(contact string) (name, uri string) {
	open := openBracket(contact)
	if open < 0 {
		return "", text(strings.TrimSpace(contact))
	}
	name = strings.TrimSpace(contact[:open])
	if name == `""` {
		name = ""
	}
	uri = contact[open+1:]
	if i := strings.LastIndexByte(uri, '>'); i >= 0 {
		uri = uri[:i]
	}
	return text(name), text(strings.TrimSpace(uri))
}

// openBracket finds the first "<" outside of a quoted display name (RFC 3261 section
// 25.1), or the first one at all where quotes do not pair.
func openBracket(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if quoted {
				i++
			}
		case '"':
			quoted = !quoted
		case '<':
			if !quoted {
				return i
			}
		}
	}
	return strings.IndexByte(s, '<')
}

// text makes a value one that every reader of a record takes: bytes that are no
// UTF-8, and control characters, are percent-encoded.
func text(s string) string {
	clean := utf8.ValidString(s)
	for i := 0; clean && i < len(s); i++ {
		clean = s[i] >= ' ' && s[i] != 0x7f
	}
	if clean {
		return s
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+8)
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if c := s[0]; r == utf8.RuneError && size == 1 || c < ' ' || c == 0x7f {
			b = append(b, '%', hex[c>>4], hex[c&15])
		} else {
			b = append(b, s[:size]...)
		}
		s = s[size:]
	}
	return string(b)
}

// transport reads "Registered(UDP)", "Registered(TCP-NAT)", with or without more
// behind it; "" when there is none that we know.
func transport(status string) string {
	rest, ok := strings.CutPrefix(status, "Registered(")
	if !ok {
		return ""
	}
	if i := strings.IndexAny(rest, ")-"); i >= 0 {
		rest = rest[:i]
	}
	switch rest {
	case "UDP":
		return "udp"
	case "TCP":
		return "tcp"
	case "TLS":
		return "tls"
	case "WS":
		return "ws"
	case "WSS":
		return "wss"
	}
	return ""
}

// source returns the zero value for anything that is no address and port.
func source(ip, port string) netip.AddrPort {
	addr, err := netip.ParseAddr(ip)
	n, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || addr.Zone() != "" {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n))
}

// userAgent cuts what a phone calls itself to the bound and takes control
// characters out: it is shown, nothing hangs on it.
func userAgent(s string) string {
	clean := len(s) <= pbxmesh.MaxUserAgentLen && utf8.ValidString(s)
	for i := 0; clean && i < len(s); i++ {
		clean = s[i] >= ' ' && s[i] != 0x7f
	}
	if clean {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > pbxmesh.MaxUserAgentLen { // and no part of a character at the end
		s = strings.ToValidUTF8(s[:pbxmesh.MaxUserAgentLen], "")
	}
	return s
}

// binding is a registration with what is only compared, never told.
type binding struct {
	reg pbxmesh.Registration

	// name is the contact's display name: for a switch with multiple registrations
	// a goodbye under another one is a goodbye of nobody.
	name string

	// spelled is user@host as the switch spells it: its table compares with case.
	spelled string
}

// spelled returns user@host, and aor's own string where that is the same.
func spelled(aor pbxmesh.AOR, user, host string) string {
	if s := aor.String(); len(s) != len(user)+1+len(host) || s[:len(user)] != user || s[len(user)+1:] != host {
		return strings.Clone(user) + "@" + strings.Clone(host)
	}
	return aor.String()
}

// endOf is what an event of an end names; contact and Call-ID may be missing.
type endOf struct {
	profile, callID, name, uri string

	// row says that exactly one row of the switch's table ended (sofia::expire), and
	// that the switch deletes it only after it has told so.
	row bool
}
