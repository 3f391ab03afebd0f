package latency

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"time"

	"pbxmesh"
)

// Slot is how long a network tries one node: as long as an answer lives.
const Slot = 30 * time.Second

// Input is what a View is made of.
type Input struct {
	Book   *Book
	Nodes  []pbxmesh.Node   // the members
	Order  []pbxmesh.NodeID // breaks ties; names do it beyond
	Places Places           // may be nil

	// At is the time; of it only the number of the slot counts, so that name servers
	// with clocks that are a little apart agree.
	At time.Time

	// MaxCost bounds what a try of another node may cost a client; 0 tries nothing.
	MaxCost time.Duration

	// Previous may be the View before this one, whose work is used where it holds.
	Previous *View

	// Learnt is what name servers found out of resolvers.
	Learnt []Learnt

	// MaxNetworks bounds the networks with a rank of their own; those with the most
	// registrations stay. 0 means MaxViewNetworks.
	MaxNetworks int
}

// MaxViewNetworks bounds a View.
const MaxViewNetworks = 64 << 10

// View is one immutable picture of all estimates. Two views of the same input are the
// same: times come from those who wrote, and numbers are rounded before they are
// compared.
type View struct {
	Nodes []pbxmesh.Node // those with addresses for phones, in the order that breaks ties
	Slot  uint64

	maxCost  float64
	places   Places
	between  [][]float64 // lowestMS of two nodes
	vectors  []vector
	networks map[netip.Prefix]*network
	groups   map[groupKey]*group
	ranked   []Ranked
	learnt   map[netip.Prefix]*known // of resolvers
	grid     *grid
}

// Ranked is a client network and the nodes in the order of their latency. Networks
// share lists.
type Ranked struct {
	Network netip.Prefix
	Nodes   []pbxmesh.NodeID
}

// network is what the nodes showed of one client network.
type network struct {
	observed []observation
	where    Where
}

type observation struct {
	node     int
	ms       float64
	samples  int
	phones   float64 // that it rests on
	spread   float64 // the same, at most perAddress of each address
	few      bool    // too few of the network's phones: a hint, which moves nothing
	evidence float64 // samples, less for their age
	weight   float64 // the same, much less for their age
	age      float64 // minutes
	visits   float64
	seen     float64
	asOf     time.Time
}

// NewView makes a View.
func NewView(in Input) *View {
	v := &View{
		Slot: slotOf(in.At), maxCost: float64(in.MaxCost) / float64(time.Millisecond), places: in.Places,
		networks: make(map[netip.Prefix]*network), groups: make(map[groupKey]*group),
	}
	v.setNodes(in.Nodes, in.Order)
	v.collect(in.Book)
	limit := in.MaxNetworks
	if limit <= 0 || limit > MaxViewNetworks {
		limit = MaxViewNetworks
	}
	v.trim(limit)
	v.group()
	v.learnt = gather(in.Learnt, in.At.Add(Slot))
	if p := in.Previous; p != nil && p.places == v.places && slices.EqualFunc(p.Nodes, v.Nodes, func(a, b pbxmesh.Node) bool {
		return a.ID == b.ID && a.Location == b.Location
	}) {
		v.grid = p.grid
	} else {
		v.grid = newGrid(v)
	}
	v.rank()
	return v
}

func slotOf(at time.Time) uint64 { return uint64(max(0, at.Unix())) / uint64(Slot/time.Second) }

