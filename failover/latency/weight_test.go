package latency

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pbxmesh"
)

// crowd is a /24 of 60 phones of which each has an account and an address: 40 ms from
// london, where they are, and 110 from buffalo, where all were tried.
func crowd(t *testing.T) *mesh {
	m := newMesh(t)
	m.in.Places = fixed{Where{Location: pbxmesh.Location{Latitude: 48.86, Longitude: 2.35}}}
	for _, node := range []struct {
		id  pbxmesh.NodeID
		rtt float64
	}{{"buffalo", 110}, {"london", 40}} {
		for i := range 60 {
			m.says(node.id, fmt.Sprintf("198.51.100.%d", 1+i), fmt.Sprintf("phone%d@pbx.test", i), node.rtt+float64(i%5))
		}
	}
	return m
}

// says lets an account register once, a second later.
func (m *mesh) says(node pbxmesh.NodeID, client, account string, rtt float64) {
	m.now = m.now.Add(time.Second)
	m.estimates[node].Add(Sample{Client: addr(client), Phone: account, RTT: ms(rtt), At: m.now, Visit: true})
}

// TestOnePhoneHasOnePhonesWeight lets a phone among sixty lie as often as it likes.
func TestOnePhoneHasOnePhonesWeight(t *testing.T) {
	t.Parallel()
	const often = 200
	const evil = "phone7@pbx.test"
	for _, tt := range []struct {
		name string
		lie  func(m *mesh, i int)
		away string // a neighbour in the parent network that asks too
	}{
		{"delays its digests", func(m *mesh, _ int) { m.says("london", "198.51.100.8", evil, 900) }, "198.51.7.7"},
		{"answers before it is asked", func(m *mesh, _ int) { m.says("singapore", "198.51.100.8", evil, 0.25) }, "198.51.7.7"},
		{"delays where it is and hurries elsewhere", func(m *mesh, i int) {
			m.says("london", "198.51.100.8", evil, 900)
			m.says("singapore", "198.51.100.8", evil, 0.25)
			m.says("buffalo", "198.51.100.8", evil, 0.25)
		}, "198.51.7.7"},
		{"has every address of the network", func(m *mesh, i int) {
			m.says("london", fmt.Sprintf("198.51.100.%d", 1+i), evil, 900)
			m.says("singapore", fmt.Sprintf("198.51.100.%d", 1+i), evil, 0.25)
		}, "198.51.7.7"},
		{"has an address in every network of the parent", func(m *mesh, i int) {
			m.says("london", fmt.Sprintf("198.51.%d.8", i), evil, 900)
			m.says("buffalo", fmt.Sprintf("198.51.%d.8", i), evil, 0.25)
			m.says("singapore", fmt.Sprintf("198.51.%d.8", i), evil, 0.25)
		}, "198.51.250.7"},
		{"and two others hurry together", func(m *mesh, i int) {
			m.says("singapore", fmt.Sprintf("198.51.100.%d", 8+i%3), fmt.Sprintf("phone%d@pbx.test", 7+i%3), 0.25)
		}, "198.51.7.7"},
		{"has many accounts", func(m *mesh, i int) {
			m.says("london", "198.51.100.8", fmt.Sprintf("evil%d@pbx.test", i), 900)
			m.says("singapore", "198.51.100.8", fmt.Sprintf("evil%d@pbx.test", i), 0.25)
		}, "198.51.7.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := crowd(t)
			before := m.view()
			for i := range often {
				tt.lie(m, i)
			}
			after := m.view()
			for _, c := range []string{client, "198.51.100.60", tt.away} {
				was, is := before.Explain(addr(c)), after.Explain(addr(c))
				if got := after.settledOrder(c); got[0] != "london" || !slices.Equal(was.Order, is.Order) {
					t.Errorf("%s: %v, %+v", c, got, is.Figures)
				}
				if f := is.Figures[1]; f.Own > 46 || f.Parent > 46 {
					t.Errorf("%s: london is at %.1f ms, in the parent %.1f", c, f.Own, f.Parent)
				}
				if is.Incumbent != was.Incumbent {
					t.Errorf("%s: the present answer was %d and is %d", c, was.Incumbent, is.Incumbent)
				}
			}
		})
	}
}

