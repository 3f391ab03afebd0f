package latency

import "net/netip"

// Explanation says how a View ranks the nodes for one client.
type Explanation struct {
	Network netip.Prefix // the estimates' network; a parent when the client's own was never measured
	Judgement

	// Figures are in the order of View.Nodes.
	Figures []Figure

	// Tried is the node that the network tries in this slot, -1 for none.
	Tried int

	// Where is the client's place, as the configuration or a database has it; Elsewhere
	// says that measurements prove it wrong.
	Where     Where
	Elsewhere bool

	// Behind is set for a resolver's network; its Order, when there is one, is that of
	// Judgement.
	Behind Behind
}

// Explain explains. It is slow.
func (v *View) Explain(client netip.Addr) Explanation {
	e := Explanation{Tried: -1, Figures: make([]Figure, len(v.Nodes))}
	network, ok := networkOf(client)
	if !ok || len(v.Nodes) == 0 {
		return e
	}
	e.Network = network
	n := v.networks[network]
	own := n != nil
	if !own {
		n = v.parentNetwork(parentOf(network))
		if v.places != nil {
			n.where = v.places.Where(client)
		}
		if v.groups[groupKey{parent: parentOf(network)}] != nil {
			e.Network = parentOf(network)
		}
	}
	v.figures(network, n, e.Figures)
	maxCost := v.maxCost
	if !own {
		maxCost = 0
	}
	e.Judgement = judge(e.Figures, maxCost)
	if node, ok := e.tried(networkNumber(network), v.Slot); ok && own {
		e.Tried = node
	}
	if e.Behind = v.behind(network); e.Behind.Order != nil {
		e.Network, e.Judgement = network, Judgement{Order: e.Behind.Order, Incumbent: -1}
	}
	e.Where = n.where
	e.Elsewhere = n.where.Location.Known() && v.placeOf(n) != n.where.Location
	return e
}
