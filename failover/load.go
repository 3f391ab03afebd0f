package failover

import (
	"fmt"
	"math"
	"time"

	"pbxmesh"
)

// Defaults of LoadOptions.
const (
	DefaultSessionsLow  = 80
	DefaultSessionsHigh = 95
	DefaultIdleLow      = 15
	DefaultIdleFull     = 3
)

// loadSteps is how fine a load is told; a step is given back only half a step lower.
const loadSteps = 10

// idleMemory is the time constant of the mean of the idle processor share: a switch
// tells it every 20 s, and one busy moment must not move phones.
const idleMemory = 30 * time.Second

// LoadOptions say from which load on a node sends new phones elsewhere, more and more.
type LoadOptions struct {
	// SessionsLow and SessionsHigh are percent of the switch's max-sessions: none is
	// sent away up to the first, all from the second on. Both 0: sessions do not count.
	SessionsLow, SessionsHigh int

	// IdleLow and IdleFull are percent of idle processor: none is sent away down to
	// the first, all from the second down. Both 0: it does not count.
	IdleLow, IdleFull int
}

// Load makes the share of phones that a node wants sent elsewhere from what its switch
// tells. Only the node's own daemon does that, and tells the result in its vote: the
// memory in it would let two name servers differ.
type Load struct {
	o    LoadOptions
	step int
	idle float64 // mean; negative: not told yet
	last time.Time
}

// NewLoad returns a Load that has heard nothing.
func NewLoad(o LoadOptions) *Load { return &Load{o: o, idle: -1} }

// Take takes in what the switch told last, as of now, and returns the share in per
// mille and the reason. maxSessions 0 means that it has told nothing yet.
func (l *Load) Take(now time.Time, sessions, maxSessions int, idle float64) (shed uint16, why string) {
	if maxSessions <= 0 {
		l.step, l.idle = 0, -1
		return 0, ""
	}
	if l.idle < 0 {
		l.idle = idle
	} else if dt := now.Sub(l.last); dt > 0 {
		l.idle += (idle - l.idle) * (1 - math.Exp(-dt.Seconds()/idleMemory.Seconds()))
	}
	l.last = now
	full := 100 * float64(sessions) / float64(maxSessions)
	bySessions := between(full, float64(l.o.SessionsLow), float64(l.o.SessionsHigh))
	byIdle := between(-l.idle, -float64(l.o.IdleLow), -float64(l.o.IdleFull))
	x := loadSteps * max(bySessions, byIdle)
	switch {
	case x >= float64(l.step+1):
		l.step = int(x)
	case x < float64(l.step)-0.5:
		l.step = int(x + 0.5)
	}
	l.step = min(l.step, loadSteps)
	if l.step == 0 {
		return 0, ""
	}
	why = fmt.Sprintf("loaded: more than %d %% of its sessions are in use", l.o.SessionsLow)
	if byIdle > bySessions {
		why = fmt.Sprintf("loaded: less than %d %% of its processor is idle", l.o.IdleLow)
	}
	return uint16(l.step * pbxmesh.ShedAll / loadSteps), why //nolint:gosec // 1 to 10 tenths
}

// between is 0 up to low, 1 from high on, and grows between; 0 when there is no span.
func between(x, low, high float64) float64 {
	if high <= low {
		return 0
	}
	return min(1, max(0, (x-low)/(high-low)))
}
