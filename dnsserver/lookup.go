package dnsserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"pbxmesh"
)

// transport is one way to reach a node's switch, with its SRV and NAPTR names:
// RFC 3263 section 4.1, and RFC 7118 section 10 for WebSocket.
type transport struct {
	name    string // in ZoneOptions.Transports
	label   string // SRV label below the service name
	service string // NAPTR service field
	port    func(pbxmesh.SIPPorts) uint16
}

// transports are in the order in which NAPTR prefers them unless ZoneOptions.Transports says otherwise: UDP first because every
// phone has it, TLS after TCP because a phone that was not given the certificate
// authority fails there without a second try.
var transports = []transport{
	{"udp", "_sip._udp.", "SIP+D2U", func(p pbxmesh.SIPPorts) uint16 { return p.UDP }},
	{"tcp", "_sip._tcp.", "SIP+D2T", func(p pbxmesh.SIPPorts) uint16 { return p.TCP }},
	{"tls", "_sips._tcp.", "SIPS+D2T", func(p pbxmesh.SIPPorts) uint16 { return p.TLS }},
	{"wss", "_sips._ws.", "SIPS+D2W", func(p pbxmesh.SIPPorts) uint16 { return p.WSS }},
	{"ws", "_sip._ws.", "SIP+D2W", func(p pbxmesh.SIPPorts) uint16 { return p.WS }},
}

// preferred returns the transports with the named ones first.
func preferred(names []string) ([]*transport, error) {
	var out []*transport
	for _, name := range names {
		i := slices.IndexFunc(transports, func(t transport) bool { return t.name == name })
		if i < 0 || slices.Contains(out, &transports[i]) {
			return nil, fmt.Errorf("dnsserver: transport %.40q is unknown or named twice", name)
		}
		out = append(out, &transports[i])
	}
	for i := range transports {
		if !slices.Contains(out, &transports[i]) {
			out = append(out, &transports[i])
		}
	}
	return out, nil
}

// found is what stands at a queried name.
type found struct {
	exists    bool
	service   bool
	srv       *transport   // the name of an SRV record set
	addresses []netip.Addr // of a host
	nsHost    bool         // the host is a name server, not a node
	apex      *apex        // the name is an apex
	static    rrsets       // from the zone file
	aside     bool         // there is nothing but records of the zone file, and no address among them
}

// empty reports whether nothing stands at the name itself: it is not there, or an
// empty non-terminal.
func (f *found) empty() bool {
	return !f.service && f.srv == nil && f.apex == nil && len(f.addresses) == 0 && len(f.static) == 0
}

// lookup finds name (canonical, within the zone a) in v.
//
// A wildcard's tenants count as existing names: "_sip._udp.tenant.<zone>" holds
// an SRV record set, "_udp.tenant.<zone>" is an empty non-terminal, and other
// names with an underscore do not exist. Records of the zone file at or below a
// tenant's name leave it a tenant's, unless they give it an address: who writes a TXT
// record does not mean to take a phone's server away. Apart from that RFC 4592 holds,
// for wildcards of the zone file too: a name that exists, and everything below it, is
// not covered by the wildcard above.
func (z *Zone) lookup(v *view, a *apex, name string) found {
	f := z.exact(v, a, name)
	switch {
	case f.aside && name[0] != '_' && name[0] != '*':
		f.service = z.covering(v, a, name).service
		return f
	case f.exists || name == a.name:
		return f
	}
	return z.covering(v, a, name)
}

// covering finds what a wildcard makes of name.
func (z *Zone) covering(v *view, a *apex, name string) found {
	// The closest encloser decides (RFC 4592 section 3.3.1).
	for up := parent(name); ; up = parent(up) {
		wildcard := "*." + up
		static := v.static.names[wildcard]
		switch {
		case z.names[wildcard].service:
			if underscored(name[:len(name)-len(up)]) {
				return found{}
			}
			return found{exists: true, service: true, static: static}
		case static != nil:
			return found{exists: true, static: static}
		}
		if up == a.name || up == "." || z.exact(v, a, up).exists {
			return found{}
		}
	}
}

// exact finds what stands at name itself, no wildcard helping.
func (z *Zone) exact(v *view, a *apex, name string) found {
	f := z.lookupHost(v, a, name)
	if name[0] == '_' {
		if s := z.lookupService(v, a, name); s.exists {
			f.exists, f.srv = true, s.srv
		}
	}
	return f
}

// lookupHost finds configured names, those of the zone file, and nodes. What an
// operator wrote wins over a node of that name: what is announced in the registry must
// not take over a name server or a web site. An empty non-terminal hides no node.
func (z *Zone) lookupHost(v *view, a *apex, name string) found {
	var f found
	if e, ok := z.names[name]; ok {
		f = found{exists: true, service: e.service, addresses: e.addresses, nsHost: e.host, apex: e.apex}
	}
	if s, ok := v.static.names[name]; ok {
		f.aside = !f.exists && !s.takesAddress()
		f.exists, f.static = true, s
	}
	if f.service || f.nsHost || f.static.takesAddress() || a.name != z.origin || parent(name) != z.origin {
		return f
	}
	id := pbxmesh.NodeID(name[:len(name)-len(z.origin)-1])
	if n, ok := v.mesh.Node(id); ok {
		f.exists, f.aside, f.addresses = true, false, n.Addresses
	} else if r, ok := v.retired[id]; ok {
		f.exists, f.aside, f.addresses = true, false, r.addresses
	}
	return f
}

// lookupService finds the names below a service name.
func (z *Zone) lookupService(v *view, a *apex, name string) found {
	for i := range transports {
		t := &transports[i]
		base, isSRV := strings.CutPrefix(name, t.label)
		if !isSRV {
			// "_udp." of "_sip._udp.": the empty non-terminal in between.
			var ok bool
			if base, ok = strings.CutPrefix(name, parent(t.label)); !ok {
				continue
			}
		}
		if len(base) < len(a.name) || base == "" || base[0] == '_' || !z.lookup(v, a, base).service {
			continue
		}
		if isSRV {
			return found{exists: true, srv: t}
		}
		return found{exists: true}
	}
	return found{}
}

// underscored reports whether one of the labels begins with an underscore.
func underscored(labels string) bool {
	for off, end := 0, false; !end && off < len(labels); off, end = dns.NextLabel(labels, off) {
		if labels[off] == '_' {
			return true
		}
	}
	return false
}
