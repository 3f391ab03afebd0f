package latencysim

import (
	"cmp"
	"container/heap"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
	"pbxmesh/failover/latency"
)

// settings of one run.
type settings struct {
	networks int
	interval time.Duration // between two registrations of a phone
	ttl      time.Duration // of an answer
	publish  time.Duration // between two rounds of notes
	rebuild  time.Duration // between two views
	maxCost  time.Duration // of a try
	phones   int           // of a network; 0 is 10 to 49
	hidden   float64       // share of the networks whose resolver sends no client subnet
	liars    float64       // share of the phones
	follow   bool          // the name server learns from registrations that follow queries

	// keepAlive is the time between two looks at the switches' keep-alive times; 0 when
	// the switches time none.
	keepAlive time.Duration
}

var usual = settings{
	networks: 1000,
	interval: 10 * time.Minute, ttl: 30 * time.Second, publish: 10 * time.Second, rebuild: 10 * time.Second, maxCost: 150 * time.Millisecond, keepAlive: 5 * time.Minute,
}

// sim is one run.
type sim struct {
	*world
	settings
	start time.Time
	now   time.Time

	estimates  []*latency.Estimates
	publishers []*latency.Publisher
	book       *latency.Book
	view       *latency.View
	where      places
	chooser    *selection.Chooser
	mesh       *pbxmesh.Mesh
	index      map[pbxmesh.NodeID]int

	events    events
	resolver  map[netip.Prefix]cached
	following                    // what the name server learns of resolvers
	at        map[netip.Addr]int // where each phone is registered

	changed map[*provider]int // whose routes changed last: 1 for the worse, 2 for the better

	registrations, tries int // of which a try of another node
}

type cached struct {
	node  int
	try   bool
	until time.Time
}

// event is a phone's next registration.
type event struct {
	at     time.Time
	client *client
	phone  int

	// arrives says that the name was looked up before, and where the phone registers now.
	arrives bool
	node    int
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at.Before(e[j].at) }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func newSim(t testing.TB, seed uint64, set settings) *sim {
	t.Helper()
	start := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	s := &sim{
		world: newWorld(seed, set.networks, set.phones), settings: set, start: start, now: start,
		book: latency.NewBook(), chooser: selection.NewChooser(nil), resolver: make(map[netip.Prefix]cached),
		at: make(map[netip.Addr]int), index: make(map[pbxmesh.NodeID]int),
	}
	s.spoil(seed, set.hidden, set.liars)
	s.where = s.places()
	s.mesh = &pbxmesh.Mesh{Nodes: make(map[pbxmesh.NodeID]pbxmesh.Node), States: make(map[pbxmesh.NodeID]pbxmesh.NodeState)}
	for i, n := range s.nodes {
		s.index[n.ID] = i
		s.mesh.Nodes[n.ID], s.mesh.States[n.ID] = n, pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
		e := latency.NewEstimates(latency.Options{Secret: fmt.Append(nil, seed, n.ID)})
		s.estimates, s.publishers = append(s.estimates, e), append(s.publishers, latency.NewPublisher(e))
	}
	for _, c := range s.clients {
		for i := range c.phones {
			heap.Push(&s.events, event{at: start.Add(time.Duration(s.rand.Float64() * float64(set.interval))), client: c, phone: i})
		}
	}
	s.begin(seed)
	s.rebuildView(t)
	return s
}

// run lets the phones register until a time has passed since the start.
func (s *sim) run(t testing.TB, until time.Duration) {
	t.Helper()
	end := s.start.Add(until)
	for s.now.Before(end) {
		s.now = s.now.Add(s.rebuild)
		for len(s.events) > 0 && s.events[0].at.Before(s.now) {
			s.register(t)
		}
		if s.keepAlive > 0 && s.now.Sub(s.start)%s.keepAlive == 0 {
			s.keepAlives()
		}
		if s.now.Sub(s.start)%s.publish == 0 {
			s.exchange(t)
		}
		s.learn(t)
		s.rebuildView(t)
	}
}

