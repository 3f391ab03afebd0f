package selection

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/fixtures"
)

// ids reads "a b c".
func ids(s string) []pbxmesh.NodeID {
	var out []pbxmesh.NodeID
	for f := range strings.FieldsSeq(s) {
		out = append(out, pbxmesh.NodeID(f))
	}
	return out
}

// node states by letter, as the tables below write them.
var states = map[string]pbxmesh.NodeState{
	"up":       {Observed: pbxmesh.ObservedUp},
	"suspect":  {Observed: pbxmesh.ObservedSuspect},
	"unknown":  {Observed: pbxmesh.ObservedUnknown},
	"down":     {Observed: pbxmesh.ObservedDown},
	"draining": {Observed: pbxmesh.ObservedUp, Wanted: pbxmesh.WantedDraining},
	"out":      {Observed: pbxmesh.ObservedUp, Wanted: pbxmesh.WantedOut},
}

// world is a mesh of nodes a, b, c … with both families, in the given states.
func world(list string) *pbxmesh.Mesh {
	m := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
	for i, state := range strings.Fields(list) {
		id := pbxmesh.NodeID('a' + rune(i))
		m.Nodes[id] = pbxmesh.Node{ID: id, Addresses: fixtures.Addresses("192.0.2.1", "2001:db8::1")}
		s, ok := states[state]
		if !ok {
			panic(state)
		}
		m.States[id] = s
	}
	return m
}

func TestInOrder(t *testing.T) {
	t.Parallel()
	m := fixtures.ThreeTowns(nil)
	m.Nodes["mapped"] = pbxmesh.Node{ID: "mapped", Addresses: fixtures.Addresses("::ffff:192.0.2.9")}
	for _, tt := range []struct {
		order  string
		family Family
		want   string
	}{
		{"", AnyFamily, "buffalo london mapped singapore"},
		{"singapore", AnyFamily, "singapore buffalo london mapped"},
		{"core gone london", AnyFamily, "london buffalo mapped singapore"},
		{"london singapore", IPv4, "london singapore buffalo mapped"},
		{"london singapore", IPv6, "singapore buffalo"},
	} {
		if got := inOrder(m, ids(tt.order), tt.family); !slices.Equal(got, ids(tt.want)) {
			t.Errorf("%q, family %d: %v, want %s", tt.order, tt.family, got, tt.want)
		}
	}
	if got := inOrder(nil, ids("a"), IPv4); got != nil {
		t.Errorf("of no mesh: %v", got)
	}
}

func TestLiving(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		states, nodes, want string
		panics              bool
	}{
		{"up up up", "c a b", "c a b", false},
		{"up suspect up", "b c a", "b c a", false},
		{"up unknown up", "b c a", "c a b", false},
		{"up down up", "b c a", "c a", false},
		{"up draining out", "c b a", "a", false},
		{"down suspect down", "a b c", "b a c", true},
		{"down draining out", "a b c", "b a", true},
		{"down down out", "b c a", "b a", true},
		{"out out out", "c a b", "c a b", true},
		{"down up up up", "a b", "b", false}, // only the nodes that are left count
		{"down up up up", "a", "a", true},
		{"up up", "", "", false},
	} {
		m := world(tt.states)
		got, panics := living(m, ids(tt.nodes))
		if !slices.Equal(got, ids(tt.want)) || panics != tt.panics {
			t.Errorf("%s, nodes %s: %v %v, want %s %v", tt.states, tt.nodes, got, panics, tt.want, tt.panics)
		}
	}
}

func TestShedding(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		states  string
		shed    []uint16
		beyond  []uint16
		refused string // those that refuse, when they shed
		want    string
	}{
		{"up up up", []uint16{0, 0, 0}, []uint16{0, 0, 0}, "a b c", "a b c"},
		{"up up up", []uint16{300, 0, 0}, []uint16{300, 0, 0}, "a", "b c a"},
		{"up up up", []uint16{300, 0, 0}, []uint16{300, 0, 0}, "", "a b c"},
		{"up up up", []uint16{500, 500, 500}, []uint16{0, 0, 0}, "a b c", "a b c"}, // all alike
		{"up up up", []uint16{600, 200, 200}, []uint16{500, 0, 0}, "a", "b c a"},
		{"up up up", []uint16{600, 400, 200}, []uint16{500, 250, 0}, "a b", "c b a"},
		{"up up up", []uint16{1000, 1000, 1000}, []uint16{0, 0, 0}, "a b c", "a b c"},
		{"up unknown up", []uint16{500, 0, 0}, []uint16{500, 0, 0}, "a", "c a b"}, // within the class of states
		{"draining up up", []uint16{0, 400, 400}, []uint16{0, 0, 0}, "a b c", "b c a"},
	} {
		m := world(tt.states)
		nodes := ids("a b c")
		for i, id := range nodes {
			s := m.States[id]
			s.Shed = tt.shed[i]
			m.States[id] = s
		}
		by := beyond(m, nodes)
		if !slices.Equal(by, tt.beyond) {
			t.Errorf("%s, shed %v: beyond %v, want %v", tt.states, tt.shed, by, tt.beyond)
		}
		got := shed(m, nodes, by, func(i int) bool { return slices.Contains(ids(tt.refused), nodes[i]) })
		if !slices.Equal(got, ids(tt.want)) {
			t.Errorf("%s, shed %v, %q refuse: %v, want %s", tt.states, tt.shed, tt.refused, got, tt.want)
		}
	}
}

