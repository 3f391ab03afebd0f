package dnsserver

import (
	"encoding/hex"
	"net/netip"

	"github.com/miekg/dns"
)

// edns is what a query's OPT record asks for (RFC 6891), and what the reply's will
// say.
type edns struct {
	present bool
	bad     bool // FORMERR
	version uint8
	do      bool
	co      bool // compact answers are understood (RFC 9824 section 5.1)
	compact bool // of the reply
	nsid    bool

	subnet *dns.EDNS0_SUBNET // the client subnet option (RFC 7871)
	client netip.Addr        // its address; invalid when it says "do not tailor"
	scope  int               // of the reply
	ede    uint16            // RFC 8914; 0 is none
}

func parseEDNS(req *dns.Msg) edns {
	var e edns
	for _, rr := range req.Extra {
		opt, ok := rr.(*dns.OPT)
		if !ok {
			continue
		}
		if e.present || opt.Hdr.Name != "." {
			e.bad = true // RFC 6891 section 6.1.1: one, at the root
			continue
		}
		e.present, e.version, e.do, e.co = true, opt.Version(), opt.Do(), opt.Co()
		if e.version != 0 {
			continue // options of versions to come may mean anything
		}
		for _, o := range opt.Option {
			switch o := o.(type) {
			case *dns.EDNS0_NSID:
				e.nsid = true
			case *dns.EDNS0_COOKIE:
				e.bad = e.bad || !cookieLength(len(o.Cookie)/2)
			case *dns.EDNS0_SUBNET:
				if e.subnet != nil {
					e.bad = true
				}
				e.subnet = o
				var ok bool
				if e.client, ok = subnetClient(o); !ok {
					e.bad = true
				}
			}
		}
	}
	return e
}

// subnetClient returns the address of a client subnet option; ok is false for the
// forms that RFC 7871 section 7.1.1 answers with FORMERR: an unknown family, a
// length beyond the family, bits beyond the length, a scope in a query. Whether
// the address had the right number of bytes cannot be seen in a parsed message:
// checkSubnet looks at the packet.
func subnetClient(o *dns.EDNS0_SUBNET) (client netip.Addr, ok bool) {
	if o.SourceScope != 0 {
		return netip.Addr{}, false
	}
	a, valid := netip.AddrFromSlice(o.Address)
	switch o.Family {
	case 0: // "dig +subnet=0" leaves the family out along with the address
		return netip.Addr{}, o.SourceNetmask == 0
	case 1:
		a = a.Unmap()
		valid = valid && a.Is4()
	case 2:
		valid = valid && a.Is6()
	default:
		return netip.Addr{}, false
	}
	if !valid {
		return netip.Addr{}, false
	}
	p, err := a.Prefix(int(o.SourceNetmask))
	if err != nil || p.Addr() != a {
		return netip.Addr{}, false
	}
	if o.SourceNetmask == 0 {
		return netip.Addr{}, true
	}
	return a, true
}

// reply puts the OPT record into m, when the query had one. Unknown options and
// flags are not repeated (RFC 6891 section 6.1.2, RFC 8906).
func (e *edns) reply(m *dns.Msg, nsid string) {
	if !e.present {
		return
	}
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}}
	opt.SetUDPSize(MaxUDPSize)
	if e.do {
		opt.SetDo() // RFC 3225 section 3: copied, signed or not
	}
	if e.compact {
		opt.SetCo()
	}
	if e.subnet != nil && !e.bad {
		opt.Option = append(opt.Option, &dns.EDNS0_SUBNET{
			Code:          dns.EDNS0SUBNET,
			Family:        e.subnet.Family,
			SourceNetmask: e.subnet.SourceNetmask,
			SourceScope:   uint8(e.replyScope()),
			Address:       e.subnet.Address,
		})
	}
	if e.nsid && nsid != "" {
		opt.Option = append(opt.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: hex.EncodeToString([]byte(nsid))})
	}
	if e.ede != 0 {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: e.ede})
	}
	m.Extra = append(m.Extra, opt)
}

// replyScope is 0 for answers that are the same for everybody and for clients that
// gave no subnet.
func (e *edns) replyScope() int {
	if !e.client.IsValid() || e.scope < 0 {
		return 0
	}
	return e.scope
}
