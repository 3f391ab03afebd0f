package dnsserver

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/fixtures"
)

// bigMesh has nodes with so many addresses that answers do not fit.
func bigMesh(nodes, addresses int) *pbxmesh.Mesh {
	m := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
	for i := range nodes {
		n := pbxmesh.Node{ID: pbxmesh.NodeID(fmt.Sprintf("node-%03d", i)), Ports: pbxmesh.SIPPorts{UDP: 5060, TCP: 5060, TLS: 5061}}
		for j := range addresses {
			n.Addresses = append(n.Addresses, netip.AddrFrom4([4]byte{10, byte(i), byte(j >> 8), byte(j)}))
		}
		m.Nodes[n.ID] = n
		m.States[n.ID] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
	}
	return m
}

func TestTruncation(t *testing.T) {
	t.Parallel()
	mesh := bigMesh(3, 40)
	huge := mesh.Nodes["node-001"]
	for i := range 120 { // does not fit into 1232 bytes
		huge.Addresses = append(huge.Addresses, netip.AddrFrom4([4]byte{10, 9, 9, byte(i)}))
	}
	mesh.Nodes["node-001"] = huge
	small := mesh.Nodes["node-002"]
	small.Addresses = small.Addresses[:10] // fits into 512 bytes, not into 100
	mesh.Nodes["node-002"] = small
	z, _ := newTestZone(t, mesh)
	for _, tt := range []struct {
		name  string
		qname string
		qtype uint16
		size  uint16 // announced; 0 is without EDNS
		udp   bool
		limit int
		tc    bool
		extra bool // additional records besides OPT
	}{
		{"host, no EDNS", "node-000.pbx.example.com.", dns.TypeA, 0, true, 512, true, false},
		{"host, small EDNS counts as 512", "node-000.pbx.example.com.", dns.TypeA, 100, true, 512, true, false},
		{"host, 1232 is enough", "node-000.pbx.example.com.", dns.TypeA, 1232, true, 1232, false, false},
		{"host, 4096 is taken as 1232", "node-000.pbx.example.com.", dns.TypeA, 4096, true, 1232, false, false},
		{"small host, small EDNS counts as 512", "node-002.pbx.example.com.", dns.TypeA, 100, true, 512, false, false},
		{"huge host, 65535 is taken as 1232", "node-001.pbx.example.com.", dns.TypeA, 65535, true, 1232, true, false},
		{"huge host over TCP", "node-001.pbx.example.com.", dns.TypeA, 0, false, 65535, false, false},
		{"SRV drops additional records without TC", "_sip._udp.pbx.example.com.", dns.TypeSRV, 1232, true, 1232, false, false},
		{"SRV over TCP has all", "_sip._udp.pbx.example.com.", dns.TypeSRV, 0, false, 65535, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req := new(dns.Msg)
			req.SetQuestion(tt.qname, tt.qtype)
			if tt.size > 0 {
				req.SetEdns0(tt.size, false)
			}
			packet, _ := req.Pack()
			out := z.Respond(packet, defaultClient, tt.udp)
			m := new(dns.Msg)
			if err := m.Unpack(out); err != nil {
				t.Fatal(err)
			}
			if len(out) > tt.limit {
				t.Errorf("%d bytes, at most %d are allowed", len(out), tt.limit)
			}
			if m.Truncated != tt.tc || (len(m.Answer) == 0) != tt.tc {
				t.Errorf("TC %v with %d answers", m.Truncated, len(m.Answer))
			}
			if (m.IsEdns0() != nil) != (tt.size > 0) {
				t.Errorf("OPT %v", m.IsEdns0())
			}
			if extra := brief(m.Extra) != ""; extra != tt.extra {
				t.Errorf("additional records: %v", extra)
			}
		})
	}
	if z.Stats().Truncated != 3 {
		t.Errorf("%d counted as truncated, want 3", z.Stats().Truncated)
	}
}

