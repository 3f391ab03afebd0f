package selection

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pbxmesh"
	"pbxmesh/fixtures"
)

func inService(shed uint16) pbxmesh.NodeState {
	return pbxmesh.NodeState{Observed: pbxmesh.ObservedUp, Shed: shed}
}

// shedding is threeTowns with buffalo, everybody's best node, shedding a share.
func shedding(shed uint16) *pbxmesh.Mesh {
	return fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: inService(shed)})
}

func TestShedMovesTheShareAndNobodyTwice(t *testing.T) {
	t.Parallel()
	const clients = 20_000
	client := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, byte(i >> 8), byte(i), 9}) }
	away := make(map[int]bool)
	for _, shed := range []uint16{0, 1, 100, 300, 500, 900, 999, 1000} {
		c := NewChoices(shedding(shed), testPreferences(t))
		moved := 0
		for i := range clients {
			d, block := c.For(client(i), AnyFamily)
			if !block.Contains(client(i)) || shed > 0 && shed < 1000 && block.Bits() != 24 || (shed == 0 || shed == 1000) && block.Bits() > 8 {
				t.Fatalf("shed %d: block %v", shed, block)
			}
			if len(d.Nodes) != 3 || d.Panic {
				t.Fatalf("shed %d: %+v, want all three", shed, d)
			}
			gone := d.Nodes[0] != buffalo
			if gone && (d.Nodes[0] != london || d.Nodes[2] != buffalo) {
				t.Fatalf("shed %d: %v, want the second best and buffalo last", shed, d.Nodes)
			}
			if away[i] && !gone {
				t.Fatalf("shed %d: client %d came back though the node sheds more", shed, i)
			}
			if gone {
				away[i], moved = true, moved+1
			}
		}
		if share := 1000 * moved / clients; share < int(shed)-15 || share > int(shed)+15 {
			t.Errorf("shed %d moved %d per mille of the clients", shed, share)
		}
		// All addresses of a network stay together.
		for i := range 100 {
			x, _ := c.For(client(i), AnyFamily)
			if y, _ := c.For(client(i).Next(), AnyFamily); x != y {
				t.Fatalf("shed %d: two phones of one network are told different nodes", shed)
			}
		}
	}
}

func TestShedIsIgnoredWhenNobodyIsLeft(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		shed  [3]uint16 // buffalo, london, singapore
		wants []pbxmesh.NodeID
	}{
		{"all shed everything: the order stands", [3]uint16{1000, 1000, 1000}, []pbxmesh.NodeID{buffalo, london, singapore}},
		{"all but one shed everything", [3]uint16{1000, 1000, 0}, []pbxmesh.NodeID{singapore, buffalo, london}},
		{"all shed alike: the order stands", [3]uint16{700, 700, 700}, []pbxmesh.NodeID{buffalo, london, singapore}},
		{"the least shedding first", [3]uint16{1000, 999, 1000}, []pbxmesh.NodeID{london, buffalo, singapore}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := NewChoices(fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{
				buffalo: inService(tt.shed[0]), london: inService(tt.shed[1]), singapore: inService(tt.shed[2])}), testPreferences(t))
			if d, _ := c.For(defaultClient, AnyFamily); !slices.Equal(d.Nodes, tt.wants) || d.Panic {
				t.Errorf("%+v, want %v", d, tt.wants)
			}
		})
	}
}

// A node beyond the sixth that sheds takes everybody, and the number of decisions
// stays bounded.
func TestManySheddersMakeFewDecisions(t *testing.T) {
	t.Parallel()
	mesh := &pbxmesh.Mesh{Nodes: make(map[pbxmesh.NodeID]pbxmesh.Node), States: make(map[pbxmesh.NodeID]pbxmesh.NodeState)}
	for i := range 50 {
		id := pbxmesh.NodeID(fmt.Sprintf("node%02d", i))
		mesh.Nodes[id] = pbxmesh.Node{ID: id, Addresses: fixtures.Addresses("192.0.2.1")}
		mesh.States[id] = inService(500)
	}
	mesh.States["node49"] = inService(0) // or all would shed alike
	c := NewChoices(mesh, nil)
	seen := make(map[*Decision]bool)
	first := make(map[pbxmesh.NodeID]int)
	for i := range 50_000 {
		d, _ := c.For(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), AnyFamily)
		seen[d] = true
		first[d.Nodes[0]]++
	}
	if len(seen) != 64 || len(first) != 7 {
		t.Errorf("%d decisions, first nodes %v, want 64 decisions and seven nodes", len(seen), first)
	}
}

func TestEqualDecisionsAreOnePointer(t *testing.T) {
	t.Parallel()
	c := NewChoices(fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{london: {Observed: pbxmesh.ObservedDown}}), testPreferences(t))
	a, _ := c.For(netip.MustParseAddr("198.51.100.7"), AnyFamily) // london, buffalo, singapore
	b, _ := c.For(defaultClient, AnyFamily)                       // buffalo, london, singapore
	if a != b {
		t.Errorf("%v and %v are two", a, b)
	}
	if again, _ := c.For(defaultClient, AnyFamily); again != b {
		t.Error("a second question gave another pointer")
	}
}

