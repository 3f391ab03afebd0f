package dnsserver

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// Defaults of RateLimit. A resolver of a large provider asks for each tenant once per
// TTL; what comes above is told to use TCP or to bring a cookie, neither of which is
// limited.
const (
	DefaultRateAnswers  = 1000
	DefaultRateNXDomain = 200
	DefaultRateErrors   = 100
	DefaultRateSlip     = 2
)

// Client networks whose UDP responses are counted together.
const (
	ratePrefix4 = 24
	ratePrefix6 = 56
)

// rateSlots bounds the client networks counted at once, times categories. When all
// slots that a network could have are taken, the one with the least debt is forgotten:
// a flood that comes from more networks than that is limited less.
const (
	rateSlots = 1 << 16
	rateWays  = 4
)

// RateLimit bounds the UDP responses to a client network (/24, /56) whose addresses
// may be forged: to clients that bring no valid cookie. Rates are responses per
// second with a burst of as many; 0 means the default, negative is without limit.
type RateLimit struct {
	Answers  int // NOERROR
	NXDomain int
	Errors   int // REFUSED, FORMERR and so on

	// Slip sends every Slip-th limited response after all, cut to nothing with TC set,
	// so that a client whose address is abused gets through by TCP. 1 is all of
	// them; 0 means the default, negative is none.
	Slip int

	// Exempt networks are never limited.
	Exempt []netip.Prefix
}

func (r *RateLimit) defaults() error {
	for _, f := range []struct {
		v   *int
		def int
	}{{&r.Answers, DefaultRateAnswers}, {&r.NXDomain, DefaultRateNXDomain}, {&r.Errors, DefaultRateErrors}, {&r.Slip, DefaultRateSlip}} {
		if *f.v == 0 {
			*f.v = f.def
		}
		if *f.v > 1_000_000_000 {
			return fmt.Errorf("dnsserver: a rate limit of %d; at most 1000000000 responses per second can be counted, negative is without limit", *f.v)
		}
	}
	for _, p := range r.Exempt {
		if !p.IsValid() {
			return fmt.Errorf("dnsserver: the exempt network %v is not valid", p)
		}
	}
	return nil
}

// verdict is what becomes of a response.
type verdict uint8

const (
	send verdict = iota
	slip         // cut to nothing
	drop
)

// rateLimiter counts by the generic cell rate algorithm: a slot holds the time at
// which its network owes nothing any more.
type rateLimiter struct {
	o     RateLimit
	seed  maphash.Seed
	slots []rateSlot
	slips atomic.Uint32
}

type rateSlot struct {
	key atomic.Uint64
	due atomic.Int64 // Unix nanoseconds
}

func newRateLimiter(o RateLimit) *rateLimiter {
	return &rateLimiter{o: o, seed: maphash.MakeSeed(), slots: make([]rateSlot, rateSlots)}
}

// rateKey is one category of one client network.
type rateKey struct {
	network  [8]byte
	category byte
	six      bool
}

// judge counts a response with rcode to client at now.
func (l *rateLimiter) judge(client netip.Addr, rcode int, now time.Time) verdict {
	key, rate := rateKey{}, l.o.Errors
	switch rcode {
	case dns.RcodeSuccess:
		key.category, rate = 1, l.o.Answers
	case dns.RcodeNameError:
		key.category, rate = 2, l.o.NXDomain
	}
	if rate < 0 {
		return send
	}
	if slices.ContainsFunc(l.o.Exempt, func(p netip.Prefix) bool { return p.Contains(client) }) {
		return send
	}
	if client.Is4() {
		a := client.As4()
		copy(key.network[:], a[:ratePrefix4/8])
	} else {
		a := client.As16()
		copy(key.network[:], a[:ratePrefix6/8])
		key.six = true
	}
	if l.take(maphash.Comparable(l.seed, key)|1, int64(time.Second)/int64(rate), now.UnixNano()) {
		return send
	}
	if n := l.o.Slip; n > 0 && l.slips.Add(1)%uint32(n) == 0 {
		return slip
	}
	return drop
}

// take lets a response through when its network owes less than one second's worth.
// Two readers that take one slot at once may let one response too many through.
func (l *rateLimiter) take(key uint64, cost, now int64) bool {
	set := l.slots[(key>>8)%(rateSlots/rateWays)*rateWays:][:rateWays]
	s := &set[0]
	for i := range set {
		if set[i].key.Load() == key {
			s = &set[i]
			break
		}
		if set[i].due.Load() < s.due.Load() {
			s = &set[i]
		}
	}
	if s.key.Load() != key {
		s.key.Store(key)
		s.due.Store(now)
	}
	for {
		due := s.due.Load()
		next := max(due, now) + cost
		if next-now > int64(time.Second) {
			return false
		}
		if s.due.CompareAndSwap(due, next) {
			return true
		}
	}
}
