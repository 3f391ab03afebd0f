package failover

import (
	"time"

	"pbxmesh"
)

// Path says which of a node's addresses a probe went to.
type Path uint8

// The probed paths. PathPhones decides about a node that has addresses for
// phones; PathMesh decides about a node that takes calls but no phones, and makes
// any other node suspect at worst.
const (
	PathPhones Path = iota
	PathMesh
	numPaths
)

// String returns the word that logs and metrics use.
func (p Path) String() string {
	if p == PathMesh {
		return "mesh"
	}
	return "phones"
}

// Outcome is how a probe ended.
type Outcome uint8

// The outcomes of a probe. Every answer but Overloaded proves the switch alive,
// a 4xx as well as a 2xx: a switch that refuses OPTIONS still reads and answers.
const (
	OutcomeOK         Outcome = iota
	OutcomeTimeout            // nothing came back in time
	OutcomeRefused            // ICMP port unreachable: nobody listens there
	OutcomeOverloaded         // 503: alive, and asks to be left alone
	OutcomeError              // no packet could leave
	OutcomeLate               // this observer's own timers came late: it does not know
)

// String returns the word that logs and metrics use.
func (o Outcome) String() string {
	switch o {
	case OutcomeOK:
		return "ok"
	case OutcomeTimeout:
		return "timeout"
	case OutcomeRefused:
		return "refused"
	case OutcomeOverloaded:
		return "overloaded"
	case OutcomeLate:
		return "late"
	default:
		return "error"
	}
}

// answered reports whether the far end said anything at all, which proves that
// this observer is connected.
func (o Outcome) answered() bool { return o == OutcomeOK || o == OutcomeOverloaded }

// ProbeResult is one SIP OPTIONS of this observer.
type ProbeResult struct {
	Node    pbxmesh.NodeID
	Path    Path
	Outcome Outcome
	Code    int           // SIP status code, 0 without an answer
	RTT     time.Duration // 0 without an answer
	At      time.Time     // when the result was known
	Err     error         // why there is no answer; nil otherwise

	// Sent counts the copies of the request that were sent, the first one included; 0 is not
	// known. RTT is that of the copy that was answered.
	Sent int
}

// LeaseStatus is what the registry knows of a node's sign of life.
type LeaseStatus uint8

// The lease states.
const (
	LeaseNeverSeen LeaseStatus = iota
	LeaseFresh
	LeaseExpired
)

// String returns the word that listings use.
func (s LeaseStatus) String() string {
	switch s {
	case LeaseFresh:
		return "fresh"
	case LeaseExpired:
		return "expired"
	default:
		return "never seen"
	}
}

// SwitchWord is what a node's own daemon says about its switch.
type SwitchWord uint8

// The words of a daemon. SwitchUnknown is a daemon that does not say.
const (
	SwitchUnknown SwitchWord = iota
	SwitchAlive
	SwitchDead
)

// String returns the word that listings use.
func (w SwitchWord) String() string {
	switch w {
	case SwitchAlive:
		return "alive"
	case SwitchDead:
		return "dead"
	default:
		return "unknown"
	}
}

// LeaseReport is the registry's view of one node at one time. It is reported
// again on every change and whenever our own link to the registry comes or goes.
type LeaseReport struct {
	Node   pbxmesh.NodeID
	Status LeaseStatus

	// Switch is the daemon's word in that lease. It counts while the lease is
	// fresh and not longer: the word of a daemon that is silent is old news.
	Switch SwitchWord

	// LinkOK says that our own link to the registry is well. Without it a lease
	// that looks expired may be ours to blame, and a fresh one may be stale: the
	// report then says nothing at all and probes decide alone.
	LinkOK bool

	// Seen is when the lease was last seen renewed, on our clock; zero for never.
	Seen time.Time

	// Left says that the daemon was stopped in an orderly way.
	Left bool

	At time.Time
}

// Transition is one change of a node's observed or wanted state, or of whether calls go there.
type Transition struct {
	Node     pbxmesh.NodeID
	Old, New pbxmesh.NodeState
	At       time.Time
}
