package selection

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"pbxmesh"
)

// beyond returns, for each of nodes, how much it sheds beyond the one that takes phones and
// sheds least: 0 to ShedAll per mille, 0 for a node that takes no phones. Sending phones away
// helps only where another node has it better, so when all shed alike, nobody moves.
func beyond(mesh *pbxmesh.Mesh, nodes []pbxmesh.NodeID) []uint16 {
	least := uint16(pbxmesh.ShedAll)
	for _, id := range nodes {
		if s := mesh.States[id]; s.Effective().TakesPhones() {
			least = min(least, s.Shed)
		}
	}
	out := make([]uint16, len(nodes))
	if least >= pbxmesh.ShedAll {
		return out
	}
	for i, id := range nodes {
		if s := mesh.States[id]; s.Effective().TakesPhones() {
			out[i] = uint16(uint32(s.Shed-least) * pbxmesh.ShedAll / uint32(pbxmesh.ShedAll-least)) //nolint:gosec // at most ShedAll
		}
	}
	return out
}

// shed moves the nodes that refuse a client behind those that take it; when all refuse, the
// one that sheds least comes first. by is what beyond says of nodes, and refused whether the
// i-th refuses. Nodes stay within their class of states.
func shed(mesh *pbxmesh.Mesh, nodes []pbxmesh.NodeID, by []uint16, refused func(i int) bool) []pbxmesh.NodeID {
	type place struct {
		id    pbxmesh.NodeID
		class pbxmesh.Effective
		shed  uint16
	}
	places := make([]place, len(nodes))
	for i, id := range nodes {
		places[i] = place{id: id, class: class(mesh.States[id])}
		if by[i] > 0 && refused(i) {
			places[i].shed = by[i]
		}
	}
	slices.SortStableFunc(places, func(a, b place) int { return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.shed, b.shed)) })
	out := make([]pbxmesh.NodeID, len(nodes))
	for i := range places {
		out[i] = places[i].id
	}
	return out
}

// The unit of shedding: a node takes or refuses such a network as a whole, so that the
// phones of one office stay together and a resolver's cache serves them all.
const (
	unitBits4 = 24
	unitBits6 = 48
)

// UnitOf returns a number of client's network (/24, IPv6 /48), its own alone; 0 for a client that
// is not known. An IPv4 address is unmapped.
func UnitOf(client netip.Addr) uint64 {
	switch {
	case client.Is4():
		b := client.As4()
		return 1<<63 | uint64(binary.BigEndian.Uint32(b[:])>>(32-unitBits4))
	case client.IsValid():
		b := client.As16()
		return binary.BigEndian.Uint64(b[:8])>>(64-unitBits6) | 1<<62
	}
	return 0
}

func unitBits(client netip.Addr) int {
	if client.Is4() {
		return unitBits4
	}
	return unitBits6
}

// nodeHash is FNV-1a: short, and the same on every machine and in every release.
func nodeHash(id pbxmesh.NodeID) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return h
}

// refuses reports whether a node that sheds so many per mille sends unit elsewhere. What
// it refuses at one value it refuses at every higher one, so growing moves nobody who
// is away already, and two name servers agree.
func refuses(node, unit uint64, shed uint16) bool {
	if shed == 0 {
		return false
	}
	return scatter(node^unit*0x9e3779b97f4a7c15)%pbxmesh.ShedAll < uint64(shed)
}

// scatter is the finalizer of MurmurHash3: units are consecutive numbers.
func scatter(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
