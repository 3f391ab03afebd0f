package dnsserver

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/fixtures"
)

var testTime = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func testResponder(z *Zone) *responder {
	return &responder{zone: z, cookies: NewCookies(CookieSecret{1, 2, 3}), amplification: DefaultAmplification}
}

// randomQuery returns a query that is usual more often than not, from a small set, so
// that most come again.
func randomQuery(r *rand.Rand, cookies *Cookies, client netip.Addr) []byte {
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	name := pick("pbx.example.com.", "sip.pbx.example.com.", "t1.pbx.example.com.", "t2.pbx.example.com.", "a.t3.pbx.example.com.",
		"london.pbx.example.com.", "buffalo.pbx.example.com.", "losangeles.pbx.example.com.", "x.losangeles.pbx.example.com.",
		"phones.customer.example.", "example.org.", ".", "_udp.pbx.example.com.", "_x.pbx.example.com.", `a\.b.pbx.example.com.`, `\000.pbx.example.com.`)
	if name != "." && r.IntN(3) == 0 {
		name = pick("_sip._udp.", "_sip._tcp.", "_sips._tcp.", "_sip._ws.") + name
	}
	qtype := []uint16{dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeNAPTR, dns.TypeSOA, dns.TypeNS, dns.TypeANY, dns.TypeTXT, dns.TypeAXFR, 65280}[r.IntN(11)]
	m := new(dns.Msg)
	m.Id, m.Opcode = uint16(r.Uint32()), dns.OpcodeQuery
	m.RecursionDesired, m.CheckingDisabled = r.IntN(2) == 0, r.IntN(4) == 0
	m.AuthenticatedData, m.Zero = r.IntN(4) == 0, r.IntN(8) == 0
	if r.IntN(30) == 0 {
		m.Opcode = r.IntN(16)
	}
	if r.IntN(30) == 0 {
		m.Truncated = true
	}
	cased := []byte(name)
	for i, c := range cased {
		if c >= 'a' && c <= 'z' && r.IntN(2) == 0 {
			cased[i] -= 'a' - 'A'
		}
	}
	class := uint16(dns.ClassINET)
	if r.IntN(30) == 0 {
		class = dns.ClassCHAOS
	}
	m.Question = []dns.Question{{Name: string(cased), Qtype: qtype, Qclass: class}}
	if r.IntN(40) == 0 {
		m.Question = nil
	}
	if r.IntN(3) > 0 {
		m.SetEdns0([]uint16{0, 100, 512, 600, 1232, 1400, 4096, 65535}[r.IntN(8)], r.IntN(3) == 0)
		o := m.IsEdns0()
		if r.IntN(30) == 0 {
			o.SetVersion(uint8(r.IntN(3)))
		}
		if r.IntN(3) == 0 {
			cookie := []byte{1, 2, 3, 4, 5, 6, 7, byte(r.IntN(3))}
			switch r.IntN(4) {
			case 0:
				made, _ := cookies.answer(cookie, client, testTime.Add(-time.Duration(r.IntN(5000))*time.Second))
				cookie = made[:]
			case 1:
				cookie = append(cookie, bytes.Repeat([]byte{7}, r.IntN(40))...)
			}
			o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: fmt.Sprintf("%x", cookie)})
		}
		if r.IntN(3) == 0 {
			a := netip.MustParseAddr(pick("198.51.100.7", "203.0.113.1", "203.0.113.200", "8.8.8.8", "2001:db8:100::1", "2001:db8:ffff::"))
			bits := r.IntN(a.BitLen() + 1)
			p, _ := a.Prefix(bits)
			e := &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: uint8(bits), Address: p.Addr().AsSlice()}
			if a.Is6() {
				e.Family = 2
			}
			if r.IntN(20) == 0 {
				e.SourceScope = 3
			}
			o.Option = append(o.Option, e)
		}
		if r.IntN(3) == 0 {
			o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		}
		if r.IntN(10) == 0 {
			o.Option = append(o.Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte{1}})
		}
		if r.IntN(2) == 0 {
			r.Shuffle(len(o.Option), func(i, j int) { o.Option[i], o.Option[j] = o.Option[j], o.Option[i] })
		}
	}
	p, err := m.Pack()
	if err != nil {
		panic(err)
	}
	if r.IntN(50) == 0 {
		p[r.IntN(len(p))] ^= byte(1 << r.IntN(8))
	}
	return p
}

