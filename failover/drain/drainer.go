package drain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// Times of a Drainer.
const (
	stepEvery     = 50 * time.Millisecond
	listEvery     = time.Second            // who is in a call
	progressEvery = 500 * time.Millisecond // OnProgress
	connectEvery  = time.Second

	// share bounds the time that decisions take: 1/share of a processor.
	share = 4

	// maxArrivals bounds those that wait for the next step; one more is not counted
	// against the pace.
	maxArrivals = 1 << 16
)

// Directory is the registry, as far as a drain needs it.
type Directory interface {
	// WalkNode calls yield for every registration of a node until it returns false.
	WalkNode(node pbxmesh.NodeID, yield func(*pbxmesh.Registration) bool)
	// Lookup returns the registrations of an address on all nodes, at once.
	Lookup(aor pbxmesh.AOR) []*pbxmesh.Registration
}

// Options make a Drainer. All but Logger and Now are required.
type Options struct {
	Node pbxmesh.NodeID
	ESL  esl.Config // OnEvent is the Drainer's own
	Settings

	Directory Directory

	// TakesCalls reports whether calls go to a node now. It must not block.
	TakesCalls func(pbxmesh.NodeID) bool

	// Pace returns what the others can take now; see Pace. It must not block.
	Pace func() (pace int, why string)

	// OnProgress hears every half second how far it is. It must not block.
	OnProgress func(Progress)

	Logger *slog.Logger
	Now    func() time.Time
}

// Drainer empties the local node while it is wanted. Run does the work; the other
// methods may be called from any goroutine and do not block.
type Drainer struct {
	opts Options
	log  *slog.Logger
	wake chan struct{} // capacity 1

	mu      sync.Mutex
	turn    uint64 // of the wish; 0: nothing is wanted
	arrived []*pbxmesh.Registration
	began   []channelName // channels that events told of
}

type channelName struct{ name, presence string }

// New returns a Drainer that does nothing before Run.
func New(o Options) *Drainer {
	if o.Now == nil {
		o.Now = time.Now
	}
	d := &Drainer{opts: o, log: o.Logger, wake: make(chan struct{}, 1)}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	d.log = d.log.With("component", "drain")
	d.opts.ESL.OnEvent = d.onEvent
	return d
}

// Want starts the drain that a wish of that turn asks for, or ends it with 0.
func (d *Drainer) Want(turn uint64) {
	d.mu.Lock()
	changed := d.turn != turn
	d.turn = turn
	d.mu.Unlock()
	if changed {
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

// Arrived hears of every registration that is new on another node.
func (d *Drainer) Arrived(reg *pbxmesh.Registration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turn != 0 && len(d.arrived) < maxArrivals {
		d.arrived = append(d.arrived, reg)
	}
}

func (d *Drainer) wanted() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.turn
}

// onEvent hears of channels as they begin.
func (d *Drainer) onEvent(e *esl.Event) {
	if e.Name() != "CHANNEL_CREATE" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.began) < maxArrivals {
		d.began = append(d.began, channelName{e.Get("Channel-Name"), e.Get("Channel-Presence-ID")})
	}
}

func (d *Drainer) takeArrived() []*pbxmesh.Registration {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.arrived
	d.arrived = nil
	return out
}

func (d *Drainer) takeBegan() []channelName {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.began
	d.began = nil
	return out
}

