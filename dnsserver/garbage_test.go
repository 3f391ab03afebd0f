package dnsserver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh/fixtures"
)

// garbage returns packets as floods have them: noise, queries that are damaged, for
// names that somebody makes up, for foreign names, and responses.
func garbage(r *rand.Rand) []byte {
	b := make([]byte, 12+r.IntN(200))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	m := new(dns.Msg)
	switch r.IntN(5) {
	case 0:
		return b
	case 1:
		b[2] &^= 0x80
		return b
	case 2:
		m.SetQuestion(fmt.Sprintf("x%d.pbx.example.com.", r.Uint32()), dns.TypeA)
	case 3:
		m.SetQuestion(fmt.Sprintf("x%d.example.org.", r.Uint32()), dns.TypeANY)
	default:
		m.SetQuestion("pbx.example.com.", dns.TypeSRV)
		m.SetEdns0(4096, true)
	}
	p, err := m.Pack()
	if err != nil {
		panic(err)
	}
	if r.IntN(2) == 0 {
		p[2+r.IntN(len(p)-2)] ^= byte(1 + r.IntN(255))
	}
	return p
}

// burst is how many packets one flooder without a rate sends.
const burst = 4000

// flood sends garbage from many addresses until ctx ends, rate packets per second, and
// counts them. Rate 0 is one burst as fast as it goes.
func flood(ctx context.Context, t *testing.T, to string, rate int, count *atomic.Int64) {
	r := rand.New(rand.NewPCG(1, uint64(rate)))
	packets := make([][]byte, 4096)
	for i := range packets {
		packets[i] = garbage(r)
	}
	conns := make([]net.Conn, 64)
	for i := range conns {
		from := &net.UDPAddr{IP: net.IPv4(127, byte(1+r.IntN(250)), byte(r.IntN(250)), byte(1+r.IntN(250)))}
		at, err := net.ResolveUDPAddr("udp", to)
		if err != nil {
			t.Error(err)
			return
		}
		if conns[i], err = net.DialUDP("udp", from, at); err != nil {
			t.Error(err)
			return
		}
		defer conns[i].Close()
	}
	begin, sent := time.Now(), 0
	for ctx.Err() == nil && (rate > 0 || sent < burst) {
		due := sent + 512
		if rate > 0 {
			due = min(due, int(time.Since(begin).Seconds()*float64(rate)))
		}
		for ; sent < due; sent++ {
			_, _ = conns[sent%len(conns)].Write(packets[r.IntN(len(packets))])
		}
		count.Store(int64(sent))
		if rate > 0 {
			time.Sleep(200 * time.Microsecond)
		}
	}
}

// TestGarbageLeavesGoodClientsAnswered: while bursts of garbage come as fast as they can
// be sent, every good client is answered, as resolvers ask: again when nothing comes. With
// PBXMESH_DNS_GARBAGE set to a rate it floods at that rate for ten seconds, asks once
// for each query, and tells the share answered and how long that took.
func TestGarbageLeavesGoodClientsAnswered(t *testing.T) {
	rate, _ := strconv.Atoi(os.Getenv("PBXMESH_DNS_GARBAGE"))
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	s, addr := startServer(t, z, func(o *Options) { o.RateLimit = &RateLimit{} })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var sent [2]atomic.Int64
	var wg sync.WaitGroup
	for i := range sent {
		wg.Go(func() { flood(ctx, t, addr, rate/2, &sent[i]) })
	}
	garbage := func() int64 { return sent[0].Load() + sent[1].Load() }
	client := dns.Client{Timeout: time.Second, Dialer: &net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0"))}}
	queries, tries := 100, 20
	if rate > 0 {
		queries, tries = 2000, 1
	}
	var times []time.Duration
	begin := time.Now()
	for i := range queries {
		req := new(dns.Msg)
		req.SetQuestion(fmt.Sprintf("tenant%d.pbx.example.com.", i%20), dns.TypeA)
		for range tries {
			m, took, err := client.Exchange(req, addr)
			if err == nil && len(m.Answer) == 1 {
				times = append(times, took)
				break
			}
		}
		if rate > 0 {
			time.Sleep(time.Until(begin.Add(time.Duration(i+1) * 5 * time.Millisecond)))
		}
	}
	took := time.Since(begin)
	if rate > 0 {
		cancel()
	}
	wg.Wait()
	if n := garbage(); rate == 0 && n < 2*burst {
		t.Errorf("only %d packets of garbage were sent", n)
	}
	if len(times) < queries && rate == 0 {
		t.Errorf("%d of %d good queries answered", len(times), queries)
	}
	if n := s.Stats().Crashes; n != 0 {
		t.Errorf("%d crashes", n)
	}
	if rate > 0 {
		slices.Sort(times)
		if len(times) == 0 {
			t.Fatal("no good query was answered")
		}
		st := s.Stats()
		t.Logf("%.0f packets/s of garbage, %d read; %d of %d good queries answered at the first try (%.2f %%), p50 %v, p99 %v; %d slips, %d drops",
			float64(garbage())/took.Seconds(), st.UDP, len(times), queries, 100*float64(len(times))/float64(queries), times[len(times)/2], times[len(times)*99/100], st.RateSlips, st.RateDrops)
	}
}
