package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// Sink is where the feed's findings go: the registry's writer. The methods are
// called one at a time, under the feed's lock: they must neither block nor call the
// feed.
type Sink interface {
	// Reset starts an epoch: regs is all there is, whatever was known before.
	Reset(epoch string, regs []pbxmesh.Registration)
	// Put adds or replaces the registration with this ID.
	Put(pbxmesh.Registration)
	// Remove ends a registration; one that is not known is no error.
	Remove(pbxmesh.RegistrationID)
}

// Defaults of Options.
const (
	DefaultLateMargin    = 60 * time.Second
	DefaultSnapshotEvery = 5 * time.Minute
	DefaultSnapshotGap   = 2 * time.Second
	DefaultMinBackoff    = 500 * time.Millisecond
	DefaultMaxBackoff    = 15 * time.Second
)

// Options say which switch is read and where to.
type Options struct {
	// ESL is the switch's event socket. OnEvent is the feed's own.
	ESL esl.Config

	// Node is the node whose switch it is.
	Node pbxmesh.NodeID

	// Profiles are the sofia profiles where phones register: "internal". At least
	// one, and never the mesh profile.
	Profiles []string

	Sink Sink

	// LateMargin is how long the switch keeps a registration beyond the expiry it
	// granted (sip-expires-late-margin), DefaultLateMargin when 0, none when
	// negative. It counts until the next snapshot tells exactly.
	LateMargin time.Duration

	// SnapshotEvery is the time between two snapshots, jittered by a tenth.
	SnapshotEvery time.Duration

	// SnapshotGap is the least time between two snapshots, whatever asks for one.
	// It is at least ten times what the last snapshot took.
	SnapshotGap time.Duration

	// MinBackoff and MaxBackoff bound the time between two attempts to connect,
	// which doubles; each wait is cut by a random half.
	MinBackoff, MaxBackoff time.Duration

	// OnStatus, when not nil, is called when the connection or the switch's own figures in
	// Status may have changed. It must not block, and not ask the feed.
	OnStatus func()

	// Now is the clock, time.Now when nil.
	Now func() time.Time

	// Logger may be nil.
	Logger *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.OnStatus == nil {
		o.OnStatus = func() {}
	}
	if o.LateMargin == 0 {
		o.LateMargin = DefaultLateMargin
	}
	o.LateMargin = max(o.LateMargin, 0)
	for _, d := range []struct {
		value     *time.Duration
		otherwise time.Duration
	}{
		{&o.SnapshotEvery, DefaultSnapshotEvery}, {&o.SnapshotGap, DefaultSnapshotGap},
		{&o.MinBackoff, DefaultMinBackoff}, {&o.MaxBackoff, DefaultMaxBackoff},
	} {
		if *d.value <= 0 {
			*d.value = d.otherwise
		}
	}
	o.MaxBackoff = max(o.MaxBackoff, o.MinBackoff)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// validate reports what makes a feed impossible.
func (o Options) validate() error {
	if o.Sink == nil {
		return errors.New("registration feed: no sink")
	}
	if id, err := pbxmesh.ParseNodeID(string(o.Node)); err != nil || id != o.Node {
		return fmt.Errorf("registration feed: node %q: %w", o.Node, pbxmesh.ErrInvalidNodeID)
	}
	if len(o.Profiles) == 0 {
		return errors.New("registration feed: no sofia profile named; phones usually register on \"internal\"")
	}
	for _, p := range o.Profiles {
		if !validProfile(p) {
			return fmt.Errorf("registration feed: sofia profile %.64q: letters, digits and . _ - are allowed, at most %d", p, pbxmesh.MaxProfileLen)
		}
	}
	return nil
}

// validProfile keeps a profile name from saying anything else in a command.
func validProfile(s string) bool {
	if s == "" || len(s) > pbxmesh.MaxProfileLen {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// Status is what the feed knows of its switch at one moment.
type Status struct {
	// Connected: subscribed, and at least one snapshot was read on this connection.
	Connected bool

	CoreUUID string // the epoch, "" before the first event or snapshot
	Version  string // "1.11.1-release~64bit", from the last heartbeat

	Sessions, MaxSessions int
	IdleCPU               float64 // percent

	LastEvent    time.Time // of any event, on our clock
	LastSnapshot time.Time

	// Registrations is how many live here, those that expired without an event
	// included until the next snapshot.
	Registrations int

	// Err is why the feed is not connected or not complete, nil when all is well.
	Err error

	Events    uint64 // received
	Ignored   uint64 // events of other profiles, of the mesh, without sequence or core
	Refused   uint64 // registrations with an address or a field that is not valid
	Snapshots uint64
	Repairs   uint64 // registrations that a later snapshot put right

	Questions uint64 // about single users, asked where an event left a doubt
	Answered  uint64 // registrations that the answers changed
}

// causes are compared when deciding whether an error is a new one: the text of a
// network error holds a port that differs every time.
var causes = []error{
	esl.ErrACL, esl.ErrAuth, esl.ErrNoGreeting, esl.ErrTimeout, esl.ErrProtocol, esl.ErrInvalidCommand,
	ErrProfile, errSnapshot, errNoCore, context.DeadlineExceeded,
}

// sameCause reports whether two errors need only one log line.
func sameCause(a, b error) bool { return causeOf(a) == causeOf(b) }

func causeOf(err error) string {
	if err == nil {
		return ""
	}
	for _, c := range causes {
		if errors.Is(err, c) {
			return c.Error()
		}
	}
	return innermost(err).Error()
}

// innermost follows the last branch of an error: wraps put the cause there.
func innermost(err error) error {
	for {
		switch e := err.(type) { //nolint:errorlint // this walks the chain itself
		case interface{ Unwrap() error }:
			next := e.Unwrap()
			if next == nil {
				return err
			}
			err = next
		case interface{ Unwrap() []error }:
			all := e.Unwrap()
			if len(all) == 0 {
				return err
			}
			err = all[len(all)-1]
		default:
			return err
		}
	}
}