// TestFamilies: whoever asks for a family gets the best node that has it, whatever the best
// node of all is, and nothing only when no node has it.
func TestFamilies(t *testing.T) {
	t.Parallel()
	client := netip.MustParseAddr("198.51.100.7")
	rapid.Check(t, func(t *rapid.T) {
		m := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
		order := rapid.Permutation(ids("a b c d")).Draw(t, "order")
		for _, id := range order {
			n := pbxmesh.Node{ID: id}
			for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
				if rapid.Bool().Draw(t, "has "+a) {
					n.Addresses = append(n.Addresses, netip.MustParseAddr(a))
				}
			}
			m.Nodes[id] = n
			m.States[id] = states[rapid.SampledFrom([]string{"up", "down", "draining", "out"}).Draw(t, "state")]
		}
		p, err := NewPreferences(nil, order)
		if err != nil {
			t.Fatal(err)
		}
		c := NewChoices(m, p)
		for _, f := range []Family{AnyFamily, IPv4, IPv6} {
			// The plain rule: alone, the nodes of the family would be chosen so.
			alone := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: m.States}
			for id := range m.Nodes {
				if f.has(m.Nodes[id]) {
					alone.Nodes[id] = m.Nodes[id]
				}
			}
			want, _ := NewChoices(alone, p).For(client, AnyFamily)
			got, _ := c.For(client, f)
			if !slices.Equal(got.Nodes, want.Nodes) || got.Panic != want.Panic || (len(got.Nodes) == 0) != (len(alone.Nodes) == 0) {
				t.Fatalf("family %d: %+v, want %+v", f, got, want)
			}
			if again, _ := c.For(client, f); again != got {
				t.Fatalf("family %d: asked again, another pointer", f)
			}
		}
	})
	// Where all nodes have a family, it shares the decisions of all.
	c := NewChoices(world("up up up"), nil)
	a, _ := c.For(client, IPv4)
	if b, _ := c.For(client, IPv6); a != b {
		t.Error("two families that all nodes have are decided apart")
	}
}

// TestWhy follows one client through all stages.
func TestWhy(t *testing.T) {
	t.Parallel()
	m := world("down up up up draining")
	m.Nodes["core"] = pbxmesh.Node{ID: "core"}
	m.Nodes["d"] = pbxmesh.Node{ID: "d", Addresses: fixtures.Addresses("192.0.2.4")}
	for id, change := range map[pbxmesh.NodeID]func(*pbxmesh.NodeState){
		"b": func(s *pbxmesh.NodeState) { s.Shed = pbxmesh.ShedAll },
		"c": func(s *pbxmesh.NodeState) { s.Full = pbxmesh.ShedAll },
	} {
		s := m.States[id]
		change(&s)
		m.States[id] = s
	}
	p, err := NewPreferences([]Network{{netip.MustParsePrefix("198.51.100.0/24"), ids("a b")}}, ids("c d"))
	if err != nil {
		t.Fatal(err)
	}
	c := NewChoices(m, p)
	for _, tt := range []struct {
		family                             Family
		familyLeft, living, shed, answered string
	}{
		{AnyFamily, "a b c d e", "b c d", "c d b", "d c b"},
		{IPv4, "a b c d e", "b c d", "c d b", "d c b"},
		{IPv6, "a b c e", "b c", "c b", "b c"}, // c has no room, b has
	} {
		w := c.Why(netip.MustParseAddr("198.51.100.7"), tt.family)
		for _, stage := range []struct {
			name string
			got  []pbxmesh.NodeID
			want string
		}{
			{"order", w.Ordered, "a b c d core e"}, {"family", w.Family, tt.familyLeft}, {"state", w.Living, tt.living},
			{"shedding", w.Shed, tt.shed}, {"spill", w.Nodes, tt.answered},
		} {
			if !slices.Equal(stage.got, ids(stage.want)) {
				t.Errorf("family %d, %s: %v, want %s", tt.family, stage.name, stage.got, stage.want)
			}
		}
		if w.Down != "a" || !slices.Equal(w.Refuses, ids("b")) || w.Preference.String() != "198.51.100.0/24" || w.Panic {
			t.Errorf("%+v", w)
		}
	}
	if w := NewChoices(nil, p).Why(netip.Addr{}, AnyFamily); len(w.Ordered)+len(w.Nodes) != 0 {
		t.Errorf("of no mesh: %+v", w)
	}
}
