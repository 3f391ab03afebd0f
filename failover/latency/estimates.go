package latency

import (
	"cmp"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// What a network's cell keeps, and how it forgets.
const (
	ringSize = 8 // latest samples

	// lowQuantile of the samples is where the estimate is looked for: queues, busy
	// phones and retransmissions only ever add to a round trip.
	lowQuantile = 0.2

	// tickMS is how far a sample of a challenge may be off, both ways: the switch hands
	// events over when its wait for our socket ends, every 20 ms. The samples around
	// the low quantile are averaged, which takes the tick out again.
	tickMS = 21.0
	fineMS = 2.0 // of one that the switch timed

	// coarseWeight is what a sample that may be a tick off weighs against one that is not.
	coarseWeight = 0.1

	// halfLife is the age at which a sample counts half in the quantile; visitHalfLife
	// that of a registration in the number of those that are there now.
	halfLife      = 10 * time.Minute
	visitHalfLife = 5 * time.Minute

	// keep is how long a network that shows nothing new is remembered.
	keep = 24 * time.Hour

	// shifted is how many of the latest samples must all be clearly slower than the
	// ones before, so that these are forgotten: the route has changed.
	shifted = 4
)

// The gain that counts: below it two latencies are the same.
const (
	gainMS    = 10.0
	gainShare = 0.15
)

// threshold is the gain that is needed against a latency, both in milliseconds.
func threshold(ms float64) float64 { return max(gainMS, gainShare*ms) }

// Options configure Estimates.
type Options struct {
	// MaxNetworks bounds the memory: some 110 bytes for each. When it is exceeded, the
	// sixteenth that says least goes: few registrations, long ago. 0 means
	// DefaultMaxNetworks.
	MaxNetworks int
}

// Bounds of Options.MaxNetworks.
const (
	DefaultMaxNetworks = 16 << 10
	MaxNetworks        = 64 << 10
)

// Estimates are what one node's own clients showed, by network. They are for
// concurrent use and keep no time of their own.
type Estimates struct {
	max int

	mu    sync.Mutex
	cells map[netip.Prefix]*cell
	stats EstimatesStats
}

// EstimatesStats counts what came in.
type EstimatesStats struct {
	Samples  uint64
	Refused  uint64 // too long, or from no client's address
	Evicted  uint64 // networks that had to make room
	Networks int
}

// cell is one network's history.
type cell struct {
	rtt    [ringSize]quarters
	at     [ringSize]int64 // Unix seconds
	coarse [ringSize]bool  // may be a tick off
	n      uint8           // samples in the ring
	next   uint8           // where the next one goes
	visits float32         // decayed to the time last
	last   int64           // Unix seconds
	seen   uint32          // visits since the network is known or its route changed
}

// NewEstimates returns empty Estimates.
func NewEstimates(o Options) *Estimates {
	if o.MaxNetworks <= 0 {
		o.MaxNetworks = DefaultMaxNetworks
	}
	return &Estimates{max: min(o.MaxNetworks, MaxNetworks), cells: make(map[netip.Prefix]*cell)}
}

// Add takes a sample. Times should not go back by more than a clock's correction.
func (e *Estimates) Add(s Sample) {
	network, ok := networkOf(s.Client)
	e.mu.Lock()
	defer e.mu.Unlock()
	if ok && s.RTT == 0 && s.Visit {
		if c := e.cells[network]; c != nil {
			c.visit(s.At.Unix())
		}
		return
	}
	if !ok || s.RTT <= 0 || s.RTT > maxRTT {
		e.stats.Refused++
		return
	}
	e.stats.Samples++
	c := e.cells[network]
	if c == nil {
		if len(e.cells) >= e.max {
			e.evict(s.At.Unix())
		}
		c = &cell{}
		e.cells[network] = c
	}
	c.add(s)
}

// Stats returns the counters.
func (e *Estimates) Stats() EstimatesStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Networks = len(e.cells)
	return s
}

