package latency

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"pbxmesh"
)

const client = "198.51.100.7"

// fixed places everybody in one town.
type fixed struct{ at Where }

func (f fixed) Where(c netip.Addr) Where {
	w := f.at
	w.Network, _ = c.Prefix(16)
	return w
}

func TestDistances(t *testing.T) {
	t.Parallel()
	// Great circles from any atlas: London to Singapore 10,850 km, Buffalo to London
	// 5,740 km.
	for _, tt := range []struct {
		a, b pbxmesh.Node
		km   float64
	}{{london, singapore, 10850}, {buffalo, london, 5740}, {london, london, 0}} {
		if km := distanceKM(tt.a.Location, tt.b.Location); math.Abs(km-tt.km) > 60 {
			t.Errorf("%s to %s: %.0f km, want %.0f", tt.a.ID, tt.b.ID, km, tt.km)
		}
		low := lowestMS(tt.a.Location, tt.b.Location)
		if got := vectorOf(tt.a.Location).lowestMS(vectorOf(tt.b.Location)); math.Abs(got-low) > 0.01 {
			t.Errorf("by vectors %.3f ms, by angles %.3f", got, low)
		}
		if got := guessMS(tt.a.Location, tt.b.Location); math.Abs(got-(4+1.5*low)) > 1e-9 {
			t.Errorf("guess %v for lowest %v", got, low)
		}
	}
	if guessMS(pbxmesh.Location{}, london.Location) != unknownMS || lowestMS(pbxmesh.Location{}, london.Location) != 0 {
		t.Error("a place that is not known has a distance")
	}
}

// TestJudge walks the rules that put nodes in order.
func TestJudge(t *testing.T) {
	t.Parallel()
	own := func(ms float64, samples int, visits float64) Figure {
		return Figure{Score: ms, Own: ms, Samples: samples, Visits: visits, Evidence: float64(samples), Lowest: ms / 2}
	}
	guess := func(ms, lowest float64) Figure { return Figure{Score: ms, Prior: ms, Lowest: lowest, Age: 255} }
	for _, tt := range []struct {
		name      string
		figures   []Figure
		order     []int
		incumbent int
		kept      bool
		try       []int
		share     int
	}{
		{"nothing but distance", []Figure{guess(90, 60), guess(20, 10), guess(150, 100)}, []int{1, 0, 2}, -1, false, nil, 0},
		{"a gain of 9 ms keeps the present answer", []Figure{own(50, 8, 10), own(41, 8, 0)}, []int{0, 1}, 0, true, nil, 0},
		{"a gain of 11 ms changes it", []Figure{own(50, 8, 10), own(39, 8, 0)}, []int{1, 0}, 0, false, nil, 0},
		{"of 200 ms a gain of 29 keeps it", []Figure{own(200, 8, 10), own(171, 8, 0)}, []int{0, 1}, 0, true, nil, 0},
		{"of 200 ms a gain of 31 changes it", []Figure{own(200, 8, 10), own(169, 8, 0)}, []int{1, 0}, 0, false, nil, 0},
		{"one sample changes nothing, but is followed up", []Figure{own(100, 8, 10), own(20, 1, 0)}, []int{0, 1}, 0, true, []int{1}, exploreBetter},
		{"a guess changes nothing, but is tried", []Figure{own(100, 8, 10), guess(20, 10)}, []int{0, 1}, 0, true, []int{1}, exploreBetter},
		{"spread phones have no present answer to protect", []Figure{own(50, 8, 5), own(47, 8, 5)}, []int{1, 0}, -1, false, nil, 0},
		{"what light forbids is not tried", []Figure{own(20, 8, 10), guess(60, 57)}, []int{0, 1}, 0, false, nil, 0},
		{"what could be better is tried", []Figure{own(60, 8, 10), guess(80, 20)}, []int{0, 1}, 0, false, []int{1}, exploreNew},
		{"what could be better against all expectation is tried rarely", []Figure{own(60, 8, 10), guess(180, 20)}, []int{0, 1}, 0, false, []int{1}, exploreRare},
		{"what was worse long ago is tried now and then", []Figure{own(100, 8, 10), {Score: 150, Own: 150, Samples: 8, Evidence: 8, Lowest: 20, Age: 12}}, []int{0, 1}, 0, false, []int{1}, exploreKeep},
		{"what was worse just now is not", []Figure{own(100, 8, 10), {Score: 150, Own: 150, Samples: 8, Evidence: 8, Lowest: 20, Age: 9}}, []int{0, 1}, 0, false, nil, 0},
		{"what never showed anything is given up", []Figure{{Score: 60, Own: 60, Samples: 8, Evidence: 8, Visits: 10, Seen: 100}, guess(55, 20)}, []int{0, 1}, 0, true, []int{1}, exploreKeep},
		{"what a neighbour just found is followed up", []Figure{own(100, 8, 10), {Score: 110, Own: 150, Parent: 70, Expected: 70, Samples: 8, Evidence: 8, Lowest: 20, Age: 1, OwnAge: 20}}, []int{0, 1}, 0, false, []int{1}, exploreBetter},
		{"nothing is better than what is near", []Figure{{Score: 5, Own: 0.75, Samples: 1, Evidence: 1, Visits: 2}, guess(20, 0)}, []int{0, 1}, 0, false, nil, 0},
		{"a try must not cost too much", []Figure{own(60, 8, 10), guess(300, 20)}, []int{0, 1}, 0, false, nil, 0},
		{"what few find better is followed up, and changes nothing", []Figure{own(60, 8, 10), {Score: 70, Own: 1, Few: true, Expected: 70, Samples: 8, Evidence: hint, Lowest: 20}}, []int{0, 1}, 0, false, []int{1}, exploreBetter},
		{"what few find worse than all expect is not lost", []Figure{own(100, 8, 10), {Score: 900, Own: 900, Few: true, Expected: 60, Samples: 8, Evidence: 8, Lowest: 20}}, []int{0, 1}, 0, false, []int{1}, exploreDoubt},
		{"few phones that come often are no present answer", []Figure{own(50, 8, 1), {Score: 45, Own: 45, Few: true, Expected: 45, Samples: 8, Visits: 10, Evidence: 8, Lowest: 40}}, []int{1, 0}, -1, false, nil, 0},
		{"nobody", nil, nil, -1, false, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			j := judge(tt.figures, 200)
			if !slices.Equal(j.Order, tt.order) || j.Incumbent != tt.incumbent || j.Kept != tt.kept || !slices.Equal(j.Try, tt.try) || j.TryShare != tt.share {
				t.Errorf("%+v", j)
			}
			if j := judge(tt.figures, 0); len(j.Try) != 0 {
				t.Errorf("tries %v though that is off", j.Try)
			}
		})
	}
}

