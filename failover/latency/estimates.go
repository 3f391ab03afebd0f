package latency

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// What is kept of a phone, and how it is forgotten.
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
	// MaxNetworks bounds the memory: some 500 bytes for each, because at most
	// phonesPerNetwork times as many phones are followed. When either is exceeded, the
	// sixteenth of the networks that says least goes: few phones, long ago. 0 means
	// DefaultMaxNetworks.
	MaxNetworks int

	// Secret decides which phones of a large network are followed; nil makes one.
	Secret []byte
}

// Bounds of Options.MaxNetworks.
const (
	DefaultMaxNetworks = 16 << 10
	MaxNetworks        = 64 << 10

	phonesPerNetwork = 4 // on average
)

// Estimates are what one node's own clients showed, by network. They are for
// concurrent use and keep no time of their own.
type Estimates struct {
	max    int
	secret []byte // of the phones' numbers

	mu     sync.Mutex
	cells  map[netip.Prefix]*cell
	phones int // of all cells
	stats  EstimatesStats
}

// EstimatesStats counts what came in.
type EstimatesStats struct {
	Samples  uint64
	Refused  uint64 // too long, or from no client's address
	Evicted  uint64 // networks that had to make room
	Networks int
	Phones   int // that are followed

	// PassedOver counts samples of phones that are not followed, because enough others of
	// their network are.
	PassedOver uint64
}

// NewEstimates returns empty Estimates.
func NewEstimates(o Options) *Estimates {
	if o.MaxNetworks <= 0 {
		o.MaxNetworks = DefaultMaxNetworks
	}
	if o.Secret == nil {
		o.Secret = make([]byte, 16)
		_, _ = rand.Read(o.Secret) // never fails
	}
	return &Estimates{max: min(o.MaxNetworks, MaxNetworks), secret: o.Secret, cells: make(map[netip.Prefix]*cell)}
}

// Add takes a sample. Times should not go back by more than a clock's correction.
func (e *Estimates) Add(s Sample) {
	network, ok := networkOf(s.Client)
	if !ok || s.RTT < 0 || s.RTT > maxRTT || s.RTT == 0 && !s.Visit {
		e.mu.Lock()
		e.stats.Refused++
		e.mu.Unlock()
		return
	}
	address := addressOf(s.Client)
	id := e.number(address.String())
	from := uint32(id) //nolint:gosec // half of it will do
	if s.Phone != "" {
		id = e.number(s.Phone)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.cells[network]
	if s.RTT == 0 && c == nil {
		return
	}
	if s.RTT > 0 {
		e.stats.Samples++
	}
	if c == nil {
		if len(e.cells) >= e.max || e.phones >= e.max*phonesPerNetwork {
			e.evict(s.At.Unix())
		}
		c = &cell{}
		e.cells[network] = c
	}
	before := len(c.phones)
	if !c.add(id, from, &s) {
		e.stats.PassedOver++
	}
	e.phones += len(c.phones) - before
	if e.phones > e.max*phonesPerNetwork {
		e.evict(s.At.Unix())
	}
}

// number is what a phone is known by: who does not know the secret cannot choose it.
func (e *Estimates) number(name string) uint64 {
	sum := sha256.Sum256(append(e.secret[:len(e.secret):len(e.secret)], name...))
	return binary.BigEndian.Uint64(sum[:])
}

// Stats returns the counters.
func (e *Estimates) Stats() EstimatesStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Networks, s.Phones = len(e.cells), e.phones
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
		e.phones -= len(e.cells[u.network].phones)
		delete(e.cells, u.network)
		e.stats.Evicted++
	}
}

// entries returns what there is to share at a time, by network, and forgets what is
// too old. A phone counts in one network of each parent, that of its latest sample:
// somebody who has many addresses is nobody's neighbour everywhere.
func (e *Estimates) entries(now time.Time) []entry {
	e.mu.Lock()
	defer e.mu.Unlock()
	at := now.Unix()
	heard := make(map[uint64]int64, e.phones)
	for network, c := range e.cells {
		before := len(c.phones)
		c.phones = slices.DeleteFunc(c.phones, func(p account) bool { return at-p.heard() > int64(keep/time.Second) })
		if e.phones += len(c.phones) - before; len(c.phones) == 0 {
			delete(e.cells, network)
			continue
		}
		parent := mix(networkNumber(parentOf(network)))
		for i := range c.phones {
			p := &c.phones[i]
			heard[p.id^parent] = max(heard[p.id^parent], p.latest())
		}
	}
	out := make([]entry, 0, len(e.cells))
	for network, c := range e.cells {
		parent := mix(networkNumber(parentOf(network)))
		j := c.join(at, func(p *account) bool { return heard[p.id^parent] > p.latest() })
		if j.phones == 0 {
			continue
		}
		out = append(out, entry{
			network: network, estimate: quarters(max(1, math.Round(4*j.ms))), //nolint:gosec // at most maxRTT
			samples: uint8(j.samples), phones: uint8(j.phones), hosts: uint8(j.hosts), //nolint:gosec // bounded
			visits: visitCodeOf(j.visits), seen: visitCodeOf(float64(c.seen)), age: uint8(min(j.age/60, math.MaxUint8)), //nolint:gosec // bounded
		})
	}
	slices.SortFunc(out, func(a, b entry) int { return compareNetworks(a.network, b.network) })
	return out
}

func compareNetworks(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
