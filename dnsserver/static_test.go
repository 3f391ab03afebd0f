package dnsserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/fixtures"
)

const testZoneFile = `
$TTL 600
@             MX    10 mail.example.net.
              TXT   "v=spf1 -all"
              CAA   0 issue "ca.example.net"
www           A     192.0.2.80
www           AAAA  2001:db8::80
_dmarc        TXT   "v=DMARC1; p=reject"
_xmpp-client._tcp 60 SRV 5 0 5222 www
phones        CNAME tenant.pbx.example.com.  ; a name in the zone
elsewhere     CNAME www.example.net.
gone          CNAME x.london
chain         CNAME phones
to-wild       CNAME anything.dev
*.dev         A     192.0.2.90
*.dev         TXT   "wild"
host.dev      TXT   "explicit"
below.ent.dev A     192.0.2.91
*             TXT   "every tenant"
london        SSHFP 4 2 123456789abcdef67890123456789abcdef67890123456789abcdef123456789
losangeles    TXT   "a name server"
_sip._udp     TXT   "beside the SRV records"
acme          TXT   "a tenant"
_dmarc.beta   TXT   "another"
phones.customer.example. MX 20 mail.customer.example.
`

func staticZone(t testing.TB, mesh *pbxmesh.Mesh, content string, change ...func(*ZoneOptions)) (*Zone, *source) {
	t.Helper()
	s := &source{}
	s.mesh.Store(mesh)
	o := testZoneOptions(t, s)
	o.ZoneFile = filepath.Join(t.TempDir(), "zone")
	if err := os.WriteFile(o.ZoneFile, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range change {
		f(&o)
	}
	z, err := NewZone(o)
	if err != nil {
		t.Fatal(err)
	}
	return z, s
}

func TestStaticAnswers(t *testing.T) {
	t.Parallel()
	z, _ := staticZone(t, fixtures.ThreeTowns(nil), testZoneFile)
	for _, tt := range []struct {
		name   string
		qtype  uint16
		rcode  int
		answer string // "" is a negative answer
	}{
		{name: "pbx.example.com.", qtype: dns.TypeMX, answer: "pbx.example.com. 600 MX 10 mail.example.net."},
		{name: "PBX.example.com.", qtype: dns.TypeTXT, answer: `PBX.example.com. 600 TXT "v=spf1 -all"`},
		{name: "pbx.example.com.", qtype: dns.TypeA, answer: "pbx.example.com. 30 A 192.0.2.1"}, // as without the file
		{name: "phones.customer.example.", qtype: dns.TypeMX, answer: "phones.customer.example. 600 MX 20 mail.customer.example."},
		{name: "www.pbx.example.com.", qtype: dns.TypeA, answer: "www.pbx.example.com. 600 A 192.0.2.80"},
		{name: "www.pbx.example.com.", qtype: dns.TypeMX},
		{name: "www.pbx.example.com.", qtype: dns.TypeNAPTR}, // hides the tenants' wildcard
		{name: "_sip._udp.www.pbx.example.com.", qtype: dns.TypeSRV, rcode: dns.RcodeNameError},
		{name: "_dmarc.pbx.example.com.", qtype: dns.TypeTXT, answer: `_dmarc.pbx.example.com. 600 TXT "v=DMARC1; p=reject"`},
		{name: "_xmpp-client._tcp.pbx.example.com.", qtype: dns.TypeSRV, answer: "_xmpp-client._tcp.pbx.example.com. 60 SRV 5 0 5222 www.pbx.example.com."},
		{name: "_tcp.pbx.example.com.", qtype: dns.TypeSRV},
		{name: "_sip._udp.pbx.example.com.", qtype: dns.TypeTXT, answer: `_sip._udp.pbx.example.com. 600 TXT "beside the SRV records"`},
		{name: "losangeles.pbx.example.com.", qtype: dns.TypeTXT, answer: `losangeles.pbx.example.com. 600 TXT "a name server"`},
		{name: "losangeles.pbx.example.com.", qtype: dns.TypeA, answer: "losangeles.pbx.example.com. 86400 A 192.0.2.11"},
		{name: "london.pbx.example.com.", qtype: dns.TypeA, answer: "london.pbx.example.com. 300 A 192.0.2.2"},
		{name: "london.pbx.example.com.", qtype: dns.TypeSSHFP, answer: "london.pbx.example.com. 600 SSHFP 4 2 123456789ABCDEF67890123456789ABCDEF67890123456789ABCDEF123456789"},

		// Wildcards.
		{name: "tenant.pbx.example.com.", qtype: dns.TypeTXT, answer: `tenant.pbx.example.com. 600 TXT "every tenant"`},
		{name: "tenant.pbx.example.com.", qtype: dns.TypeA, answer: "tenant.pbx.example.com. 30 A 192.0.2.1"},
		{name: "sip.pbx.example.com.", qtype: dns.TypeTXT}, // a listed name is not covered
		{name: "one.dev.pbx.example.com.", qtype: dns.TypeA, answer: "one.dev.pbx.example.com. 600 A 192.0.2.90"},
		{name: "One.Two.dev.pbx.example.com.", qtype: dns.TypeTXT, answer: `One.Two.dev.pbx.example.com. 600 TXT "wild"`},
		{name: "_x.one.dev.pbx.example.com.", qtype: dns.TypeTXT, answer: `_x.one.dev.pbx.example.com. 600 TXT "wild"`},
		{name: "*.dev.pbx.example.com.", qtype: dns.TypeA, answer: "*.dev.pbx.example.com. 600 A 192.0.2.90"},
		{name: "one.dev.pbx.example.com.", qtype: dns.TypeMX},
		{name: "host.dev.pbx.example.com.", qtype: dns.TypeA},
		{name: "dev.pbx.example.com.", qtype: dns.TypeA, answer: "dev.pbx.example.com. 30 A 192.0.2.1"}, // a tenant's name still
		{name: "acme.pbx.example.com.", qtype: dns.TypeA, answer: "acme.pbx.example.com. 30 A 192.0.2.1"},
		{name: "acme.pbx.example.com.", qtype: dns.TypeTXT, answer: `acme.pbx.example.com. 600 TXT "a tenant"`}, // not the wildcard's
		{name: "_sips._tcp.beta.pbx.example.com.", qtype: dns.TypeSRV, answer: "_sips._tcp.beta.pbx.example.com. 30 SRV 10 0 5061 buffalo.pbx.example.com."},
		{name: "x.acme.pbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError},
		{name: "ent.dev.pbx.example.com.", qtype: dns.TypeA},
		{name: "x.ent.dev.pbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError}, // RFC 4592 section 2.2.2
		{name: "x.host.dev.pbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError},

		// CNAME.
		{name: "Phones.pbx.example.com.", qtype: dns.TypeA, answer: "Phones.pbx.example.com. 600 CNAME tenant.pbx.example.com.\ntenant.pbx.example.com. 30 A 192.0.2.1"},
		{name: "phones.pbx.example.com.", qtype: dns.TypeCNAME, answer: "phones.pbx.example.com. 600 CNAME tenant.pbx.example.com."},
		{name: "phones.pbx.example.com.", qtype: dns.TypeANY, answer: "phones.pbx.example.com. 600 CNAME tenant.pbx.example.com."},
		{name: "phones.pbx.example.com.", qtype: dns.TypeTXT, answer: "phones.pbx.example.com. 600 CNAME tenant.pbx.example.com.\ntenant.pbx.example.com. 600 TXT \"every tenant\""},
		{name: "chain.pbx.example.com.", qtype: dns.TypeA, answer: "chain.pbx.example.com. 600 CNAME phones.pbx.example.com.\nphones.pbx.example.com. 600 CNAME tenant.pbx.example.com.\ntenant.pbx.example.com. 30 A 192.0.2.1"},
		{name: "to-wild.pbx.example.com.", qtype: dns.TypeA, answer: "to-wild.pbx.example.com. 600 CNAME anything.dev.pbx.example.com.\nanything.dev.pbx.example.com. 600 A 192.0.2.90"},
		{name: "elsewhere.pbx.example.com.", qtype: dns.TypeA, answer: "elsewhere.pbx.example.com. 600 CNAME www.example.net."},
		{name: "gone.pbx.example.com.", qtype: dns.TypeA, rcode: dns.RcodeNameError, answer: "gone.pbx.example.com. 600 CNAME x.london.pbx.example.com."}, // RFC 6604
	} {
		m := ask(t, z, defaultClient, tt.name, tt.qtype)
		if got := brief(m.Answer); got != tt.answer || m.Rcode != tt.rcode || !m.Authoritative {
			t.Errorf("%s %s: %s\n%s\nwant %s\n%s", tt.name, dns.Type(tt.qtype), dns.RcodeToString[m.Rcode], got, dns.RcodeToString[tt.rcode], tt.answer)
		}
		negative := tt.answer == "" || tt.rcode != 0
		if (len(m.Ns) == 1) != negative {
			t.Errorf("%s %s: authority %v", tt.name, dns.Type(tt.qtype), m.Ns)
		}
	}
	// A CNAME's target is the client's.
	m := ask(t, z, netip.MustParseAddr("192.0.2.200"), "phones.pbx.example.com.", dns.TypeA, subnet(1, "198.51.100.0", 24, 0))
	if got := brief(m.Answer[1:]); got != "tenant.pbx.example.com. 30 A 192.0.2.2" {
		t.Errorf("for a client subnet: %s", got)
	}
	if s := subnetOf(t, m); s.SourceScope != 24 {
		t.Errorf("scope %d, want 24", s.SourceScope)
	}
	if s := subnetOf(t, ask(t, z, defaultClient, "www.pbx.example.com.", dns.TypeA, subnet(1, "198.51.100.0", 24, 0))); s.SourceScope != 0 {
		t.Errorf("a static answer has scope %d", s.SourceScope)
	}
}

func subnetOf(t *testing.T, m *dns.Msg) *dns.EDNS0_SUBNET {
	t.Helper()
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if s, ok := o.(*dns.EDNS0_SUBNET); ok {
				return s
			}
		}
	}
	t.Fatalf("no client subnet in %v", m)
	return nil
}

func TestStaticWithNothingKnown(t *testing.T) {
	t.Parallel()
	z, _ := staticZone(t, nil, testZoneFile)
	if m := ask(t, z, defaultClient, "www.pbx.example.com.", dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("static: %v", m)
	}
	if m := ask(t, z, defaultClient, "phones.pbx.example.com.", dns.TypeA); m.Rcode != dns.RcodeServerFailure || len(m.Answer) != 0 || m.Authoritative {
		t.Errorf("to a service: %v", m)
	}
}

func TestStaticMistakes(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	for _, tt := range []struct{ src, want string }{
		{"www A 192.0.2.1\nwww A 192.0.2.x\n", `f:2: bad A A: "192.0.2.x"`},
		{"$INCLUDE /etc/passwd\n", "f:1: $INCLUDE is not read"},
		{"\n\n@ A 192.0.2.1\n", "f:3: pbx.example.com. A: the name is a service name"},
		{"sip AAAA ::1\n", "service name"},
		{"*  A 192.0.2.1\n", "service name"},
		{"@ NAPTR 1 1 \"s\" \"SIP+D2U\" \"\" _sip._udp\n", "service name"},
		{"@ CNAME x.example.net.\n", "service name"},
		{"phones.customer.example. A 192.0.2.1\n", "service name"},
		{"_sip._udp SRV 1 1 1 www\n", "come from the nodes"},
		{"_sips._tcp.tenant SRV 1 1 1 www\n", "come from the nodes"},
		{"_sip._udp CNAME www\n", "come from the nodes"},
		{"losangeles A 192.0.2.1\n", "a name server's"},
		{"london A 192.0.2.1\n", "host name of a node"},
		{"@ SOA a b 1 2 3 4 5\n", "remove it"},
		{"lab NS ns.example.net.\n", "not delegated"},
		{"lab DS 1 13 2 00\n", "not delegated"},
		{"lab DNSKEY 257 3 13 AAAA\n", "not served"},
		{"lab TYPE65280 \\# 1 00\n", "not served"},
		{"www.example.net. A 192.0.2.1\n", "none of the zones"},
		{"www CH A 192.0.2.1\n", "class"},
		{"www 999999 A 192.0.2.1\n", "longer than"},
		{"w\\032w A 192.0.2.1\n", "other characters"},
		{"w*w A 192.0.2.1\n", "other characters"},
		{"www A 192.0.2.1\nwww CNAME x\n", "stands alone at its name; the first record there is in line 1"},
		{"www CNAME x\nwww TXT x\n", "stands alone"},
		{"www CNAME x\nwww CNAME y\n", "stands alone"},
		{"www 5 A 192.0.2.1\nwww 6 A 192.0.2.2\n", "make them equal"},
		{"a CNAME b\nb CNAME c\nc CNAME a\n", "in a circle"},
		{"www TXT (\n \"a\"\n \"b\" ) x\nwww A nonsense\n", "f:4:"},
		{"www TXT \"" + strings.Repeat("x\" \"", 9000) + "\"\n", "bytes"},
		{strings.Repeat("www A 192.0.2.x\n", 3), "f:1:"},
		{"$GENERATE 1-60000 h$ A 192.0.2.1\n", "more than 20000 records"},
		{strings.Repeat("; nothing\n", 1<<19), "larger than"},
	} {
		_, err := z.parseStatic([]byte(tt.src), "f")
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.60q: %v, want %q", tt.src, err, tt.want)
		}
	}
	var many strings.Builder
	for i := range 50 {
		fmt.Fprintf(&many, "a%d NS x\n", i)
	}
	_, err := z.parseStatic([]byte(many.String()), "f")
	if n := strings.Count(fmt.Sprint(err), "\n"); n != maxZoneErrors-1 {
		t.Errorf("%d lines of errors, want %d", n+1, maxZoneErrors)
	}
	for _, src := range []string{"", "; nothing\n", "www A 192.0.2.1", "www A 192.0.2.1\nwww A 192.0.2.1\n", "acme A 192.0.2.1\nx.acme A 192.0.2.1\n"} {
		if _, err := z.parseStatic([]byte(src), "f"); err != nil {
			t.Errorf("%q: %v", src, err)
		}
	}
	o := testZoneOptions(t, &source{})
	o.ZoneFile = filepath.Join(t.TempDir(), "missing")
	if _, err := NewZone(o); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// A changed file is read again; a wrong one keeps the old records and is told once.
func TestStaticReload(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	synctest.Test(t, func(t *testing.T) {
		z, _ := staticZone(t, fixtures.ThreeTowns(nil), "www A 192.0.2.80\n", func(o *ZoneOptions) {
			o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- z.Run(ctx) }()
		write := func(content string) {
			if err := os.WriteFile(z.opts.ZoneFile, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			time.Sleep(3*pollFiles + time.Millisecond) // the bubble's clock
		}
		want := func(answer string) {
			t.Helper()
			if got := brief(ask(t, z, defaultClient, "www.pbx.example.com.", dns.TypeA).Answer); got != answer {
				t.Errorf("%q, want %q", got, answer)
			}
		}
		want("www.pbx.example.com. 3600 A 192.0.2.80")
		write("www 60 A 192.0.2.81\n")
		want("www.pbx.example.com. 60 A 192.0.2.81")
		stale := func(errors uint64, now bool) {
			t.Helper()
			if s := z.Stats(); s.ZoneFileErrors != errors || s.ZoneFileStale != now {
				t.Errorf("%d errors, stale %t; want %d, %t", s.ZoneFileErrors, s.ZoneFileStale, errors, now)
			}
		}
		stale(0, false)
		write("www 60 A 192.0.2.82\nnonsense\n")
		want("www.pbx.example.com. 60 A 192.0.2.81")
		stale(1, true)
		write("www 60 A 192.0.2.8300\n")
		stale(2, true)
		if n := strings.Count(log.String(), "the older one stays in force"); n != 2 {
			t.Errorf("%d complaints, want one for each broken file:\n%s", n, log.String())
		}
		write("www 60 A 192.0.2.84\n")
		want("www.pbx.example.com. 60 A 192.0.2.84")
		stale(2, false)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// The host name of a node that left goes on answering for a while, and no longer.
func TestHostsThatLeft(t *testing.T) {
	t.Parallel()
	z, s := newTestZone(t, fixtures.ThreeTowns(nil))
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	z.now = func() time.Time { return now }
	host := func(name string) string {
		return brief(ask(t, z, defaultClient, name+".pbx.example.com.", dns.TypeA).Answer)
	}
	const there = "london.pbx.example.com. 300 A 192.0.2.2"
	if got := host("london"); got != there {
		t.Fatal(got)
	}
	without := fixtures.ThreeTowns(nil)
	delete(without.Nodes, london)
	s.mesh.Store(without)
	for range 2 {
		if got := host("london"); got != there {
			t.Errorf("after it left: %q", got)
		}
	}
	for _, rr := range ask(t, z, defaultClient, "_sip._udp.pbx.example.com.", dns.TypeSRV).Answer {
		if strings.HasPrefix(rr.(*dns.SRV).Target, "london") {
			t.Errorf("new answers still name it: %v", rr)
		}
	}
	now = now.Add(DefaultKeepHosts - time.Second)
	s.mesh.Store(without) // and a change of something else does not matter
	if got := host("london"); got != there {
		t.Errorf("just before the end: %q", got)
	}
	now = now.Add(time.Second)
	if got := host("london"); got == there {
		t.Error("it answers for ever")
	}
	// Who comes back is what it says now.
	s.mesh.Store(fixtures.ThreeTowns(nil))
	host("london")
	s.mesh.Store(without)
	host("london")
	back := fixtures.ThreeTowns(nil)
	back.Nodes[london] = pbxmesh.Node{ID: london, Addresses: fixtures.Addresses("192.0.2.22"), Ports: pbxmesh.SIPPorts{UDP: 5060}}
	s.mesh.Store(back)
	if got := host("london"); got != "london.pbx.example.com. 300 A 192.0.2.22" {
		t.Errorf("after its return: %q", got)
	}
	// The memory is bounded.
	for i := range maxRetired + 10 {
		m := fixtures.ThreeTowns(nil)
		m.Nodes[pbxmesh.NodeID(fmt.Sprintf("n%d", i))] = pbxmesh.Node{Addresses: fixtures.Addresses("192.0.2.99")}
		s.mesh.Store(m)
		z.view()
		now = now.Add(time.Millisecond)
	}
	if v := z.view(); len(v.retired) != maxRetired {
		t.Errorf("%d are remembered, want %d", len(v.retired), maxRetired)
	} else if _, ok := v.retired["n0"]; ok {
		t.Error("the first one to leave is not the first one to be forgotten")
	}
}

// An empty non-terminal of the zone file must not hide a node, and an address there
// must be told when a node of that name comes later.
func TestNodesAndZoneFile(t *testing.T) {
	t.Parallel()
	var log syncBuffer
	z, s := staticZone(t, fixtures.ThreeTowns(nil), "x.london TXT below\nwww A 192.0.2.80\n", func(o *ZoneOptions) {
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	if got := brief(ask(t, z, defaultClient, "london.pbx.example.com.", dns.TypeA).Answer); got != "london.pbx.example.com. 300 A 192.0.2.2" {
		t.Errorf("hidden: %q", got)
	}
	m := fixtures.ThreeTowns(nil)
	m.Nodes["www"] = pbxmesh.Node{ID: "www", Addresses: fixtures.Addresses("192.0.2.66"), Ports: pbxmesh.SIPPorts{UDP: 5060}}
	s.mesh.Store(m)
	for range 2 {
		if got := brief(ask(t, z, defaultClient, "www.pbx.example.com.", dns.TypeA).Answer); got != "www.pbx.example.com. 3600 A 192.0.2.80" {
			t.Errorf("a node took the name: %q", got)
		}
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d log lines, want 1:\n%s", n, log.String())
	}
}
