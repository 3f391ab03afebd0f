package failover

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"pbxmesh"
)

// The way back of one node to its phones. It concerns new phones alone: calls to those
// that are there begin again with the node's state.
//
//	 +--------+  trouble   +---------+
//	 | steady | ---------> | trouble | <------------------+
//	 +--------+            +---------+                    |
//	     ^                      | trouble over            | trouble again: a relapse,
//	     |                      v                         | the next hold is twice as
//	     |                 +---------+                    | long, MaxHold at most
//	     |                 | holding | -------------------+
//	     |                 +---------+                    |
//	     |                      | Hold over               |
//	     | Ramp over            v                         |
//	     |                 +---------+                    |
//	     +---------------- | ramping | -------------------+
//	                       +---------+
//
// Trouble is everything that keeps all new phones away: down, daemon silent, event
// socket dead, 503, mesh address silent. Trouble within RelapseWithin of the last return
// is a relapse, too, though the node is steady again. So a node that flaps goes out and
// does not come back while it flaps: the answers of name servers stay.
//
// A node that was in trouble while every node was, or while it was not wanted in service,
// is steady at once: nobody moved away from it to another one, or the operator knew.

// Defaults of ReturnOptions.
const (
	DefaultHold    = 30 * time.Second
	DefaultRamp    = 2 * time.Minute
	DefaultMaxHold = 10 * time.Minute
	RelapseWithin  = 10 * time.Minute
)

// rampSteps is in how many steps the phones come back: all name servers that agree on
// the second agree on the step but for its edges.
const rampSteps = 10

// ReturnOptions say how slowly a node gets its phones back.
type ReturnOptions struct {
	// Hold is how long it gets none, 0 to 1 h; Ramp is how long it takes from then on
	// until it gets all. Both zero: at once.
	Hold, Ramp time.Duration

	// MaxHold bounds Hold when relapses double it; 0 means DefaultMaxHold, or Hold
	// if that is longer.
	MaxHold time.Duration
}

// comeback is where a node stands on its way back. The zero value is steady and was
// never away.
type comeback struct {
	trouble bool
	at      time.Time     // of the last return; zero when there was none
	hold    time.Duration // of the last return, or of the next one while in trouble
	excused bool          // the trouble is no reason to come back slowly
}

// step takes in whether the node is in trouble at now, and whether trouble is excused now.
func (c *comeback) step(trouble, excused bool, now time.Time, o *ReturnOptions) {
	wasExcused := c.excused
	c.excused = trouble && (c.excused || excused)
	switch {
	case trouble && !c.trouble:
		hold := o.Hold
		if c.recent(now, o) {
			hold = min(max(2*c.hold, o.Hold), max(o.MaxHold, o.Hold))
		}
		c.trouble, c.hold = true, hold
	case !trouble && c.trouble && wasExcused:
		*c = comeback{}
	case !trouble && c.trouble:
		c.trouble, c.at = false, now
	case !trouble && !c.at.IsZero() && !c.recent(now, o):
		*c = comeback{} // long ago
	}
}

// recent reports whether trouble at now would be a relapse.
func (c *comeback) recent(now time.Time, o *ReturnOptions) bool {
	return !c.at.IsZero() && now.Sub(c.at) < max(RelapseWithin, c.hold+o.Ramp)
}

// told returns c as a vote tells it.
func (c *comeback) told(now time.Time, o *ReturnOptions) Return {
	switch {
	case c.excused:
		return Return{}
	case c.trouble:
		return Return{Hold: min(c.hold, maxHold)}
	case !c.recent(now, o):
		return Return{}
	}
	return Return{Age: min(max(0, now.Sub(c.at)), maxAge), Hold: min(c.hold, maxHold)}
}

// adopt takes over a return that this observer has not seen itself: it has just started.
func (c *comeback) adopt(r Return, now time.Time, o *ReturnOptions) {
	if c.trouble || !c.at.IsZero() || r.Hold == 0 {
		return
	}
	adopted := comeback{at: now.Add(-r.Age), hold: min(r.Hold, max(o.MaxHold, o.Hold))}
	if adopted.recent(now, o) {
		*c = adopted
	}
}

// shed returns the share of phones, in per mille, that r keeps away.
func (r Return) shed(o *ReturnOptions) uint16 {
	switch {
	case r.Hold == 0 || r.Age >= r.Hold+o.Ramp:
		return 0
	case r.Age < r.Hold:
		return pbxmesh.ShedAll
	}
	left := rampSteps - int((r.Age-r.Hold)*rampSteps/o.Ramp)
	return uint16(left * pbxmesh.ShedAll / (rampSteps + 1)) //nolint:gosec // 0 to 10 elevenths
}

// why says what shed means, without a number that changes every second.
func (r Return) why() string {
	if r.Age < r.Hold {
		return fmt.Sprintf("it has returned and gets no new phones for %v", r.Hold)
	}
	return "it has returned and gets its phones back step by step"
}

// middle returns the one that ends in the middle of what the observers say, the later
// one of two. One of them may have seen a relapse that nobody else saw, may have just
// started and know of no return, or may lie; with the middle all answer the same.
func middle(returns []Return) Return {
	if len(returns) == 0 {
		return Return{}
	}
	sorted := slices.SortedFunc(slices.Values(returns), func(a, b Return) int {
		return cmp.Or(cmp.Compare(a.Hold-a.Age, b.Hold-b.Age), cmp.Compare(a.Hold, b.Hold))
	})
	return sorted[len(sorted)/2]
}
