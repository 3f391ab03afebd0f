package failover_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
)

// TestWhoMoves counts the client networks whose answer changes in a mishap, and those whose
// node was well all the time: they need not move. The table in docs/failover.md is its result.
func TestWhoMoves(t *testing.T) {
	t.Parallel()
	const networks = 1000
	rng := rand.New(rand.NewPCG(1, 2))
	var ranked []selection.Network
	var clients []netip.Addr
	for i := range networks {
		client := netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 1})
		clients = append(clients, client)
		order := slices.Clone(towns)
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		ranked = append(ranked, selection.Network{Prefix: netip.PrefixFrom(client, 24).Masked(), Nodes: order})
	}
	ranking, err := selection.NewRanking(ranked, nil)
	if err != nil {
		t.Fatal(err)
	}
	mishaps := []struct {
		name    string
		begin   func(*network)
		lasts   time.Duration
		victims []pbxmesh.NodeID
	}{
		{"a site dies for a minute", func(n *network) { n.cut["*>london"], n.offline["london"] = true, true }, time.Minute, []pbxmesh.NodeID{london}},
		{"a site is cut off for a minute", func(n *network) {
			n.offline["london"] = true
			for _, name := range n.names {
				n.cut[name+">london"] = name != "london"
				n.cut["london>"+name] = name != "london"
			}
		}, time.Minute, []pbxmesh.NodeID{london}},
		{"the link between two sites breaks", func(n *network) { n.cut["buffalo>london"], n.cut["london>buffalo"] = true, true }, time.Minute, nil},
		{"the registry takes no writes for a minute", func(n *network) { n.full = true }, time.Minute, nil},
		{"the registry is away for a minute", func(n *network) {
			for _, name := range n.names {
				n.offline[name] = true
			}
		}, time.Minute, nil},
		{"all nodes are away for a minute and return at once", func(n *network) {
			for _, id := range towns {
				n.cut["*>"+string(id)] = true
			}
		}, time.Minute, nil},
	}
	var table strings.Builder
	table.WriteString("| mishap | networks whose answer changed | whose node was well |\n|---|---|---|\n")
	for _, m := range mishaps {
		n := newNetwork(t)
		was := answersOf(n, ranking, clients)
		moved := map[int]bool{}
		n.each = func() {
			for i, id := range answersOf(n, ranking, clients) {
				if id != was[i] {
					moved[i] = true
				}
			}
		}
		m.begin(n)
		n.run(m.lasts)
		clear(n.cut)
		clear(n.offline)
		n.full = false
		n.run(2 * time.Minute)
		needless := 0
		for i := range moved {
			if !slices.Contains(m.victims, was[i]) {
				needless++
			}
		}
		for i, id := range answersOf(n, ranking, clients) {
			if id != was[i] {
				t.Errorf("%s: two minutes later %v still gets %s, not %s", m.name, clients[i], id, was[i])
				break
			}
		}
		if needless > 0 || (len(moved) > 0) != (m.victims != nil) {
			t.Errorf("%s: %d networks moved, %d of them needlessly", m.name, len(moved), needless)
		}
		fmt.Fprintf(&table, "| %s | %.1f %% | %d |\n", m.name, 100*float64(len(moved))/networks, needless)
	}
	holdTable(t, "../docs/failover.md", "moves", table.String())
}

// answersOf returns the first node that losangeles answers each client with.
func answersOf(n *network, ranking *selection.Ranking, clients []netip.Addr) []pbxmesh.NodeID {
	chooser := selection.NewChooser(nil)
	chooser.SetRanking(ranking)
	choices := chooser.On(n.trackers["losangeles"].Mesh())
	out := make([]pbxmesh.NodeID, len(clients))
	for i, c := range clients {
		d, _ := choices.For(c, selection.AnyFamily)
		out[i] = d.Nodes[0]
	}
	return out
}