// TestFastIsSlow: an answer from the cache is, byte for byte, the one that the slow path
// gives, on changing snapshots, for all clients, and with everything that a query may
// carry.
func TestFastIsSlow(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			z, src := newTestZone(t, fixtures.ThreeTowns(nil))
			if seed == 2 {
				z = signedZone(t, func(o *ZoneOptions) { o.Source = src })
			}
			responder := testResponder(z)
			w := newWorker(responder, z.log)
			w.cache = newAnswerCache(512, 60_000) // small enough to push some out
			rnd := rand.New(rand.NewPCG(seed, 1))
			meshes := []*pbxmesh.Mesh{
				fixtures.ThreeTowns(nil), fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{london: {Observed: pbxmesh.ObservedDown}}),
				bigMesh(3, 12), fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{london: {Observed: pbxmesh.ObservedDown}, buffalo: {Observed: pbxmesh.ObservedDown}, singapore: {Observed: pbxmesh.ObservedDown}}),
			}
			clients := []string{"198.51.100.7", "203.0.113.1", "203.0.113.200", "192.0.2.200", "2001:db8:100::9", "2001:db8:2::1"}
			buf := make([]byte, 0, MaxUDPSize)
			now := testTime
			for i := range 8_000 {
				if i%1000 == 999 {
					src.mesh.Store(meshes[rnd.IntN(len(meshes))])
					w.flush()
				}
				if i%1500 == 1499 {
					now = now.Add(20 * time.Second)
				}
				client := netip.MustParseAddr(clients[rnd.IntN(len(clients))])
				packet := randomQuery(rnd, responder.cookies, client)
				query := bytes.Clone(packet)
				res, ok := w.fast(buf, packet, client, now)
				if !bytes.Equal(packet, query) {
					t.Fatal("the query was written to")
				}
				if !ok {
					continue
				}
				slow := responder.respond(packet, client, true, now)
				if !bytes.Equal(res.reply, slow.reply) || res.state != slow.state || res.cookie != slow.cookie || res.edns != slow.edns {
					t.Fatalf("query %d %x from %v:\nfast %x\n%v\nslow %x\n%v", i, packet, client, res.reply, unpacked(res.reply), slow.reply, unpacked(slow.reply))
				}
			}
			w.flush()
			if s := z.Stats(); s.CacheHits < 2000 || s.CacheMisses == 0 {
				t.Errorf("%d hits, %d misses: the cache was hardly used", s.CacheHits, s.CacheMisses)
			}
			if w.cache.bytes > 60_000 {
				t.Errorf("%d bytes in the cache, 60000 are allowed", w.cache.bytes)
			}
		})
	}
}

func unpacked(b []byte) *dns.Msg {
	m := new(dns.Msg)
	_ = m.Unpack(b)
	return m
}

// warm asks until the answer comes from the cache.
func warm(t testing.TB, w *worker, packet []byte, client netip.Addr) response {
	t.Helper()
	buf := make([]byte, 0, MaxUDPSize)
	for range 3 {
		res, ok := w.fast(buf, packet, client, testTime)
		w.flush()
		if ok {
			return res
		}
	}
	t.Fatal("never answered from the cache")
	return response{}
}

func TestFastPathDoesNotAllocate(t *testing.T) {
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	w := newWorker(testResponder(z), z.log)
	w.r.rate = newRateLimiter(RateLimit{Answers: 1_000_000, NXDomain: 1_000_000, Errors: 1_000_000, Slip: 2})
	buf := make([]byte, 0, MaxUDPSize)
	for name, packet := range benchQueries(t) {
		warm(t, w, packet, defaultClient)
		n := testing.AllocsPerRun(200, func() {
			if w.respond(buf, packet, defaultClient, testTime) == nil {
				t.Fatal("no answer")
			}
			w.flush()
		})
		if n != 0 {
			t.Errorf("%s: %v allocations for a query, want none", name, n)
		}
	}
}

func benchQueries(t testing.TB) map[string][]byte {
	queries := make(map[string][]byte)
	for name, q := range map[string]struct {
		name   string
		qtype  uint16
		change func(*dns.Msg)
	}{
		"A":      {"pbx.example.com.", dns.TypeA, withEDNS(nil)},
		"tenant": {"tenant.pbx.example.com.", dns.TypeA, nil},
		"SRV":    {"_sip._udp.tenant.pbx.example.com.", dns.TypeSRV, withEDNS(nil)},
		"ECS":    {"tenant.pbx.example.com.", dns.TypeA, subnet(1, "198.51.100.0", 24, 0)},
		"cookie": {"tenant.pbx.example.com.", dns.TypeA, withEDNS(func(o *dns.OPT) {
			o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		})},
	} {
		m := new(dns.Msg)
		m.SetQuestion(q.name, q.qtype)
		if q.change != nil {
			q.change(m)
		}
		p, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		queries[name] = p
	}
	return queries
}

