package native

import (
	"time"

	"pbxmesh/internal/esl"
)

// The switch hands its events to several threads as soon as one cannot keep up, and a
// subscriber gets them in the order in which those are done: the end of a short call has been
// seen before its answer. What the switch said last has the higher Event-Sequence.

const (
	// orderLasts is how long an event may be late. The threads take turns within a second.
	orderLasts = 30 * time.Second

	// maxOrdered bounds what is remembered; above it events are taken as they come.
	maxOrdered = 65_536
)

// order remembers the latest event about each thing in the life of one switch.
type order struct {
	core string
	said map[string]saidAt
}

type saidAt struct {
	sequence uint64
	at       time.Time
}

// late reports whether something newer was said of what before e came.
func (o *order) late(what string, e *esl.Event, now time.Time) bool {
	if core := e.CoreUUID(); core != o.core || o.said == nil {
		o.core, o.said = core, make(map[string]saidAt)
	}
	sequence := e.Sequence()
	last, known := o.said[what]
	if known && sequence < last.sequence {
		return true
	}
	if known || len(o.said) < maxOrdered {
		o.said[what] = saidAt{sequence, now}
	}
	return false
}

// forget drops what was said so long ago that nothing about it can be on its way.
func (o *order) forget(now time.Time) {
	for what, s := range o.said {
		if now.Sub(s.at) > orderLasts {
			delete(o.said, what)
		}
	}
}
