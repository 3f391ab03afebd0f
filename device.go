package pbxmesh

import (
	"net/netip"
	"strings"
	"time"
)

// maxAhead bounds how far in the future a Stamp may lie until it counts as unknown: a
// clock that is set wrong, or a forged record, must not win for ever.
const maxAhead = 24 * time.Hour

// Stamp orders the registrations of one device on several nodes: Unix milliseconds of
// when the registration began at its node, pushed on where the node knew of a later one
// (a Lamport clock), so that clocks which differ do not order wrongly. It is compared
// with other stamps and never shown as the time of day.
type Stamp int64

// The stamps without a time. StampUnknown is a record of a daemon that writes none: it
// claims nothing, so it neither stands in for another registration nor gives way to one.
// StampFound is a registration that was found in the switch's table and never heard of:
// it is older than every one that was heard.
const (
	StampUnknown Stamp = 0
	StampFound   Stamp = 1
)

// StampOf returns the stamp of t, at least one later than StampFound.
func StampOf(t time.Time) Stamp { return max(Stamp(t.UnixMilli()), StampFound+1) }

// Known reports whether s orders anything at now.
func (s Stamp) Known(now time.Time) bool {
	return s > StampUnknown && int64(s) <= now.Add(maxAhead).UnixMilli()
}

// SameDevice reports whether two registrations, on two nodes, are surely one phone. It is
// the one place that says so. Whatever is not sure is two devices, because a second phone
// that never rings is worse than one that rings twice.
//
// FreeSWITCH's events and lists carry no parameter of the Contact header field, so the
// +sip.instance of RFC 5626 is not there. What is there decides in this order:
//
//  1. The address of record differs: two.
//  2. Both contact URIs name their instance: gr= (RFC 5627), +sip.instance, or a host
//     under .invalid as browsers write it (RFC 7118 section 5): equal is one device,
//     wherever it is, different is two.
//  3. Both name their software and not the same one: two. (A phone that was updated has
//     restarted, and counts twice until its former registration ends.)
//  4. The Call-ID is the same: one device. One user agent uses one Call-ID for its
//     registrations (RFC 3261 section 10.2), also when its address changed under it.
//  5. The contact URI carries the same random rinstance: one device.
//  6. The same contact (user, host and port, without what the switch adds) seen from the
//     same address: one device. The port that it was seen from may differ: a NAT chooses
//     one for each destination.
//  7. Over TCP, TLS and WebSocket the contact's port is that of one connection. There,
//     the same user and host of the contact, the same named software and the same source
//     address are one device, where they tell two phones behind one NAT apart: the
//     contact's host is an address of the phone's own network, or its user is a token and
//     not the name of the account.
//
// The doubts that stay: phones of one make behind one NAT whose router writes its own
// address into their contacts are two by their ports; over TCP they are never joined. A
// phone that restarts on another port over UDP, or that comes with another Call-ID from
// another network, is two until its former registration ends. Two phones that use
// one Call-ID, against RFC 3261, and one make are one.
func SameDevice(a, b *Registration) bool {
	if a.AOR != b.AOR {
		return false
	}
	ca, cb := splitContact(a.Contact), splitContact(b.Contact)
	ia, ib := ca.instance(), cb.instance()
	switch {
	case ia != "" && ib != "":
		return ia == ib && (!ca.unnamed() || ca.user == cb.user)
	case a.UserAgent != b.UserAgent && a.UserAgent != "" && b.UserAgent != "":
		return false
	case a.CallID == b.CallID && a.CallID != "":
		return true
	case ca.param("rinstance") != "" && ca.param("rinstance") == cb.param("rinstance"):
		return true
	case ca.host == "" || ca.user != cb.user || !strings.EqualFold(ca.host, cb.host) || ca.unnamed():
		return false
	case !a.Source.IsValid() || a.Source.Addr() != b.Source.Addr():
		return false
	case ca.port == cb.port:
		return true
	}
	return ca.connected(a.Transport) && cb.connected(b.Transport) && a.UserAgent == b.UserAgent &&
		a.UserAgent != "" && a.UserAgent != noAgent && ca.tellsApart(a.AOR, a.Source.Addr())
}

// Superseded returns the registration that stands in for r, nil when r itself counts:
// the newest one of the same device (SameDevice) on another node, one whose node takes calls
// before one that does not. all are the registrations of r's address of record, expired
// ones included; local is the node that asks, whose switch is there whatever others see,
// "" for none.
//
// Exactly one of a device's registrations counts. It costs a comparison for each one of
// another node and does not allocate.
func Superseded(r *Registration, all []*Registration, mesh *Mesh, local NodeID, now time.Time) *Registration {
	if r.Since == StampUnknown || len(all) == 0 || len(all) == 1 && all[0] == r {
		return nil
	}
	best, rank := r, mesh.rank(r.Node, local)
	for _, o := range all {
		if o == nil || o.Node == r.Node || o.AOR != r.AOR || !o.Live(now) || !o.Since.Known(now) {
			continue
		}
		t := mesh.rank(o.Node, local)
		if better := t > rank || t == rank && o.newer(best, now); better && SameDevice(r, o) {
			best, rank = o, t
		}
	}
	if best == r {
		return nil
	}
	return best
}

