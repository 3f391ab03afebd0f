package dnsserver

import (
	"maps"
	"net/netip"
	"slices"

	"pbxmesh"
)

// Ranking says in which order the nodes serve client networks best, as somebody
// measured or worked it out from places. A Ranking is immutable; nil ranks nobody.
type Ranking struct {
	networks []Network
	locator  Locator
}

// Locator ranks the nodes for clients that stand in no network of a Ranking.
// Locate must not block, must not allocate, and must always answer the same.
type Locator interface {
	// Orders are all orders there are.
	Orders() [][]pbxmesh.NodeID

	// Locate returns which of Orders client gets, and the network around it that
	// gets the same; ok is false when nothing is known of where client is.
	Locate(client netip.Addr) (order int, network netip.Prefix, ok bool)
}

// NewRanking returns the Ranking of networks, of which the longest prefix wins, and of
// locator for everybody else; locator may be nil. It keeps the lists of nodes, which
// nobody may change afterwards; networks that share one list cost less. Errors are
// those of NewPreferences.
func NewRanking(networks []Network, locator Locator) (*Ranking, error) {
	r := &Ranking{networks: make([]Network, 0, len(networks)), locator: locator}
	err := eachNetwork(networks, func(prefix netip.Prefix, i int) {
		r.networks = append(r.networks, Network{prefix, networks[i].Nodes})
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Why says which rules the order of the nodes comes from, for one client.
type Why struct {
	// Preference is the network of the operator's preferences that client stands in,
	// Ranked that of the Ranking; the zero Prefix when it is in none.
	Preference, Ranked netip.Prefix

	// Located says that the Ranking's Locator knew where client is.
	Located bool

	// Nodes is the order before the nodes' states are looked at. Nodes that are not
	// in it follow by name.
	Nodes []pbxmesh.NodeID

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
func (c *Choices) Why(client netip.Addr) Why {
	client = client.Unmap().WithZone("")
	var w Why
	if client.IsValid() {
		w.Preference = longest(c.plan.preferences.prefer(), client)
		if r := c.plan.ranking; r != nil {
			w.Ranked = longest(r.networks, client)
		}
	}
	order, _ := c.plan.lookup(client)
	w.Nodes = slices.Clone(c.plan.orders[order])
	w.Located = order >= c.plan.located
	unit := unitOf(client)
	for _, cand := range candidates(c.mesh, nil) {
		if refuses(nodeHash(cand.id), unit, cand.sheds) {
			w.Refuses = append(w.Refuses, cand.id)
		}
	}
	slices.Sort(w.Refuses)
	if v, made, _ := c.made(order, client); v.spills {
		w.Down = first(candidates(c.mesh, c.plan.orders[order])).id
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