// register is one phone's registration, with the node that its resolver names.
func (s *sim) register(t testing.TB) {
	t.Helper()
	e := heap.Pop(&s.events).(event)
	p := &e.client.phones[e.phone]
	if e.arrives {
		s.arrive(e.node, p, e.at)
		return
	}
	asks, cache := e.client.asks()
	answer, ok := s.resolver[cache]
	if !ok || !e.at.Before(answer.until) {
		answer = cached{s.answer(asks), s.view.Explain(asks).Tried >= 0, e.at.Add(s.ttl)}
		s.resolver[cache] = answer
		s.asked(e.client, answer.node, e.at)
	}
	interval := float64(s.interval)
	if p.lie != honest {
		interval /= liesOften
	} else {
		s.registrations++
		if answer.try {
			s.tries++
		}
	}
	if p.lie == hurries {
		answer.node = p.haunt
	}
	s.at[p.addr] = answer.node
	s.onItsWay(e, answer.node)
	rtt := time.Duration(s.measured(e.client, p, answer.node) * float64(time.Millisecond))
	s.estimates[answer.node].Add(latency.Sample{Client: p.addr, RTT: rtt, At: e.at, Visit: true})
	// Phones register again some time before the end of the interval.
	e.at = e.at.Add(time.Duration((0.9 + 0.1*s.rand.Float64()) * interval))
	heap.Push(&s.events, e)
}

// keepAlives is a look at what the switches timed of the phones that are there.
func (s *sim) keepAlives() {
	for _, c := range s.clients {
		for i := range c.phones {
			p := &c.phones[i]
			if node, ok := s.at[p.addr]; ok {
				s.estimates[node].Add(latency.Sample{Client: p.addr, RTT: time.Duration(s.timed(c, p, node) * float64(time.Millisecond)), At: s.now})
			}
		}
	}
}

// answer is what the name server says now.
func (s *sim) answer(client netip.Addr) int {
	d, _ := s.chooser.On(s.mesh).For(client, selection.AnyFamily)
	return s.index[d.Nodes[0]]
}

// exchange carries the notes.
func (s *sim) exchange(t testing.TB) {
	t.Helper()
	for i, p := range s.publishers {
		for _, c := range p.Due(s.now, 4) {
			if err := s.book.Put(latency.Key(s.nodes[i].ID, c.Number), c.Value); err != nil {
				t.Fatal(err)
			}
			p.Posted(c)
		}
	}
}

func (s *sim) rebuildView(t testing.TB) {
	t.Helper()
	v := latency.NewView(latency.Input{Book: s.book, Nodes: s.nodes, Places: &s.where, At: s.now, MaxCost: s.maxCost, Learnt: s.learnt, Previous: s.view})
	networks := make([]selection.Network, 0, len(v.Networks()))
	for _, r := range v.Networks() {
		networks = append(networks, selection.Network{Prefix: r.Network, Nodes: r.Nodes})
	}
	ranking, err := selection.NewRanking(networks, v)
	if err != nil {
		t.Fatal(err)
	}
	s.chooser.SetRanking(ranking)
	s.view = v
}

// figures of one moment.
type moment struct {
	at       time.Duration
	best     float64 // share of networks whose answer is the node with the lowest latency
	excess   float64 // mean of what the answers are above it, milliseconds
	p95      float64
	phones   float64                // share of phones that are registered there
	distance float64                // share of networks that would be by distance alone
	byRoad   float64                // mean excess by distance alone
	changed  [2]float64             // share at the best node of those whose routes changed, for the worse and for the better; 1 without any
	shown    float64                // best, of those whose resolver sends the client subnet
	hidden   float64                // best, of the others; 1 without any
	lied     float64                // best, of those with liars whose resolver sends the client subnet; 1 without any
	kinds    [resolverKinds]float64 // best, by resolver; 1 without any
	possible [resolverKinds]float64 // what it could be with one answer for all networks of a resolver
	tries    float64                // share of all registrations until now that tried another node
}

