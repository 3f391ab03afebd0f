package selection

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"pbxmesh"
)

// lookup returns the order of a client by preferences alone, and its block.
func lookup(p *Preferences, client netip.Addr) ([]pbxmesh.NodeID, netip.Prefix) {
	pl := newPlan(p, nil)
	order, scope := pl.lookup(client)
	block, _ := client.Prefix(scope)
	return pl.orders[order], block
}

// TestPlanAgreesWithThePlainRule: whatever the networks, a client gets the nodes of its
// longest preference, then those of its longest ranked network, then the default
// order; its scope covers nobody else; and it could not be one bit wider.
func TestPlanAgreesWithThePlainRule(t *testing.T) {
	t.Parallel()
	names := []pbxmesh.NodeID{"a", "b", "c", "d"}
	rapid.Check(t, func(t *rapid.T) {
		six := rapid.Bool().Draw(t, "six")
		// Few bits vary, so that networks meet, nest and touch the edges.
		addr := func(label string) netip.Addr {
			b := rapid.SampledFrom([]byte{0, 1, 2, 127, 128, 254, 255}).Draw(t, label)
			c := rapid.SampledFrom([]byte{0, 1, 128, 255}).Draw(t, label)
			if six {
				return netip.AddrFrom16([16]byte{b, 0, 0, 0, 0, 0, 0, c, b, 15: c})
			}
			return netip.AddrFrom4([4]byte{b, c, b, c})
		}
		networks := func(label string) []Network {
			var out []Network
			seen := make(map[netip.Prefix]bool)
			for range rapid.IntRange(0, 6).Draw(t, label) {
				a := addr(label)
				p, _ := a.Prefix(rapid.IntRange(0, a.BitLen()).Draw(t, label+" bits"))
				if !seen[p] {
					seen[p] = true
					out = append(out, Network{p, rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, 3, rapid.ID).Draw(t, label+" nodes")})
				}
			}
			return out
		}
		preferred, ranked := networks("preferred"), networks("ranked")
		p, err := NewPreferences(preferred, names[:2])
		if err != nil {
			t.Fatal(err)
		}
		r, err := NewRanking(ranked, nil)
		if err != nil {
			t.Fatal(err)
		}
		plain := func(a netip.Addr) []pbxmesh.NodeID {
			var lists [][]pbxmesh.NodeID
			for _, networks := range [][]Network{preferred, ranked} {
				bits := -1
				var nodes []pbxmesh.NodeID
				for _, n := range networks {
					if n.Prefix.Contains(a) && n.Prefix.Bits() > bits {
						nodes, bits = n.Nodes, n.Prefix.Bits()
					}
				}
				lists = append(lists, nodes)
			}
			return joined(append(lists, names[:2])...)
		}
		pl := newPlan(p, r)
		probe := func(a netip.Addr) netip.Prefix {
			order, scope := pl.lookup(a)
			if want := plain(a); !slices.Equal(pl.orders[order], want) {
				t.Fatalf("%v: %v, want %v\npreferred %v\nranked %v", a, pl.orders[order], want, preferred, ranked)
			}
			block, err := a.Prefix(scope)
			if err != nil {
				t.Fatalf("%v: scope %d", a, scope)
			}
			return block
		}
		a := addr("client")
		block := probe(a)
		edges := []netip.Addr{addr("other")}
		for _, n := range slices.Concat(preferred, ranked) {
			first, last := n.Prefix.Addr(), lastAddr(n.Prefix)
			edges = append(edges, first, first.Prev(), last, last.Next())
		}
		wider, _ := a.Prefix(max(block.Bits()-1, 0))
		needed := block.Bits() == 0
		for _, b := range edges {
			if !b.IsValid() || b.Is4() != a.Is4() || slices.Equal(plain(a), plain(b)) {
				continue
			}
			if block.Contains(b) {
				t.Fatalf("%v has block %v, which covers %v with another order", a, block, b)
			}
			needed = needed || wider.Contains(b)
		}
		if !needed {
			t.Fatalf("%v has block %v, and the wider %v has one order too\npreferred %v\nranked %v", a, block, wider, preferred, ranked)
		}
	})
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// TestBlocks compares the blocks with the plain rule, longest prefix wins, and
// shows that a scope never covers a client with another answer.
func TestBlocks(t *testing.T) {
	t.Parallel()
	networks := []Network{
		{netip.MustParsePrefix("10.0.0.0/8"), []pbxmesh.NodeID{"a"}},
		{netip.MustParsePrefix("10.1.0.0/16"), []pbxmesh.NodeID{"b"}},
		{netip.MustParsePrefix("10.1.2.0/24"), []pbxmesh.NodeID{"a"}},
		{netip.MustParsePrefix("10.1.2.3/32"), []pbxmesh.NodeID{"c"}},
		{netip.MustParsePrefix("192.168.0.0/17"), []pbxmesh.NodeID{"d"}},
		{netip.MustParsePrefix("192.168.128.0/17"), []pbxmesh.NodeID{"d"}},
	}
	p, err := NewPreferences(networks, []pbxmesh.NodeID{"z"})
	if err != nil {
		t.Fatal(err)
	}
	plain := func(a netip.Addr) pbxmesh.NodeID {
		best, bits := pbxmesh.NodeID("z"), -1
		for _, n := range networks {
			if n.Prefix.Contains(a) && n.Prefix.Bits() > bits {
				best, bits = n.Nodes[0], n.Prefix.Bits()
			}
		}
		return best
	}
	var samples []netip.Addr
	for _, n := range networks { // both edges of every network, and one beyond
		first := n.Prefix.Addr()
		samples = append(samples, first, first.Next(), first.Prev())
		b := first.As4()
		v := binary.BigEndian.Uint32(b[:]) + uint32(1<<(32-n.Prefix.Bits())-1)
		binary.BigEndian.PutUint32(b[:], v)
		last := netip.AddrFrom4(b)
		samples = append(samples, last, last.Next())
	}
	for _, a := range samples {
		nodes, block := lookup(p, a)
		if nodes[0] != plain(a) || !block.Contains(a) {
			t.Errorf("%v: %v in %v, want %v", a, nodes, block, plain(a))
		}
		for _, b := range samples {
			if block.Contains(b) && plain(b) != plain(a) {
				t.Errorf("%v's block %v covers %v, which gets another answer", a, block, b)
			}
		}
	}
	if _, block := lookup(p, netip.MustParseAddr("192.168.1.1")); block.Bits() != 16 {
		t.Errorf("two halves with one answer are in block %v, want /16", block)
	}
	if _, block := lookup(p, netip.MustParseAddr("2001:db8::1")); block.Bits() != 0 {
		t.Errorf("IPv6 without networks is in block %v, want /0", block)
	}
	for _, bad := range []Network{{Prefix: netip.MustParsePrefix("10.0.0.1/8")}, {}, {Prefix: netip.MustParsePrefix("10.0.0.0/8")}} {
		if _, err := NewPreferences(append(networks[:1:1], bad), nil); err == nil {
			t.Errorf("%v was taken", bad.Prefix)
		}
	}
}
