package latency

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"

	"pbxmesh"
)

// A resolver that sends no client subnet asks when what it had is over and a phone asks it;
// that phone registers a moment later, with the node that was told. So the networks of which
// more arrives at that node just after its queries than arrives there anyway are those of
// its phones.
const (
	// A resolver's queries count no more often than askEvery: a phone asks for several
	// types in a row, and nobody gains by many queries. Memory is bounded by the resolvers, the
	// queries that wait, and the networks of one resolver and of all.
	askEvery      = 10 * time.Second
	maxResolvers  = 4096
	maxAsked      = 1 << 14
	maxCandidates = 256
	maxAll        = 1 << 17

	// settle is how old a query is when it is looked at: what arrived around it was told by then.
	// Blocks are kept as long as a query may need them.
	settle = 3 * ArrivalsEvery
	kept   = 3 * settle

	// Of a query the arrivals from lagFirst to lagLast around it, in ms, may be its own: clocks may
	// be some seconds apart, in steps of lagStep. What comes controlled before and after that
	// is what arrives anyway.
	lagFirst, lagLast = -4000, 6000
	lagStep           = 250
	lagSteps          = (lagLast - lagFirst) / lagStep
	controlled        = 18000

	// rateHalfLife is that of how often networks arrive at a node; learntHalfLife that of what
	// was learnt of a resolver, in which a pause counts as pause at most.
	rateHalfLife   = time.Hour
	learntHalfLife = 6 * time.Hour
	pause          = 5 * time.Minute
)

// Asked is a query of a resolver that sent no client subnet.
type Asked struct {
	Resolver netip.Addr
	Node     pbxmesh.NodeID // that it was told first
	At       time.Time
}

// Followers learn from a name server's queries and the nodes' arrivals whose phones ask
// through which resolver. They are not safe for concurrent use.
type Followers struct {
	asked     []Asked // in the order of time, about
	nodes     map[pbxmesh.NodeID]*arrived
	resolvers map[netip.Prefix]*resolver
	stats     FollowersStats
}

// FollowersStats counts.
type FollowersStats struct {
	Queries   uint64 // that were looked at
	Unpaired  uint64 // that were not: a node told nothing of the time, or its arrivals rose or fell too much
	Resolvers int    // that are known
	Learnt    int    // of which it is known whose phones ask through them
}

// arrived is what one node told.
type arrived struct {
	blocks map[int64]block // by start

	// How often networks arrive, a second: counts by time, both decayed.
	counts map[netip.Prefix]float64
	time   float64

	// What came at each lag after the queries that were answered with the node, and what
	// would have come anyway: clocks and phones show in it.
	lags    [lagSteps]float64
	anyway  float64 // in each step
	decayed time.Time
}

// resolver is what was learnt of a resolver's network.
type resolver struct {
	candidates map[netip.Prefix]*candidate
	exposure   float64 // seconds of arrivals that were looked at
	among      int     // networks that arrive where it sends them
	asked      time.Time
	decayed    time.Time
}

// candidate is a network that may ask through a resolver.
type candidate struct {
	hits   float64 // arrivals after its queries
	anyway float64 // as many would have been if it did not
}

// NewFollowers returns Followers that know nobody.
func NewFollowers() *Followers {
	return &Followers{nodes: make(map[pbxmesh.NodeID]*arrived), resolvers: make(map[netip.Prefix]*resolver)}
}

// Stats returns the counters.
func (f *Followers) Stats() FollowersStats {
	s := f.stats
	s.Resolvers = len(f.resolvers)
	return s
}

// Ask takes queries.
func (f *Followers) Ask(list []Asked) {
	for _, a := range list {
		network, ok := networkOf(a.Resolver)
		if !ok || len(f.asked) >= maxAsked {
			continue
		}
		r := f.resolvers[network]
		if r == nil {
			if len(f.resolvers) >= maxResolvers {
				f.evict()
			}
			r = &resolver{decayed: a.At, candidates: make(map[netip.Prefix]*candidate)}
			f.resolvers[network] = r
		}
		if a.At.Sub(r.asked).Abs() < askEvery {
			continue
		}
		r.asked = a.At
		f.asked = append(f.asked, a)
	}
}

