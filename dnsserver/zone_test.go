package dnsserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"go.uber.org/goleak"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
	"pbxmesh/fixtures"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	buffalo   = pbxmesh.NodeID("buffalo")
	london    = pbxmesh.NodeID("london")
	singapore = pbxmesh.NodeID("singapore")
)

// source is a Source that tests set.
type source struct{ mesh atomic.Pointer[pbxmesh.Mesh] }

func (s *source) Mesh() *pbxmesh.Mesh { return s.mesh.Load() }

func testPreferences(t testing.TB) *selection.Preferences {
	t.Helper()
	p, err := selection.NewPreferences([]selection.Network{
		{Prefix: netip.MustParsePrefix("198.51.100.0/24"), Nodes: []pbxmesh.NodeID{london, buffalo}},
		{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Nodes: []pbxmesh.NodeID{singapore}},
		{Prefix: netip.MustParsePrefix("203.0.113.128/25"), Nodes: []pbxmesh.NodeID{london}},
		{Prefix: netip.MustParsePrefix("2001:db8:100::/40"), Nodes: []pbxmesh.NodeID{singapore, london}},
	}, []pbxmesh.NodeID{buffalo, london})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func testZoneOptions(t testing.TB, s Source) ZoneOptions {
	return ZoneOptions{
		Origin:      "pbx.example.com",
		Names:       []string{"*.pbx.example.com", "sip.pbx.example.com", "a.deep.pbx.example.com"},
		TenantZones: []string{"phones.customer.example"},
		NameServers: []NameServer{
			{Name: "losangeles", Addresses: fixtures.Addresses("192.0.2.11", "2001:db8::11")},
			{Name: "jacksonville", Addresses: fixtures.Addresses("192.0.2.12")},
			{Name: "ns.elsewhere.example"},
		},
		NSID:        "losangeles",
		Preferences: testPreferences(t),
		Source:      s,
	}
}

func newTestZone(t testing.TB, mesh *pbxmesh.Mesh) (*Zone, *source) {
	t.Helper()
	s := &source{}
	s.mesh.Store(mesh)
	z, err := NewZone(testZoneOptions(t, s))
	if err != nil {
		t.Fatal(err)
	}
	return z, s
}

var defaultClient = netip.MustParseAddr("100.64.0.9")

// ask sends one question through the whole packet path over TCP (no size limit).
func ask(t testing.TB, z *Zone, client netip.Addr, name string, qtype uint16, change ...func(*dns.Msg)) *dns.Msg {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(name, qtype)
	for _, f := range change {
		f(req)
	}
	packet, err := req.Pack()
	if err != nil {
		t.Fatal(err)
	}
	out := z.Respond(packet, client, false)
	if out == nil {
		t.Fatalf("%s %s: no answer", name, dns.TypeToString[qtype])
	}
	m := new(dns.Msg)
	if err := m.Unpack(out); err != nil {
		t.Fatalf("%s: answer does not parse: %v", name, err)
	}
	if m.Id != req.Id || !m.Response || m.RecursionAvailable || m.AuthenticatedData {
		t.Errorf("%s: header %+v", name, m.MsgHdr)
	}
	return m
}

// brief writes records as "owner ttl TYPE data", one a line.
func brief(rrs []dns.RR) string {
	var lines []string
	for _, rr := range rrs {
		if rr.Header().Rrtype != dns.TypeOPT {
			lines = append(lines, strings.Join(strings.Fields(strings.ReplaceAll(rr.String(), "\tIN\t", " ")), " "))
		}
	}
	return strings.Join(lines, "\n")
}

const negative = "pbx.example.com. 10 SOA losangeles.pbx.example.com. hostmaster.pbx.example.com. 1 3600 600 604800 10"

func TestAnswers(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	for _, tt := range []struct {
		client string // "" is somebody without a preference
		name   string
		qtype  uint16
		rcode  int
		answer string
		extra  string
		soa    string // the authority section; "" is none
	}{
		// The service name: one address of the best node.
		{name: "pbx.example.com.", qtype: dns.TypeA, answer: "pbx.example.com. 30 A 192.0.2.1"},
		{name: "pbx.example.com.", qtype: dns.TypeAAAA, answer: "pbx.example.com. 30 AAAA 2001:db8::1"},
		{client: "198.51.100.7", name: "pbx.example.com.", qtype: dns.TypeA, answer: "pbx.example.com. 30 A 192.0.2.2"},
		{client: "198.51.100.7", name: "pbx.example.com.", qtype: dns.TypeAAAA, answer: "pbx.example.com. 30 AAAA 2001:db8::1"}, // london has no IPv6: the next best node that has
		{client: "203.0.113.1", name: "pbx.example.com.", qtype: dns.TypeA, answer: "pbx.example.com. 30 A 192.0.2.3"},
		{client: "203.0.113.200", name: "pbx.example.com.", qtype: dns.TypeA, answer: "pbx.example.com. 30 A 192.0.2.2"},
		{client: "2001:db8:1ff::9", name: "pbx.example.com.", qtype: dns.TypeAAAA, answer: "pbx.example.com. 30 AAAA 2001:db8::3"},
		{client: "::ffff:198.51.100.7", name: "pbx.example.com.", qtype: dns.TypeA, answer: "pbx.example.com. 30 A 192.0.2.2"},

		// Listed names, tenants, tenants' zones.
		{name: "sip.pbx.example.com.", qtype: dns.TypeA, answer: "sip.pbx.example.com. 30 A 192.0.2.1"},
		{name: "tenant.pbx.example.com.", qtype: dns.TypeA, answer: "tenant.pbx.example.com. 30 A 192.0.2.1"},
		{name: "*.pbx.example.com.", qtype: dns.TypeA, answer: "*.pbx.example.com. 30 A 192.0.2.1"},
		{name: "two.labels.pbx.example.com.", qtype: dns.TypeA, answer: "two.labels.pbx.example.com. 30 A 192.0.2.1"},
		{name: "a.deep.pbx.example.com.", qtype: dns.TypeA, answer: "a.deep.pbx.example.com. 30 A 192.0.2.1"},
		{name: "phones.customer.example.", qtype: dns.TypeA, answer: "phones.customer.example. 30 A 192.0.2.1"},
		{name: "PhOnEs.CuStOmEr.ExAmPlE.", qtype: dns.TypeA, answer: "PhOnEs.CuStOmEr.ExAmPlE. 30 A 192.0.2.1"},

		// SRV: the best three that offer the transport.
		{name: "_sip._udp.pbx.example.com.", qtype: dns.TypeSRV,
			answer: "_sip._udp.pbx.example.com. 30 SRV 10 0 5060 buffalo.pbx.example.com.\n" +
				"_sip._udp.pbx.example.com. 30 SRV 20 0 5062 london.pbx.example.com.\n" +
				"_sip._udp.pbx.example.com. 30 SRV 30 0 5063 singapore.pbx.example.com.",
			extra: "buffalo.pbx.example.com. 300 A 192.0.2.1\nbuffalo.pbx.example.com. 300 A 192.0.2.101\nbuffalo.pbx.example.com. 300 AAAA 2001:db8::1\n" +
				"london.pbx.example.com. 300 A 192.0.2.2\n" +
				"singapore.pbx.example.com. 300 A 192.0.2.3\nsingapore.pbx.example.com. 300 AAAA 2001:db8::3"},
		{client: "198.51.100.7", name: "_SIP._tcp.sip.pbx.example.com.", qtype: dns.TypeSRV,
			answer: "_SIP._tcp.sip.pbx.example.com. 30 SRV 10 0 5062 london.pbx.example.com.\n" +
				"_SIP._tcp.sip.pbx.example.com. 30 SRV 20 0 5060 buffalo.pbx.example.com.",
			extra: "london.pbx.example.com. 300 A 192.0.2.2\nbuffalo.pbx.example.com. 300 A 192.0.2.1\nbuffalo.pbx.example.com. 300 A 192.0.2.101\nbuffalo.pbx.example.com. 300 AAAA 2001:db8::1"},
		{client: "203.0.113.1", name: "_sips._tcp.tenant.pbx.example.com.", qtype: dns.TypeSRV,
			answer: "_sips._tcp.tenant.pbx.example.com. 30 SRV 10 0 5061 buffalo.pbx.example.com.",
			extra:  "buffalo.pbx.example.com. 300 A 192.0.2.1\nbuffalo.pbx.example.com. 300 A 192.0.2.101\nbuffalo.pbx.example.com. 300 AAAA 2001:db8::1"},
		{name: "_sip._ws.pbx.example.com.", qtype: dns.TypeSRV,
			answer: "_sip._ws.pbx.example.com. 30 SRV 10 0 5066 buffalo.pbx.example.com.",
			extra:  "buffalo.pbx.example.com. 300 A 192.0.2.1\nbuffalo.pbx.example.com. 300 A 192.0.2.101\nbuffalo.pbx.example.com. 300 AAAA 2001:db8::1"},
		{name: "_sips._ws.phones.customer.example.", qtype: dns.TypeSRV,
			answer: "_sips._ws.phones.customer.example. 30 SRV 10 0 7443 buffalo.pbx.example.com.",
			extra:  "buffalo.pbx.example.com. 300 A 192.0.2.1\nbuffalo.pbx.example.com. 300 A 192.0.2.101\nbuffalo.pbx.example.com. 300 AAAA 2001:db8::1"},
		{name: "_sip._udp.pbx.example.com.", qtype: dns.TypeA, soa: negative},
		{name: "pbx.example.com.", qtype: dns.TypeSRV, soa: negative},

		// NAPTR names what somebody offers.
		{name: "tenant.pbx.example.com.", qtype: dns.TypeNAPTR,
			answer: `tenant.pbx.example.com. 30 NAPTR 10 10 "s" "SIP+D2U" "" _sip._udp.tenant.pbx.example.com.` + "\n" +
				`tenant.pbx.example.com. 30 NAPTR 20 10 "s" "SIP+D2T" "" _sip._tcp.tenant.pbx.example.com.` + "\n" +
				`tenant.pbx.example.com. 30 NAPTR 30 10 "s" "SIPS+D2T" "" _sips._tcp.tenant.pbx.example.com.` + "\n" +
				`tenant.pbx.example.com. 30 NAPTR 40 10 "s" "SIPS+D2W" "" _sips._ws.tenant.pbx.example.com.` + "\n" +
				`tenant.pbx.example.com. 30 NAPTR 50 10 "s" "SIP+D2W" "" _sip._ws.tenant.pbx.example.com.`},

		// Hosts.
		{name: "buffalo.pbx.example.com.", qtype: dns.TypeA, answer: "buffalo.pbx.example.com. 300 A 192.0.2.1\nbuffalo.pbx.example.com. 300 A 192.0.2.101"},
		{name: "Buffalo.PBX.example.com.", qtype: dns.TypeAAAA, answer: "Buffalo.PBX.example.com. 300 AAAA 2001:db8::1"},
		{name: "london.pbx.example.com.", qtype: dns.TypeAAAA, soa: negative},
		{name: "core.pbx.example.com.", qtype: dns.TypeA, soa: negative}, // takes no phones, exists
		{name: "london.pbx.example.com.", qtype: dns.TypeNAPTR, soa: negative},
		{name: "losangeles.pbx.example.com.", qtype: dns.TypeA, answer: "losangeles.pbx.example.com. 86400 A 192.0.2.11"},
		{name: "losangeles.pbx.example.com.", qtype: dns.TypeAAAA, answer: "losangeles.pbx.example.com. 86400 AAAA 2001:db8::11"},

		// The zone itself.
		{name: "pbx.example.com.", qtype: dns.TypeNS,
			answer: "pbx.example.com. 86400 NS losangeles.pbx.example.com.\npbx.example.com. 86400 NS jacksonville.pbx.example.com.\npbx.example.com. 86400 NS ns.elsewhere.example.",
			extra:  "losangeles.pbx.example.com. 86400 A 192.0.2.11\nlosangeles.pbx.example.com. 86400 AAAA 2001:db8::11\njacksonville.pbx.example.com. 86400 A 192.0.2.12"},
		{name: "pbx.example.com.", qtype: dns.TypeSOA, answer: strings.Replace(negative, " 10 SOA", " 300 SOA", 1)},
		{name: "phones.customer.example.", qtype: dns.TypeSOA, answer: strings.Replace(negative, "pbx.example.com. 10 SOA", "phones.customer.example. 300 SOA", 1)},
		{name: "tenant.pbx.example.com.", qtype: dns.TypeSOA, soa: negative},
		{name: "tenant.pbx.example.com.", qtype: dns.TypeNS, soa: negative},
		{name: "pbx.example.com.", qtype: dns.TypeTXT, soa: negative},
		{name: "pbx.example.com.", qtype: 65280, soa: negative},
		{name: "PBX.eXample.com.", qtype: dns.TypeMX, soa: strings.ReplaceAll(negative, "pbx.example.com.", "PBX.eXample.com.")},

		// ANY.
		{name: "pbx.example.com.", qtype: dns.TypeANY, answer: `pbx.example.com. 3600 HINFO "RFC8482" ""`},
		{name: "_sip._udp.pbx.example.com.", qtype: dns.TypeANY, answer: `_sip._udp.pbx.example.com. 3600 HINFO "RFC8482" ""`},
		{name: "_udp.pbx.example.com.", qtype: dns.TypeANY, soa: negative},

		// Empty non-terminals exist.
		{name: "_udp.pbx.example.com.", qtype: dns.TypeSRV, soa: negative},
		{name: "_tcp.tenant.pbx.example.com.", qtype: dns.TypeA, soa: negative},
		{name: "_ws.phones.customer.example.", qtype: dns.TypeA, soa: strings.Replace(negative, "pbx.example.com.", "phones.customer.example.", 1)},
		{name: "deep.pbx.example.com.", qtype: dns.TypeA, soa: negative}, // above a.deep: not covered by the wildcard

		// What is not there: names below existing ones are not covered either.
		{name: "x.london.pbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError, soa: negative},
		{name: "x.losangeles.pbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError, soa: negative},
		{name: "x.sip.pbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError, soa: negative},
		{name: "x.deep.pbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError, soa: negative},
		{name: "_sip._udp.london.pbx.example.com.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError, soa: negative},
		{name: "_sip._udp.x.london.pbx.example.com.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError, soa: negative},
		{name: "_sips._udp.pbx.example.com.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError, soa: negative},
		{name: "_sip.pbx.example.com.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError, soa: negative},
		{name: "_dmarc.pbx.example.com.", qtype: dns.TypeTXT, rcode: dns.RcodeNameError, soa: negative},
		{name: "_sip._udp._udp.pbx.example.com.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError, soa: negative},
		{name: "x._sip._udp.pbx.example.com.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError, soa: negative},
		{name: "x._udp.pbx.example.com.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError, soa: negative},
		{name: "x.phones.customer.example.", qtype: dns.TypeA, rcode: dns.RcodeNameError, soa: strings.Replace(negative, "pbx.example.com.", "phones.customer.example.", 1)},

		// What is not ours.
		{name: "example.com.", qtype: dns.TypeA, rcode: dns.RcodeRefused},
		{name: ".", qtype: dns.TypeNS, rcode: dns.RcodeRefused},
		{name: "xpbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeRefused},
		{name: `a\.pbx.example.com.`, qtype: dns.TypeA, rcode: dns.RcodeRefused},
		{name: "customer.example.", qtype: dns.TypeA, rcode: dns.RcodeRefused},
		{name: "pbx.example.com.", qtype: dns.TypeAXFR, rcode: dns.RcodeRefused},
		{name: "pbx.example.com.", qtype: dns.TypeIXFR, rcode: dns.RcodeRefused},
	} {
		t.Run(fmt.Sprintf("%s %s %s", tt.name, dns.Type(tt.qtype), tt.client), func(t *testing.T) {
			t.Parallel()
			client := defaultClient
			if tt.client != "" {
				client = netip.MustParseAddr(tt.client)
			}
			m := ask(t, z, client, tt.name, tt.qtype)
			if m.Rcode != tt.rcode {
				t.Errorf("code %s, want %s", dns.RcodeToString[m.Rcode], dns.RcodeToString[tt.rcode])
			}
			if got := brief(m.Answer); got != tt.answer {
				t.Errorf("answer\n%s\nwant\n%s", got, tt.answer)
			}
			if got := brief(m.Extra); got != tt.extra {
				t.Errorf("additional\n%s\nwant\n%s", got, tt.extra)
			}
			if got := brief(m.Ns); got != tt.soa {
				t.Errorf("authority\n%s\nwant\n%s", got, tt.soa)
			}
			if m.Authoritative != (tt.rcode != dns.RcodeRefused) {
				t.Errorf("AA is %v with %s", m.Authoritative, dns.RcodeToString[m.Rcode])
			}
			if len(m.Question) != 1 || m.Question[0].Name != tt.name {
				t.Errorf("question %v, want %s in that case", m.Question, tt.name)
			}
		})
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	state := func(o pbxmesh.Observed, w pbxmesh.Wanted) pbxmesh.NodeState {
		return pbxmesh.NodeState{Observed: o, Wanted: w}
	}
	const srv = "_sip._udp.pbx.example.com."
	for _, tt := range []struct {
		name   string
		states map[pbxmesh.NodeID]pbxmesh.NodeState
		a      string
		nodes  string // of the SRV answer
	}{
		{"all up", nil, "30 A 192.0.2.1", "buffalo london singapore"},
		{"best suspect", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: state(pbxmesh.ObservedSuspect, 0)}, "30 A 192.0.2.1", "buffalo london singapore"},
		{"best unknown", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: {}}, "30 A 192.0.2.2", "london singapore buffalo"},
		{"best down", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: state(pbxmesh.ObservedDown, 0)}, "15 A 192.0.2.2", "london singapore"},
		{"best draining", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: state(pbxmesh.ObservedUp, pbxmesh.WantedDraining)}, "15 A 192.0.2.2", "london singapore"},
		{"best out", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: state(pbxmesh.ObservedUp, pbxmesh.WantedOut)}, "30 A 192.0.2.2", "london singapore"},
		{"all suspect", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: {}, london: {}, singapore: {}}, "30 A 192.0.2.1", "buffalo london singapore"},
		{"panic: all down", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: state(pbxmesh.ObservedDown, 0), london: state(pbxmesh.ObservedDown, 0), singapore: state(pbxmesh.ObservedDown, 0)},
			"15 A 192.0.2.1", "buffalo london singapore"},
		{"panic: draining before down, out not", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: state(pbxmesh.ObservedDown, 0), london: state(pbxmesh.ObservedUp, pbxmesh.WantedOut), singapore: state(pbxmesh.ObservedUp, pbxmesh.WantedDraining)},
			"15 A 192.0.2.3", "singapore buffalo"},
		{"panic: all out", map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: state(0, pbxmesh.WantedOut), london: state(0, pbxmesh.WantedOut), singapore: state(0, pbxmesh.WantedOut)},
			"30 A 192.0.2.1", "buffalo london singapore"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			z, _ := newTestZone(t, fixtures.ThreeTowns(tt.states))
			if got := brief(ask(t, z, defaultClient, "pbx.example.com.", dns.TypeA).Answer); got != "pbx.example.com. "+tt.a {
				t.Errorf("A: %s, want %s", got, tt.a)
			}
			var nodes []string
			for i, rr := range ask(t, z, defaultClient, srv, dns.TypeSRV).Answer {
				if p := rr.(*dns.SRV).Priority; int(p) != 10*(i+1) {
					t.Errorf("priority %d at place %d", p, i)
				}
				nodes = append(nodes, strings.TrimSuffix(rr.(*dns.SRV).Target, ".pbx.example.com."))
			}
			if got := strings.Join(nodes, " "); got != tt.nodes {
				t.Errorf("SRV: %s, want %s", got, tt.nodes)
			}
			// Whatever its state, a node's own name goes on answering.
			if got := brief(ask(t, z, defaultClient, "buffalo.pbx.example.com.", dns.TypeAAAA).Answer); got != "buffalo.pbx.example.com. 300 AAAA 2001:db8::1" {
				t.Errorf("host name: %s", got)
			}
			if panics := z.Stats().PanicRule > 0; panics != strings.HasPrefix(tt.name, "panic") {
				t.Errorf("panic rule %v", panics)
			}
		})
	}
}

// TestNothingKnown: a name server that knows no node says so in a way that sends
// resolvers on and is not cached as "does not exist".
func TestNothingKnown(t *testing.T) {
	t.Parallel()
	for name, mesh := range map[string]*pbxmesh.Mesh{"nil": nil, "empty": {}, "no phones": {Nodes: map[pbxmesh.NodeID]pbxmesh.Node{"core": {ID: "core"}}}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &source{}
			s.mesh.Store(mesh)
			o := testZoneOptions(t, s)
			o.Names = nil
			z, err := NewZone(o)
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range []dns.Question{
				{Name: "pbx.example.com.", Qtype: dns.TypeA},
				{Name: "pbx.example.com.", Qtype: dns.TypeNAPTR},
				{Name: "_sip._udp.pbx.example.com.", Qtype: dns.TypeSRV},
				{Name: "london.pbx.example.com.", Qtype: dns.TypeA},
			} {
				m := ask(t, z, defaultClient, q.Name, q.Qtype, func(m *dns.Msg) { m.SetEdns0(1232, false) })
				if m.Rcode != dns.RcodeServerFailure || m.Authoritative || len(m.Ns) != 0 {
					t.Errorf("%s: %v", q.Name, m)
				}
				if ede, ok := m.IsEdns0().Option[0].(*dns.EDNS0_EDE); !ok || ede.InfoCode != dns.ExtendedErrorCodeNotReady {
					t.Errorf("%s: no 'not ready'", q.Name)
				}
			}
			for _, q := range []dns.Question{{Name: "pbx.example.com.", Qtype: dns.TypeSOA}, {Name: "pbx.example.com.", Qtype: dns.TypeNS}, {Name: "losangeles.pbx.example.com.", Qtype: dns.TypeA}} {
				if m := ask(t, z, defaultClient, q.Name, q.Qtype); m.Rcode != 0 || len(m.Answer) == 0 {
					t.Errorf("%s: %v", q.Name, m)
				}
			}
		})
	}
}

// TestFamilyThatNobodyHas: only then an address question about a service is NODATA, and a client
// subnet's scope lets a resolver keep that for everybody.
func TestFamilyThatNobodyHas(t *testing.T) {
	t.Parallel()
	mesh := fixtures.ThreeTowns(nil)
	for id, n := range mesh.Nodes {
		n.Addresses = slices.DeleteFunc(n.Addresses, netip.Addr.Is6)
		mesh.Nodes[id] = n
	}
	z, _ := newTestZone(t, mesh)
	m := ask(t, z, defaultClient, "pbx.example.com.", dns.TypeAAAA, subnet(1, "198.51.100.0", 24, 0))
	if m.Rcode != 0 || len(m.Answer) != 0 || len(m.Ns) != 1 {
		t.Errorf("nobody has IPv6: %v", m)
	}
	if got := subnetOf(t, m).SourceScope; got != 0 {
		t.Errorf("nobody has IPv6: scope %d, want 0", got)
	}
}

// TestTransports puts transports first in NAPTR that an operator prefers; the others follow.
func TestTransports(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		prefer []string
		want   string
	}{
		{nil, "SIP+D2U SIP+D2T SIPS+D2T SIPS+D2W SIP+D2W"},
		{[]string{"tls", "tcp"}, "SIPS+D2T SIP+D2T SIP+D2U SIPS+D2W SIP+D2W"},
		{[]string{"ws", "wss", "tls", "tcp", "udp"}, "SIP+D2W SIPS+D2W SIPS+D2T SIP+D2T SIP+D2U"},
	} {
		s := &source{}
		s.mesh.Store(fixtures.ThreeTowns(nil))
		o := testZoneOptions(t, s)
		o.Transports = tt.prefer
		z, err := NewZone(o)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for i, rr := range ask(t, z, defaultClient, "pbx.example.com.", dns.TypeNAPTR).Answer {
			n := rr.(*dns.NAPTR)
			if int(n.Order) != 10*(i+1) || !strings.HasSuffix(n.Replacement, ".pbx.example.com.") {
				t.Errorf("%v", n)
			}
			got = append(got, n.Service)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%v: %q, want %s", tt.prefer, got, tt.want)
		}
	}
	for _, bad := range [][]string{{"sctp"}, {"tcp", "tcp"}, {""}} {
		o := testZoneOptions(t, &source{})
		o.Transports = bad
		if _, err := NewZone(o); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestOneDecisionPerClient(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	for _, c := range []string{"198.51.100.7", "203.0.113.1", "203.0.113.129", "100.64.0.1", "2001:db8:100::1", "2001:db8:200::1"} {
		client := netip.MustParseAddr(c)
		d, _ := z.choices().For(client, selection.IPv4)
		best := d.Nodes[0]
		srv := ask(t, z, client, "_sip._udp.pbx.example.com.", dns.TypeSRV).Answer[0].(*dns.SRV)
		a := ask(t, z, client, "pbx.example.com.", dns.TypeA).Answer[0].(*dns.A)
		if srv.Target != z.NodeName(best) || a.A.String() != fixtures.ThreeTowns(nil).Nodes[best].Addresses[0].String() {
			t.Errorf("%s: chosen %s, SRV %s, A %s", c, best, srv.Target, a.A)
		}
	}
}

func TestTwoServersAnswerTheSame(t *testing.T) {
	t.Parallel()
	a, s := newTestZone(t, fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{london: {Observed: pbxmesh.ObservedDown}}))
	b, err := NewZone(testZoneOptions(t, s))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		client := netip.AddrFrom4([4]byte{203, 0, 113, byte(5 * i)})
		for _, q := range []dns.Question{{Name: "pbx.example.com.", Qtype: dns.TypeA}, {Name: "_sip._udp.x.pbx.example.com.", Qtype: dns.TypeSRV}, {Name: "pbx.example.com.", Qtype: dns.TypeNAPTR}, {Name: "pbx.example.com.", Qtype: dns.TypeMX}} {
			id := func(m *dns.Msg) { m.Id = 7 }
			if x, y := ask(t, a, client, q.Name, q.Qtype, id), ask(t, b, client, q.Name, q.Qtype, id); x.String() != y.String() {
				t.Fatalf("%v differs:\n%v\n%v", client, x, y)
			}
		}
	}
}

func TestConfiguredNameWinsOverNode(t *testing.T) {
	t.Parallel()
	mesh := fixtures.ThreeTowns(nil)
	mesh.Nodes["losangeles"] = pbxmesh.Node{ID: "losangeles", Addresses: fixtures.Addresses("192.0.2.66"), Ports: pbxmesh.SIPPorts{UDP: 5060}}
	z, _ := newTestZone(t, mesh)
	if got := brief(ask(t, z, defaultClient, "losangeles.pbx.example.com.", dns.TypeA).Answer); got != "losangeles.pbx.example.com. 86400 A 192.0.2.11" {
		t.Errorf("a node took the name server's name: %s", got)
	}
}

func TestLongNames(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	label := strings.Repeat("x", 63) + "."
	name := label + label + label + strings.Repeat("y", 254-3*64-len("pbx.example.com.")-1) + ".pbx.example.com."
	if m := ask(t, z, defaultClient, name, dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("A: %v", m)
	}
	if m := ask(t, z, defaultClient, name, dns.TypeNAPTR); m.Rcode != dns.RcodeSuccess || len(m.Answer) != 0 || len(m.Ns) != 1 {
		t.Errorf("NAPTR: %v", m)
	}
}

func TestZoneOptionsAreChecked(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		want   string
		change func(*ZoneOptions)
	}{
		{"", func(*ZoneOptions) {}},
		{"no source", func(o *ZoneOptions) { o.Source = nil }},
		{"origin", func(o *ZoneOptions) { o.Origin = "" }},
		{"origin", func(o *ZoneOptions) { o.Origin = "a..b" }},
		{"no name servers", func(o *ZoneOptions) { o.NameServers = nil }},
		{"has no address", func(o *ZoneOptions) { o.NameServers[1].Addresses = nil }},
		{"none of the zones", func(o *ZoneOptions) { o.Names = append(o.Names, "sip.example.org") }},
		{"listed twice", func(o *ZoneOptions) { o.Names = append(o.Names, "SIP.pbx.example.com.") }},
		{"listed twice", func(o *ZoneOptions) { o.TenantZones = append(o.TenantZones, "pbx.example.com") }},
		{"listed twice", func(o *ZoneOptions) { o.Names = append(o.Names, "losangeles.pbx.example.com") }},
		{"'_'", func(o *ZoneOptions) { o.Names = append(o.Names, "_x.pbx.example.com") }},
		{"TTL", func(o *ZoneOptions) { o.TTL = time.Millisecond }},
		{"negative TTL", func(o *ZoneOptions) { o.NegativeTTL = 2 * time.Hour }},
		{"mail address", func(o *ZoneOptions) { o.Hostmaster = "me" }},
	} {
		o := testZoneOptions(t, &source{})
		tt.change(&o)
		_, err := NewZone(o)
		want := strings.ReplaceAll(tt.want, "'_'", "'-'") // the message lists what is allowed
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", tt.want, err)
		}
	}
}
