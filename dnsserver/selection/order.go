package selection

import (
	"net/netip"
	"slices"

	"pbxmesh"
)

// Family is a kind of address that a client asks for.
type Family int

// The families. A question that is not about addresses (SRV, NAPTR) is about any node.
const (
	AnyFamily Family = iota
	IPv4
	IPv6

	families = iota
)

// FamilyOf returns the family of an address; AnyFamily for the zero Addr.
func FamilyOf(a netip.Addr) Family {
	switch a = a.Unmap(); {
	case !a.IsValid():
		return AnyFamily
	case a.Is4():
		return IPv4
	}
	return IPv6
}

// has reports whether a node has an address for phones of the family.
func (f Family) has(n pbxmesh.Node) bool {
	for _, a := range n.Addresses {
		if f == AnyFamily || f == FamilyOf(a) {
			return true
		}
	}
	return false
}

// inOrder returns the nodes that have an address of the family: those of order first, then
// the others by name.
func inOrder(mesh *pbxmesh.Mesh, order []pbxmesh.NodeID, family Family) []pbxmesh.NodeID {
	if mesh == nil {
		return nil
	}
	out := make([]pbxmesh.NodeID, 0, len(mesh.Nodes))
	for _, id := range order {
		if n, ok := mesh.Nodes[id]; ok && family.has(n) {
			out = append(out, id)
		}
	}
	listed := len(out)
	for id := range mesh.Nodes {
		if family.has(mesh.Nodes[id]) && !slices.Contains(order, id) {
			out = append(out, id)
		}
	}
	slices.Sort(out[listed:])
	return out
}
