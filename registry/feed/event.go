package feed

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// meshAgent is the user agent of the rows that the mesh writes into the switch's
// own table.
const meshAgent = "pbxmesh"

// maxExpires bounds what a phone may ask for and a switch may report: RFC 3261
// section 20.19 allows 136 years, which no timer of ours has to carry.
const maxExpires = 30 * 24 * time.Hour

// onEvent is called by the connection, one event at a time.
func (f *Feed) onEvent(e *esl.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.LastEvent = f.opts.Now()
	f.status.Events++
	core := e.CoreUUID()
	if core == "" || !validEpoch(core) {
		f.status.Ignored++
		return
	}
	if core != f.table.epoch {
		// The switch has restarted behind a connection that stayed, or this is the
		// first we hear of it. The snapshot decides; facts are kept until then.
		f.adopt(strings.Clone(core))
		f.askSnapshot()
	}
	seq := e.Sequence()
	switch e.Name() {
	case "HEARTBEAT":
		f.table.accept(seq)
		f.heartbeat(e)
	case "CUSTOM":
		f.custom(seq, e)
	}
}

// custom handles the registration events. f.mu is held.
func (f *Feed) custom(seq uint64, e *esl.Event) {
	profile, ok := f.profiles[e.Get("profile-name")]
	if !ok || seq == 0 || e.Get("user-agent") == meshAgent {
		f.status.Ignored++
		return
	}
	switch e.Subclass() {
	case "sofia::register":
		aor, ok := f.aor(e.Get("from-user"), e.Get("from-host"))
		if !ok {
			return
		}
		reg, ok := f.registration(aor, profile, e)
		if !ok {
			return
		}
		if f.table.register(seq, reg) && !f.multiple[profile] {
			f.askSnapshot()
		}
	case "sofia::unregister":
		f.gone(seq, e, e.Get("from-user"), e.Get("from-host"))
	case "sofia::expire":
		f.gone(seq, e, e.Get("user"), e.Get("host"))
	default:
		f.status.Ignored++
	}
	if f.table.marks > maxMarks {
		f.askSnapshot()
	}
}

// gone handles both ways in which a registration ends. Where the switch may have
// done something else than we, it is asked: a removal of all contacts (`Contact: *`
// reaches us as an address of nulls, and a switch with multiple registrations then
// removes nothing), a removal that matches nothing, and one that matches only by
// Call-ID (with multiple-registrations=true the switch goes by contact alone).
func (f *Feed) gone(seq uint64, e *esl.Event, user, host string) {
	aor, ok := f.aor(user, host)
	if !ok {
		return
	}
	contact := contactURI(e.Get("contact"))
	if contact == "*" || strings.Contains(contact, "(null)") {
		f.table.accept(seq)
		f.askSnapshot()
		return
	}
	if !f.table.unregister(seq, aor, strings.Clone(contact), strings.Clone(e.Get("call-id"))) {
		f.askSnapshot()
	}
}

// registration builds the record of a sofia::register event. Nothing in it shares
// memory with the event, which is some thirty times as large.
func (f *Feed) registration(aor pbxmesh.AOR, profile string, e *esl.Event) (pbxmesh.Registration, bool) {
	seconds, err := strconv.ParseUint(e.Get("expires"), 10, 31)
	if err != nil || seconds == 0 {
		f.status.Ignored++
		return pbxmesh.Registration{}, false
	}
	lasts := min(time.Duration(seconds)*time.Second, maxExpires) + f.opts.LateMargin
	reg := pbxmesh.Registration{
		AOR:       aor,
		Node:      f.opts.Node,
		CallID:    e.Get("call-id"),
		Contact:   contactURI(e.Get("contact")),
		Profile:   profile,
		Source:    source(e.Get("network-ip"), e.Get("network-port")),
		Transport: transport(e.Get("status")),
		UserAgent: userAgent(e.Get("user-agent")),
		Expires:   f.opts.Now().Add(lasts),
		Since:     pbxmesh.StampOf(f.opts.Now()),
	}
	return f.admit(reg)
}

// admit checks a record and gives it strings of its own, those of the registration
// it refreshes where they are the same.
func (f *Feed) admit(reg pbxmesh.Registration) (pbxmesh.Registration, bool) {
	if old := f.table.known(reg.AOR, reg.CallID); old != nil && old.Contact == reg.Contact && old.UserAgent == reg.UserAgent {
		reg.AOR, reg.CallID, reg.Contact, reg.UserAgent = old.AOR, old.CallID, old.Contact, old.UserAgent
	} else {
		reg.CallID, reg.Contact, reg.UserAgent = strings.Clone(reg.CallID), strings.Clone(reg.Contact), strings.Clone(reg.UserAgent)
	}
	err := reg.Validate()
	if err == nil && reg.Contact == "" {
		err = fmt.Errorf("%w: no contact", pbxmesh.ErrInvalidRecord)
	}
	if err != nil {
		f.refuse(reg.AOR.String(), err)
		return reg, false
	}
	return reg, true
}

// aor is the gate for what a phone calls itself.
func (f *Feed) aor(user, host string) (pbxmesh.AOR, bool) {
	aor, err := pbxmesh.NewAOR(user, host)
	if err != nil {
		f.refuse(user+"@"+host, err)
		return aor, false
	}
	return aor, true
}

// heartbeat notes the switch's own figures. f.mu is held.
func (f *Feed) heartbeat(e *esl.Event) {
	f.status.Version = strings.Clone(e.Get("FreeSWITCH-Version"))
	f.status.Sessions = number(e.Get("Session-Count"))
	f.status.MaxSessions = number(e.Get("Max-Sessions"))
	if idle, err := strconv.ParseFloat(e.Get("Idle-CPU"), 64); err == nil && idle >= 0 && idle <= 100 {
		f.status.IdleCPU = idle
	}
}

func number(s string) int {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0
	}
	return int(n)
}

// contactURI returns a contact in the form in which contacts are compared: the URI
// without display name and brackets, percent-decoded. The switch does not encode
// again what a contact already has encoded (`fs_path=sip%3A...` of a phone behind
// NAT), so an event shows it decoded and a snapshot does not.
func contactURI(contact string) string {
	uri := bareURI(contact)
	if strings.IndexByte(uri, '%') < 0 {
		return uri
	}
	const hex = "0123456789ABCDEF"
	b := make([]byte, 0, len(uri))
	for i := 0; i < len(uri); i++ {
		c := uri[i]
		if c == '%' && i+2 < len(uri) {
			if n, err := strconv.ParseUint(uri[i+1:i+3], 16, 8); err == nil {
				c = byte(n)
				i += 2
			}
		}
		if c < ' ' || c == 0x7f { // a record holds no control characters
			b = append(b, '%', hex[c>>4], hex[c&15])
			continue
		}
		b = append(b, c)
	}
	return string(b)
}

// bareURI takes the display name and the angle brackets off a contact.
func bareURI(contact string) string {
	if _, rest, ok := strings.Cut(contact, "<"); ok {
		uri, _, _ := strings.Cut(rest, ">")
		return strings.TrimSpace(uri)
	}
	return strings.TrimSpace(contact)
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
	for len(s) > pbxmesh.MaxUserAgentLen {
		_, size := utf8.DecodeLastRuneInString(s[:pbxmesh.MaxUserAgentLen+1])
		s = s[:pbxmesh.MaxUserAgentLen+1-size]
	}
	return s
}

// validEpoch bounds what may become an epoch, which is part of stored records.
func validEpoch(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}