// setNodes takes the members that phones can use.
func (v *View) setNodes(nodes []pbxmesh.Node, order []pbxmesh.NodeID) {
	place := func(id pbxmesh.NodeID) int {
		if i := slices.Index(order, id); i >= 0 {
			return i
		}
		return len(order)
	}
	for i := range nodes {
		if len(nodes[i].Addresses) > 0 {
			v.Nodes = append(v.Nodes, nodes[i])
		}
	}
	slices.SortFunc(v.Nodes, func(a, b pbxmesh.Node) int {
		if x, y := place(a.ID), place(b.ID); x != y {
			return x - y
		}
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	for i := range v.Nodes {
		row := make([]float64, len(v.Nodes))
		for j := range v.Nodes {
			row[j] = lowestMS(v.Nodes[i].Location, v.Nodes[j].Location)
		}
		v.between = append(v.between, row)
		v.vectors = append(v.vectors, vectorOf(v.Nodes[i].Location))
	}
}

// collect gathers by network what stands by node.
func (v *View) collect(b *Book) {
	index := make(map[pbxmesh.NodeID]int, len(v.Nodes))
	for i := range v.Nodes {
		index[v.Nodes[i].ID] = i
	}
	if b == nil {
		return
	}
	// Who is silent shows against the latest that anybody said: a store that is away silences
	// all alike, and distances do not change because of it.
	at := b.newest(time.Unix(int64(v.Slot+1)*int64(Slot/time.Second), 0)) //nolint:gosec // a time
	b.all(func(node pbxmesh.NodeID, asOf time.Time, e *entry) {
		i, ok := index[node]
		silent := at.Sub(asOf)
		if !ok || silent > NoteTTL {
			return
		}
		// A daemon that lives says so every RefreshAfter. Beyond it its estimates grow old.
		age := min(float64(e.age)+max(0, (silent-RefreshAfter).Minutes()), math.MaxUint8)
		n := v.networks[e.network]
		if n == nil {
			n = &network{}
			v.networks[e.network] = n
		}
		o := observation{
			node: i, ms: e.estimate.ms(), samples: int(e.samples), phones: float64(e.phones), spread: float64(min(e.phones, perAddress*e.hosts)), visits: e.visits.visits(), seen: e.seen.visits(), asOf: asOf,
			evidence: float64(e.samples) * math.Exp2(-age/evidenceHalfLife),
			weight:   float64(e.samples) * math.Exp2(-age/scoreHalfLife), age: age,
		}
		if k := slices.IndexFunc(n.observed, func(o observation) bool { return o.node == i }); k < 0 {
			n.observed = append(n.observed, o)
		} else if n.observed[k].asOf.Before(asOf) {
			n.observed[k] = o
		}
	})
	for _, n := range v.networks {
		n.weigh()
	}
}

// weigh finds the observations that rest on too few of the network's phones. How many
// phones there are is what the node says that most of them showed.
func (n *network) weigh() {
	phones, spread := 0.0, 0.0
	for i := range n.observed {
		phones, spread = max(phones, n.observed[i].phones), max(spread, n.observed[i].spread)
	}
	for i := range n.observed {
		o := &n.observed[i]
		o.visits *= o.spread / o.phones
		o.few = 2*o.phones < min(phones, manyPhones) || 2*o.spread < min(spread, manyPhones)
	}
}

// trim keeps the networks with the most registrations.
func (v *View) trim(limit int) {
	if len(v.networks) <= limit {
		return
	}
	prefixes := sortedKeys(v.networks)
	slices.SortStableFunc(prefixes, func(a, b netip.Prefix) int {
		x, y := v.networks[a].visits(), v.networks[b].visits()
		switch {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	for _, p := range prefixes[limit:] {
		delete(v.networks, p)
	}
}

func (n *network) visits() float64 {
	sum := 0.0
	for i := range n.observed {
		sum += n.observed[i].visits
	}
	return sum
}

// rank puts the nodes in order for every network, and for the parents of some weight.
func (v *View) rank() {
	lists := make(map[string][]pbxmesh.NodeID)
	list := func(order []int, first int) []pbxmesh.NodeID {
		key := make([]byte, 0, 2*len(order)+2)
		key = binary.BigEndian.AppendUint16(key, uint16(first)) //nolint:gosec // few nodes
		for _, i := range order {
			if i != first {
				key = binary.BigEndian.AppendUint16(key, uint16(i)) //nolint:gosec // few nodes
			}
		}
		nodes, ok := lists[string(key)]
		if !ok {
			for i := 0; i < len(key); i += 2 {
				nodes = append(nodes, v.Nodes[binary.BigEndian.Uint16(key[i:])].ID)
			}
			lists[string(key)] = nodes
		}
		return nodes
	}
	if len(v.Nodes) == 0 {
		return
	}
	figures := make([]Figure, len(v.Nodes))
	parents := make(map[netip.Prefix]bool)
	for _, p := range sortedKeys(v.networks) {
		v.figures(p, v.networks[p], figures)
		j := judge(figures, v.maxCost)
		first := j.Order[0]
		if node, ok := j.tried(networkNumber(p), v.Slot); ok {
			first = node
		}
		v.ranked = append(v.ranked, Ranked{p, list(j.Order, first)})
		parents[parentOf(p)] = true
	}
	for _, p := range sortedKeys(parents) {
		v.figures(p, v.parentNetwork(p), figures)
		j := judge(figures, 0)
		v.ranked = append(v.ranked, Ranked{p, list(j.Order, j.Order[0])})
	}
	for _, p := range sortedKeys(v.learnt) {
		if b := v.behind(p); b.Order != nil {
			v.ranked = append(v.ranked, Ranked{p, list(b.Order, b.Order[0])})
		}
	}
}

func sortedKeys[T any](m map[netip.Prefix]T) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(m))
	for p := range m {
		out = append(out, p)
	}
	slices.SortFunc(out, compareNetworks)
	return out
}

// parentNetwork stands for clients of a parent in no network that was measured.
func (v *View) parentNetwork(parent netip.Prefix) *network {
	n := &network{}
	if g := v.groups[groupKey{parent: parent}]; g != nil {
		n.where = g.where
	}
	return n
}

// Networks returns the client networks in no order. A network may lie within another
// one; the longer one counts. Nobody may change them.
func (v *View) Networks() []Ranked { return v.ranked }

// figures fills out with what is known of a network, by node. prefix may be a parent.
func (v *View) figures(prefix netip.Prefix, n *network, out []Figure) {
	var observed [maxNodesOnStack]*observation
	own := observed[:0]
	for range v.Nodes {
		own = append(own, nil)
	}
	for i := range n.observed {
		own[n.observed[i].node] = &n.observed[i]
	}
	where := v.placeOf(n)
	here := vectorOf(where)
	parent := v.groups[groupKey{parent: parentOf(prefix)}]
	if prefix.Bits() == parentBits4 || prefix.Bits() == parentBits6 {
		parent = v.groups[groupKey{parent: prefix}]
	}
	var as *group
	if key, ok := n.where.asKey(); ok {
		as = v.groups[key]
	}
	weight := func(g *group, i int) (e estimated) {
		if g == nil {
			return estimated{}
		}
		return g.joined[i]
	}
	// What this network's own access adds to distance and to its parent's latency: the
	// node that it shows least on is the one whose route is straight.
	access, apart := math.Inf(1), math.Inf(1)
	for i := range out {
		f := &out[i]
		*f = Figure{Node: i, Prior: unknownMS}
		if where.Known() && v.Nodes[i].Location.Known() {
			low := here.lowestMS(v.vectors[i])
			f.Prior = baseMS + guessFactor*low
			f.Lowest = max(0, low-placeSlackMS)
		}
		f.Parent, f.AS = weight(parent, i).ms, weight(as, i).ms
		if o := own[i]; o != nil {
			f.Own, f.Samples, f.Visits, f.Seen = o.ms, o.samples, o.visits, o.seen
			f.Phones, f.Few = o.phones, o.few
			if o.few {
				continue
			}
			access = min(access, o.ms-f.Prior)
			if f.Parent > 0 {
				apart = min(apart, o.ms-f.Parent)
			}
		}
	}
	access, apart = bounded(access), bounded(apart)
	for i := range out {
		f := &out[i]
		for k := range n.observed {
			if n.observed[k].samples < 2 || n.observed[k].few {
				continue // one sample may be a tick too short or too long
			}
			// The triangle: what is near one node cannot be near a far one.
			f.Lowest = max(f.Lowest, v.between[i][n.observed[k].node]-n.observed[k].ms)
		}
		expect := max(f.Lowest, f.Prior+access)
		a, p := weight(as, i), weight(parent, i)
		if a.weight > 0 {
			expect = blend(a, expect, asWeight)
		}
		if p.weight > 0 {
			expect = blend(estimated{p.ms + apart, p.weight}, expect, parentWeight)
		}
		expect = max(expect, f.Lowest) // what neighbours show may lie below what light allows
		f.Score, f.Expected, f.Age, f.OwnAge = expect, expect, math.MaxUint8, math.MaxUint8
		shown := 0.0
		if o := own[i]; o != nil {
			shown, f.Age, f.OwnAge = o.evidence, o.age, o.age
			f.Score = blend(estimated{o.ms, max(o.weight, ownLeast)}, expect, ownWeight+min(parentShare*p.weight, ownWeight))
			if o.few {
				// What few show is believed when it is no better than what others expect.
				if f.Score = max(f.Score, expect); o.ms < expect-threshold(expect) {
					shown = min(shown, hint)
				}
			}
		}
		f.Evidence = shown
		if p.weight > 0 {
			f.Evidence += parentShare * max(0, parent.evidence[i]-shown)
			f.Age = min(f.Age, parent.age[i])
		}
		if a.weight > 0 {
			f.Evidence += asShare * max(0, as.evidence[i]-shown)
		}
		f.Score = quantised(f.Score)
	}
}

// maxNodesOnStack is how many nodes need no memory of their own for each network.
const maxNodesOnStack = 64

// bounded keeps one strange number from ruining all expectations.
func bounded(ms float64) float64 {
	if math.IsInf(ms, 0) {
		return 0
	}
	return min(max(ms, -100), 100)
}

// placeOf returns where a network is. A latency that light could not keep proves a
// database wrong; then, and when no place is known, the network is taken to be where
// the nearest node is.
func (v *View) placeOf(n *network) pbxmesh.Location {
	where := n.where.Location
	nearest := -1
	for i := range n.observed {
		o := &n.observed[i]
		if o.few {
			continue
		}
		if o.ms < lowestMS(where, v.Nodes[o.node].Location)-placeSlackMS-tickMS {
			where = pbxmesh.Location{}
		}
		if nearest < 0 || o.ms < n.observed[nearest].ms {
			nearest = i
		}
	}
	if !where.Known() && nearest >= 0 {
		where = v.Nodes[n.observed[nearest].node].Location
	}
	return where
}