// Run works until ctx ends, whose error it returns. A switch that does not answer is
// asked again.
func (d *Drainer) Run(ctx context.Context) error {
	for {
		if turn := d.wanted(); turn != 0 && ctx.Err() == nil {
			d.drain(ctx, turn)
			continue
		}
		select {
		case <-d.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// run is one drain.
type run struct {
	*Drainer
	turn     uint64
	machine  *Machine
	conn     *esl.Conn
	calls    *callList
	tried    time.Time // to connect
	listed   time.Time // when calls was asked for
	took     time.Duration
	reported time.Time
	trouble  string // the last error, logged once
}

func (d *Drainer) drain(ctx context.Context, turn uint64) {
	r := &run{Drainer: d, turn: turn, machine: NewMachine(d.opts.Now(), d.opts.Settings)}
	d.takeArrived()
	d.log.Info("drain starts", "method", string(d.opts.Method))
	defer r.disconnect()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for d.wanted() == turn && ctx.Err() == nil {
		select {
		case <-timer.C:
		case <-d.wake:
			continue
		case <-ctx.Done():
			return
		}
		thought := r.step(ctx)
		// The others on this machine come first, the switch above all.
		timer.Reset(max(stepEvery, min(thought*share, time.Second)))
	}
	if ctx.Err() == nil {
		p := r.machine.Progress()
		d.log.Info("drain ends", "left", p.Registrations, "moved", p.Moved)
	}
}

// step does what is due now, and returns how long it took to know what that is.
func (r *run) step(ctx context.Context) (thought time.Duration) {
	now := r.opts.Now()
	for _, reg := range r.takeArrived() {
		r.machine.Arrived(now, reg)
	}
	err := r.look(ctx)
	began := time.Now()
	pic, domains := r.picture(now, err)
	actions := r.machine.Step(now, pic)
	thought = time.Since(began)
	for i, a := range actions {
		if err = do(ctx, r.conn, a, domains); err == nil {
			continue
		}
		if errors.Is(err, ErrUnsafe) {
			r.machine.Skip(a)
			r.log.Warn("a phone is left alone", "aor", a.Reg.AOR, "reason", err)
			err = nil
			continue
		}
		for _, rest := range actions[i:] {
			r.machine.Failed(rest)
		}
		break
	}
	r.tell(ctx, now, err)
	return thought
}

// look brings the connection and the list of calls up to date.
func (r *run) look(ctx context.Context) error {
	now := r.opts.Now()
	if r.conn != nil {
		select {
		case <-r.conn.Done():
			r.disconnect()
		default:
		}
	}
	if r.conn == nil {
		if now.Sub(r.tried) < connectEvery {
			return errWaiting
		}
		r.tried = now
		conn, err := esl.Dial(ctx, r.opts.ESL)
		if err != nil {
			return err
		}
		if err := conn.Subscribe(ctx, []string{"CHANNEL_CREATE"}, nil); err != nil {
			return errors.Join(err, conn.Close())
		}
		r.conn, r.calls = conn, nil
	}
	if r.calls == nil || now.Sub(r.listed) >= max(listEvery, r.took*share) {
		r.listed = now
		began := time.Now()
		calls, err := channels(ctx, r.conn)
		if err != nil {
			r.calls = nil // who is in a call is not known: nobody is touched
			return err
		}
		r.took = time.Since(began)
		calls.follow(r.calls, now)
		r.calls = calls
	}
	for _, c := range r.takeBegan() {
		r.calls.began(now, c.name, c.presence)
	}
	return nil
}

// errWaiting says that the next attempt to connect is due later.
var errWaiting = errors.New("waiting for the switch")

// picture is what the Machine decides on. Without a list of calls nothing is done.
func (r *run) picture(now time.Time, err error) (Picture, map[string]struct{}) {
	pic := Picture{
		Calls: -1, Pause: "the switch does not answer on its event socket",
		Elsewhere: func(reg *pbxmesh.Registration) bool {
			for _, o := range r.opts.Directory.Lookup(reg.AOR) {
				if r.movedTo(now, reg, o) {
					return true
				}
			}
			return false
		},
	}
	domains := map[string]struct{}{}
	r.opts.Directory.WalkNode(r.opts.Node, func(reg *pbxmesh.Registration) bool {
		if reg.Live(now) {
			pic.Local = append(pic.Local, reg)
			domains[reg.AOR.Domain()] = struct{}{}
		}
		return true
	})
	if err == nil && r.calls != nil {
		pic.Busy, pic.Calls = r.calls.busy, r.calls.calls
		pic.Pace, pic.Pause = r.opts.Pace()
	}
	return pic, domains
}

// movedTo reports whether there is the later registration of the phone that here stands
// for. A phone that moved here leaves a row on its former node as well, a dead one's for
// long: that row ends earlier, or nobody can be called through it.
func (r *run) movedTo(now time.Time, here, there *pbxmesh.Registration) bool {
	return there.Node != here.Node && there.Live(now) && there.Expires.After(here.Expires.Add(rounding)) &&
		pbxmesh.SameDevice(here, there) && r.opts.TakesCalls(there.Node)
}

// tell reports progress now and then, and trouble once.
func (r *run) tell(ctx context.Context, now time.Time, err error) {
	if err != nil && !errors.Is(err, errWaiting) {
		if text := err.Error(); text != r.trouble && ctx.Err() == nil {
			r.trouble = text
			r.log.Warn("drain is held up", "error", err)
		}
	} else if err == nil {
		r.trouble = ""
	}
	if now.Sub(r.reported) < progressEvery {
		return
	}
	r.reported = now
	p := r.machine.Progress()
	p.Node, p.Turn, p.Err = r.opts.Node, r.turn, r.trouble
	r.opts.OnProgress(p)
}

func (r *run) disconnect() {
	if r.conn == nil {
		return
	}
	if err := r.conn.Close(); err != nil {
		r.log.Debug("event socket", "error", fmt.Errorf("close: %w", err))
	}
	r.conn, r.calls = nil, nil
}