// TestCacheFollowsTheSnapshot: after a swap the very next query gets the new answer.
func TestCacheFollowsTheSnapshot(t *testing.T) {
	t.Parallel()
	z, src := newTestZone(t, fixtures.ThreeTowns(nil))
	w := newWorker(testResponder(z), z.log)
	packet := benchQueries(t)["A"]
	address := func() string { return brief(unpacked(warm(t, w, packet, defaultClient).reply).Answer) }
	before := address()
	src.mesh.Store(fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: {Observed: pbxmesh.ObservedDown}}))
	if after := address(); before != "pbx.example.com. 30 A 192.0.2.1" || after != "pbx.example.com. 15 A 192.0.2.2" {
		t.Errorf("%s, then %s", before, after)
	}
}

// TestMadeUpNamesDoNotPushOut: ten thousand names that are asked once leave the names
// in use in their places.
func TestMadeUpNamesDoNotPushOut(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	w := newWorker(testResponder(z), z.log)
	// So many places that five of the names in use hardly ever meet in a set of four:
	// in a fuller cache they push each other out, which is not what this is about.
	w.cache = newAnswerCache(4096, cacheBytes)
	ask := func(name string) bool {
		m := new(dns.Msg)
		m.SetQuestion(name, dns.TypeA)
		p, _ := m.Pack()
		_, ok := w.fast(nil, p, defaultClient, testTime)
		return ok
	}
	good := func(i int) string { return fmt.Sprintf("tenant%d.pbx.example.com.", i) }
	for range 4 {
		for i := range 64 {
			ask(good(i))
		}
	}
	kept := 0
	for i := range 10_000 {
		ask(fmt.Sprintf("x%d.pbx.example.com.", i))
		if i%10 == 0 && ask(good(i/10%64)) {
			kept++
		}
	}
	if kept < 990 {
		t.Errorf("%d of 1000 queries for names in use came from the cache, want nearly all", kept)
	}
}

// TestRateLimitedReplies: a limited client is sent nothing, or no more than it sent.
func TestRateLimitedReplies(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	w := newWorker(testResponder(z), z.log)
	w.r.rate = newRateLimiter(RateLimit{Answers: 5, NXDomain: 5, Errors: 5, Slip: 2})
	buf := make([]byte, 0, MaxUDPSize)
	for name, packet := range benchQueries(t) {
		full, cut, none := 0, 0, 0
		client := netip.AddrFrom4([4]byte{10, byte(len(name)), name[0], 1})
		for range 25 {
			reply := w.respond(buf, packet, client, testTime)
			m := unpacked(reply)
			switch {
			case reply == nil:
				none++
			case len(m.Answer) > 0:
				full++
			case name == "cookie":
				cut++
				if m.Truncated || m.IsEdns0() == nil || len(m.IsEdns0().Option) != 1 || m.Rcode != dns.RcodeBadCookie || len(reply) > len(packet)+16 {
					t.Errorf("cookie: %v", m)
				}
			default:
				cut++
				if !m.Truncated || m.Rcode != 0 || len(reply) > len(packet) || len(m.Question) != 1 || binary.BigEndian.Uint16(packet) != m.Id {
					t.Errorf("%s: %v", name, m)
				}
			}
		}
		if full != 5 || cut != 10 || none != 10 {
			t.Errorf("%s: %d whole, %d cut, %d none; want 5, 10, 10", name, full, cut, none)
		}
		// With the cookie that it was given a client is not limited.
		if name == "cookie" {
			option := unpacked(w.r.respond(packet, client, true, testTime).reply).IsEdns0().Option
			m := unpacked(packet)
			m.IsEdns0().Option = option
			again, _ := m.Pack()
			for range 20 {
				if reply := w.respond(buf, again, client, testTime); len(unpacked(reply).Answer) != 1 {
					t.Fatalf("limited in spite of its cookie: %v", unpacked(reply))
				}
			}
		}
	}
	if s := z.Stats(); s.RateSlips != 50 || s.RateDrops != 50 {
		t.Errorf("%d slips, %d drops", s.RateSlips, s.RateDrops)
	}
}

func BenchmarkFast(b *testing.B) {
	z, _ := newTestZone(b, fixtures.ThreeTowns(nil))
	w := newWorker(testResponder(z), z.log)
	w.r.rate = newRateLimiter(RateLimit{Answers: -1, NXDomain: -1, Errors: -1})
	w.asked = newAskedLog(func([]Asked) {})
	buf := make([]byte, 0, MaxUDPSize)
	for name, packet := range benchQueries(b) {
		b.Run(name, func(b *testing.B) {
			warm(b, w, packet, defaultClient)
			b.ReportAllocs()
			for b.Loop() {
				if w.respond(buf, packet, defaultClient, testTime) == nil {
					b.Fatal("no answer")
				}
			}
			w.flush()
		})
	}
}
