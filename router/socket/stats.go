package socket

import (
	"sync/atomic"
	"time"

	"pbxmesh"
)

// Stats are counters since the hook was made. Every call counts in Calls and in
// one or, when it was routed, two of the outcomes: Routed, and how it ended.
type Stats struct {
	Calls, Active                       uint64
	Routed, Answered, Failed, Abandoned uint64
	NotRegistered, Unreachable, Invalid uint64
	Unavailable, Overloaded             uint64
	Lost                                uint64 // the switch closed or did not answer before the bridge command
	Unnamed                             uint64 // the channel has no UUID that a command may carry
	Released                            uint64 // let go while ringing or talking: Shutdown, CallLimit
	Unset                               uint64 // given back without the variables
	Panics                              uint64
	Lookups                             uint64 // look-ups in the directory right now, overdue ones included
}

// Record describes one call to Options.Observe.
type Record struct {
	AOR      pbxmesh.AOR // zero when it was invalid
	FromMesh bool
	Outcome  Outcome // Routed, or why the call was given back
	Cause    string
	Nodes    []pbxmesh.NodeID // whom the plan rings, in its order

	// Decision is how long the look-up and the decision took, Total the time from
	// the channel data to the bridge command's acceptance or the give-back.
	Decision, Total time.Duration
}

type counters struct {
	calls, active, lost, unnamed, released, unset, panics atomic.Uint64

	routed, answered, failed, abandoned, notRegistered,
	unreachable, invalid, unavailable, overloaded atomic.Uint64
}

func (c *counters) count(o Outcome) {
	switch o {
	case Routed:
		c.routed.Add(1)
	case Answered:
		c.answered.Add(1)
	case Failed:
		c.failed.Add(1)
	case Abandoned:
		c.abandoned.Add(1)
	case NotRegistered:
		c.notRegistered.Add(1)
	case Unreachable:
		c.unreachable.Add(1)
	case Invalid:
		c.invalid.Add(1)
	case Unavailable:
		c.unavailable.Add(1)
	case Overloaded:
		c.overloaded.Add(1)
	}
}

// Stats returns the counters; each is exact, together they may be a call apart.
func (h *Hook) Stats() Stats {
	c := &h.counters
	return Stats{
		Calls: c.calls.Load(), Active: c.active.Load(),
		Routed: c.routed.Load(), Answered: c.answered.Load(), Failed: c.failed.Load(), Abandoned: c.abandoned.Load(),
		NotRegistered: c.notRegistered.Load(), Unreachable: c.unreachable.Load(), Invalid: c.invalid.Load(),
		Unavailable: c.unavailable.Load(), Overloaded: c.overloaded.Load(),
		Lost: c.lost.Load(), Unnamed: c.unnamed.Load(), Released: c.released.Load(), Unset: c.unset.Load(), Panics: c.panics.Load() + h.ask.Panics(),
		Lookups: h.ask.Running(),
	}
}
