package dnsserver

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"pbxmesh/fixtures"
)

func withEDNS(f func(*dns.OPT)) func(*dns.Msg) {
	return func(m *dns.Msg) {
		m.SetEdns0(1232, false)
		if f != nil {
			f(m.IsEdns0())
		}
	}
}

func subnet(family uint16, addr string, source, scope uint8) func(*dns.Msg) {
	return withEDNS(func(o *dns.OPT) {
		o.Option = append(o.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: family, SourceNetmask: source, SourceScope: scope, Address: net.ParseIP(addr)})
	})
}

func TestEDNS(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	const name = "pbx.example.com."
	for _, tt := range []struct {
		name    string
		change  func(*dns.Msg)
		rcode   int
		noOPT   bool
		options int
		do      bool
	}{
		{name: "without OPT", change: func(*dns.Msg) {}, noOPT: true},
		{name: "plain", change: withEDNS(nil)},
		{name: "DO is copied", change: withEDNS(func(o *dns.OPT) { o.SetDo() }), do: true},
		{name: "unknown flags are not", change: withEDNS(func(o *dns.OPT) { o.SetZ(0x7ff) })},
		{name: "unknown option", change: withEDNS(func(o *dns.OPT) { o.Option = append(o.Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}}) })},
		{name: "cookie", change: withEDNS(func(o *dns.OPT) {
			o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		})},
		{name: "NSID", change: withEDNS(func(o *dns.OPT) { o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID}) }), options: 1},
		{name: "version 1", change: withEDNS(func(o *dns.OPT) { o.SetVersion(1) }), rcode: dns.RcodeBadVers},
		{name: "version 1 with NSID", change: withEDNS(func(o *dns.OPT) {
			o.SetVersion(1)
			o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		}), rcode: dns.RcodeBadVers},
		{name: "two OPT", change: func(m *dns.Msg) { m.SetEdns0(1232, false); m.SetEdns0(1232, false) }, rcode: dns.RcodeFormatError},
		{name: "OPT not at the root", change: withEDNS(func(o *dns.OPT) { o.Hdr.Name = "x." }), rcode: dns.RcodeFormatError, noOPT: true},
		{name: "opcode NOTIFY", change: func(m *dns.Msg) { withEDNS(nil)(m); m.Opcode = dns.OpcodeNotify }, rcode: dns.RcodeNotImplemented},
		{name: "opcode 15", change: func(m *dns.Msg) { withEDNS(nil)(m); m.Opcode = 15 }, rcode: dns.RcodeNotImplemented},
		{name: "no question", change: func(m *dns.Msg) { withEDNS(nil)(m); m.Question = nil }, rcode: dns.RcodeFormatError},
		{name: "two questions", change: func(m *dns.Msg) { withEDNS(nil)(m); m.Question = append(m.Question, m.Question[0]) }, rcode: dns.RcodeFormatError},
		{name: "TC in a query", change: func(m *dns.Msg) { withEDNS(nil)(m); m.Truncated = true }, rcode: dns.RcodeFormatError},
		{name: "class CH", change: func(m *dns.Msg) { withEDNS(nil)(m); m.Question[0].Qclass = dns.ClassCHAOS }, rcode: dns.RcodeRefused},
		{name: "class ANY", change: func(m *dns.Msg) { withEDNS(nil)(m); m.Question[0].Qclass = dns.ClassANY }, rcode: dns.RcodeRefused},
		{name: "unknown header bits", change: func(m *dns.Msg) { withEDNS(nil)(m); m.Zero, m.AuthenticatedData, m.RecursionDesired = true, true, true }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := ask(t, z, defaultClient, name, dns.TypeA, tt.change)
			if m.Rcode != tt.rcode {
				t.Fatalf("code %d, want %d", m.Rcode, tt.rcode)
			}
			if (len(m.Answer) == 1) != (tt.rcode == 0) || m.Zero {
				t.Errorf("answer %v", m)
			}
			opt := m.IsEdns0()
			if (opt == nil) != tt.noOPT {
				t.Fatalf("OPT %v, without: %v", opt, tt.noOPT)
			}
			if opt == nil {
				return
			}
			if opt.Version() != 0 || opt.UDPSize() != MaxUDPSize || opt.Do() != tt.do || opt.Z() != 0 || len(opt.Option) != tt.options {
				t.Errorf("OPT %v", opt)
			}
		})
	}
}

