package latency

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"pbxmesh"
)

const (
	// maxRegret is what a node costs a network at most above its best one, in ms: none
	// outshouts others.
	maxRegret = 5 * gainMS

	// A resolver's phones are sent to another node when so many networks are known to ask through
	// it, when they gain gainMS on average, and when what they gain together is so many times what it
	// would be by chance of which of them are known; after that for settled at least: by then
	// they have been there and show how far it is.
	leastVoices = 3.0
	clearBy     = 1.0 // deviations
	settled     = time.Hour

	// maxVoices networks of a resolver are shared.
	maxVoices = 16

	// MaxLearntLen bounds a note in bytes.
	MaxLearntLen = 48 << 10

	// MaxLearntNotes bounds those of a name server: they tell of some 240 resolvers.
	MaxLearntNotes = 8
)

// Learnt is what a name server found out of a resolver's network: which networks ask through
// it, and which node comes first for them.
type Learnt struct {
	Network netip.Prefix `json:"n"`
	Voices  []Voice      `json:"b"`
	verdict
}

// verdict is the node that comes first for a resolver's phones, "" for that of its own place, and
// since when, in Unix seconds. It is shared, so that all name servers say the same and none
// forgets it, and of several the latest counts.
type verdict struct {
	First pbxmesh.NodeID `json:"f,omitempty"`
	Since int64          `json:"s,omitempty"`
}

func (d verdict) after(o verdict) bool {
	return d.Since > o.Since || d.Since == o.Since && d.First > o.First
}

// Voice is a network that asks through a resolver, and how likely that is.
type Voice struct {
	Network netip.Prefix `json:"n"`
	Likely  float64      `json:"p"`
	Hits    float64      `json:"h"`
	Anyway  float64      `json:"a"`
}

type learntNote struct {
	Version   int      `json:"v"`
	Resolvers []Learnt `json:"resolvers"`
}

const learntVersion = 1

// Notes returns what is to be shared at a time: the resolvers with the most networks. The View is made of
// what was shared before.
func (f *Followers) Notes(v *View, now time.Time) ([]string, error) {
	var all []Learnt
	for p, r := range f.resolvers {
		l := Learnt{Network: p}
		sum := 0.0
		for network, likely := range r.behind() {
			if likely >= 0.1 {
				c := r.candidates[network]
				l.Voices = append(l.Voices, Voice{network, hundredths(likely), hundredths(c.hits), hundredths(c.anyway)})
				sum += likely
			}
		}
		if l.verdict = v.decide(p, now); sum < leastVoices/2 && l.Since == 0 {
			continue // what was decided is told as long as the resolver asks
		}
		slices.SortFunc(l.Voices, func(a, b Voice) int {
			return cmp.Or(cmp.Compare(b.Likely, a.Likely), compareNetworks(a.Network, b.Network))
		})
		l.Voices = l.Voices[:min(len(l.Voices), maxVoices)]
		all = append(all, l)
	}
	f.stats.Learnt = len(all)
	slices.SortFunc(all, func(a, b Learnt) int {
		return cmp.Or(cmp.Compare(len(b.Voices), len(a.Voices)), compareNetworks(a.Network, b.Network))
	})
	var notes []string
	const each = MaxLearntLen / (maxVoices * 100) // resolvers of a note
	for some := range slices.Chunk(all, each) {
		b, err := json.Marshal(learntNote{learntVersion, some})
		if err != nil {
			return nil, err
		}
		if notes = append(notes, string(b)); len(notes) == MaxLearntNotes {
			break
		}
	}
	return notes, nil
}

func hundredths(x float64) float64 { return math.Round(100*x) / 100 }

// ParseLearnt reads a note, or says what is wrong with it (ErrChunk).
func ParseLearnt(s string) ([]Learnt, error) {
	var note learntNote
	if err := json.Unmarshal([]byte(s), &note); err != nil || note.Version != learntVersion || len(s) > MaxLearntLen {
		return nil, fmt.Errorf("%w: resolvers, version %d, %d bytes (%v)", ErrChunk, note.Version, len(s), err) //nolint:errorlint // shown only
	}
	client := func(p netip.Prefix) bool {
		network, ok := networkOf(p.Addr())
		return ok && network == p
	}
	for i := range note.Resolvers {
		l := &note.Resolvers[i]
		if _, err := pbxmesh.ParseNodeID(string(l.First)); !client(l.Network) || len(l.Voices) > maxVoices || l.Since < 0 || l.First != "" && err != nil {
			return nil, fmt.Errorf("%w: resolver %v with %d networks", ErrChunk, l.Network, len(l.Voices))
		}
		for _, v := range l.Voices {
			if !client(v.Network) || !(v.Likely >= 0 && v.Likely <= 1 && v.Hits >= 0 && v.Hits < 1e6 && v.Anyway >= 0 && v.Anyway < 1e6) {
				return nil, fmt.Errorf("%w: %v asks through %v", ErrChunk, v.Network, l.Network)
			}
		}
	}
	return note.Resolvers, nil
}

