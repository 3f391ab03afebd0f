package dnsserver

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/miekg/dns"
)

// TestWriteCorpus writes the seeds of FuzzRespond when WRITE_CORPUS is set, and
// otherwise checks that they are there.
func TestWriteCorpus(t *testing.T) {
	q := func(name string, qtype uint16, change func(*dns.Msg)) []byte {
		m := &dns.Msg{}
		m.SetQuestion(name, qtype)
		m.Id = 0x4242
		if change != nil {
			change(m)
		}
		p, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	header := []byte{0x42, 0x42, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	seeds := map[string][]byte{
		"a":               q("pbx.example.com.", dns.TypeA, nil),
		"srv":             q("_sip._udp.tenant.pbx.example.com.", dns.TypeSRV, withEDNS(nil)),
		"naptr":           q("pbx.example.com.", dns.TypeNAPTR, withEDNS(nil)),
		"host":            q("node-001.pbx.example.com.", dns.TypeA, nil),
		"host-65535":      q("node-001.pbx.example.com.", dns.TypeA, func(m *dns.Msg) { m.SetEdns0(65535, false) }),
		"ns":              q("pbx.example.com.", dns.TypeNS, withEDNS(nil)),
		"any":             q("pbx.example.com.", dns.TypeANY, nil),
		"axfr":            q("pbx.example.com.", dns.TypeAXFR, nil),
		"nxdomain":        q("x.losangeles.pbx.example.com.", dns.TypeA, nil),
		"root":            q(".", dns.TypeNS, nil),
		"subnet":          q("pbx.example.com.", dns.TypeA, subnet(1, "198.51.100.0", 24, 0)),
		"subnet6":         q("pbx.example.com.", dns.TypeAAAA, subnet(2, "2001:db8:100::", 56, 0)),
		"subnet-short":    rawSubnet(0, 1, 24, 0, 198, 51),
		"subnet-bits":     rawSubnet(0, 1, 20, 0, 198, 51, 100),
		"badvers":         q("pbx.example.com.", dns.TypeA, withEDNS(func(o *dns.OPT) { o.SetVersion(3) })),
		"chaos":           q("version.bind.", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"opcode":          q("pbx.example.com.", dns.TypeA, func(m *dns.Msg) { m.Opcode = 15 }),
		"no-question":     q("pbx.example.com.", dns.TypeA, func(m *dns.Msg) { m.Question = nil }),
		"header":          header,
		"self-pointer":    append(header[:12:12], 0xc0, 12, 0, 1, 0, 1),
		"many-announced":  append([]byte{0x42, 0x42, 1, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, q(".", dns.TypeA, nil)[12:]...),
		"response":        append([]byte{0x42, 0x42, 0x80}, q("pbx.example.com.", dns.TypeA, nil)[3:]...),
		"escaped-label":   q(`\000\.\255.pbx.example.com.`, dns.TypeA, nil),
		"service-like":    q("_sip._udp._sip._udp.pbx.example.com.", dns.TypeSRV, nil),
		"service-only":    q("_sip._udp.", dns.TypeSRV, nil),
		"service-foreign": q("_sip._udp.example.", dns.TypeSRV, nil),
	}
	dir := filepath.Join("testdata", "fuzz", "FuzzRespond")
	for name, packet := range seeds {
		path := filepath.Join(dir, name)
		if os.Getenv("WRITE_CORPUS") != "" {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, fmt.Appendf(nil, "go test fuzz v1\n[]byte(%q)\nbool(true)\n", packet), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("seed %s is missing; run WRITE_CORPUS=1 go test -run TestWriteCorpus", name)
		}
	}
}