func TestClientSubnet(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	for _, tt := range []struct {
		name   string
		change func(*dns.Msg)
		qname  string
		qtype  uint16
		rcode  int
		first  string // the first answer's data; "" is none
		scope  uint8
	}{
		{name: "a listed network", change: subnet(1, "198.51.100.0", 24, 0), first: "192.0.2.2", scope: 24},
		{name: "a wide source in a listed network", change: subnet(1, "198.51.0.0", 16, 0), first: "192.0.2.1", scope: 18},
		{name: "longer than the network", change: subnet(1, "198.51.100.77", 32, 0), first: "192.0.2.2", scope: 24},
		{name: "the outer of two networks", change: subnet(1, "203.0.113.0", 25, 0), first: "192.0.2.3", scope: 25},
		{name: "the inner of two networks", change: subnet(1, "203.0.113.128", 32, 0), first: "192.0.2.2", scope: 25},
		{name: "scope longer than the source", change: subnet(1, "203.0.113.0", 24, 0), first: "192.0.2.3", scope: 25},
		{name: "IPv6", change: subnet(2, "2001:db8:100::", 56, 0), first: "192.0.2.3", scope: 40},
		{name: "nobody's network", change: subnet(1, "8.8.8.0", 24, 0), first: "192.0.2.1", scope: 1},
		{name: "SRV", change: subnet(1, "198.51.100.0", 24, 0), qname: "_sip._udp.pbx.example.com.", qtype: dns.TypeSRV, first: "10 0 5062 london.pbx.example.com.", scope: 24},
		{name: "NAPTR", change: subnet(1, "198.51.100.0", 24, 0), qtype: dns.TypeNAPTR, first: `10 10 "s" "SIP+D2U" "" _sip._udp.pbx.example.com.`, scope: 24},
		{name: "a family that the best node lacks", change: subnet(1, "198.51.100.0", 24, 0), qtype: dns.TypeAAAA, first: "2001:db8::1", scope: 24},
		{name: "NXDOMAIN", change: subnet(1, "198.51.100.0", 24, 0), qname: "x.london.pbx.example.com.", rcode: dns.RcodeNameError},
		{name: "SOA", change: subnet(1, "198.51.100.0", 24, 0), qtype: dns.TypeSOA, first: "losangeles.pbx.example.com. hostmaster.pbx.example.com. 1 3600 600 604800 10"},
		{name: "NS", change: subnet(1, "198.51.100.0", 24, 0), qtype: dns.TypeNS, first: "losangeles.pbx.example.com."},
		{name: "a host", change: subnet(1, "198.51.100.0", 24, 0), qname: "london.pbx.example.com.", first: "192.0.2.2"},
		{name: "source length 0", change: subnet(1, "0.0.0.0", 0, 0), first: "192.0.2.1"},
		{name: "IPv6 source length 0", change: subnet(2, "::", 0, 0), first: "192.0.2.1"},
		{name: "family 0, length 0", change: subnet(0, "0.0.0.0", 0, 0), first: "192.0.2.1"},
		{name: "scope in a query", change: subnet(1, "198.51.100.0", 24, 24), rcode: dns.RcodeFormatError},
		{name: "two options", change: func(m *dns.Msg) {
			subnet(1, "198.51.100.0", 24, 0)(m)
			o := m.IsEdns0()
			o.Option = append(o.Option, o.Option[0])
		}, rcode: dns.RcodeFormatError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			qname, qtype := tt.qname, tt.qtype
			if qname == "" {
				qname = "pbx.example.com."
			}
			if qtype == 0 {
				qtype = dns.TypeA
			}
			// The resolver stands in a listed network of its own, which must not count.
			m := ask(t, z, netip.MustParseAddr("203.0.113.200"), qname, qtype, tt.change)
			if m.Rcode != tt.rcode {
				t.Fatalf("code %s", dns.RcodeToString[m.Rcode])
			}
			first := ""
			if len(m.Answer) > 0 {
				first = m.Answer[0].String()[len(m.Answer[0].Header().String()):]
			}
			if first != tt.first {
				t.Errorf("answer %q, want %q", first, tt.first)
			}
			req := new(dns.Msg)
			tt.change(req)
			options := m.IsEdns0().Option
			if tt.rcode == dns.RcodeFormatError {
				if len(options) != 0 {
					t.Errorf("options %v in FORMERR", options)
				}
				return
			}
			if len(options) != 1 {
				t.Fatalf("options %v, want one", options)
			}
			asked, got := req.IsEdns0().Option[0].(*dns.EDNS0_SUBNET), options[0].(*dns.EDNS0_SUBNET)
			if got.Family != asked.Family || got.SourceNetmask != asked.SourceNetmask || !got.Address.Equal(asked.Address) || got.SourceScope != tt.scope {
				t.Errorf("echo %v, asked %v, want scope %d", got, asked, tt.scope)
			}
		})
	}
}