// Restore takes what this name server shared before it was started again.
func (f *Followers) Restore(list []Learnt, now time.Time) {
	for _, l := range list {
		if f.resolvers[l.Network] != nil || len(f.resolvers) >= maxResolvers {
			continue
		}
		r := &resolver{candidates: make(map[netip.Prefix]*candidate), asked: now, decayed: now}
		for _, v := range l.Voices {
			r.candidates[v.Network] = &candidate{v.Hits, v.Anyway}
		}
		f.resolvers[l.Network] = r
	}
}

// known is what all name servers together found out of a resolver.
type known struct {
	voices map[netip.Prefix]Voice // by network
	verdict
}

// gather joins what several name servers found out: who is seen by one asks through the resolver.
// A verdict that is not yet given is none.
func gather(list []Learnt, until time.Time) map[netip.Prefix]*known {
	out := make(map[netip.Prefix]*known)
	for _, l := range list {
		k := out[l.Network]
		if k == nil {
			k = &known{voices: make(map[netip.Prefix]Voice)}
			out[l.Network] = k
		}
		for _, v := range l.Voices {
			if v.Likely > k.voices[v.Network].Likely {
				k.voices[v.Network] = v
			}
		}
		if l.verdict.after(k.verdict) && l.Since <= until.Unix() {
			k.verdict = l.verdict
		}
	}
	return out
}

// Behind is what is known of the networks that ask through a resolver's network.
type Behind struct {
	Networks      int     // of which latencies are known
	Registrations float64 // of theirs that followed the resolver's queries, about

	// Order is that of the nodes for them, as indexes into View.Nodes; nil when it is that of the
	// resolver's own place, parent or AS.
	Order []int

	likely float64     // how many of the networks do ask through it
	costs  [][]float64 // what each node costs each of them, as far as it is likely
	cost   []float64   // the sum
	usual  []int       // the order without them
}

// behind looks at a resolver's network. A network with phones of its own is ranked by these,
// and so is nobody's resolver.
func (v *View) behind(p netip.Prefix) (b Behind) {
	k := v.learnt[p]
	if k == nil || v.networks[p] != nil || len(v.Nodes) == 0 {
		return b
	}
	figures := make([]Figure, len(v.Nodes))
	n := v.parentNetwork(parentOf(p))
	if v.groups[groupKey{parent: parentOf(p)}] == nil && v.places != nil {
		n.where = v.places.Where(p.Addr())
	}
	v.figures(p, n, figures)
	b.usual = judge(figures, 0).Order
	b.cost = make([]float64, len(v.Nodes))
	for _, network := range sortedKeys(k.voices) {
		n, voice := v.networks[network], k.voices[network]
		if n == nil {
			continue
		}
		c := v.costs(network, n, figures)
		for i := range c {
			c[i] *= voice.Likely
			b.cost[i] += c[i]
		}
		b.costs = append(b.costs, c)
		b.likely += voice.Likely
		b.Networks++
		b.Registrations += voice.Hits
	}
	if first := v.index(k.First); first >= 0 && first != b.usual[0] {
		b.Order = slices.Clone(b.usual)
		slices.SortStableFunc(b.Order, func(x, y int) int {
			if x == first || y == first {
				return cmp.Compare(btoi(y == first), btoi(x == first))
			}
			return cmp.Compare(b.cost[x], b.cost[y])
		})
	}
	return b
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// index returns the index of a node, -1 for none.
func (v *View) index(id pbxmesh.NodeID) int {
	return slices.IndexFunc(v.Nodes, func(n pbxmesh.Node) bool { return n.ID == id })
}

// decide returns the verdict on a resolver's network at a time: the present one, unless another
// node is clearly better.
func (v *View) decide(p netip.Prefix, now time.Time) verdict {
	k := v.learnt[p]
	if k == nil {
		return verdict{}
	}
	b := v.behind(p)
	if b.likely < leastVoices || now.Sub(time.Unix(k.Since, 0)) < settled {
		return k.verdict
	}
	present := b.usual[0]
	if b.Order != nil {
		present = b.Order[0]
	}
	best := present
	for _, i := range b.usual {
		if b.cost[i] < b.cost[best] {
			best = i
		}
	}
	chance := 0.0
	for _, c := range b.costs {
		chance += (c[present] - c[best]) * (c[present] - c[best])
	}
	if gain := b.cost[present] - b.cost[best]; best == present || gain < b.likely*gainMS || gain < clearBy*math.Sqrt(chance) {
		return k.verdict
	}
	if best == b.usual[0] {
		return verdict{Since: now.Unix()}
	}
	return verdict{v.Nodes[best].ID, now.Unix()}
}

// costs returns what each node costs a network above its best one.
func (v *View) costs(p netip.Prefix, n *network, figures []Figure) []float64 {
	v.figures(p, n, figures)
	best := math.Inf(1)
	for i := range figures {
		best = min(best, figures[i].Score)
	}
	out := make([]float64, len(figures))
	for i := range figures {
		out[i] = min(figures[i].Score-best, maxRegret)
	}
	return out
}
