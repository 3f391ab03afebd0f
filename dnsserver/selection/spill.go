package selection

import (
	"slices"

	"pbxmesh"
)

// The phones of a node that is down go to the next nodes of their order. Where the next one
// has no room for all of them (pbxmesh.NodeState.Full), it takes the share that it has room
// for, the one behind it takes its own share of the rest, and so on. Every client network
// has a fixed place in that line, so it goes to one node for as long as the first one is
// down; what nobody has room for goes to the nearest one.

// maxSpill bounds the nodes that share the phones of one order.
const maxSpill = 8

// spread is what the clients of an order get that are refused by the same nodes: the
// decisions, and up to which place in the line each is for. Those behind the last place get
// the last decision.
type spread struct {
	until     []uint16 // ascending, up to ShedAll
	decisions []*Decision
}

func (s *spread) at(place uint16) *Decision {
	for i, until := range s.until {
		if place < until {
			return s.decisions[i]
		}
	}
	return s.decisions[len(s.decisions)-1]
}

// spills reports whether the clients of an order have to be spread: the node that comes first
// in it is down, and one that takes them has no room for all.
func spills(mesh *pbxmesh.Mesh, ordered []pbxmesh.NodeID) bool {
	return len(ordered) > 0 && mesh.States[ordered[0]].Effective() == pbxmesh.EffectiveDown &&
		slices.ContainsFunc(ordered, func(id pbxmesh.NodeID) bool {
			s := mesh.States[id]
			return s.Effective().TakesPhones() && s.Full > 0
		})
}

// shares returns, for the nodes of a decision that take phones, best first, up to which
// place in the line each takes them.
func shares(mesh *pbxmesh.Mesh, nodes []pbxmesh.NodeID) (until []uint16) {
	line := uint16(0)
	for _, id := range nodes {
		s := mesh.States[id]
		if !s.Effective().TakesPhones() || line == pbxmesh.ShedAll || len(until) == maxSpill {
			break
		}
		line = min(line+pbxmesh.ShedAll-s.Full, pbxmesh.ShedAll)
		until = append(until, line)
	}
	return until
}

// leading returns nodes with the i-th before all others.
func leading(nodes []pbxmesh.NodeID, i int) []pbxmesh.NodeID {
	return slices.Concat(nodes[i:i+1], nodes[:i], nodes[i+1:])
}

// lineOf is where a unit stands in the line, 0 to ShedAll-1.
func lineOf(unit uint64) uint16 { return uint16(scatter(unit^0x5bd1e9955bd1e995) % pbxmesh.ShedAll) }