func TestTriesKeepTheirShareAndHalve(t *testing.T) {
	t.Parallel()
	j := Judgement{Try: []int{2, 0, 1}, TryShare: 250}
	counts := make(map[int]int)
	const slots = 40_000
	for slot := range uint64(slots) {
		if node, ok := j.tried(networkNumber(netip.MustParsePrefix("198.51.100.0/24")), slot); ok {
			counts[node]++
		}
	}
	for node, want := range map[int]float64{2: 0.125, 0: 0.0625, 1: 0.0625} {
		if got := float64(counts[node]) / slots; math.Abs(got-want) > 0.01 {
			t.Errorf("node %d in %.3f of the slots, want %.3f", node, got, want)
		}
	}
}

func TestOwnSamplesWinOverDistance(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.in.Places = fixed{Where{Location: pbxmesh.Location{Latitude: 40.42, Longitude: -3.70}}} // Madrid
	if e := m.view().Explain(addr(client)); e.Figures[1].Source() != "distance" || e.Order[0] != 1 {
		t.Errorf("before any sample: %+v", e)
	}
	m.show("london", client, 6, 150) // a detour
	m.show("buffalo", client, 4, 95)
	v := m.view()
	if got := v.settledOrder(client); !slices.Equal(got, []pbxmesh.NodeID{"buffalo", "london", "singapore"}) {
		t.Errorf("%v, %+v", got, v.Explain(addr(client)))
	}
	if e := v.Explain(addr(client)); e.Network.String() != "198.51.100.0/24" || e.Elsewhere {
		t.Errorf("%+v", e)
	}
	// A neighbour that was never measured gets what its parent network shows.
	e := v.Explain(addr("198.51.7.7"))
	if e.Network.String() != "198.51.0.0/16" || v.Nodes[e.Order[0]].ID != "buffalo" || e.Figures[0].Source() != "parent network" || e.Tried != -1 {
		t.Errorf("neighbour: %+v", e)
	}
	if got := v.order("198.51.7.7"); got[0] != "buffalo" {
		t.Errorf("neighbour: %v", got)
	}
	// Somebody else is placed by distance alone.
	order, network, ok := v.Locate(addr("203.0.113.5"))
	if !ok || v.Orders()[order][0] != "london" || network.Bits() != 16 {
		t.Errorf("elsewhere: %v %v %v", order, network, ok)
	}
}

func TestASSharesWhatItsNetworksShow(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.in.Places = fixed{Where{Location: pbxmesh.Location{Latitude: 40.42, Longitude: -3.70}, AS: 64500}}
	for i := range 12 {
		m.show("london", fmt.Sprintf("198.%d.1.1", i), 4, 150)
		m.show("buffalo", fmt.Sprintf("198.%d.1.1", i), 3, 95)
	}
	m.shows("london", "203.0.113.5", 152, 4)
	e := m.view().Explain(addr("203.0.113.5"))
	if f := e.Figures[0]; f.Source() != "AS" || math.Abs(f.Score-97) > 8 || f.Evidence < enough || e.Order[0] != 0 {
		t.Errorf("%+v, want buffalo for what its AS shows", e)
	}
}

