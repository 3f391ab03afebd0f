package selection

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/fixtures"
)

// TestSpill has a node die that 5,000 networks prefer, beside three with unequal room.
func TestSpill(t *testing.T) {
	t.Parallel()
	const networks = 5000
	order := []pbxmesh.NodeID{"paris", buffalo, london, singapore}
	mesh := func(state pbxmesh.Observed, full map[pbxmesh.NodeID]uint16) *pbxmesh.Mesh {
		m := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
		for i, id := range order {
			m.Nodes[id] = pbxmesh.Node{ID: id, Addresses: fixtures.Addresses(fmt.Sprintf("192.0.2.%d", i+1))}
			m.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp, Full: full[id]}
		}
		s := m.States["paris"]
		s.Observed = state
		m.States["paris"] = s
		return m
	}
	prefs, err := NewPreferences(nil, order)
	if err != nil {
		t.Fatal(err)
	}
	client := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{byte(11 + i>>16), byte(i >> 8), byte(i), 9}) }
	for _, tt := range []struct {
		name  string
		state pbxmesh.Observed
		full  map[pbxmesh.NodeID]uint16
		want  map[pbxmesh.NodeID]float64 // per mille
		scope int
	}{
		{"nobody is down", pbxmesh.ObservedUp, map[pbxmesh.NodeID]uint16{buffalo: 800}, map[pbxmesh.NodeID]float64{"paris": 1000}, 0},
		{"room for all in the next one", pbxmesh.ObservedDown, nil, map[pbxmesh.NodeID]float64{buffalo: 1000}, 0},
		{"a fifth, then the rest", pbxmesh.ObservedDown, map[pbxmesh.NodeID]uint16{buffalo: 800}, map[pbxmesh.NodeID]float64{buffalo: 200, london: 800}, 24},
		{"three unequal ones", pbxmesh.ObservedDown, map[pbxmesh.NodeID]uint16{buffalo: 800, london: 400, singapore: 500}, map[pbxmesh.NodeID]float64{buffalo: 200, london: 600, singapore: 200}, 24},
		{"one is full", pbxmesh.ObservedDown, map[pbxmesh.NodeID]uint16{buffalo: 1000}, map[pbxmesh.NodeID]float64{london: 1000}, 24},
		{"not enough for all: the nearest takes the rest", pbxmesh.ObservedDown, map[pbxmesh.NodeID]uint16{buffalo: 900, london: 900, singapore: 900}, map[pbxmesh.NodeID]float64{buffalo: 800, london: 100, singapore: 100}, 24},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := NewChoices(mesh(tt.state, tt.full), prefs)
			got := map[pbxmesh.NodeID]int{}
			for i := range networks {
				d, block := c.For(client(i), AnyFamily)
				got[d.Nodes[0]]++
				if block.Bits() != tt.scope || len(d.Nodes) < 3 || !slices.Equal(slices.Sorted(slices.Values(slices.Clone(d.Nodes))), slices.Compact(slices.Sorted(slices.Values(d.Nodes)))) {
					t.Fatalf("%v gets %v for %v, scope %d is wanted", client(i), d.Nodes, block, tt.scope)
				}
				if again, _ := c.For(client(i), AnyFamily); again != d {
					t.Fatal("asked again, another decision")
				}
			}
			if why := c.Why(client(1), AnyFamily); (why.Down == "paris") != (tt.scope > 0) || (len(why.Spread) > 0) != (tt.scope > 0) {
				t.Errorf("explained as %+v", why)
			}
			t.Logf("RESULT of %d networks: %v", networks, got)
			for _, id := range order {
				if share := 1000 * float64(got[id]) / networks; share < tt.want[id]-20 || share > tt.want[id]+20 {
					t.Errorf("%s gets %.0f per mille, want %.0f", id, share, tt.want[id])
				}
			}
		})
	}
}

// TestSpillStaysInItsRoom: whatever the orders and rooms are, no node gets more of the line
// than it has room for while another one that is asked has some.
func TestSpillStaysInItsRoom(t *testing.T) {
	t.Parallel()
	ids := []pbxmesh.NodeID{"a", "b", "c", "d", "e"}
	rapid.Check(t, func(t *rapid.T) {
		m := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
		room := 0
		for _, id := range ids {
			s := pbxmesh.NodeState{Observed: pbxmesh.ObservedUp, Full: rapid.Uint16Range(0, 1000).Draw(t, "full")}
			room += 1000 - int(s.Full)
			m.Nodes[id], m.States[id] = pbxmesh.Node{ID: id}, s
		}
		got := map[pbxmesh.NodeID]int{}
		orders := rapid.IntRange(1, 5).Draw(t, "orders")
		for range orders {
			order := rapid.Permutation(ids).Draw(t, "order")
			from := uint16(0)
			for i, until := range shares(m, order) {
				got[order[i]] += int(until - from)
				from = until
			}
			if room >= 1000 && from != 1000 {
				t.Fatalf("%v: %d of the line is left, though there is room", order, 1000-from)
			}
		}
		for id, n := range got {
			if n > orders*int(1000-m.States[id].Full) {
				t.Fatalf("%s gets %d per mille of %d orders, its room is %d", id, n, orders, 1000-m.States[id].Full)
			}
		}
	})
}