func (s *sim) moment() moment {
	m := moment{at: s.now.Sub(s.start)}
	var all []float64
	phones, there := 0, 0
	var changed, adapted [3]int
	var asked, right [3]int // with the client subnet, without, and those of the first that have liars
	var ofKind, rightOfKind [resolverKinds]float64
	needed := make(map[resolver][]int) // by node
	for _, c := range s.clients {
		best := c.best()
		low := c.group.rtt[best]
		asks, _ := c.asks()
		got := s.answer(asks)
		kind := 0
		if c.resolver.kind != sends {
			kind = 1
		}
		asked[kind]++
		liars := kind == 0 && c.liars()
		if liars {
			asked[2]++
		}
		ofKind[c.resolver.kind]++
		if needed[c.resolver] == nil {
			needed[c.resolver] = make([]int, len(s.nodes))
		}
		needed[c.resolver][best]++
		if got == best {
			m.best++
			rightOfKind[c.resolver.kind]++
			right[kind]++
			if liars {
				right[2]++
			}
		}
		changed[s.changed[c.group]]++
		if got == best {
			adapted[s.changed[c.group]]++
		}
		all = append(all, c.group.rtt[got]-low)
		near := s.nearest(c.seen())
		if near == best {
			m.distance++
		}
		m.byRoad += c.group.rtt[near] - low
		for i := range c.phones {
			phones++
			if at, ok := s.at[c.phones[i].addr]; ok && at == best {
				there++
			}
		}
	}
	n := float64(len(s.clients))
	slices.SortFunc(all, cmp.Compare[float64])
	for _, x := range all {
		m.excess += x / n
	}
	m.p95 = all[len(all)*95/100]
	for i := range m.changed {
		m.changed[i] = 1
		if n := changed[i+1]; n > 0 {
			m.changed[i] = float64(adapted[i+1]) / float64(n)
		}
	}
	share := func(kind int) float64 {
		if asked[kind] == 0 {
			return 1
		}
		return float64(right[kind]) / float64(asked[kind])
	}
	for i := range ofKind {
		m.kinds[i] = 1
		if ofKind[i] > 0 {
			m.kinds[i] = rightOfKind[i] / ofKind[i]
		}
	}
	for r, networks := range needed {
		m.possible[r.kind] += float64(slices.Max(networks)) / ofKind[r.kind]
	}
	m.shown, m.hidden, m.lied = share(0), share(1), share(2)
	m.tries = float64(s.tries) / float64(max(1, s.registrations))
	m.best, m.distance, m.byRoad, m.phones = m.best/n, m.distance/n, m.byRoad/n, float64(there)/float64(phones)
	return m
}

func (s *sim) nearest(where pbxmesh.Location) int {
	best := 0
	for i := range s.nodes {
		if distance(where, s.nodes[i].Location) < distance(where, s.nodes[best].Location) {
			best = i
		}
	}
	return best
}

// The claims, and when they are looked at: soon after the end of an interval, when its
// last samples have been shared.
const (
	shared       = 15 * time.Second
	wantBest     = 0.95 // in TestReport of the mean of all internets,
	wantEach     = 0.94 // and this of each
	wantExcessMS = 5.0

	wantShown        = 0.85 // of few phones with liars, where the client subnet is sent
	wantLied         = 0.8  // of these, where there are liars
	wantExcessHardMS = 15.0 // of all

	leanPace    = 15 * time.Second // between two rounds of notes and two views, where speed counts
	changeShare = 0.1              // of the providers, at changeAfter intervals
	changeAfter = 3
)

// TestSimulation is the claim of docs/latency.md: after the samples of one registration
// interval 95 % of the client networks are told the node with the lowest latency, what
// the others are above it is below 5 ms on the average of all, and two intervals after a
// change of routes it is so again. Answers by which a node is tried count as they are.
func TestSimulation(t *testing.T) {
	if raceDetector {
		t.Skip("one goroutine does it all: there is no race to find, and it would take a minute")
	}
	t.Parallel()
	lean := usual
	lean.rebuild, lean.publish = leanPace, leanPace // fewer views, which are the work
	s := newSim(t, 1, lean)
	s.run(t, s.interval+shared)
	first := s.moment()
	t.Log(first)
	if first.best < wantBest || first.excess >= wantExcessMS {
		t.Errorf("after one interval: %v", first)
	}
	// The check can fail: distance alone does not pass it.
	if first.distance >= wantBest || first.byRoad < wantExcessMS {
		t.Errorf("distance alone is as good, so nothing was shown: %v", first)
	}
	s.change(changeShare)
	broken := s.moment()
	t.Log(broken)
	if broken.best >= first.best || broken.changed[0] > 0.5 {
		t.Errorf("the change of routes changed nothing: %v", broken)
	}
	s.run(t, 3*s.interval+2*shared)
	after := s.moment()
	t.Log(after)
	if after.best < wantBest || after.excess >= wantExcessMS {
		t.Errorf("two intervals after a change of routes: %v", after)
	}
}

func (m moment) String() string {
	return fmt.Sprintf("after %v: %.1f %% of the networks at the best node, %.2f ms above it on average, 95th percentile %.1f ms; "+
		"%.1f %% of the phones; of those with a changed route %.0f %% (worse), %.0f %% (better); %.1f %% of the registrations were tries; by distance alone %.1f %%, %.2f ms; with the client subnet %.1f %%, without %.1f %%, with liars %.1f %%; by resolver %.3f",
		m.at, 100*m.best, m.excess, m.p95, 100*m.phones, 100*m.changed[0], 100*m.changed[1], 100*m.tries, 100*m.distance, m.byRoad, 100*m.shown, 100*m.hidden, 100*m.lied, m.kinds)
}
