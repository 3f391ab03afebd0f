package dnsserver

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"pbxmesh"
)

// Decision is which nodes one client gets, on one snapshot. A, AAAA, SRV and NAPTR
// answers are all read from it.
type Decision struct {
	// Nodes are the nodes to use, best first. Empty only when no node has an
	// address for phones.
	Nodes []pbxmesh.NodeID

	// Panic says that fewer than half of the nodes that should take phones do, so
	// that Nodes ends with nodes which are draining or down, or holds no other. It is
	// more likely that they are watched wrongly than that they all died.
	Panic bool
}

// key says the same for equal decisions.
func (d *Decision) key() string {
	var b strings.Builder
	if d.Panic {
		b.WriteByte('!')
	}
	for _, id := range d.Nodes {
		b.WriteString(string(id))
		b.WriteByte(' ')
	}
	return b.String()
}

// Choose returns the nodes for client, best first: see Choices. It compiles the
// preferences every time; Chooser does not.
func Choose(mesh *pbxmesh.Mesh, client netip.Addr, preferences *Preferences) []pbxmesh.NodeID {
	d, _ := NewChoices(mesh, preferences).For(client)
	return d.Nodes
}

// candidate is a node with an address for phones.
type candidate struct {
	id    pbxmesh.NodeID
	state pbxmesh.Effective
	class pbxmesh.Effective
	rank  int
	sheds uint16 // of the clients, beyond what all nodes shed; see relative
	shed  uint16 // the same for a node that refuses the client, 0 for one that takes it
}

// candidates returns all of them, best first. Nodes that are not in order follow it by
// name.
func candidates(mesh *pbxmesh.Mesh, order []pbxmesh.NodeID) []candidate {
	if mesh == nil {
		return nil
	}
	out := make([]candidate, 0, len(mesh.Nodes))
	for id := range mesh.Nodes {
		if n := mesh.Nodes[id]; len(n.Addresses) == 0 {
			continue
		}
		rank := slices.Index(order, id)
		if rank < 0 {
			rank = len(order)
		}
		s := mesh.States[id]
		out = append(out, candidate{id: id, state: s.Effective(), class: class(s), rank: rank})
	}
	relative(mesh, out)
	slices.SortFunc(out, compare)
	return out
}

// relative fills in how much each node sheds beyond the one that takes phones and sheds
// least: 0 to ShedAll per mille. Sending phones away helps only where another node has it better,
// so when all shed alike, nobody moves.
func relative(mesh *pbxmesh.Mesh, all []candidate) {
	least := uint16(pbxmesh.ShedAll)
	for i := range all {
		if all[i].state.TakesPhones() {
			least = min(least, mesh.States[all[i].id].Shed)
		}
	}
	if least >= pbxmesh.ShedAll {
		return
	}
	for i := range all {
		if all[i].state.TakesPhones() {
			beyond := uint32(mesh.States[all[i].id].Shed - least)
			all[i].sheds = uint16(beyond * pbxmesh.ShedAll / uint32(pbxmesh.ShedAll-least)) //nolint:gosec // at most ShedAll
		}
	}
}

func compare(a, b candidate) int {
	return cmp.Or(cmp.Compare(a.class, b.class), cmp.Compare(a.shed, b.shed), cmp.Compare(a.rank, b.rank), cmp.Compare(a.id, b.id))
}

// decide chooses the nodes for clients that get them in the given order and are sent
// elsewhere by those of which refuse says so. It is a pure function: two name servers
// with the same snapshot and order decide the same.
//
// A suspect node keeps its place: one lost probe must not move phones, and a second
// name server would have lost another one. A node that refuses the client stands behind
// those that take it, and the one that sheds least comes first when all refuse. What all
// shed alike does not count.
// Draining, down and out nodes, and nodes without an address, are left out.
//
// Panic rule: when fewer than half of the nodes that the operator wants in service take
// phones, those that do come first, then draining nodes (they are alive), then down
// ones. Nodes that an operator took out come back only when there is nothing else at
// all: an empty answer would be worse, because resolvers cache it.
func decide(mesh *pbxmesh.Mesh, order []pbxmesh.NodeID, refuse func(pbxmesh.NodeID, uint16) bool) Decision {
	all := candidates(mesh, order)
	var d Decision
	worst, taking, wanted := pbxmesh.EffectiveSuspect, 0, 0
	best := pbxmesh.EffectiveOut
	for i := range all {
		c := &all[i]
		s := mesh.States[c.id]
		best = min(best, c.state)
		if s.Wanted == pbxmesh.WantedInService {
			wanted++
		}
		if !c.state.TakesPhones() {
			continue
		}
		taking++
		if c.sheds > 0 && refuse(c.id, c.sheds) {
			c.shed = c.sheds
		}
	}
	if d.Panic = panics(len(all), taking, wanted); d.Panic {
		worst = max(best, pbxmesh.EffectiveDown)
	}
	slices.SortFunc(all, compare)
	d.Nodes = make([]pbxmesh.NodeID, 0, len(all))
	for _, c := range all {
		if c.state <= worst {
			d.Nodes = append(d.Nodes, c.id)
		}
	}
	return d
}

// panics reports whether the panic rule holds for so many nodes with an address for
// phones, of which so many take phones and so many are wanted in service.
func panics(nodes, taking, wanted int) bool {
	return nodes > 0 && (taking == 0 || 2*taking < wanted)
}

// PanicRule reports whether the panic rule holds on a snapshot, as Decision.Panic does
// in every answer from it; nil is no nodes.
func PanicRule(mesh *pbxmesh.Mesh) bool {
	all := candidates(mesh, nil)
	taking, wanted := 0, 0
	for i := range all {
		if all[i].state.TakesPhones() {
			taking++
		}
		if mesh.States[all[i].id].Wanted == pbxmesh.WantedInService {
			wanted++
		}
	}
	return panics(len(all), taking, wanted)
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
