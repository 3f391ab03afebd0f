package drain

import (
	"fmt"
	"slices"
	"time"

	"pbxmesh"
)

// Method is how phones are told to go.
type Method string

// The methods. With all of them name servers turn away at once, and a phone that is
// registered elsewhere leaves no row behind.
const (
	// MethodCheckSync sends the NOTIFY that the switch knows for this make of phone
	// (check-sync; some makes restart), and takes the registration away when the phone
	// has not left within the grace.
	MethodCheckSync Method = "check-sync"

	// MethodFlush takes the registration away. The phone is not told, and cannot be
	// called until its next REGISTER.
	MethodFlush Method = "flush"

	// MethodWait tells nobody: phones leave with their next REGISTER.
	MethodWait Method = "wait"
)

// Settings are how a drain goes.
type Settings struct {
	Method Method

	// After is how long nobody is told at first, so that the name servers have heard of
	// the drain and the answers that are out there have run out: a phone that is told
	// sooner comes back.
	After time.Duration

	// Grace is the time between being told and losing the registration.
	Grace time.Duration

	// Again is the least time between two turns at one phone, which came back because
	// its DNS is stale.
	Again time.Duration
}

// The state chart of one registration on the node that is drained.
//
//	         room in the pace, idle
//	+------+ --------------------------> +------+   grace over, room, idle   +---------+
//	| here |                             | told | -------------------------> | flushed |
//	+------+ <-------------------------- +------+                            +---------+
//	  |  ^     registered here again, Again over |                                  |
//	  |  |                                       |                                  |
//	  |  +---------------------------------------+----------------------------------+
//	  |                      registered here again, Again over      | row gone
//	  |                                          |                                  v
//	  +------------------------------------------+---------------------------> (gone)
//	     registered elsewhere, idle: the row that is left is flushed, outside the pace
//
// With MethodFlush the first arrow leads to flushed; with MethodWait neither it nor the
// arrow to flushed exists. A phone in a call is left alone in every state. The row that
// is gone counts as moved when the phone was seen elsewhere.
type stage uint8

const (
	here stage = iota
	told
	flushed
)

// phone is what the Machine knows of one registration.
type phone struct {
	reg     *pbxmesh.Registration // as in the last picture
	seen    time.Time             // of that picture
	stage   stage
	turn    time.Time // the last command about it; zero: none
	expires time.Time // of the registration at that turn: a later one came after it
	back    bool      // registered here again since that turn
	moved   bool      // seen elsewhere since
	skip    bool      // left alone
}

// Picture is the node at one moment.
type Picture struct {
	// Local are the live registrations of the node, in any order.
	Local []*pbxmesh.Registration

	// Busy reports a phone in a call. nil: that is not known, and nobody is touched.
	Busy func(*pbxmesh.Registration) bool

	// Elsewhere reports whether another node holds the same device.
	Elsewhere func(*pbxmesh.Registration) bool

	Calls int // of the switch; -1 when not known

	// Pace is what the others can take now, registrations per second; 0 pauses, and
	// Pause says why.
	Pace  int
	Pause string
}

// Kind is what is done to a registration.
type Kind uint8

// The kinds of Action.
const (
	Tell  Kind = iota // ask the phone to register anew
	Flush             // take the registration out of the switch's table
)

// Action is one command for the switch.
type Action struct {
	Kind  Kind
	Reg   *pbxmesh.Registration
	Again bool // it was flushed before, and is still there
}

// Machine decides which phones of a node go now. It has no clock, no socket and no
// goroutine; its methods are for one goroutine.
type Machine struct {
	settings Settings
	limit    *limiter
	phones   map[pbxmesh.AOR][]*phone
	progress Progress
	history  []sample
}

// NewMachine returns a Machine for a drain that starts at now.
func NewMachine(now time.Time, s Settings) *Machine {
	return &Machine{
		settings: s, limit: newLimiter(), phones: map[pbxmesh.AOR][]*phone{},
		progress: Progress{Started: now.Round(0), Method: s.Method, Calls: -1},
	}
}

// find returns what is known of a registration, nil for a new one.
func (m *Machine) find(id pbxmesh.RegistrationID) *phone {
	for _, p := range m.phones[id.AOR] {
		if p.reg.CallID == id.CallID {
			return p
		}
	}
	return nil
}

// Arrived takes note of a registration that is new on another node. When it is that of
// a phone that was here, the phone has moved.
func (m *Machine) Arrived(now time.Time, reg *pbxmesh.Registration) {
	m.limit.seen(now, reg.AOR)
	for _, p := range m.phones[reg.AOR] {
		if !p.moved && sameDevice(p.reg, reg, !p.turn.IsZero()) {
			p.moved = true
			m.progress.Moved++
			return
		}
	}
}

