package feed

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// maxLoggedRefusals bounds the distinct refused names that are logged.
const maxLoggedRefusals = 100

// maxRetrySnapshot bounds the time between two attempts at a snapshot that fails.
const maxRetrySnapshot = 30 * time.Second

// errNoCore reports a switch that does not say which run of itself it is.
var errNoCore = errors.New("the switch did not tell its Core-UUID yet: waiting for an event")

// Feed follows one switch. Create it with New, start it with Run.
type Feed struct {
	opts     Options
	profiles map[string]string // a profile's name, by itself: one string for all records
	ask      chan struct{}     // a token: somebody wants a snapshot
	doubted  chan struct{}     // a token: there are new doubts

	mu      sync.Mutex
	table   *table
	status  Status
	hosts   map[string]bool // names of the switch, as rows carry them
	refused map[string]bool // names whose refusal was logged
	doubts  map[pbxmesh.AOR]*doubt
}

// New returns a feed that does nothing before Run, which also checks opts.
func New(opts Options) *Feed {
	f := &Feed{
		opts:     opts.withDefaults(),
		profiles: make(map[string]string),
		ask:      make(chan struct{}, 1),
		doubted:  make(chan struct{}, 1),
		hosts:    make(map[string]bool),
		refused:  make(map[string]bool),
		doubts:   make(map[pbxmesh.AOR]*doubt),
	}
	for _, p := range opts.Profiles {
		f.profiles[p] = p
	}
	f.table = newTable(f.opts.Sink, "")
	f.opts.ESL.OnEvent = f.onEvent
	if f.opts.ESL.Logger == nil {
		f.opts.ESL.Logger = f.opts.Logger
	}
	return f
}

// Refresh asks for a snapshot soon: somebody wrote into the switch's table, which the
// switch tells nobody. It does not block.
func (f *Feed) Refresh() { f.askSnapshot() }

// Status returns what is known now.
func (f *Feed) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.CoreUUID, s.Registrations = f.table.epoch, f.table.size
	return s
}

