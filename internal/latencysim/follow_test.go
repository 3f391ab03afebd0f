package latencysim

import (
	"container/heap"
	"math/rand/v2"
	"testing"
	"time"

	"pbxmesh/failover/latency"
)

// following is what the name server learns of resolvers that send no client subnet. Its
// clock and those of the nodes are off by up to clockOff, each by its own.
type following struct {
	arrivals  []*latency.Arrivals // by node
	clocks    []time.Duration     // by node, and last the name server's
	followers *latency.Followers
	learnt    []latency.Learnt
	delays    *rand.Rand
}

const (
	clockOff = time.Second

	// A phone registers so long after it asked: more look-ups, the challenge, a slow phone.
	delayLeast, delayMean, delayMost = 60 * time.Millisecond, 300 * time.Millisecond, 3 * time.Second

	learnEvery = 60 * time.Second // a note of the name server
)

func (s *sim) begin(seed uint64) {
	s.delays = rand.New(rand.NewPCG(seed, 7))
	s.followers = latency.NewFollowers()
	for range s.nodes {
		s.arrivals = append(s.arrivals, latency.NewArrivals())
	}
	for range len(s.nodes) + 1 {
		s.clocks = append(s.clocks, time.Duration((2*s.delays.Float64()-1)*float64(clockOff)))
	}
}

// asked is a query of a resolver, as the name server's clock has it.
func (s *sim) asked(c *client, node int, at time.Time) {
	if s.follow && c.resolver.kind != sends {
		s.followers.Ask([]latency.Asked{{Resolver: c.resolver.addr, Node: s.nodes[node].ID, At: at.Add(s.clocks[len(s.nodes)])}})
	}
}

// onItsWay lets a phone that asked arrive at a node a moment later.
func (s *sim) onItsWay(e event, node int) {
	if s.follow {
		takes := min(delayLeast+time.Duration(s.delays.ExpFloat64()*float64(delayMean)), delayMost)
		heap.Push(&s.events, event{at: e.at.Add(takes), client: e.client, phone: e.phone, arrives: true, node: node})
	}
}

// arrive is an accepted registration, as the node's clock has it.
func (s *sim) arrive(node int, p *phone, at time.Time) {
	s.arrivals[node].Add(latency.Sample{Client: p.addr, At: at.Add(s.clocks[node]), Visit: true})
}

// learn carries the blocks of arrivals, and what the name server makes of them.
func (s *sim) learn(t testing.TB) {
	t.Helper()
	if !s.follow {
		return
	}
	for i, a := range s.arrivals {
		for _, c := range a.Due(s.now.Add(s.clocks[i])) {
			if err := s.followers.Arrived(latency.Key(s.nodes[i].ID, c.Number), c.Value, s.now); err != nil {
				t.Fatal(err)
			}
			a.Posted(c)
		}
	}
	if s.now.Sub(s.start)%learnEvery == 0 {
		s.followers.Join(s.now.Add(s.clocks[len(s.nodes)]))
		notes, err := s.followers.Notes(s.view, s.now)
		if err != nil {
			t.Fatal(err)
		}
		s.learnt = nil
		for _, note := range notes {
			learnt, err := latency.ParseLearnt(note)
			if err != nil {
				t.Fatal(err)
			}
			s.learnt = append(s.learnt, learnt...)
		}
	}
}

// TestResolversAreLearnt is the claim of docs/latency.md for resolvers that send no client
// subnet: where their own place says nothing of their phones, the registrations that follow their queries do; where it
// does, they change nothing.
func TestResolversAreLearnt(t *testing.T) {
	if raceDetector {
		t.Skip("one goroutine does it all: there is no race to find, and it would take a minute")
	}
	t.Parallel()
	after := func(follow bool) moment {
		lean := hard
		lean.networks, lean.follow, lean.rebuild, lean.publish = 600, follow, leanPace, leanPace
		s := newSim(t, 1, lean)
		s.run(t, learntAfter*s.interval+shared)
		m := s.moment()
		t.Log(m)
		return m
	}
	without, with := after(false), after(true)
	if with.kinds[far] < wantFar || with.kinds[far] < 2*without.kinds[far] || with.excess >= without.excess {
		t.Errorf("of networks whose resolver is far away %.1f %% are at the best node, %.1f %% when nothing is learnt; %.1f and %.1f ms",
			100*with.kinds[far], 100*without.kinds[far], with.excess, without.excess)
	}
	if with.kinds[regional] < without.kinds[regional]-0.05 || with.kinds[provided] < without.kinds[provided]-0.05 {
		t.Errorf("resolvers that stand near their phones: %.3f, and %.3f when nothing is learnt", with.kinds, without.kinds)
	}
}

const (
	learntAfter = 12 // intervals
	wantFar     = 0.45
)
