package app

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh/dnsserver"
	"pbxmesh/failover/latency"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// school is a board on a clock that the test moves, a node and name servers that learn from it.
type school struct {
	t     *testing.T
	store *memory.Store
	now   time.Time
	rand  *rand.Rand
}

func newSchool(t *testing.T) *school {
	t.Helper()
	s := &school{t: t, now: time.Unix(1_800_000_000, 0), rand: rand.New(rand.NewPCG(1, 2))}
	s.store = memory.New(memory.Options{Now: func() time.Time { return s.now }})
	return s
}

// daemon makes a name server, or with node a node.
func (s *school) daemon(name string, node bool) *ranker {
	s.t.Helper()
	cfg := config.Defaults()
	cfg.Name = name
	if node {
		cfg.Node = &config.Node{ID: "london"}
	} else {
		cfg.DNS.Listen = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.53:53")}
	}
	a := &App{cfg: cfg, log: slog.New(slog.DiscardHandler), now: func() time.Time { return s.now }, publisher: &publisher{to: s.store}}
	a.ranker = &ranker{a: a, arrivals: latency.NewArrivals(), book: latency.NewBook()}
	a.ranker.resolvers = newResolvers(a)
	a.ranker.view.Store(latency.NewView(latency.Input{At: s.now}))
	return a.ranker
}

// lesson lets the node take registrations for a time. With asks the first name server hears a
// resolver before those of six networks.
func (s *school) lesson(d time.Duration, node *ranker, asks bool, servers ...*ranker) {
	s.t.Helper()
	for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(time.Second) {
		add := func(client string, at time.Time) {
			node.arrivals.Add(latency.Sample{Client: netip.MustParseAddr(client), Phone: fmt.Sprint(client, at), At: at, Visit: true})
		}
		if s.now.Unix()%40 == 0 && asks {
			servers[0].resolvers.take([]dnsserver.Asked{{Resolver: netip.MustParseAddr("203.0.113.53"), Node: "london", At: s.now}})
			add(fmt.Sprintf("10.0.%d.1", s.rand.IntN(6)), s.now.Add(300*time.Millisecond))
		}
		if s.rand.IntN(5) == 0 {
			add(fmt.Sprintf("10.1.%d.1", s.rand.IntN(50)), s.now.Add(time.Duration(s.rand.Int64N(int64(time.Second)))))
		}
		if s.now.Unix()%5 == 0 {
			node.postArrivals(s.t.Context())
			for _, r := range servers {
				r.resolvers.exchange(s.t.Context())
			}
		}
	}
}

func (s *school) want(r *ranker, networks int) {
	s.t.Helper()
	list := r.resolvers.learnt()
	if networks == 0 {
		if len(list) > 0 {
			s.t.Fatalf("%s knows %+v", r.a.cfg.Name, list)
		}
		return
	}
	if len(list) != 1 || list[0].Network.String() != "203.0.113.0/24" || len(list[0].Voices) < networks {
		s.t.Fatalf("%s knows %+v", r.a.cfg.Name, list)
	}
	for _, v := range list[0].Voices {
		if (v.Network.Addr().As4()[1] == 0) != (v.Likely > 0.5) {
			s.t.Errorf("%s: %+v", r.a.cfg.Name, v)
		}
	}
}

// TestResolversAreShared: what one name server learnt all daemons know, and it is not forgotten
// by one that starts again; it ends when its name server is silent.
func TestResolversAreShared(t *testing.T) {
	t.Parallel()
	s := newSchool(t)
	node, ns1, ns2 := s.daemon("london", true), s.daemon("ns1", false), s.daemon("ns2", false)
	s.want(ns2, 0)
	s.lesson(2*time.Hour, node, true, ns1, ns2, node)
	s.want(ns1, 6)
	s.want(ns2, 6)
	s.want(node, 6)
	stats := ns1.resolvers.stats
	if stats.Queries < 60 || stats.Learnt != 1 || ns2.resolvers.stats.Queries != 0 {
		t.Errorf("%+v", stats)
	}
	again := s.daemon("ns1", false)
	s.lesson(latency.NoteTTL+5*time.Minute, node, false, again, ns2)
	s.want(again, 6)
	s.want(ns2, 6)
	if due := node.arrivals.Due(s.now); len(due) > 1 {
		t.Errorf("%d blocks wait to be posted, or again", len(due))
	}
	s.lesson(latency.NoteTTL+time.Minute, node, false, ns2)
	s.want(ns2, 0)
	if ns2.stats.bad != 0 {
		t.Errorf("%d bad notes", ns2.stats.bad)
	}
}

// TestBadResolverNotes: what is not valid is counted and left out.
func TestBadResolverNotes(t *testing.T) {
	t.Parallel()
	s := newSchool(t)
	ns := s.daemon("ns1", false)
	for kind, key := range map[registry.NoteKind]string{registry.NoteResolvers: "ns2/0", registry.NoteArrivals: "london/0"} {
		if err := s.store.Post(t.Context(), registry.Note{Kind: kind, Key: key, Value: "nothing of ours", TTL: time.Hour}); err != nil {
			t.Fatal(err)
		}
	}
	ns.resolvers.exchange(t.Context())
	if ns.stats.bad != 2 || len(ns.resolvers.learnt()) != 0 {
		t.Errorf("%d bad notes, learnt %v", ns.stats.bad, ns.resolvers.learnt())
	}
	ns.resolvers.take(make([]dnsserver.Asked, maxAskedWait+3))
	if len(ns.resolvers.asked) != maxAskedWait || ns.resolvers.lost != 3 {
		t.Errorf("%d queries wait, %d lost", len(ns.resolvers.asked), ns.resolvers.lost)
	}
}

func TestResolverIsExplained(t *testing.T) {
	t.Parallel()
	r := &control.DNSExplainReply{Rule: "latency", Network: netip.MustParsePrefix("203.0.113.0/24")}
	for _, tt := range []struct {
		behind latency.Behind
		want   string
	}{
		{latency.Behind{Networks: 4, Registrations: 41.6, Order: []int{0}}, "the resolvers of 203.0.113.0/24 send no client subnet: learnt from 42 registrations"},
		{latency.Behind{Networks: 4, Registrations: 41.6}, "42 registrations of 4 networks followed"},
		{latency.Behind{}, "ranked by what is known of 203.0.113.0/24"},
	} {
		got := orderReasons(r, &latency.View{}, &latency.Explanation{Behind: tt.behind})
		if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, tt.want) }) {
			t.Errorf("%+v: %q", tt.behind, got)
		}
	}
}