func TestWrongPlaceIsFoundOut(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.in.Places = fixed{Where{Location: singapore.Location}}
	m.shows("london", client, 12, 3) // light needs 106 ms to Singapore
	e := m.view().Explain(addr(client))
	if !e.Elsewhere || e.Order[0] != 1 || e.Figures[2].Lowest < 90 || len(e.Try) != 0 {
		t.Errorf("%+v", e)
	}
}

func TestPlacesAreNotNeeded(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.shows("london", client, 12, 3)
	v := m.view()
	// 12 ms from London: Buffalo cannot be nearer than 44.
	if e := v.Explain(addr(client)); e.Order[0] != 1 || e.Figures[0].Lowest < 40 || len(e.Try) != 0 {
		t.Errorf("%+v", e)
	}
	if _, _, ok := v.Locate(addr(client)); ok || v.Orders() != nil {
		t.Error("located without places")
	}
	m = newMesh(t, site("a", 0, 0), site("b", 0, 0))
	m.in.Order = []pbxmesh.NodeID{"b"}
	m.shows("a", client, 100, 3)
	if got := m.view().settledOrder(client); !slices.Equal(got, []pbxmesh.NodeID{"a", "b"}) {
		t.Errorf("nodes without a place: %v", got)
	}
}

// TestTwoNameServersSeeTheSame: the same notes give the same view, in whatever order
// they came, whenever within a slot it is made, and with or without a view before it.
func TestTwoNameServersSeeTheSame(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.in.Places = fixed{Where{Location: pbxmesh.Location{Latitude: 28.61, Longitude: 77.21}, AS: 64500}}
	for i := range 300 {
		c := fmt.Sprintf("198.51.%d.%d", i%50, 1+i%200)
		m.shows([]pbxmesh.NodeID{"buffalo", "london", "singapore"}[i%3], c, 60+float64(i*i%90), 1+i%4)
	}
	first := m.view()
	again := m.in
	again.Book = NewBook()
	again.Nodes = []pbxmesh.Node{singapore, buffalo, london}
	again.Previous = first
	keys := make(map[string]string)
	for node, pages := range m.book.nodes {
		for n, p := range pages {
			keys[Key(node, n)] = p.value
		}
	}
	for key, value := range keys {
		if err := again.Book.Put(key, value); err != nil {
			t.Fatal(err)
		}
	}
	again.At = m.now.Truncate(Slot).Add(Slot - time.Nanosecond)
	second := NewView(again)
	if !reflect.DeepEqual(first.Networks(), second.Networks()) {
		t.Error("two views of the same notes differ")
	}
	if len(first.Networks()) != 51 {
		t.Errorf("%d networks, want 50 and their parent", len(first.Networks()))
	}
	again.MaxNetworks = 10
	if n := len(NewView(again).Networks()); n != 11 {
		t.Errorf("%d networks, want 10 and their parent", n)
	}
}

func TestViewWithoutAnything(t *testing.T) {
	t.Parallel()
	v := NewView(Input{At: epoch})
	if len(v.Networks()) != 0 || len(v.Explain(addr(client)).Order) != 0 || v.Orders() != nil {
		t.Errorf("%+v", v)
	}
	if e := v.Explain(netip.Addr{}); e.Network.IsValid() {
		t.Errorf("%+v", e)
	}
}

func TestLocateDoesNotAllocate(t *testing.T) {
	m := newMesh(t)
	var places Places = fixed{Where{Location: london.Location}}
	m.in.Places = places
	v := m.view()
	c := addr(client)
	if n := testing.AllocsPerRun(100, func() { v.Locate(c) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkView is a view of 50 nodes and 20,000 networks, of which each was seen by
// four nodes: what a name server does every few seconds while notes change.
func BenchmarkView(b *testing.B) {
	var nodes []pbxmesh.Node
	for i := range 50 {
		nodes = append(nodes, site(pbxmesh.NodeID(fmt.Sprintf("node%02d", i)), float64(i*37%120-60), float64(i*71%360-180)))
	}
	m := newMesh(b, nodes...)
	for i := range 80_000 {
		n := i / 4
		c := netip.AddrFrom4([4]byte{byte(20 + n>>16), byte(n >> 8), byte(n), 1})
		m.estimates[nodes[(n+i%4*7)%50].ID].Add(Sample{Client: c, RTT: ms(float64(20 + i*7%200)), At: m.now, Visit: true})
	}
	v := m.view()
	m.in.Previous = v
	b.ReportAllocs()
	for b.Loop() {
		v = NewView(m.in)
	}
	b.ReportMetric(float64(len(v.Networks())), "networks")
}
