package latency

import (
	"math"
	"net/netip"
	"slices"
)

// groupKey names what networks share: a parent network, or an AS in one part of the
// world. An AS that spans continents says nothing as a whole.
type groupKey struct {
	parent   netip.Prefix
	as       uint32
	lat, lon int8
}

// partDegrees is the edge of a part of the world.
const partDegrees = 10

func (w *Where) asKey() (groupKey, bool) {
	return groupKey{
		as: w.AS, lat: int8(math.Floor(w.Location.Latitude / partDegrees)), lon: int8(math.Floor(w.Location.Longitude / partDegrees)),
	}, w.AS != 0 && w.Location.Known()
}

// group is what its networks showed together, by node.
type group struct {
	collected [][]estimated
	joined    []estimated // zero for nodes that too few phones showed
	phones    []float64
	evidence  []float64
	age       []float64 // minutes since the latest sample
	where     Where     // of the member with the most registrations
	visits    float64   // of that member
}

// group joins the networks of a parent, and of an AS in one part of the world.
func (v *View) group() {
	for _, p := range sortedKeys(v.networks) {
		n := v.networks[p]
		if v.places != nil {
			n.where = v.places.Where(p.Addr())
		}
		v.join(groupKey{parent: parentOf(p)}, n)
		if key, ok := n.where.asKey(); ok {
			v.join(key, n)
		}
	}
	for _, g := range v.groups {
		g.joined = make([]estimated, len(v.Nodes))
		most := slices.Max(g.phones)
		for i, list := range g.collected {
			if g.phones[i] <= groupShare*most || g.phones[i] < min(2, most) {
				g.evidence[i] = 0
				continue
			}
			g.joined[i] = weightedMedian(list)
		}
		g.collected = nil
	}
}

func (v *View) join(key groupKey, n *network) {
	g := v.groups[key]
	if g == nil {
		g = &group{collected: make([][]estimated, len(v.Nodes)), phones: make([]float64, len(v.Nodes)), evidence: make([]float64, len(v.Nodes)), age: make([]float64, len(v.Nodes)), where: n.where}
		v.groups[key] = g
	}
	for i := range n.observed {
		o := &n.observed[i]
		if len(g.collected[o.node]) == 0 || o.age < g.age[o.node] {
			g.age[o.node] = o.age
		}
		g.collected[o.node] = append(g.collected[o.node], estimated{o.ms, o.spread * math.Exp2(-o.age/scoreHalfLife)})
		g.evidence[o.node] += o.spread * math.Exp2(-o.age/evidenceHalfLife)
		g.phones[o.node] += o.spread
	}
	if visits := n.visits(); visits > g.visits {
		g.where, g.visits = n.where, visits
	}
}