// evict makes room. e.mu is held.
func (e *Estimates) evict(now int64) {
	type useful struct {
		network netip.Prefix
		value   float64
	}
	all := make([]useful, 0, len(e.cells))
	for network, c := range e.cells {
		age := float64(max(0, now-c.latest()))
		all = append(all, useful{network, (1 + c.visitsAt(now)) * math.Exp2(-age/visitHalfLife.Seconds())})
	}
	slices.SortFunc(all, func(a, b useful) int {
		return cmp.Or(cmp.Compare(a.value, b.value), a.network.Addr().Compare(b.network.Addr()))
	})
	for _, u := range all[:max(1, len(all)/16)] {
		delete(e.cells, u.network)
		e.stats.Evicted++
	}
}

func (c *cell) add(s Sample) {
	now := s.At.Unix()
	c.rtt[c.next], c.at[c.next], c.coarse[c.next] = quartersOf(s.RTT), now, s.Visit
	c.next = (c.next + 1) % ringSize
	c.n = min(c.n+1, ringSize)
	if s.Visit {
		c.visit(now)
	}
	c.shift()
}

func (c *cell) visit(now int64) {
	c.visits, c.last = float32(c.visitsAt(now)+1), now
	c.seen++
}

// shift forgets what was before a change of route for the worse: when the latest
// samples are all clearly above the estimate from the earlier ones. A change for the
// better needs nothing of the kind: one low sample is proof enough.
func (c *cell) shift() {
	if c.n <= shifted {
		return
	}
	latest := math.Inf(1)
	var before []quarters
	for i := range c.n {
		at := (c.next + ringSize - 1 - i) % ringSize
		if i < shifted {
			latest = min(latest, c.rtt[at].ms())
		} else {
			before = append(before, c.rtt[at])
		}
	}
	slices.Sort(before)
	if old := before[0].ms(); latest > old+max(threshold(old), tickMS) {
		c.n, c.seen = shifted, shifted
	}
}

// latest returns when the last sample came, in Unix seconds.
func (c *cell) latest() int64 { return c.at[(c.next+ringSize-1)%ringSize] }

func (c *cell) visitsAt(now int64) float64 {
	return float64(c.visits) * math.Exp2(-float64(max(0, now-c.last))/visitHalfLife.Seconds())
}

// estimate returns the mean of the samples around the low quantile at a time, each
// weighted by its age.
func (c *cell) estimate(now int64) quarters {
	type weighted struct {
		rtt    quarters
		weight float64
		coarse bool
	}
	var all [ringSize]weighted
	sum := 0.0
	for i := range c.n {
		at := (c.next + ringSize - 1 - i) % ringSize
		w := math.Exp2(-float64(max(0, now-c.at[at])) / halfLife.Seconds())
		if c.coarse[at] {
			w *= coarseWeight
		}
		all[i] = weighted{c.rtt[at], w, c.coarse[at]}
		sum += w
	}
	used := all[:c.n]
	slices.SortFunc(used, func(a, b weighted) int { return cmp.Compare(a.rtt, b.rtt) })
	low, below := used[len(used)-1], 0.0
	for _, w := range used {
		if below += w.weight; below >= lowQuantile*sum {
			low = w
			break
		}
	}
	mean, near, window := 0.0, 0.0, fineMS
	if low.coarse {
		window = tickMS
	}
	for _, w := range used {
		if math.Abs(w.rtt.ms()-low.rtt.ms()) <= window {
			mean += w.weight * w.rtt.ms()
			near += w.weight
		}
	}
	return quarters(max(1, math.Round(4*mean/near))) //nolint:gosec // at most maxRTT
}

// entries returns what there is to share at a time, by network, and forgets what is
// too old.
func (e *Estimates) entries(now time.Time) []entry {
	e.mu.Lock()
	defer e.mu.Unlock()
	at := now.Unix()
	out := make([]entry, 0, len(e.cells))
	for network, c := range e.cells {
		age := max(0, at-c.latest())
		if age > int64(keep/time.Second) {
			delete(e.cells, network)
			continue
		}
		out = append(out, entry{
			network: network, estimate: c.estimate(at), samples: c.n,
			visits: visitCodeOf(c.visitsAt(at)), seen: visitCodeOf(float64(c.seen)), age: uint8(min(age/60, math.MaxUint8)),
		})
	}
	slices.SortFunc(out, func(a, b entry) int { return compareNetworks(a.network, b.network) })
	return out
}

func compareNetworks(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