// evict forgets the sixteenth of the resolvers that registrations followed least: many that
// ask once do not drive out one that is known.
func (f *Followers) evict() {
	type known struct {
		network netip.Prefix
		hits    float64
		asked   time.Time
	}
	all := make([]known, 0, len(f.resolvers))
	for p, r := range f.resolvers {
		k := known{p, 0, r.asked}
		for _, c := range r.candidates {
			k.hits += c.hits - c.anyway
		}
		all = append(all, k)
	}
	slices.SortFunc(all, func(a, b known) int { return cmp.Or(cmp.Compare(a.hits, b.hits), a.asked.Compare(b.asked)) })
	for _, k := range all[:max(1, len(all)/16)] {
		delete(f.resolvers, k.network)
	}
}

// Arrived takes a node's block of arrivals under its key; ErrChunk when it is not valid. One that
// is older or newer than what is joined is left out: a clock is wrong.
func (f *Followers) Arrived(key, value string, now time.Time) error {
	node, _, err := ParseKey(key)
	if err != nil || value == "" {
		return err
	}
	b, err := decodeArrivals(value)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	n := f.nodes[node]
	if n == nil {
		n = &arrived{blocks: make(map[int64]block), counts: make(map[netip.Prefix]float64)}
		f.nodes[node] = n
	}
	if _, seen := n.blocks[b.start]; seen || now.Sub(time.Unix(b.start, 0)).Abs() >= kept {
		return nil
	}
	n.blocks[b.start] = b
	d := math.Exp2(-ArrivalsEvery.Seconds() / rateHalfLife.Seconds())
	n.time = n.time*d + ArrivalsEvery.Seconds()
	for p, c := range n.counts {
		if n.counts[p] = c * d; c < 0.01 {
			delete(n.counts, p)
		}
	}
	for _, a := range b.list {
		n.counts[a.network] += b.weight
	}
	return nil
}

// Join learns from the queries that are old enough.
func (f *Followers) Join(now time.Time) {
	wait := f.asked[:0]
	for _, a := range f.asked {
		if now.Sub(a.At) < settle {
			wait = append(wait, a)
			continue
		}
		if f.join(a) {
			f.stats.Queries++
		} else {
			f.stats.Unpaired++
		}
	}
	f.asked = wait
	for _, n := range f.nodes {
		maps.DeleteFunc(n.blocks, func(start int64, _ block) bool { return now.Sub(time.Unix(start, 0)).Abs() >= kept })
	}
	maps.DeleteFunc(f.resolvers, func(_ netip.Prefix, r *resolver) bool { return now.Sub(r.asked) > keep })
	for f.candidates() > maxAll {
		f.evict()
	}
}

func (f *Followers) candidates() (n int) {
	for _, r := range f.resolvers {
		n += len(r.candidates)
	}
	return n
}

// join looks at one query; false when it cannot be told what followed it.
func (f *Followers) join(a Asked) bool {
	network, _ := networkOf(a.Resolver)
	r, n := f.resolvers[network], f.nodes[a.Node]
	if r == nil || n == nil {
		return false
	}
	at := a.At.UnixMilli()
	const every = int64(ArrivalsEvery / time.Millisecond)
	var lags [lagSteps]float64
	before, after := 0.0, 0.0
	hits := make(map[netip.Prefix]float64)
	shape := n.shape()
	for start := (at + lagFirst - controlled) / every * every; start < at+lagLast+controlled; start += every {
		b, ok := n.blocks[start/1000]
		if !ok {
			return false
		}
		for _, x := range b.list {
			switch lag := x.at - at; {
			case lag < lagFirst-controlled || lag >= lagLast+controlled:
			case lag < lagFirst:
				before += b.weight
			case lag >= lagLast:
				after += b.weight
			default:
				step := (lag - lagFirst) / lagStep
				lags[step] += b.weight
				if w := shape[step]; w > 0 {
					hits[x.network] += b.weight * w
				}
			}
		}
	}
	if before > 3*after+8 || after > 3*before+8 {
		return false // a node has just come or gone: what comes anyway is not known
	}
	r.learn(n, a.At, shape, hits)
	n.add(a.At, lags, (before+after)*lagStep/(2*controlled))
	return true
}

