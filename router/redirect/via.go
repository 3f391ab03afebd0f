package redirect

import (
	"bytes"
	"net/netip"
	"strconv"
)

const defaultSIPPort = 5060

// via is the first value of a Via header: who sent us the request.
type via struct {
	head   []byte // "SIP/2.0/UDP host:port", as it came
	params []byte // ";branch=...", as it came; empty when there are none
	rest   []byte // the further values, as they came, from the comma on
	host   []byte
	port   uint16 // where the sender wants UDP answers; 5060 when it names none
	rport  bool   // RFC 3581: answer to the port that the request came from
}

// parse reads the first of the values in a Via header (RFC 3261 sections 20.42 and
// 25.1), and reports whether it can be echoed and answered.
func (v *via) parse(value []byte) bool {
	*v = via{port: defaultSIPPort}
	end := unquoted(value, ',')
	if end < 0 {
		end = len(value)
	}
	first := value[:end]
	v.rest = value[end:]
	semicolon := bytes.IndexByte(first, ';')
	if semicolon < 0 {
		semicolon = len(first)
	}
	v.head, v.params = bytes.TrimRight(first[:semicolon], " \t"), bytes.TrimRight(first[semicolon:], " \t")
	return v.sentBy() && v.readParams()
}

// sentBy reads "SIP / 2.0 / transport host [: port]".
func (v *via) sentBy() bool {
	rest := v.head
	for i, want := range [...]string{"sip", "2.0", ""} {
		slash := len("/")
		end := bytes.IndexByte(rest, '/')
		if i == 2 {
			rest = bytes.TrimLeft(rest, " \t")
			end, slash = bytes.IndexAny(rest, " \t"), 0
		}
		if end < 1 {
			return false
		}
		part := bytes.Trim(rest[:end], " \t")
		if !isToken(part) || want != "" && !equalFold(part, want) {
			return false
		}
		rest = rest[end+slash:]
	}
	host := bytes.Trim(rest, " \t")
	colon := bytes.LastIndexByte(host, ':')
	if bracket := bytes.IndexByte(host, ']'); bracket >= 0 {
		if host[0] != '[' {
			return false
		}
		if colon < bracket {
			colon = -1
		}
		if _, err := netip.ParseAddr(string(host[1:bracket])); err != nil {
			return false
		}
	}
	if colon >= 0 {
		n, ok := number(bytes.TrimLeft(host[colon+1:], " \t"), 65535)
		if !ok || n == 0 {
			return false
		}
		v.port = uint16(n)
		host = bytes.TrimRight(host[:colon], " \t")
	}
	v.host = host
	for _, c := range host {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>' || c == '@' {
			return false
		}
	}
	return len(host) > 0
}

// readParams looks for rport and checks that the others can be told apart.
func (v *via) readParams() bool {
	for p := v.params; len(p) > 0; {
		name, value, next, ok := nextParam(p)
		if !ok {
			return false
		}
		if equalFold(name, "rport") && len(value) == 0 {
			v.rport = true
		}
		p = next
	}
	return true
}

// appendTo writes the Via headers of the answer: the first value with where the
// request really came from (RFC 3261 section 18.2.1, RFC 3581 section 4), the others
// as they are. What the sender claims about that itself does not survive.
func (r *request) appendVias(b []byte, from netip.AddrPort) []byte {
	b = append(b, "Via: "...)
	b = append(b, r.top.head...)
	for p := r.top.params; len(p) > 0; {
		name, _, next, _ := nextParam(p)
		if !equalFold(name, "rport") && !equalFold(name, "received") {
			b = append(b, bytes.TrimRight(p[:len(p)-len(next)], " \t")...)
		}
		p = next
	}
	b = append(b, ";received="...)
	b = from.Addr().AppendTo(b) // RFC 5118 section 4.5: no brackets
	if r.top.rport {
		b = append(b, ";rport="...)
		b = strconv.AppendUint(b, uint64(from.Port()), 10)
	}
	b = append(b, r.top.rest...)
	b = append(b, "\r\n"...)
	for _, v := range r.vias[1:max(r.viaN, 1)] {
		b = append(b, "Via: "...)
		b = append(b, v...)
		b = append(b, "\r\n"...)
	}
	return b
}

// answerTo returns where an answer over UDP goes. maddr is not honoured: it would
// let a sender choose whom we send to.
func (v *via) answerTo(from netip.AddrPort) netip.AddrPort {
	if v.rport {
		return from
	}
	return netip.AddrPortFrom(from.Addr(), v.port)
}

// nextParam splits the first parameter off ";name=value;..."; value is nil when
// there is none. ok is false when p does not start with a parameter.
func nextParam(p []byte) (name, value, next []byte, ok bool) {
	if len(p) == 0 || p[0] != ';' {
		return nil, nil, nil, false
	}
	end := unquoted(p[1:], ';')
	if end < 0 {
		end = len(p)
	} else {
		end++
	}
	name, next = p[1:end], p[end:]
	if i := bytes.IndexByte(name, '='); i >= 0 {
		name, value = name[:i], bytes.Trim(name[i+1:], " \t")
		if len(value) == 0 {
			return nil, nil, nil, false
		}
		if value[0] == '"' && (len(value) < 2 || value[len(value)-1] != '"') {
			return nil, nil, nil, false
		}
	}
	name = bytes.Trim(name, " \t")
	return name, value, next, isToken(name)
}

// unquoted returns where c stands in b outside of a quoted string; -1 when nowhere.
func unquoted(b []byte, c byte) int {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch {
		case quoted && b[i] == '\\':
			i++
		case b[i] == '"':
			quoted = !quoted
		case !quoted && b[i] == c:
			return i
		}
	}
	return -1
}

// addressTag returns the tag parameter of a From or To value (RFC 3261 section
// 20.10), nil when there is none. ok is false when the value is malformed.
func addressTag(value []byte) (tag []byte, ok bool) {
	var params []byte
	if open := unquoted(value, '<'); open >= 0 {
		end := bytes.IndexByte(value[open:], '>')
		if end < 2 {
			return nil, false
		}
		params = bytes.TrimLeft(value[open+end+1:], " \t")
		if len(params) > 0 && params[0] != ';' {
			return nil, false
		}
	} else {
		if bytes.IndexByte(value, '"') >= 0 || bytes.IndexByte(value, '>') >= 0 {
			return nil, false
		}
		i := bytes.IndexByte(value, ';')
		if i == 0 {
			return nil, false
		}
		if i < 0 {
			i = len(value)
		}
		if bytes.ContainsAny(bytes.TrimRight(value[:i], " \t"), " \t,") {
			return nil, false
		}
		params = value[i:]
	}
	for len(params) > 0 {
		name, v, next, ok := nextParam(params)
		if !ok {
			return nil, false
		}
		if equalFold(name, "tag") {
			if tag != nil || !isToken(v) {
				return nil, false
			}
			tag = v
		}
		params = next
	}
	return tag, true
}