func TestBadPackets(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	good := new(dns.Msg)
	good.SetQuestion("pbx.example.com.", dns.TypeA)
	good.Id = 0x1234
	packet, _ := good.Pack()
	response := append([]byte(nil), packet...)
	response[2] |= 0x80
	cut := packet[:len(packet)-3]
	update := append([]byte(nil), cut...)
	update[2] = 5 << 3
	for _, tt := range []struct {
		name   string
		packet []byte
		rcode  int // -1 is no answer
	}{
		{"nothing", nil, -1},
		{"eleven bytes", packet[:11], -1},
		{"a response", response, -1},
		{"header only, one question announced", packet[:12], dns.RcodeFormatError},
		{"cut in the question", cut, dns.RcodeFormatError},
		{"an update that does not parse", update, dns.RcodeNotImplemented},
		{"a name that points at itself", append(append([]byte(nil), packet[:12]...), 0xc0, 12, 0, 1, 0, 1), dns.RcodeFormatError},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out := z.Respond(tt.packet, defaultClient, true)
			if tt.rcode < 0 {
				if out != nil {
					t.Fatalf("answered with %x", out)
				}
				return
			}
			m := new(dns.Msg)
			if err := m.Unpack(out); err != nil {
				t.Fatal(err)
			}
			if m.Rcode != tt.rcode || m.Id != 0x1234 || !m.Response || m.Opcode != int(tt.packet[2]>>3&0xf) || len(out) > len(tt.packet) {
				t.Errorf("%v", m)
			}
		})
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	ask(t, z, defaultClient, "pbx.example.com.", dns.TypeA)
	ask(t, z, defaultClient, "pbx.example.com.", dns.TypeA)
	ask(t, z, defaultClient, "pbx.example.com.", 4711)
	ask(t, z, defaultClient, "x.london.pbx.example.com.", dns.TypeSRV)
	ask(t, z, defaultClient, "pbx.example.com.", dns.TypeTXT, withEDNS(func(o *dns.OPT) { o.SetVersion(9) }))
	z.Respond([]byte{1}, defaultClient, true)
	s := z.Stats()
	if fmt.Sprint(s.Queries) != "map[A:2 SRV:1 TXT:1 other:1]" || fmt.Sprint(s.Responses) != "map[BADVERS:1 NOERROR:3 NXDOMAIN:1]" || s.Dropped != 1 {
		t.Errorf("%+v", s)
	}
}

// FuzzRespond asserts what must hold for any packet: no panic, an answer that
// parses, that is an answer to this packet, and that is not longer than allowed.
func FuzzRespond(f *testing.F) {
	zones := []*Zone{}
	for _, m := range []*pbxmesh.Mesh{fixtures.ThreeTowns(nil), bigMesh(5, 120), nil} {
		z, _ := newTestZone(f, m)
		zones = append(zones, z)
	}
	f.Fuzz(func(t *testing.T, packet []byte, udp bool) {
		for _, z := range zones {
			out := z.Respond(packet, defaultClient, udp)
			if len(packet) < headerSize || packet[2]&0x80 != 0 {
				if out != nil {
					t.Fatalf("answered %x", packet)
				}
				continue
			}
			if len(out) < headerSize || out[0] != packet[0] || out[1] != packet[1] || out[2]&0x80 == 0 || out[2]&0x78 != packet[2]&0x78 {
				t.Fatalf("header of %x in answer to %x", out, packet)
			}
			if out[3]&0x80 != 0 {
				t.Fatal("recursion is offered")
			}
			m, req := new(dns.Msg), new(dns.Msg)
			if err := m.Unpack(out); err != nil {
				t.Fatalf("answer %x does not parse: %v", out, err)
			}
			parses := req.Unpack(packet) == nil
			limit := dns.MaxMsgSize
			if udp {
				limit = dns.MinMsgSize
				if opt := req.IsEdns0(); parses && opt != nil {
					limit = min(max(limit, int(opt.UDPSize())), MaxUDPSize)
				}
			}
			if len(out) > limit {
				t.Fatalf("%d bytes in answer to %d, at most %d are allowed", len(out), len(packet), limit)
			}
			if !parses && len(out) > len(packet) {
				t.Fatalf("%d bytes in answer to %d of garbage", len(out), len(packet))
			}
			if m.Rcode == dns.RcodeSuccess && !m.Authoritative {
				t.Fatalf("NOERROR without AA: %v", m)
			}
			if (m.IsEdns0() != nil) && req.IsEdns0() == nil {
				t.Fatal("OPT in answer to a query without")
			}
		}
		if crashes := zones[0].Stats().Crashes; crashes != 0 {
			t.Fatal(crashes)
		}
	})
}
