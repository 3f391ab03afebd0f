package selection

import (
	"maps"
	"net/netip"
	"slices"

	"pbxmesh"
)

// Why says how the nodes of a Decision were chosen, for one client.
type Why struct {
	// Preference is the network of the operator's preferences that client stands in,
	// Ranked that of the Ranking; the zero Prefix when it is in none.
	Preference, Ranked netip.Prefix

	// Located says that the Ranking's Locator knew where client is.
	Located bool

	// What each stage left, best first: all nodes in order, those with an address for
	// phones of the family, those that states leave, then after shedding, then after the
	// spill, which are the decision's.
	Ordered, Family, Living, Shed, Nodes []pbxmesh.NodeID

	Panic bool

	// Refuses are the nodes that shed client's network (pbxmesh.NodeState.Shed), beyond what
	// all nodes shed.
	Refuses []pbxmesh.NodeID

	// Down is the node that comes first for client, is down, and whose phones are spread
	// over those of Spread by the room that they have; "" when nothing is spread.
	Down   pbxmesh.NodeID
	Spread []Share
}

// Share is what a node takes of the phones that are spread, in per mille.
type Share struct {
	Node  pbxmesh.NodeID
	Takes int
}

// Why explains For. It is slow.
func (c *Choices) Why(client netip.Addr, family Family) Why {
	client = client.Unmap().WithZone("")
	var w Why
	if client.IsValid() {
		w.Preference = longest(c.plan.preferences.prefer(), client)
		if r := c.plan.ranking; r != nil {
			w.Ranked = longest(r.networks, client)
		}
	}
	order, _ := c.plan.lookup(client)
	w.Located = order >= c.plan.located
	if c.mesh == nil {
		return w
	}
	w.Ordered = slices.Clone(c.plan.orders[order])
	for _, id := range slices.Sorted(maps.Keys(c.mesh.Nodes)) {
		if !slices.Contains(w.Ordered, id) {
			w.Ordered = append(w.Ordered, id)
		}
	}
	w.Family = inOrder(c.mesh, c.plan.orders[order], family)
	d, _ := c.For(client, family)
	v, made, _ := c.made(order, family, client)
	w.Living, w.Panic, w.Nodes = v.living, d.Panic, d.Nodes
	for i, id := range v.living {
		if refuses(nodeHash(id), UnitOf(client), v.beyond[i]) {
			w.Refuses = append(w.Refuses, id)
		}
	}
	slices.Sort(w.Refuses)
	w.Shed = made.decisions[len(made.decisions)-1].Nodes
	if v.spills {
		w.Down = w.Family[0]
		from := uint16(0)
		for i, until := range made.until {
			w.Spread = append(w.Spread, Share{made.decisions[i].Nodes[0], int(until - from)})
			from = until
		}
	}
	return w
}

func longest(networks []Network, client netip.Addr) netip.Prefix {
	var best netip.Prefix
	for _, n := range networks {
		if n.Prefix.Contains(client) && (!best.IsValid() || n.Prefix.Bits() > best.Bits()) {
			best = n.Prefix
		}
	}
	return best
}

// Without returns what the choices would be if a node had failed.
func (c *Choices) Without(id pbxmesh.NodeID) *Choices {
	if c.mesh == nil {
		return c
	}
	mesh := *c.mesh
	mesh.States = maps.Clone(c.mesh.States)
	if mesh.States == nil {
		mesh.States = make(map[pbxmesh.NodeID]pbxmesh.NodeState)
	}
	s := mesh.States[id]
	s.Observed = pbxmesh.ObservedDown
	mesh.States[id] = s
	return newChoices(&mesh, c.plan)
}
