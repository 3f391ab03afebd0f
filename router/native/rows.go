package native

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// Defaults and bounds of RowsOptions.
const (
	DefaultProfile     = "mesh"
	DefaultRowTTL      = 5 * time.Minute
	DefaultRepairEvery = time.Minute
	DefaultMaxQueue    = 200_000
	DefaultRefreshRate = 100

	minRowTTL = 20 * time.Second
)

// Directory is the replica of the registry as this package reads it. Its methods
// do not block and may be called from any goroutine, but not from within fn.
type Directory interface {
	// Lookup returns the registrations of aor on all nodes. Expired ones may be
	// among them. Nobody writes to what it returns.
	Lookup(aor pbxmesh.AOR) []*pbxmesh.Registration

	// Walk calls fn for every registration, until fn returns false. Those that
	// change meanwhile may be left out, as long as Changed is called for them.
	Walk(fn func(*pbxmesh.Registration) bool)
}

// everybody returns the addresses of record that have a registration, at most
// limit; some may come twice. They are collected first, because Directory forbids
// a look-up within Walk.
func everybody(d Directory, limit int) []pbxmesh.AOR {
	var out []pbxmesh.AOR
	d.Walk(func(r *pbxmesh.Registration) bool {
		if n := len(out); n == 0 || out[n-1] != r.AOR {
			out = append(out, r.AOR)
		}
		return len(out) < limit
	})
	return out
}

// Nodes is one picture of all nodes; nil knows none. It does not block.
type Nodes interface {
	Mesh() *pbxmesh.Mesh
}

// RowsOptions say where rows go and for how long. Zero values mean the defaults.
type RowsOptions struct {
	// ESL is the local switch's event socket. OnEvent is ignored.
	ESL esl.Config

	// Local is this node, which never gets a row.
	Local pbxmesh.NodeID

	Directory Directory
	Nodes     Nodes

	// Taken reports whether a local registration that another node's stands in for is out
	// of the switch, or will not be taken out: until then that node gets no row, because
	// the switch would ring one phone twice. Changed is called when that changes. It must
	// not block. nil waits for nothing.
	Taken func(*pbxmesh.Registration) bool

	// Profile is the mesh profile that holds the rows. It needs
	// multiple-registrations=true, or a user has only one row.
	Profile string

	// TTL is how long the switch keeps a row that nobody refreshes: how long calls
	// go astray after a daemon died. Rows are refreshed at 40 to 50 % of it. At
	// least 20 s.
	TTL time.Duration

	// RefreshRate bounds the refreshes a second: with more rows than it allows for,
	// rows live longer than TTL. A switch spends about a millisecond of one core on
	// each, so 100 are a tenth of a core, reached at 13,500 rows of five minutes.
	RefreshRate int

	// RepairEvery is the time between two comparisons with the switch, jittered
	// down by up to a half. A comparison never takes more than 2 % of the time:
	// with very many rows they become rarer by themselves.
	RepairEvery time.Duration

	// MaxQueue bounds the addresses of record that wait for being looked up. With
	// more, the queue is given up for one walk over all of them.
	MaxQueue int

	Logger *slog.Logger
	Dial   Dialer // nil means esl.Dial
}

// RowsStats is what listings and metrics show.
type RowsStats struct {
	Connected bool `json:"connected"`
	// Ready says that rows are being kept: connected, the mesh profile runs, and
	// the directory has been said to be complete.
	Ready    bool   `json:"ready"`
	CoreUUID string `json:"core_uuid"`
	Error    string `json:"error,omitempty"` // why not Connected or not Ready

	Rows  int           `json:"rows"`  // in the switch
	Queue int           `json:"queue"` // users that wait for an event
	TTL   time.Duration `json:"ttl"`   // of a row written now

	Injected  uint64 `json:"injected"` // refreshes not included
	Refreshed uint64 `json:"refreshed"`
	Removed   uint64 `json:"removed"`

	// Restored is what differed on the first look after a connect; Drift is what
	// went astray while we watched.
	Restored Drift `json:"restored"`
	Drift    Drift `json:"drift"`

	Repairs      uint64        `json:"repairs"`
	LastRepair   time.Time     `json:"last_repair"`
	RepairTook   time.Duration `json:"repair_took"`
	QueueDropped uint64        `json:"queue_dropped"` // times MaxQueue was reached
}

