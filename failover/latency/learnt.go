package latency

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"
)

const (
	// maxRegret is what a node costs a network at most above its best one, in ms: none
	// outshouts others.
	maxRegret = 5 * gainMS

	// A resolver's phones are believed to need another node when so many networks are known to
	// ask through it, and when what they gain together is so many times what it would be by chance of
	// which of them are known.
	leastVoices = 3.0
	clearBy     = 1.0 // deviations

	// maxVoices networks of a resolver are shared.
	maxVoices = 16

	// MaxLearntLen bounds a note in bytes.
	MaxLearntLen = 48 << 10

	// MaxLearntNotes bounds those of a name server: they tell of some 240 resolvers.
	MaxLearntNotes = 8
)

// Learnt is what a name server found out of a resolver's network: which networks ask through
// it.
type Learnt struct {
	Network netip.Prefix `json:"n"`
	Voices  []Voice      `json:"b"`
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

// Notes returns what is to be shared: the resolvers with the most networks.
func (f *Followers) Notes() ([]string, error) {
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
		if sum < leastVoices/2 {
			continue
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
		if !client(l.Network) || len(l.Voices) > maxVoices {
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

// gather joins what several name servers found out: who is seen by one asks through the resolver.
func gather(list []Learnt) map[netip.Prefix]map[netip.Prefix]Voice {
	out := make(map[netip.Prefix]map[netip.Prefix]Voice)
	for _, l := range list {
		voices := out[l.Network]
		if voices == nil {
			voices = make(map[netip.Prefix]Voice)
			out[l.Network] = voices
		}
		for _, v := range l.Voices {
			if v.Likely > voices[v.Network].Likely {
				voices[v.Network] = v
			}
		}
	}
	return out
}

// Behind is what is known of the networks that ask through a resolver's network.
type Behind struct {
	Networks      int     // of which latencies are known
	Registrations float64 // of theirs that followed the resolver's queries, about

	// Order is that of the nodes for them, as indexes into View.Nodes; nil when their first
	// node is not clearly another one than that of the resolver's own place, parent or AS.
	Order []int
}

// behind looks at a resolver's network. A network with phones of its own is ranked by these,
// and so is nobody's resolver.
func (v *View) behind(p netip.Prefix) (b Behind) {
	voices := v.learnt[p]
	if v.networks[p] != nil || len(v.Nodes) == 0 || len(voices) == 0 {
		return b
	}
	figures := make([]Figure, len(v.Nodes))
	n := v.parentNetwork(parentOf(p))
	if v.groups[groupKey{parent: parentOf(p)}] == nil && v.places != nil {
		n.where = v.places.Where(p.Addr())
	}
	v.figures(p, n, figures)
	usual := judge(figures, 0).Order
	cost, visits := make([]float64, len(v.Nodes)), make([]float64, len(v.Nodes))
	var costs [][]float64 // of each network, as often as it is likely
	sum := 0.0
	for _, network := range slices.SortedFunc(maps.Keys(voices), compareNetworks) {
		if n := v.networks[network]; n != nil {
			c := v.costs(network, n, figures)
			for i := range c {
				c[i] *= voices[network].Likely
				cost[i] += c[i]
			}
			for i := range n.observed {
				visits[n.observed[i].node] += n.observed[i].visits
			}
			b.Networks++
			b.Registrations += voices[network].Hits
			sum += voices[network].Likely
			costs = append(costs, c)
		}
	}
	order := slices.Clone(usual)
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(cost[a], cost[b]) })
	best, first := order[0], usual[0]
	chance := 0.0
	for _, c := range costs {
		chance += (c[first] - c[best]) * (c[first] - c[best])
	}
	if gain := cost[first] - cost[best]; sum < leastVoices || gain < sum*gainMS || gain < clearBy*math.Sqrt(chance) {
		return b
	}
	// Where its phones are already they stay when it is nearly as good: all name servers see that.
	all := 0.0
	for _, x := range visits {
		all += x
	}
	for i, x := range visits {
		if x >= settledShare*all && cost[i] <= cost[best]+sum*gainMS/2 {
			best = i
		}
	}
	at := slices.Index(order, best)
	copy(order[1:at+1], order[:at])
	order[0] = best
	b.Order = order
	return b
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