// rawSubnet is a query for the apex with the option's bytes as given.
func rawSubnet(option ...byte) []byte {
	m := new(dns.Msg)
	m.SetQuestion("pbx.example.com.", dns.TypeA)
	m.Id = 0x4242 // the fuzz corpus is made of these
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_LOCAL{Code: 65001, Data: option}}
	packet, err := m.Pack()
	if err != nil {
		panic(err)
	}
	binary.BigEndian.PutUint16(packet[len(packet)-len(option)-4:], dns.EDNS0SUBNET)
	return packet
}

func TestClientSubnetBytes(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	for _, tt := range []struct {
		name   string
		option []byte
		rcode  int
	}{
		{"right", []byte{0, 1, 24, 0, 198, 51, 100}, dns.RcodeSuccess},
		{"right, 20 bits", []byte{0, 1, 20, 0, 198, 51, 96}, dns.RcodeSuccess},
		{"empty", nil, dns.RcodeFormatError},
		{"three bytes", []byte{0, 1, 24}, dns.RcodeFormatError},
		{"address too short", []byte{0, 1, 24, 0, 198, 51}, dns.RcodeFormatError},
		{"address too long", []byte{0, 1, 24, 0, 198, 51, 100, 0}, dns.RcodeFormatError},
		{"no address", []byte{0, 1, 24, 0}, dns.RcodeFormatError},
		{"bits beyond the length", []byte{0, 1, 20, 0, 198, 51, 100}, dns.RcodeFormatError},
		{"length beyond the family", []byte{0, 1, 33, 0, 198, 51, 100, 7, 0}, dns.RcodeFormatError},
		{"IPv6 length beyond the family", append([]byte{0, 2, 129, 0}, make([]byte, 17)...), dns.RcodeFormatError},
		{"unknown family", []byte{0, 3, 8, 0, 1}, dns.RcodeFormatError},
		{"family 0 with a length", []byte{0, 0, 8, 0, 1}, dns.RcodeFormatError},
		{"length 0 with an address", []byte{0, 1, 0, 0, 1}, dns.RcodeFormatError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := new(dns.Msg)
			if err := m.Unpack(z.Respond(rawSubnet(tt.option...), defaultClient, true)); err != nil {
				t.Fatal(err)
			}
			if m.Rcode != tt.rcode || !m.Response {
				t.Errorf("code %s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[tt.rcode])
			}
		})
	}
}