// TestTheMiddle: what a network's phones show together, by hand.
func TestTheMiddle(t *testing.T) {
	t.Parallel()
	type said struct {
		host    int
		account string
		rtt     float64
		minutes int // ago
	}
	repeat := func(n int, s said) (out []said) {
		for i := range n {
			out = append(out, said{s.host, fmt.Sprintf("%s%d", s.account, i), s.rtt, s.minutes})
		}
		return out
	}
	for _, tt := range []struct {
		name   string
		said   []said
		want   float64
		phones uint8
		age    uint8
	}{
		{"of two the upper one", []said{{1, "a", 0.25, 0}, {2, "b", 40, 0}}, 40, 2, 0},
		{"of four the upper middle one", []said{{1, "a", 1, 0}, {2, "b", 2, 0}, {3, "c", 70, 0}, {4, "d", 90, 0}}, 80, 4, 0},
		{"accounts of one address among others", append(repeat(11, said{9, "evil", 400, 0}),
			said{1, "a", 40, 0}, said{2, "b", 40, 0}, said{3, "c", 40, 0}, said{4, "d", 40, 0}, said{5, "e", 40, 0}), 40, 5 + perAddress, 0},
		{"accounts of one address alone", repeat(11, said{9, "office", 40, 0}), 40, 11, 0},
		{"one phone alone does not replace the others", []said{{1, "a", 100, 40}, {2, "b", 100, 40}, {3, "c", 100, 40}, {1, "a", 0.25, 0}}, 100, 3, 0},
		{"two do", []said{{1, "a", 100, 40}, {2, "b", 100, 40}, {3, "c", 100, 40}, {1, "a", 10, 0}, {2, "b", 10, 0}}, 10, 2, 0},
		{"one of eight makes nothing young", append(repeat(8, said{1, "a", 100, 20}), said{1, "a0", 100, 0}), 100, 8, 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, now := NewEstimates(Options{}), epoch.Add(time.Hour)
			for _, s := range tt.said {
				at := now.Add(-time.Duration(s.minutes) * time.Minute)
				e.Add(Sample{Client: netip.AddrFrom4([4]byte{198, 51, 100, byte(s.host)}), Phone: s.account, RTT: ms(s.rtt), At: at, Visit: true})
			}
			if got := only(t, e, now); got.estimate.ms() != tt.want || got.phones != tt.phones || got.age != tt.age {
				t.Errorf("%.2f ms of %d phones, %d minutes old, want %.2f, %d, %d", got.estimate.ms(), got.phones, got.age, tt.want, tt.phones, tt.age)
			}
		})
	}
}

// TestOnePhoneMovesNobodyToWhatIsExpected: a node that nobody tried is expected to be good,
// and one phone says that it is better still.
func TestOnePhoneMovesNobodyToWhatIsExpected(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.in.Places = fixed{Where{Location: pbxmesh.Location{Latitude: 48.86, Longitude: 2.35}}}
	m.show("buffalo", client, 20, 110)
	m.shows("london", client, 0.25, 50)
	e := m.view().Explain(addr(client))
	if e.Order[0] != 0 || !e.Figures[1].Few || !slices.Contains(e.Try, 1) {
		t.Errorf("%+v, want buffalo, and london tried", e)
	}
	m.show("london", "198.51.100.8", 3, 20)
	if e := m.view().Explain(addr(client)); e.Order[0] != 1 || e.Figures[1].Own < 15 {
		t.Errorf("%+v, want london, because four phones showed it", e)
	}
}

// TestTwoPhonesOfAnOfficeMoveNobody: all its phones have one address.
func TestTwoPhonesOfAnOfficeMoveNobody(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	for i := range 16 {
		m.says("london", client, fmt.Sprint(i), 40)
	}
	for i := range 20 {
		m.says("buffalo", client, fmt.Sprint(i%2), 0.25)
	}
	if e := m.view().Explain(addr(client)); e.Order[0] != 1 || !e.Figures[0].Few {
		t.Errorf("%+v", e)
	}
}

// TestWhereANetworkIsIsCountedByPhone: many accounts of one address do not make its node
// the present answer, nor another one no answer.
func TestWhereANetworkIsIsCountedByPhone(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.show("london", client, 12, 40)
	for i := range 40 {
		m.estimates["singapore"].Add(Sample{Client: addr(client), Phone: fmt.Sprint(i), RTT: ms(1), At: m.now, Visit: true})
	}
	if e := m.view().Explain(addr(client)); e.Incumbent != 1 {
		t.Errorf("%+v", e)
	}
}

// TestThePhonesThatAreFollowedAreNotTheLoudOnes: which phones of a crowd count is nobody's
// choice.
func TestThePhonesThatAreFollowedAreNotTheLoudOnes(t *testing.T) {
	t.Parallel()
	for _, hosts := range []byte{1, 100} {
		t.Run(fmt.Sprintf("on %d addresses", hosts), func(t *testing.T) {
			t.Parallel()
			followed(t, hosts)
		})
	}
}

