package selection

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"pbxmesh"
	"pbxmesh/fixtures"
)

// many returns a mesh of so many nodes, two of which shed, and a ranking of so many
// networks with some hundred orders.
func many(tb testing.TB, nodes, networks int) (*pbxmesh.Mesh, *Ranking) {
	tb.Helper()
	r := rand.New(rand.NewPCG(1, 2))
	mesh := &pbxmesh.Mesh{Nodes: make(map[pbxmesh.NodeID]pbxmesh.Node), States: make(map[pbxmesh.NodeID]pbxmesh.NodeState)}
	var ids []pbxmesh.NodeID
	for i := range nodes {
		id := pbxmesh.NodeID(fmt.Sprintf("node%02d", i))
		ids = append(ids, id)
		mesh.Nodes[id] = pbxmesh.Node{ID: id, Addresses: fixtures.Addresses("192.0.2.1")}
		s := pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
		if i < 2 {
			s.Shed = 200
		}
		mesh.States[id] = s
	}
	var orders [][]pbxmesh.NodeID
	for range min(networks, 500) {
		o := append([]pbxmesh.NodeID(nil), ids...)
		r.Shuffle(len(o), func(i, j int) { o[i], o[j] = o[j], o[i] })
		orders = append(orders, o)
	}
	list := make([]Network, 0, networks)
	for i := range networks {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(10 + i>>15), byte(i >> 7), byte(i << 1), 0}), 24)
		if i%4 == 3 {
			p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}), 48)
		}
		list = append(list, Network{p, orders[r.IntN(len(orders))]})
	}
	ranking, err := NewRanking(list, nil)
	if err != nil {
		tb.Fatal(err)
	}
	return mesh, ranking
}

func manyChoices(tb testing.TB, nodes, networks int) *Choices {
	mesh, ranking := many(tb, nodes, networks)
	ch := NewChooser(nil)
	ch.SetRanking(ranking)
	return ch.On(mesh)
}

// BenchmarkFor is what one query pays for its decision.
func BenchmarkFor(b *testing.B) {
	c := manyChoices(b, 50, 20_000)
	clients := make([]netip.Addr, 1<<12)
	r := rand.New(rand.NewPCG(3, 4))
	for i := range clients {
		n := r.IntN(20_000)
		clients[i] = netip.AddrFrom4([4]byte{byte(10 + n>>15), byte(n >> 7), byte(n << 1), byte(n)})
		c.For(clients[i], AnyFamily)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c.For(clients[i&(1<<12-1)], AnyFamily)
		i++
	}
}

// BenchmarkPlan is what a new ranking costs; BenchmarkSnapshot what a new snapshot of
// the nodes costs until every network has been asked for.
func BenchmarkPlan(b *testing.B) {
	_, ranking := many(b, 50, 20_000)
	ch := NewChooser(nil)
	b.ReportAllocs()
	for b.Loop() {
		ch.SetRanking(ranking)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	mesh, ranking := many(b, 50, 20_000)
	pl := newPlan(nil, ranking)
	b.ReportAllocs()
	for b.Loop() {
		c := newChoices(mesh, pl)
		for i := range ranking.networks {
			c.For(ranking.networks[i].Prefix.Addr(), AnyFamily)
		}
	}
}
