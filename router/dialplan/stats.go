package dialplan

import (
	"sync/atomic"
	"time"

	"pbxmesh"
)

// Stats are counters since the server was made. Requests counts everything that
// arrived, the outcomes only what was a question for somebody.
type Stats struct {
	Requests, Active                    uint64
	Routed, NotRegistered, Unreachable  uint64
	Invalid, Unavailable, Overloaded    uint64
	Refused                             uint64 // wrong token, host, method, path or size
	Panics                              uint64
	Lookups                             uint64 // look-ups in the directory right now, overdue ones included
	RefusedConnections, OpenConnections uint64
}

// Record describes one decision to Options.Observe.
type Record struct {
	Door     string      // "dialstring" or "xml"
	AOR      pbxmesh.AOR // zero when it was invalid
	FromMesh bool
	Outcome  Outcome
	Cause    string
	Nodes    []pbxmesh.NodeID // whom the plan rings, in its order
	Decision time.Duration    // look-up and decision
}

type counters struct {
	requests, active, refused, panics, refusedConns, conns atomic.Uint64

	routed, notRegistered, unreachable, invalid, unavailable, overloaded atomic.Uint64
}

func (c *counters) count(o Outcome) {
	switch o {
	case Routed:
		c.routed.Add(1)
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

// Stats returns the counters; each is exact, together they may be a request apart.
func (s *Server) Stats() Stats {
	c := &s.counters
	return Stats{
		Requests: c.requests.Load(), Active: c.active.Load(),
		Routed: c.routed.Load(), NotRegistered: c.notRegistered.Load(), Unreachable: c.unreachable.Load(),
		Invalid: c.invalid.Load(), Unavailable: c.unavailable.Load(), Overloaded: c.overloaded.Load(),
		Refused: c.refused.Load(), Panics: c.panics.Load() + s.ask.Panics(), Lookups: s.ask.Running(),
		RefusedConnections: c.refusedConns.Load(), OpenConnections: c.conns.Load(),
	}
}