func followed(t *testing.T, hosts byte) {
	const rounds, liars = 400, 3
	of := 0
	for range rounds {
		e := NewEstimates(Options{})
		for k := range 120 {
			i := k % 60
			e.Add(Sample{Client: netip.AddrFrom4([4]byte{198, 51, 100, byte(i) % hosts}), Phone: fmt.Sprint(i), RTT: ms(40), At: epoch})
			for evil := range liars {
				e.Add(Sample{Client: netip.AddrFrom4([4]byte{198, 51, 100, byte(60+evil) % hosts}), Phone: fmt.Sprint("evil", evil), RTT: ms(900), At: epoch})
			}
		}
		if n := e.Stats().Phones; n != maxPhones {
			t.Fatalf("%d phones are followed, want %d", n, maxPhones)
		}
		for _, c := range e.cells {
			for i := range c.phones {
				if c.phones[i].rtt[0] > 1000 {
					of++
				}
			}
		}
	}
	want := float64(rounds*maxPhones*liars) / (60 + liars)
	if got := float64(of); got < 0.75*want || got > 1.25*want {
		t.Errorf("the loud ones have %.0f places, want %.0f", got, want)
	}
}

// TestRoutesThatChangeForMostPhones: the middle follows soon, and not before.
func TestRoutesThatChangeForMostPhones(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	for range 4 {
		m.show("london", client, 5, 40)
	}
	m.show("london", client, 2, 120)
	m.show("london", client, 2, 120)
	if f := m.view().Explain(addr(client)).Figures[1]; f.Own > 42 {
		t.Errorf("two of five phones are slow: %.1f ms", f.Own)
	}
	m.show("london", "198.51.100.9", 1, 120)
	if f := m.view().Explain(addr(client)).Figures[1]; f.Own < 118 {
		t.Errorf("three of five phones are slow: %.1f ms", f.Own)
	}
}

// TestEstimatesOfASilentDaemonEnd: its notes may stand on a board that forgot their end.
func TestEstimatesOfASilentDaemonEnd(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.show("singapore", client, 4, 20)
	m.show("london", client, 4, 60)
	if got := m.view().settledOrder(client); got[0] != "singapore" {
		t.Fatalf("%v", got)
	}
	delete(m.publishers, "singapore") // its daemon dies
	began := m.now
	weight := func() (evidence, age float64) {
		m.show("london", client, 4, 60)
		f := m.view().Explain(addr(client)).Figures[2]
		return f.Evidence, f.Age
	}
	m.now = began.Add(RefreshAfter)
	if _, age := weight(); age > 1 {
		t.Errorf("%v minutes old before the daemon should have said something again", age)
	}
	m.now = began.Add(NoteTTL - time.Minute)
	if _, age := weight(); age < 18 || age > 20 {
		t.Errorf("%v minutes old, want about 19", age)
	}
	m.now = began.Add(NoteTTL + time.Minute)
	if evidence, _ := weight(); evidence != 0 {
		t.Errorf("evidence %v of a daemon that is silent for %v", evidence, NoteTTL)
	}
	if got := m.view().settledOrder(client); got[0] != "london" {
		t.Errorf("%v", got)
	}
	// A store that is away silences all alike.
	m.now = m.now.Add(3 * NoteTTL)
	clear(m.publishers)
	if f := m.view().Explain(addr(client)).Figures[1]; f.Own == 0 {
		t.Error("london's estimates ended while nobody could say anything")
	}
	// A clock that is ahead makes nobody old.
	ahead := NewEstimates(Options{})
	ahead.Add(Sample{Client: addr("203.0.113.1"), RTT: ms(20), At: m.now.Add(2 * NoteTTL)})
	if err := m.book.Put("buffalo/0", encodeChunk(m.now.Add(2*NoteTTL), ahead.entries(m.now.Add(2*NoteTTL)))); err != nil {
		t.Fatal(err)
	}
	m.in.At = m.now.Add(-3 * NoteTTL)
	if f := NewView(m.in).Explain(addr(client)).Figures[1]; f.Own == 0 {
		t.Error("london's estimates ended because buffalo's clock is ahead")
	}
	if NoteTTL != 30*time.Minute {
		t.Errorf("docs/latency.md says that estimates end after 30 minutes, and not after %v", NoteTTL)
	}
}
