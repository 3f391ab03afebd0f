package selection

import (
	"cmp"
	"slices"

	"pbxmesh"
)

// living returns those of nodes that phones should get, and whether the panic rule holds.
//
// A suspect node keeps its place: one lost probe must not move phones, and a second
// name server would have lost another one. One that nobody has observed yet stands behind
// those. Draining, down and out nodes are left out.
//
// Panic rule: when fewer than half of the nodes that the operator wants in service take
// phones, those that do come first, then draining nodes (they are alive), then down
// ones. Nodes that an operator took out come back only when there is nothing else at
// all: an empty answer would be worse, because resolvers cache it.
func living(mesh *pbxmesh.Mesh, nodes []pbxmesh.NodeID) (out []pbxmesh.NodeID, panics bool) {
	worst, best := pbxmesh.EffectiveSuspect, pbxmesh.EffectiveOut
	taking, wanted := 0, 0
	for _, id := range nodes {
		s := mesh.States[id]
		best = min(best, s.Effective())
		if s.Wanted == pbxmesh.WantedInService {
			wanted++
		}
		if s.Effective().TakesPhones() {
			taking++
		}
	}
	if panics = len(nodes) > 0 && (taking == 0 || 2*taking < wanted); panics {
		worst = max(best, pbxmesh.EffectiveDown)
	}
	out = slices.DeleteFunc(slices.Clone(nodes), func(id pbxmesh.NodeID) bool { return mesh.States[id].Effective() > worst })
	slices.SortStableFunc(out, func(a, b pbxmesh.NodeID) int { return cmp.Compare(class(mesh.States[a]), class(mesh.States[b])) })
	return out, panics
}

// PanicRule reports whether the panic rule holds on a snapshot, as Decision.Panic does
// in every answer from it that is not about one family of addresses; nil is no nodes.
func PanicRule(mesh *pbxmesh.Mesh) bool {
	_, panics := living(mesh, inOrder(mesh, nil, AnyFamily))
	return panics
}

// class is what the order of an answer distinguishes: a suspect node counts as up,
// one that nobody has observed yet stands behind both.
func class(s pbxmesh.NodeState) pbxmesh.Effective {
	e := s.Effective()
	if e == pbxmesh.EffectiveSuspect && s.Observed == pbxmesh.ObservedSuspect {
		return pbxmesh.EffectiveUp
	}
	return e
}