func TestPanicRule(t *testing.T) {
	t.Parallel()
	up, down := pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}, pbxmesh.NodeState{Observed: pbxmesh.ObservedDown}
	draining, out := up, up
	draining.Wanted, out.Wanted = pbxmesh.WantedDraining, pbxmesh.WantedOut
	for _, tt := range []struct {
		name      string
		b, l, s   pbxmesh.NodeState
		panicking bool
		want      []pbxmesh.NodeID
	}{
		{"one of three down", down, up, up, false, []pbxmesh.NodeID{london, singapore}},
		{"two of three down: all, the living first", down, up, down, true, []pbxmesh.NodeID{london, buffalo, singapore}},
		{"one of two down is half", down, up, out, false, []pbxmesh.NodeID{london}},
		{"drained on purpose is no reason to panic", draining, draining, up, false, []pbxmesh.NodeID{singapore}},
		{"out on purpose is no reason to panic", out, out, up, false, []pbxmesh.NodeID{singapore}},
		{"all down", down, down, down, true, []pbxmesh.NodeID{buffalo, london, singapore}},
		{"one draining, the others down", down, down, draining, true, []pbxmesh.NodeID{singapore, buffalo, london}},
		{"out stays out in a panic", down, out, draining, true, []pbxmesh.NodeID{singapore, buffalo}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := NewChoices(fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: tt.b, london: tt.l, singapore: tt.s}), testPreferences(t))
			if d, _ := c.For(defaultClient, AnyFamily); d.Panic != tt.panicking || !slices.Equal(d.Nodes, tt.want) {
				t.Errorf("%+v, want %v, panic %v", d, tt.want, tt.panicking)
			}
			if got := PanicRule(c.mesh); got != tt.panicking {
				t.Errorf("PanicRule says %v, want %v", got, tt.panicking)
			}
		})
	}
}

// place locates every client in one of two halves of a network.
type place struct{ orders [][]pbxmesh.NodeID }

func (p place) Orders() [][]pbxmesh.NodeID { return p.orders }
func (p place) Locate(client netip.Addr) (int, netip.Prefix, bool) {
	network, _ := client.Prefix(9)
	return int(client.As4()[1] >> 7), network, client.As4()[0] != 9
}

func TestRankingAndPlace(t *testing.T) {
	t.Parallel()
	measured := []pbxmesh.NodeID{singapore, london, buffalo}
	r, err := NewRanking([]Network{{netip.MustParsePrefix("10.1.2.0/24"), measured}, {netip.MustParsePrefix("198.51.100.0/25"), measured}},
		place{[][]pbxmesh.NodeID{{london}, {singapore}}})
	if err != nil {
		t.Fatal(err)
	}
	ch := NewChooser(testPreferences(t))
	ch.SetRanking(r)
	mesh := fixtures.ThreeTowns(nil)
	c := ch.On(mesh)
	if ch.On(mesh) != c {
		t.Error("another Choices without a change")
	}
	for client, want := range map[string]struct {
		first []pbxmesh.NodeID
		bits  int
	}{
		"10.1.2.3":     {measured, 24},
		"10.1.3.3":     {[]pbxmesh.NodeID{london, buffalo, singapore}, 24}, // next to the network
		"10.100.0.1":   {[]pbxmesh.NodeID{london, buffalo, singapore}, 10}, // 10.0.0.0/10 holds the network
		"10.200.0.1":   {[]pbxmesh.NodeID{singapore, buffalo, london}, 9},
		"9.0.0.1":      {[]pbxmesh.NodeID{buffalo, london, singapore}, 9}, // nobody knows where
		"198.51.100.1": {[]pbxmesh.NodeID{london, buffalo, singapore}, 25},
	} {
		d, block := c.For(netip.MustParseAddr(client), AnyFamily)
		if !slices.Equal(d.Nodes, want.first) || block.Bits() != want.bits {
			t.Errorf("%s: %v in %v, want %v in /%d", client, d.Nodes, block, want.first, want.bits)
		}
	}
	w := c.Why(netip.MustParseAddr("198.51.100.1"), AnyFamily)
	if w.Preference.String() != "198.51.100.0/24" || w.Ranked.String() != "198.51.100.0/25" || w.Located {
		t.Errorf("why: %+v", w)
	}
	if w := c.Why(netip.MustParseAddr("10.200.0.1"), AnyFamily); !w.Located || w.Ranked.IsValid() {
		t.Errorf("why: %+v", w)
	}
	ch.SetRanking(nil)
	if d, _ := ch.On(mesh).For(netip.MustParseAddr("10.1.2.3"), AnyFamily); d.Nodes[0] != buffalo {
		t.Errorf("without ranking: %v", d.Nodes)
	}
}

func TestForDoesNotAllocate(t *testing.T) {
	c := manyChoices(t, 5, 1000)
	clients := []netip.Addr{netip.MustParseAddr("10.0.3.7"), netip.MustParseAddr("::ffff:10.0.3.7"), netip.MustParseAddr("200.0.0.1"), netip.MustParseAddr("2001:db8::1")}
	for _, a := range clients {
		c.For(a, AnyFamily)
	}
	if n := testing.AllocsPerRun(100, func() {
		for _, a := range clients {
			c.For(a, AnyFamily)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
