package bindings

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// Directory is the replica of the registry. Its methods do not block.
type Directory interface {
	// Lookup returns the registrations of aor on all nodes, expired ones included.
	// Nobody writes to what it returns.
	Lookup(aor pbxmesh.AOR) []*pbxmesh.Registration

	// WalkNode calls yield for every registration of a node until it returns false.
	WalkNode(node pbxmesh.NodeID, yield func(*pbxmesh.Registration) bool)
}

// Nodes is one picture of all nodes; nil knows none. It does not block.
type Nodes interface {
	Mesh() *pbxmesh.Mesh
}

// Sink publishes registrations of the local node. Its methods do not wait.
type Sink interface {
	// Put publishes a registration that was heard of now.
	Put(pbxmesh.Registration)

	// PutBack publishes one that is in the switch again, with the stamp that it had.
	PutBack(pbxmesh.Registration)
}

// Conn is what this package needs of an event socket connection; *esl.Conn is one.
type Conn interface {
	API(ctx context.Context, command string) (string, error)
	Subscribe(ctx context.Context, events, subclasses []string) error
	SendEvent(ctx context.Context, name string, headers []esl.Header, body []byte) error
	Done() <-chan struct{}
	Err() error
	Close() error
}

var _ Conn = (*esl.Conn)(nil)

// Options make a Keeper. All but Settled, Restored, Logger, Now and Dial are required.
type Options struct {
	ESL   esl.Config     // of the local switch; OnEvent is the Keeper's own
	Local pbxmesh.NodeID // the node of that switch

	Directory Directory
	Nodes     Nodes
	Sink      Sink

	// Profile is the mesh profile where the native hook writes rows: a row of ours goes
	// when the one that leads to the phone's new node is there. "" when nothing writes
	// any.
	Profile string

	// Settled hears that what Taken says of an address may have changed. It must not
	// block.
	Settled func(pbxmesh.AOR)

	// Restored hears that a row was written into the switch, which tells nobody. It must
	// not block.
	Restored func()

	Logger *slog.Logger
	Now    func() time.Time
	Dial   func(context.Context, esl.Config) (Conn, error) // nil means esl.Dial
}

// Stats is what listings and metrics show.
type Stats struct {
	Connected bool
	Aside     int    // registrations that are put aside now
	TakenOut  uint64 // rows taken out of the switch because the phone had moved
	PutBack   uint64 // rows written back
	Unsafe    uint64 // that no command can name: the phone may ring twice
}

// Keeper takes the rows of phones that have moved out of the local switch, and writes them
// back when they count again. Changed and NodesChanged never block: they only say where
// to look.
type Keeper struct {
	opts Options
	log  *slog.Logger
	wake chan struct{} // capacity 1

	users atomic.Int64 // len(state): a look at it costs every change of the registry

	mu        sync.Mutex
	connected bool
	all       bool
	queue     map[pbxmesh.AOR]struct{}
	state     map[pbxmesh.AOR]*user
	takes     map[pbxmesh.NodeID]bool // nodes that took calls at the last NodesChanged
	stats     Stats
}

// user is what is known of one address of record. It exists while it holds anything.
type user struct {
	aside []*kept

	// leaving are local registrations that a newer one stands in for, by Call-ID.
	leaving map[string]*leaving
}

// leaving is a registration on its way out of the switch. The switch writes a row that it
// is told of 0.2 s later (mod_sofia collects statements for 39 times 5 ms), and takes one
// out at once. So the other nodes go on sending calls here for a while, and what is on its
// way arrives later still: our row stays until they have done so, and leaves in the moment
// in which the row to the new node is there.
//
//	heard --rowsAfter--> told --row to the new node is there, or outAfter--> done
type leaving struct {
	since pbxmesh.Stamp
	heard time.Time
	told  bool // the native hook may write its row
	done  bool // taken out and not yet gone from the registry, or left alone
	row   row
	err   error // sofia.ErrNoRow: there is nothing to put aside
}

// kept is a registration that was taken out, and how to write it back.
type kept struct {
	reg pbxmesh.Registration
	row row
}

// New returns a Keeper that does nothing before Run.
func New(o Options) *Keeper {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Settled == nil {
		o.Settled = func(pbxmesh.AOR) {}
	}
	if o.Restored == nil {
		o.Restored = func() {}
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, cfg esl.Config) (Conn, error) {
			c, err := esl.Dial(ctx, cfg)
			if err != nil {
				return nil, err // not c: a nil *esl.Conn would be a Conn that is not nil
			}
			return c, nil
		}
	}
	k := &Keeper{
		opts: o, log: o.Logger, wake: make(chan struct{}, 1),
		queue: map[pbxmesh.AOR]struct{}{}, state: map[pbxmesh.AOR]*user{},
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.log = k.log.With("component", "bindings")
	k.opts.ESL.OnEvent = k.onEvent
	return k
}

// Changed says that the registrations of aor may have changed, on any node.
func (k *Keeper) Changed(aor pbxmesh.AOR) {
	if k.users.Load() == 0 && !k.several(aor) {
		return
	}
	k.mu.Lock()
	k.queue[aor] = struct{}{}
	k.mu.Unlock()
	k.poke()
}

// several reports whether aor is registered here and elsewhere.
func (k *Keeper) several(aor pbxmesh.AOR) bool {
	here, there := false, false
	for _, r := range k.opts.Directory.Lookup(aor) {
		if r.Node == k.opts.Local {
			here = true
		} else {
			there = true
		}
	}
	return here && there
}

// NodesChanged says that a node may have come, gone or changed its state.
func (k *Keeper) NodesChanged() {
	mesh := k.opts.Nodes.Mesh()
	takes := map[pbxmesh.NodeID]bool{}
	if mesh != nil {
		for id := range mesh.Nodes {
			takes[id] = mesh.State(id).TakesCalls()
		}
	}
	k.mu.Lock()
	changed := !maps.Equal(takes, k.takes)
	k.takes, k.all = takes, k.all || changed
	k.mu.Unlock()
	if changed {
		k.poke()
	}
}

// Taken reports whether a local registration that another one stands in for is about to
// leave the switch, or will not be taken out. Until then whoever tells the switch of the
// other one waits, so that the phone is never in its table twice.
func (k *Keeper) Taken(r *pbxmesh.Registration) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	u := k.state[r.AOR]
	return !k.connected || u != nil && u.of(r) != nil && u.of(r).told
}

// Stats returns the present figures.
func (k *Keeper) Stats() Stats {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.stats
	s.Connected = k.connected
	for _, u := range k.state {
		s.Aside += len(u.aside)
	}
	return s
}

func (k *Keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// update runs f on what is known of aor, with the lock held.
func (k *Keeper) update(aor pbxmesh.AOR, f func(*user)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	u := k.state[aor]
	if u == nil {
		u = &user{leaving: map[string]*leaving{}}
	}
	f(u)
	if len(u.aside)+len(u.leaving) > 0 {
		k.state[aor] = u
	} else {
		delete(k.state, aor)
	}
	k.users.Store(int64(len(k.state)))
}

// of returns what is known of r on its way out, nil when it is not.
func (u *user) of(r *pbxmesh.Registration) *leaving {
	if l := u.leaving[r.CallID]; l != nil && l.since == r.Since {
		return l
	}
	return nil
}