// Rows keeps the local switch's rows equal to what the mesh knows: for every
// address of record one row for each remote node that holds a live registration
// and takes calls.
//
// Notifications never block. What they say is only where to look: the newest state
// is read when an event is about to be sent, so a user that changes a thousand
// times while the switch is slow costs one event.
type Rows struct {
	opts RowsOptions
	link link
	log  *slog.Logger

	wake     chan struct{} // has a token while there is something new
	profiles chan struct{} // has a token when the mesh profile's rows are to be compared

	mu      sync.Mutex
	ready   bool // Resync has been called once
	resync  bool
	nodes   map[pbxmesh.NodeID]netip.AddrPort // as of the last NodesChanged
	changes map[pbxmesh.AOR]struct{}
	lost    []string // Call-IDs of rows that the switch said it dropped
	leaving bool
	left    chan struct{} // closed when leaving and no row is left
	stats   RowsStats

	// Only Run's goroutine touches what follows.
	table *table
	core  string
}

// NewRows returns Rows that does nothing before Run.
func NewRows(opts RowsOptions) *Rows {
	if opts.Profile == "" {
		opts.Profile = DefaultProfile
	}
	if opts.TTL <= 0 {
		opts.TTL = DefaultRowTTL
	}
	opts.TTL = max(opts.TTL, minRowTTL)
	if opts.RepairEvery <= 0 {
		opts.RepairEvery = DefaultRepairEvery
	}
	if opts.RefreshRate <= 0 {
		opts.RefreshRate = DefaultRefreshRate
	}
	if opts.MaxQueue <= 0 {
		opts.MaxQueue = DefaultMaxQueue
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Dial == nil {
		opts.Dial = dialESL
	}
	log := opts.Logger.With("component", "native rows")
	return &Rows{
		opts: opts, log: log,
		link:     link{dial: opts.Dial, cfg: opts.ESL, log: log, what: "injected rows"},
		wake:     make(chan struct{}, 1),
		profiles: make(chan struct{}, 1),
		changes:  make(map[pbxmesh.AOR]struct{}),
		left:     make(chan struct{}),
		table:    newTable(opts.Local, opts.TTL, opts.RefreshRate),
	}
}

// Changed says that the registrations of aor may have changed, on any node.
func (r *Rows) Changed(aor pbxmesh.AOR) {
	r.mu.Lock()
	switch {
	case r.resync || aor.IsZero(): // all of them will be looked up
	case len(r.changes) >= r.opts.MaxQueue:
		clear(r.changes)
		r.resync = true
		r.stats.QueueDropped++
	default:
		r.changes[aor] = struct{}{}
	}
	r.mu.Unlock()
	poke(r.wake)
}

// NodesChanged says that a node may have come, gone, moved or changed its state.
func (r *Rows) NodesChanged() {
	now := usableNodes(r.opts.Nodes.Mesh(), r.opts.Local)
	r.mu.Lock()
	same := r.nodes != nil && len(now) == len(r.nodes)
	for id, a := range now {
		same = same && r.nodes[id] == a
	}
	r.nodes = now
	r.resync = r.resync || !same
	r.mu.Unlock()
	if !same {
		poke(r.wake)
	}
}

// Resync says that the directory is complete now, or again, and is to be compared
// as a whole. Until its first call nothing is written to the switch: rows of an
// earlier life of this daemon must not fall to a directory that is still filling.
func (r *Rows) Resync() {
	r.mu.Lock()
	r.ready, r.resync = true, true
	r.mu.Unlock()
	poke(r.wake)
}

// Leave removes every row, for a node that leaves the mesh for good, and waits
// for that until ctx ends. There is no way back but a new Rows. A daemon that only
// stops does not call it: its rows go on working and age out.
func (r *Rows) Leave(ctx context.Context) error {
	r.mu.Lock()
	r.leaving, r.ready, r.resync = true, true, true
	r.mu.Unlock()
	poke(r.wake)
	select {
	case <-r.left:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Stats returns the present figures.
func (r *Rows) Stats() RowsStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Queue += len(r.changes)
	return s
}

// Run keeps the rows until ctx ends, which is the only error it returns. It
// reconnects by itself. Rows stay in the switch when it returns.
func (r *Rows) Run(ctx context.Context) error {
	r.link.run(ctx, r.onEvent, r.linkState, r.session)
	r.linkState(context.Cause(ctx))
	return context.Cause(ctx)
}

func (r *Rows) linkState(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Connected, r.stats.Ready, r.stats.Error = err == nil, false, ""
	if err != nil {
		r.stats.Error = err.Error()
	}
}

// onEvent runs on the connection's reader and must not wait.
func (r *Rows) onEvent(e *esl.Event) {
	switch e.Subclass() {
	case profileStart:
		if name := e.Get("profile_name"); name == "" || name == r.opts.Profile {
			poke(r.profiles)
		}
	case rowExpire:
		if e.Get("profile-name") == r.opts.Profile {
			r.lose(e.Get("call-id"))
		}
	}
}

// lose notes that the switch dropped a row. It ran out, or somebody removed it by hand
// (`sofia profile mesh flush_inbound_reg`, which is what the button Unregister of a web
// interface sends): without its row the user is unreachable until the next comparison.
func (r *Rows) lose(callID string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lost) >= r.opts.MaxQueue {
		poke(r.profiles)
		return
	}
	r.lost = append(r.lost, callID)
	poke(r.wake)
}

// wants returns the rows that aor should have: one for each remote node that holds
// a live registration, takes calls and can be reached. Of the registrations that one
// device has on several nodes only the newest counts.
func (r *Rows) wants(aor pbxmesh.AOR, mesh *pbxmesh.Mesh, now time.Time) []want {
	var out []want
	regs := r.opts.Directory.Lookup(aor)
	for _, reg := range regs {
		if reg == nil || reg.AOR != aor || reg.Node == r.opts.Local || !reg.Live(now) {
			continue
		}
		if pbxmesh.Superseded(reg, regs, mesh, r.opts.Local, now) != nil || r.stillHere(reg, regs, mesh, now) {
			continue
		}
		if i := indexWant(out, reg.Node); i >= 0 {
			if out[i].until.Before(reg.Expires) {
				out[i].until = reg.Expires
			}
			continue
		}
		if a, ok := usable(mesh, reg.Node); ok {
			out = append(out, want{node: reg.Node, mesh: a, until: reg.Expires})
		}
	}
	return out
}

// cameHere reports whether the phone that node's row leads to has registered here since.
func (r *Rows) cameHere(aor pbxmesh.AOR, node pbxmesh.NodeID, mesh *pbxmesh.Mesh, now time.Time) bool {
	regs := r.opts.Directory.Lookup(aor)
	for _, reg := range regs {
		if reg == nil || reg.Node != node || !reg.Live(now) {
			continue
		}
		if by := pbxmesh.Superseded(reg, regs, mesh, r.opts.Local, now); by != nil && by.Node == r.opts.Local {
			return true
		}
	}
	return false
}

// stillHere reports whether the local switch has a row of the device that reg is the
// newest registration of, and will soon have none.
func (r *Rows) stillHere(reg *pbxmesh.Registration, regs []*pbxmesh.Registration, mesh *pbxmesh.Mesh, now time.Time) bool {
	if r.opts.Taken == nil || len(regs) < 2 {
		return false
	}
	for _, l := range regs {
		if l != nil && l.Node == r.opts.Local && l.Live(now) &&
			pbxmesh.Superseded(l, regs, mesh, r.opts.Local, now) == reg && !r.opts.Taken(l) {
			return true
		}
	}
	return false
}

func indexWant(wants []want, node pbxmesh.NodeID) int {
	for i := range wants {
		if wants[i].node == node {
			return i
		}
	}
	return -1
}

// usable returns where calls to node go, and whether any do.
func usable(mesh *pbxmesh.Mesh, id pbxmesh.NodeID) (netip.AddrPort, bool) {
	node, ok := mesh.Node(id)
	if !ok || !mesh.State(id).TakesCalls() {
		return netip.AddrPort{}, false
	}
	return meshAddr(node.Mesh)
}

func usableNodes(mesh *pbxmesh.Mesh, local pbxmesh.NodeID) map[pbxmesh.NodeID]netip.AddrPort {
	out := make(map[pbxmesh.NodeID]netip.AddrPort)
	if mesh == nil {
		return out
	}
	for id := range mesh.Nodes {
		if a, ok := usable(mesh, id); ok && id != local {
			out[id] = a
		}
	}
	return out
}

// poke leaves a token in c unless there is one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
