package latency

import (
	"cmp"
	"math"
	"slices"
)

// account is what one phone of a network showed. Many Call-IDs, ports, devices and
// REGISTERs of one account are one phone.
type account struct {
	id   uint64 // of the account, by a secret of this process: nobody chooses it
	from uint32 // of the address that the latest sample came from

	rtt    [ringSize]quarters
	at     [ringSize]uint32 // Unix seconds, until 2106
	coarse uint8            // bits: may be a tick off
	n      uint8            // samples in the ring
	next   uint8            // where the next one goes
	visit  uint32           // Unix seconds of the latest registration, 0 for none
}

// back returns the place in the ring of the sample that is i samples old.
func (p *account) back(i uint8) uint8 { return (p.next + 2*ringSize - 1 - i) % ringSize }

// latest returns when the last sample came, in Unix seconds.
func (p *account) latest() int64 {
	if p.n == 0 {
		return 0
	}
	return int64(p.at[p.back(0)])
}

// heard returns when it sampled or registered last, in Unix seconds.
func (p *account) heard() int64 { return max(p.latest(), int64(p.visit)) }

func (p *account) add(s *Sample) {
	bit := uint8(1) << p.next
	if p.coarse &^= bit; s.Visit {
		p.coarse |= bit
	}
	p.rtt[p.next], p.at[p.next] = quartersOf(s.RTT), seconds(s.At.Unix())
	p.next = (p.next + 1) % ringSize
	p.n = min(p.n+1, ringSize)
	if p.slower() >= shifted {
		p.n = shifted
	}
}

func seconds(unix int64) uint32 { return uint32(min(max(unix, 0), math.MaxUint32)) }

// slower returns how many of the latest samples, at most shifted, are all clearly above the
// lowest one before them: the route has become worse, or the phone is slow just now. A
// change for the better needs nothing of the kind: one low sample is proof enough.
func (p *account) slower() (run uint8) {
	for k := uint8(1); k <= shifted && k < p.n; k++ {
		latest, before := quarters(math.MaxUint16), quarters(math.MaxUint16)
		for i := range p.n {
			if i < k {
				latest = min(latest, p.rtt[p.back(i)])
			} else {
				before = min(before, p.rtt[p.back(i)])
			}
		}
		if latest.ms() > before.ms()+max(threshold(before.ms()), tickMS) {
			run = k
		}
	}
	return run
}

// estimate returns the mean of the samples around the low quantile at a time, each
// weighted by its age, in milliseconds; coarse says that it may be a tick off.
func (p *account) estimate(now int64) (ms float64, coarse bool) {
	type weighted struct {
		rtt    quarters
		weight float64
		coarse bool
	}
	var all [ringSize]weighted
	sum := 0.0
	for i := range p.n {
		at := p.back(i)
		w := math.Exp2(-float64(max(0, now-int64(p.at[at]))) / halfLife.Seconds())
		rough := p.coarse&(1<<at) != 0
		if rough {
			w *= coarseWeight
		}
		all[i] = weighted{p.rtt[at], w, rough}
		sum += w
	}
	used := all[:p.n]
	slices.SortFunc(used, func(a, b weighted) int { return cmp.Compare(a.rtt, b.rtt) })
	low, below := used[len(used)-1], 0.0
	for _, w := range used {
		if below += w.weight; below >= lowQuantile*sum {
			low = w
			break
		}
	}
	mean, near, window := 0.0, 0.0, windowMS(low.coarse)
	for _, w := range used {
		if math.Abs(w.rtt.ms()-low.rtt.ms()) <= window {
			mean += w.weight * w.rtt.ms()
			near += w.weight
		}
	}
	return mean / near, low.coarse
}

func windowMS(coarse bool) float64 {
	if coarse {
		return tickMS
	}
	return fineMS
}

// presence is 1 for a phone that registered just now, and halves.
func (p *account) presence(now int64) float64 {
	if p.visit == 0 {
		return 0
	}
	return math.Exp2(-float64(max(0, now-int64(p.visit))) / visitHalfLife.Seconds())
}