// Skip leaves reg alone from now on: no command can name it.
func (m *Machine) Skip(a Action) {
	m.Failed(a)
	if p := m.find(a.Reg.ID()); p != nil {
		p.skip = true
	}
}

// Failed takes the last action about reg back: the switch did not do it.
func (m *Machine) Failed(a Action) {
	p := m.find(a.Reg.ID())
	if p == nil {
		return
	}
	p.stage, p.turn, p.back = here, time.Time{}, false
	if a.Kind == Flush {
		m.progress.Flushed--
	} else {
		m.progress.Told--
	}
}

// sameDevice compares a registration here with one that appeared elsewhere. A phone
// that was told to go may have restarted, and then comes from another port and with
// another Call-ID.
func sameDevice(here, there *pbxmesh.Registration, wasTold bool) bool {
	return pbxmesh.SameDevice(here, there) ||
		wasTold && here.Source.Addr() == there.Source.Addr() && here.UserAgent == there.UserAgent
}

// Step returns what is to be done now. Each action counts as done unless Failed says
// otherwise.
func (m *Machine) Step(now time.Time, pic Picture) []Action {
	list := m.look(now, pic)
	room := 0
	if wait := m.progress.Started.Add(m.settings.After).Sub(now); wait > 0 && pic.Pace > 0 {
		if m.settings.Method != MethodWait {
			m.progress.Pause = fmt.Sprintf("answers of the name servers that name the node run out in %d s", int(wait.Seconds())+1)
		}
	} else if pic.Pace > 0 {
		room = m.limit.room(now, pic.Pace)
	}
	// What has been told waits already, so it comes before what has not. Among those,
	// who would leave last by itself is first.
	slices.SortFunc(list, func(a, b *phone) int {
		if a.stage != b.stage {
			return int(b.stage) - int(a.stage)
		}
		return b.reg.Expires.Compare(a.reg.Expires)
	})
	var out []Action
	for _, p := range list {
		kind, free, due := m.due(now, p, pic.Elsewhere(p.reg))
		if !due || p.skip || !free && room < 1 || pic.Busy == nil || pic.Busy(p.reg) {
			continue
		}
		if !free {
			room--
			m.limit.told(now, p.reg.AOR)
		}
		out = append(out, Action{Kind: kind, Reg: p.reg, Again: p.stage == flushed && !p.back})
		p.turn, p.expires, p.back = now, p.reg.Expires, false
		if kind == Flush {
			p.stage = flushed
			m.progress.Flushed++
		} else {
			p.stage = told
			m.progress.Told++
		}
	}
	return out
}

// rounding is how much a switch's own expiry may differ from one snapshot to the next
// without a new REGISTER.
const rounding = 2 * time.Second

// look takes a picture in and returns the phones in it.
func (m *Machine) look(now time.Time, pic Picture) []*phone {
	list := make([]*phone, 0, len(pic.Local))
	busy := 0
	for _, reg := range pic.Local {
		p := m.find(reg.ID())
		if p == nil {
			p = &phone{}
			m.phones[reg.AOR] = append(m.phones[reg.AOR], p)
			m.progress.Total++
		}
		p.reg, p.seen = reg, now
		if p.stage != here && !p.back && reg.Expires.After(p.expires.Add(rounding)) {
			p.back, p.moved = true, false
			m.progress.Returned++
		}
		if pic.Busy != nil && pic.Busy(reg) {
			busy++
		}
		list = append(list, p)
	}
	for aor, phones := range m.phones {
		phones = slices.DeleteFunc(phones, func(p *phone) bool {
			return now.Sub(p.seen) > max(m.settings.Again, m.settings.Grace, reaction)
		})
		if len(phones) == 0 {
			delete(m.phones, aor)
		} else {
			m.phones[aor] = phones
		}
	}
	m.note(now, pic, busy)
	return list
}

// due returns what p's turn is, if it has one now; free is outside of the pace.
func (m *Machine) due(now time.Time, p *phone, elsewhere bool) (kind Kind, free, due bool) {
	waited := now.Sub(p.turn)
	switch {
	case p.moved || elsewhere:
		// Again after a while: the command was lost, or the row came back.
		return Flush, true, p.stage != flushed || waited >= reaction
	case m.settings.Method == MethodWait:
		return 0, false, false
	case p.stage == told && !p.back:
		return Flush, false, waited >= m.settings.Grace
	case p.stage == flushed && !p.back:
		return Flush, false, waited >= reaction // it was not taken out
	case p.stage != here && waited < m.settings.Again:
		return 0, false, false
	case m.settings.Method == MethodFlush:
		return Flush, false, true
	default:
		return Tell, false, true
	}
}
