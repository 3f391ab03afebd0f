package dnsserver

import (
	"testing"

	"github.com/miekg/dns"

	"pbxmesh/fixtures"
)

func BenchmarkAnswer(b *testing.B) {
	for name, q := range map[string]dns.Question{
		"A":     {Name: "tenant.pbx.example.com.", Qtype: dns.TypeA, Qclass: dns.ClassINET},
		"SRV":   {Name: "_sip._udp.tenant.pbx.example.com.", Qtype: dns.TypeSRV, Qclass: dns.ClassINET},
		"NAPTR": {Name: "pbx.example.com.", Qtype: dns.TypeNAPTR, Qclass: dns.ClassINET},
	} {
		b.Run(name, func(b *testing.B) {
			z, _ := newTestZone(b, fixtures.ThreeTowns(nil))
			req := &dns.Msg{Question: []dns.Question{q}}
			req.SetEdns0(1232, false)
			b.ReportAllocs()
			for b.Loop() {
				if m := z.Answer(req, defaultClient); len(m.Answer) == 0 {
					b.Fatal(m)
				}
			}
		})
	}
}

// BenchmarkRespond is the whole packet path without the sockets.
func BenchmarkRespond(b *testing.B) {
	z, _ := newTestZone(b, fixtures.ThreeTowns(nil))
	req := new(dns.Msg)
	req.SetQuestion("_sip._udp.tenant.pbx.example.com.", dns.TypeSRV)
	req.SetEdns0(1232, false)
	packet, err := req.Pack()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if z.Respond(packet, defaultClient, true) == nil {
			b.Fatal("no answer")
		}
	}
}