// Run follows the switch, connecting again whenever the connection is lost, until
// ctx ends; then it returns nil and nothing runs any more. It returns an error at
// once, and only then, for options that cannot work. Call it once.
func (f *Feed) Run(ctx context.Context) error {
	if err := f.opts.validate(); err != nil {
		return err
	}
	delay := f.opts.MinBackoff
	for ctx.Err() == nil {
		complete, err := f.follow(ctx)
		if ctx.Err() != nil {
			break
		}
		f.setError(err, false)
		if complete {
			delay = f.opts.MinBackoff
		}
		// Half of the wait is random, so that daemons do not come back in step.
		wait := time.NewTimer(delay/2 + rand.N(delay/2+1))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
		delay = min(2*delay, f.opts.MaxBackoff)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.Connected = false
	return nil
}

// follow serves one connection; complete reports that it came as far as a snapshot.
func (f *Feed) follow(ctx context.Context) (complete bool, err error) {
	conn, err := esl.Dial(ctx, f.opts.ESL)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if err := conn.Subscribe(ctx, []string{"HEARTBEAT"}, []string{"sofia::register", "sofia::unregister", "sofia::expire", "sofia::profile_start"}); err != nil {
		return false, fmt.Errorf("subscribe: %w", err)
	}
	if err := f.identify(ctx, conn); err != nil {
		return false, err
	}
	due := time.Now() // of the next snapshot
	next := time.NewTimer(0)
	defer next.Stop()
	plan := func(at time.Time) {
		due = at
		next.Reset(time.Until(at))
	}
	doubt := time.NewTimer(0) // of the next question
	defer doubt.Stop()
	var last time.Time // end of the last snapshot
	var took time.Duration
	retry := f.opts.SnapshotGap
	for {
		select {
		case <-ctx.Done():
			return complete, nil
		case <-conn.Done():
			return complete, conn.Err()
		case <-f.ask:
			// Not at once: what asked may ask again, and a snapshot is work for the switch.
			if at := last.Add(max(f.opts.SnapshotGap, 10*took)); at.Before(due) {
				plan(at)
			}
			continue
		case <-f.doubted:
			doubt.Reset(0)
			continue
		case <-doubt.C:
			if !complete {
				continue // the first snapshot will tell
			}
			if err := f.resolve(ctx, conn); err != nil {
				return complete, err
			}
			if at, ok := f.nextDoubt(); ok {
				doubt.Reset(time.Until(at))
			}
			continue
		case <-next.C:
		}
		began := time.Now()
		err := f.snapshot(ctx, conn)
		last = time.Now()
		took = last.Sub(began)
		doubt.Reset(0)
		switch {
		case errors.Is(err, ErrProfile): // the other profiles were read
			complete = true
			f.setError(err, true)
		case err != nil && (conn.Err() != nil || ctx.Err() != nil):
			return complete, err
		case err != nil:
			f.setError(err, complete)
		default:
			complete = true
			f.setError(nil, true)
		}
		if err != nil {
			plan(last.Add(retry))
			retry = min(2*retry, maxRetrySnapshot)
			continue
		}
		retry = f.opts.SnapshotGap
		tenth := f.opts.SnapshotEvery / 10
		plan(last.Add(f.opts.SnapshotEvery - tenth + rand.N(2*tenth+1)))
	}
}

// identify asks the switch who it is. Only the connection's end is an error: what
// it does not answer comes with its first event.
func (f *Feed) identify(ctx context.Context, conn *esl.Conn) error {
	var refused *esl.ReplyError
	answers := make([]string, 0, 3)
	for _, command := range []string{"global_getvar core_uuid", "hostname", "switchname"} {
		out, err := conn.API(ctx, command)
		if err != nil && !errors.As(err, &refused) {
			return fmt.Errorf("ask the switch for its name: %w", err)
		}
		answers = append(answers, strings.TrimSpace(out))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if core := answers[0]; validEpoch(core) && core != f.table.epoch {
		f.adopt(core)
	}
	clear(f.hosts)
	for _, name := range answers[1:] {
		if name != "" {
			f.hosts[strings.ToLower(name)] = true
		}
	}
	return nil
}

// adopt starts the table of another run of the switch. The Sink hears of it with
// the first snapshot: until then the old registrations are the best guess, as most
// switches keep theirs over a restart. f.mu is held.
func (f *Feed) adopt(core string) {
	if f.table.epoch != "" {
		f.opts.Logger.Info("the switch has restarted", "old_core", f.table.epoch, "new_core", core)
	}
	f.table = newTable(f.opts.Sink, core)
	clear(f.doubts)
}

// askSnapshot wants a snapshot soon. It never blocks.
func (f *Feed) askSnapshot() {
	select {
	case f.ask <- struct{}{}:
	default:
	}
}

// snapshot reads all profiles and applies what they hold. A profile that the switch
// does not run holds nothing, since nobody on it can be called; the others count,
// and the error is ErrProfile.
func (f *Feed) snapshot(ctx context.Context, conn asker) error {
	f.mu.Lock()
	table, barrier := f.table, f.table.high
	f.mu.Unlock()
	if table.epoch == "" {
		return errNoCore
	}
	replies := make([]string, len(f.opts.Profiles))
	answered := make([]time.Time, len(replies))
	for i, p := range f.opts.Profiles {
		out, err := conn.API(ctx, "sofia xmlstatus profile "+p+" reg")
		if err != nil {
			return fmt.Errorf("read the registrations of profile %s: %w", p, err)
		}
		replies[i], answered[i] = out, f.opts.Now()
	}
	var rows []binding
	var missing error
	for i, p := range f.opts.Profiles {
		at := readAt{p, answered[i]}
		err := parseRows(replies[i], p, func(row fields, host string, cut bool) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if b, ok := f.fromRow(row, host, cut, at); ok {
				rows = append(rows, b)
			}
		})
		switch {
		case errors.Is(err, ErrProfile):
			missing = errors.Join(missing, err)
		case err != nil:
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.table != table {
		return fmt.Errorf("%w: the switch restarted meanwhile", errSnapshot)
	}
	f.status.Snapshots++
	f.status.LastSnapshot = f.opts.Now()
	r, doubted := table.snapshot(rows, barrier, f.opts.Now())
	if r.total() > 0 {
		f.status.Repairs += uint64(r.total())
		f.opts.Logger.Info("repaired from the snapshot", "added", r.added, "changed", r.changed, "removed", r.removed)
	}
	f.settle(rows, doubted, barrier)
	return missing
}

// setError notes the state of the connection and logs a cause once.
func (f *Feed) setError(err error, connected bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.status.Err
	f.status.Err, f.status.Connected = err, connected
	f.opts.OnStatus()
	switch {
	case err == nil && (old != nil || f.status.Snapshots == 1):
		f.opts.Logger.Info("following the switch", "registrations", f.table.size, "core", f.table.epoch)
	case err != nil && !sameCause(old, err):
		f.opts.Logger.Error("cannot follow the switch completely; what is known of it stays", "err", err, "connected", connected)
	}
}

// refuse counts a registration that is not taken, and logs each name once. f.mu is
// held.
func (f *Feed) refuse(name string, err error) {
	f.status.Refused++
	const limit = 100
	if len(name) > limit {
		name = name[:limit]
	}
	if f.refused[name] || len(f.refused) >= maxLoggedRefusals {
		return
	}
	f.refused[strings.Clone(name)] = true
	f.opts.Logger.Warn("registration with an address that is not valid here, left out", "aor", fmt.Sprintf("%+q", name), "err", err)
	if len(f.refused) == maxLoggedRefusals {
		f.opts.Logger.Warn("further refused registrations are counted but not logged", "logged", maxLoggedRefusals)
	}
}
