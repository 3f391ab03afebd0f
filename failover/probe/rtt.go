package probe

import (
	"time"
)

const (
	// copies of a request are sent within one probe while no answer comes. With 30 %
	// of the packets lost in each direction one round trip fails with probability
	// 1 - 0.7^2 = 0.51, five with 0.51^5 = 0.035, and three probes in a row with 4e-5.
	// See docs/failover.md.
	copies = 5

	// minTimeout bounds the wait below, the same for a switch next door: three waits in
	// a row are longer than half a second then (see backOff), so that a switch that
	// pauses for that long is not silent.
	minTimeout = 120 * time.Millisecond

	// granularity is what RFC 6298 section 2 calls G: a path whose round trip never
	// varies still gets so much more than it.
	granularity = 10 * time.Millisecond
)

// roundTrip estimates the round trip of one address as TCP does (RFC 6298 section 2).
// The zero value has measured nothing.
//
// Every copy of a request is a request of its own and its answer names it, so an answer
// always tells the round trip of the very packet it answers: Karn's rule (section 3), to
// leave out what was sent twice, is not needed within one probe, and a path whose round
// trip is longer than the pause between two copies is measured like any other. Lost packets give no sample,
// so loss alone neither shortens nor lengthens the wait.
type roundTrip struct {
	smooth, vary time.Duration // SRTT and RTTVAR; smooth is 0 before the first sample
}

// add takes in one measured round trip, more than 0.
func (e *roundTrip) add(r time.Duration) {
	if e.smooth == 0 {
		e.smooth, e.vary = r, r/2
		return
	}
	e.vary += ((e.smooth - r).Abs() - e.vary) / 4
	e.smooth += (r - e.smooth) / 8
}

// bound is what TCP calls RTO: an answer that takes longer is not to be expected. 0 is
// not known.
func (e *roundTrip) bound() time.Duration {
	if e.smooth == 0 {
		return 0
	}
	return e.smooth + max(granularity, 4*e.vary)
}

// plan says when the packets of one probe leave and how long it waits.
type plan struct {
	timeout time.Duration // from the first copy until nothing is expected any more
	gap     time.Duration // between two copies
}

// plan returns the plan of the next probe, after unheard probes in a row that got no
// answer. It waits three times as long as an answer may take (bound), at least
// minTimeout and at most most, and half as long again for each unheard probe (RFC 6298
// section 5.5 has twice as long; our answers count also when they come during the next
// probe). All copies leave early enough for the last one's answer, as long as bound is
// not above three fifths of most. An address not measured yet gets most.
func (e *roundTrip) plan(most time.Duration, unheard int) plan {
	bound := e.bound()
	timeout := most
	if bound > 0 {
		timeout = min(max(3*bound, minTimeout), most)
	}
	for ; unheard > 0 && timeout < most; unheard-- {
		timeout = min(timeout*3/2, most)
	}
	early := timeout * 2 / 5
	if bound > 0 {
		early = max(early, timeout-bound)
	}
	return plan{timeout: timeout, gap: early / (copies - 1)}
}
