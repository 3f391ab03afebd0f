package drain

import (
	"encoding/json"
	"fmt"
	"time"
	"unicode/utf8"

	"pbxmesh"
)

// rateSpan is the time over which the speed of a drain is measured.
const rateSpan = 30 * time.Second

// maxProgressLen bounds the shared form: its texts, of which JSON makes six times as
// much at worst, and its numbers.
const maxProgressLen = 4096

// Progress is how far a drain is. Counters are about this drain, as its daemon has seen
// it: they start again with the daemon.
type Progress struct {
	Node    pbxmesh.NodeID `json:"node"`
	Turn    uint64         `json:"turn"` // of the wish that it follows
	Method  Method         `json:"method"`
	Started time.Time      `json:"started"`
	Updated time.Time      `json:"updated"` // on the clock of the node's daemon

	Registrations int `json:"registrations"` // left
	InCall        int `json:"in_call"`       // of these, phones that are in a call
	Calls         int `json:"calls"`         // left; -1 when the switch could not be asked

	Total    int `json:"total"`    // registrations seen since the drain started
	Moved    int `json:"moved"`    // phones seen on another node
	Told     int `json:"told"`     // NOTIFYs sent
	Flushed  int `json:"flushed"`  // rows taken out of the switch's table
	Returned int `json:"returned"` // phones that registered here again

	// Pace is the limit now, registrations per second that the others receive; 0 is a
	// pause, and Pause says why.
	Pace  int    `json:"pace"`
	Pause string `json:"pause,omitempty"`

	// LeftSeconds is how long the registrations that are left take at the speed of the
	// last half minute; -1 when that cannot be told. Calls end when they end.
	LeftSeconds int `json:"left_seconds"`

	// Err is why the switch could not be told; "" when all is well.
	Err string `json:"error,omitempty"`
}

// Done reports whether the node is empty.
func (p *Progress) Done() bool { return p.Registrations == 0 && p.Calls == 0 }

// Encode returns the form that is shared.
func (p *Progress) Encode() (string, error) {
	const most = 256
	q := *p
	q.Err, q.Pause = cut(q.Err, most), cut(q.Pause, most)
	text, err := json.Marshal(&q)
	if err != nil {
		return "", fmt.Errorf("progress of a drain: %w", err)
	}
	return string(text), nil
}

// cut returns at most the first bytes of s, no rune in halves, and quotes what cannot be
// printed.
func cut(s string, most int) string {
	if len(s) > most {
		for most > 0 && !utf8.RuneStart(s[most]) {
			most--
		}
		s = s[:most]
	}
	if !printable(s) {
		return fmt.Sprintf("%+.200q", s)
	}
	return s
}

// DecodeProgress reads the form of Encode, which anyone may have written.
func DecodeProgress(node, text string) (Progress, error) {
	var p Progress
	if len(text) > maxProgressLen {
		return p, fmt.Errorf("%w: progress of %d bytes, at most %d are allowed", pbxmesh.ErrInvalidRecord, len(text), maxProgressLen)
	}
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return p, fmt.Errorf("%w: progress: %w", pbxmesh.ErrInvalidRecord, err)
	}
	if string(p.Node) != node || !printable(p.Err) || !printable(p.Pause) || !printable(string(p.Method)) ||
		p.Registrations < 0 || p.Calls < -1 || p.Pace < 0 || p.LeftSeconds < -1 {
		return p, fmt.Errorf("%w: progress of %.70q", pbxmesh.ErrInvalidRecord, string(p.Node))
	}
	return p, nil
}

// sample is how many registrations were left at one moment.
type sample struct {
	at   time.Time
	left int
}

// note brings the progress up to date.
func (m *Machine) note(now time.Time, pic Picture, busy int) {
	p := &m.progress
	p.Updated, p.Registrations, p.InCall, p.Calls = now.Round(0), len(pic.Local), busy, pic.Calls
	p.Pace, p.Pause = pic.Pace, pic.Pause
	if n := len(m.history); n == 0 || now.Sub(m.history[n-1].at) >= time.Second {
		m.history = append(m.history, sample{now, len(pic.Local)})
	}
	for len(m.history) > 1 && now.Sub(m.history[0].at) > rateSpan {
		m.history = m.history[1:]
	}
	p.LeftSeconds = -1
	first := m.history[0]
	switch gone := first.left - len(pic.Local); {
	case len(pic.Local) == 0:
		p.LeftSeconds = 0
	case gone > 0:
		p.LeftSeconds = int(now.Sub(first.at).Seconds()/float64(gone)*float64(len(pic.Local)) + 0.999)
	}
}

// Progress returns how far it is, as of the last Step.
func (m *Machine) Progress() Progress { return m.progress }