// newer orders the registrations of one device. No two of different nodes are equal.
func (r *Registration) newer(o *Registration, now time.Time) bool {
	switch a, b := r.Since, o.Since; {
	case !b.Known(now):
		return true // o's clock is far ahead
	case a != b:
		return a > b
	case !r.Expires.Equal(o.Expires):
		return r.Expires.After(o.Expires)
	}
	return r.Node > o.Node
}

// rank orders nodes by what becomes of a call to a phone there: 2 it is tried, 1 it is tried
// although the node is down for phones, 0 it is not tried or cannot get there.
func (m *Mesh) rank(id, local NodeID) int {
	if id == local {
		return 2
	}
	n, ok := m.Node(id)
	switch s := m.State(id); {
	case !ok || !n.Mesh.IsValid() || n.Mesh.Port() == 0 || !s.TakesCalls():
		return 0
	case s.Observed == ObservedDown:
		return 1
	}
	return 2
}

// contactParts is a contact URI taken apart. It reads what a switch made of what a phone
// sent, so anything is allowed to be missing.
type contactParts struct {
	user, host, port string
	params           string // ";a=b;c", those that the switch adds included
}

func splitContact(uri string) (c contactParts) {
	if i := strings.IndexByte(uri, ':'); i >= 0 && i <= len("sips") {
		uri = uri[i+1:]
	}
	uri, c.params = cutParams(uri)
	if i := strings.LastIndexByte(uri, '@'); i >= 0 {
		c.user, uri = uri[:i], uri[i+1:]
	}
	c.host = uri
	if i := strings.LastIndexByte(uri, ':'); i >= 0 && i > strings.IndexByte(uri, ']') {
		c.host, c.port = uri[:i], uri[i+1:]
	}
	if c.host = strings.Trim(c.host, "[]"); c.port == "" {
		c.port = "5060" // RFC 3261 section 19.1.2
	}
	return c
}

// cutParams splits at the first ';' of the host part: a user part may hold one.
func cutParams(uri string) (rest, params string) {
	from := max(strings.IndexByte(uri, '@'), 0)
	if i := strings.IndexByte(uri[from:], ';'); i >= 0 {
		return uri[:from+i], uri[from+i:]
	}
	return uri, ""
}

// param returns the value of a parameter, "" without one. What follows fs_path is another
// URI, of the switch's making.
func (c *contactParts) param(name string) string {
	for rest := c.params; len(rest) > 1; {
		p := rest[1:]
		if i := strings.IndexByte(p, ';'); i >= 0 {
			p, rest = p[:i], p[i:]
		} else {
			rest = ""
		}
		key, value, _ := strings.Cut(p, "=")
		switch {
		case strings.EqualFold(key, "fs_path"):
			return ""
		case strings.EqualFold(key, name):
			return value
		}
	}
	return ""
}

// What stands where a name is expected and names nobody: sharedInvalid is a host that one
// library writes for all of its phones, noAgent FreeSWITCH's word for a phone that does not
// say what it is.
const (
	sharedInvalid = "df7jal23ls0d.invalid"
	noAgent       = "unknown"
)

// instance returns what names one phone among all others, "" when nothing does.
func (c *contactParts) instance() string {
	for _, name := range [...]string{"+sip.instance", "gr"} {
		if v := strings.Trim(c.param(name), `"<>`); v != "" {
			return v
		}
	}
	if c.unnamed() && !strings.EqualFold(c.host, sharedInvalid) {
		return c.host
	}
	return ""
}

// unnamed reports a host that is nobody's: ".invalid" (RFC 2606 section 2).
func (c *contactParts) unnamed() bool {
	const suffix = ".invalid"
	return len(c.host) > len(suffix) && strings.EqualFold(c.host[len(c.host)-len(suffix):], suffix)
}

// connected reports a transport whose port belongs to one connection.
func (c *contactParts) connected(transport string) bool {
	if transport == "" || transport == "udp" { // the switch may not tell a WebSocket from UDP
		if t := c.param("transport"); t != "" {
			transport = t
		}
	}
	for _, t := range [...]string{"tcp", "tls", "ws", "wss"} {
		if strings.EqualFold(transport, t) {
			return true
		}
	}
	return false
}

// tellsApart reports whether user and host of the contact differ between two phones of
// one account that are seen from one address.
func (c *contactParts) tellsApart(aor AOR, source netip.Addr) bool {
	if !strings.EqualFold(c.user, aor.User()) {
		return true
	}
	host, err := netip.ParseAddr(c.host)
	if err != nil {
		return false // a name may be anybody's
	}
	// An address that the switch sees as the phone writes it has no NAT before it, unless
	// it is a public one, which a router may have written.
	return host != source || host.IsPrivate() || host.IsLoopback() || host.IsLinkLocalUnicast()
}