// add takes what came at each lag of a query.
func (n *arrived) add(at time.Time, lags [lagSteps]float64, anyway float64) {
	d := decay(n.decayed, at, rateHalfLife)
	n.decayed = at
	for i := range n.lags {
		n.lags[i] = n.lags[i]*d + lags[i]
	}
	n.anyway = n.anyway*d + anyway
}

// shape says, for each lag, how much an arrival tells: 1 where most of those that follow queries
// come, 0 where it is not clear that any do.
func (n *arrived) shape() (w [lagSteps]float64) {
	most := 0.0
	for i, came := range n.lags {
		if came > 0 {
			w[i] = max(0, 1-(n.anyway+2*math.Sqrt(n.anyway)+1)/came)
			most = max(most, w[i])
		}
	}
	for i := range w {
		if w[i] > 0 {
			w[i] /= most
		}
	}
	return w
}

// decay is what is left at a time; pauses count little.
func decay(since, at time.Time, halfLife time.Duration) float64 {
	return math.Exp2(-float64(min(max(0, at.Sub(since)), pause)) / float64(halfLife))
}

// learn adds what came after one query.
func (r *resolver) learn(n *arrived, at time.Time, shape [lagSteps]float64, hits map[netip.Prefix]float64) {
	d := decay(r.decayed, at, learntHalfLife)
	r.decayed = at
	exposed := 0.0
	for _, w := range shape {
		exposed += w * lagStep / 1000
	}
	if exposed == 0 {
		return
	}
	rate := func(p netip.Prefix) float64 { return n.counts[p] / n.time }
	for p, c := range r.candidates {
		c.hits *= d
		c.anyway = c.anyway*d + exposed*rate(p)
	}
	for p, h := range hits {
		c := r.candidates[p]
		if c == nil {
			if len(r.candidates) >= maxCandidates {
				r.drop()
			}
			c = &candidate{anyway: (r.exposure*d + exposed) * rate(p)}
			r.candidates[p] = c
		}
		c.hits += h
	}
	r.exposure = r.exposure*d + exposed
	r.among = len(n.counts)
}

// drop forgets the candidate that says least.
func (r *resolver) drop() {
	var out netip.Prefix
	least := math.Inf(1)
	for p, c := range r.candidates {
		if x := c.hits - c.anyway; x < least {
			out, least = p, x
		}
	}
	delete(r.candidates, out)
}

// behind returns how likely each candidate is to ask through the resolver. Networks that do
// arrive after its queries so many times as often as they would by chance, the same for
// all of them, because each of their registrations is the first one after an answer ended with
// the same likelihood; the others as often as by chance. Which is which, how many times, and how many
// of the networks do, is found by expectation maximization (a mixture of two Poisson
// distributions).
func (r *resolver) behind() map[netip.Prefix]float64 {
	out := make(map[netip.Prefix]float64, len(r.candidates))
	total := float64(max(r.among, len(r.candidates), 1))
	share, times := 0.05, 8.0
	for range 20 {
		sum, hits, anyway := 0.0, 1.0, 0.1 // some to begin with
		for p, c := range r.candidates {
			logOdds := math.Log(share/(1-share)) + c.hits*math.Log(times) - (times-1)*c.anyway
			q := 1 / (1 + math.Exp(-logOdds))
			out[p] = q
			sum += q
			hits += q * c.hits
			anyway += q * c.anyway
		}
		share = min(max(sum, 1)/total, 0.5)
		times = min(max(hits/anyway, 3), 100)
	}
	return out
}
