package failover_test

import (
	"fmt"
	"testing"

	"pbxmesh"
	"pbxmesh/failover"
)

// TestSpill computes who has room for the phones of nodes that are down.
func TestSpill(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{Observer: "la"}, buffalo, london, singapore)
	var nodes []pbxmesh.Node
	capacity := map[pbxmesh.NodeID]int{buffalo: 3000, london: 6000, singapore: 4000}
	for i, id := range []pbxmesh.NodeID{buffalo, london, singapore} {
		n := member(id, byte(i+1))
		n.Capacity = capacity[id]
		nodes = append(nodes, n)
	}
	paris := member("paris", 9)
	paris.Capacity = 9000
	nodes = append(nodes, paris)
	w.tr.SetMembers(w.tick(), nodes)
	counts := func(b, l, s, p int) {
		w.tr.SetRegistrations(map[pbxmesh.NodeID]int{buffalo: b, london: l, singapore: s, "paris": p})
	}
	full := func() string {
		m := w.tr.Mesh()
		return fmt.Sprintf("%d %d %d %d", m.State(buffalo).Full, m.State(london).Full, m.State(singapore).Full, m.State("paris").Full)
	}
	hear := func(p string) {
		var seen []failover.SeenVote
		now := w.tick()
		for _, v := range votes("ja b+ l+ s+", "ny b+ l+ s+", "bo b+ l+ s+") {
			v.Nodes["paris"] = failover.Opinion{Phones: map[string]failover.Word{"+": failover.WordAnswers, "-": failover.WordSilent}[p]}
			seen = append(seen, failover.SeenVote{Vote: *v, Seen: now})
		}
		w.tr.Votes(now, seen, true)
	}
	want := func(what, want string) {
		t.Helper()
		if got := full(); got != want {
			t.Errorf("%s: full %s, want %s", what, got, want)
		}
	}
	counts(2000, 3000, 2000, 5000)
	hear("+")
	want("nobody is down", "0 0 0 0")
	hear("-")
	// Room for 1000, 3000 and 2000 of 5000, a twentieth of it kept free.
	want("paris is down", "810 430 620 0")
	counts(2800, 5500, 3500, 100)
	hear("-")
	want("its phones are on their way", "810 430 620 0")
	hear("+")
	want("paris is back", "0 0 0 0")
	counts(2500, 4000, 3500, 5000)
	hear("-")
	// 500, 2000 and 500 are too few: nothing is kept free.
	want("there is not room enough", "900 600 900 0")
	hear("+")
	nodes[1].Capacity = 0
	w.tr.SetMembers(w.tick(), nodes)
	hear("-")
	want("london has no bound", "905 0 905 0")
	hear("+")
	counts(0, 0, 0, 0)
	hear("-")
	want("a node without phones", "0 0 0 0")
}

// TestSpillAgain: a second node that goes down has only its own phones left without a node,
// when those of the first have arrived; and nobody who was sent past a full node is sent back
// by it, nor when one of the two is up again.
func TestSpillAgain(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name            string
		paris           int // phones when it goes down
		first, and, one uint16
	}{
		{"there is room", 2000, 0, 0, 0},
		{"there is not room enough", 5200, 178, 572, 572},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, failover.Options{Observer: "la"})
			ids := []pbxmesh.NodeID{buffalo, london, singapore, "paris"}
			var nodes []pbxmesh.Node
			for i, id := range ids {
				n := member(id, byte(i+1))
				n.Capacity = 5000
				nodes = append(nodes, n)
			}
			w.tr.SetMembers(w.tick(), nodes)
			hear := func(paris, theLondon failover.Word, buffalos, londons, parisians int) uint16 {
				w.tr.SetRegistrations(map[pbxmesh.NodeID]int{buffalo: buffalos, london: londons, singapore: 500, "paris": parisians})
				var seen []failover.SeenVote
				now := w.tick()
				for _, v := range votes("ja b+ s+", "ny b+ s+", "bo b+ s+") {
					v.Nodes["paris"], v.Nodes[london] = failover.Opinion{Phones: paris}, failover.Opinion{Phones: theLondon}
					seen = append(seen, failover.SeenVote{Vote: *v, Seen: now})
				}
				w.tr.Votes(now, seen, true)
				return w.tr.Mesh().State(buffalo).Full
			}
			const yes, no = failover.WordAnswers, failover.WordSilent
			hear(yes, yes, 500, 500, tt.paris)
			if got := hear(no, yes, 500, 500, tt.paris); got != tt.first {
				t.Errorf("paris is down: buffalo is full by %d, want %d", got, tt.first)
			}
			arrived := min(tt.paris, 4275)
			if got := hear(no, no, 500+arrived, 500, 0); got != tt.and {
				t.Errorf("its phones are there, and london is down: %d, want %d", got, tt.and)
			}
			if got := hear(no, yes, 500+arrived, 500, 0); got != tt.one {
				t.Errorf("london is back: %d, want %d", got, tt.one)
			}
			if got := hear(yes, yes, 500, 500, tt.paris); got != 0 {
				t.Errorf("all are back: %d, want 0", got)
			}
		})
	}
}
