package failover

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh"
)

// Defaults of Options: with probes every second a dead node is suspect after
// about one and down after about three.
const (
	DefaultSuspectAfter = 1
	DefaultDownAfter    = 3
	DefaultUpAfter      = 3
)

// Options configure a Tracker.
type Options struct {
	// Self is the node on whose machine the observer runs; "" for a name server
	// that is no node. Its switch is reached without a network, so its silence
	// needs no witness, and its answers prove nothing about our network.
	Self pbxmesh.NodeID

	// SuspectAfter, DownAfter and UpAfter are the thresholds, in probe results in a
	// row; 0 means the default. 1 <= SuspectAfter < DownAfter, UpAfter >= 1.
	SuspectAfter, DownAfter, UpAfter int

	// Observer is this observer's name in its vote, and Instance what tells it from
	// another one of that name.
	Observer, Instance string

	// Site names what shares fate with this observer, see pbxmesh.Node; "" is a site of its
	// own.
	Site string

	// Return says how slowly a node gets its phones back; the zero value is at once.
	Return ReturnOptions

	// DaemonSilentAfter is how long a daemon gives no sign of life until it is silent,
	// LeaveGrace the same for one that was stopped in an orderly way; 0 means the
	// default.
	DaemonSilentAfter, LeaveGrace time.Duration

	// OnTransition is called once per transition, in order, with the tracker's lock
	// held: it must not block and must call nothing of the tracker but Mesh, which
	// already shows the new state.
	OnTransition func(Transition)

	// OnVote is called when what Vote returns says something new, OnDoubt when there
	// is a reason to probe a node at once: another observer lost its answers, or its
	// daemon calls its switch dead. The same rules as for OnTransition.
	OnVote  func()
	OnDoubt func(pbxmesh.NodeID)

	// Logger gets one line per transition; nil discards.
	Logger *slog.Logger
}

// Tracker holds the state of every node. All methods may be called from several
// goroutines; none blocks for longer than a pass over the members takes.
type Tracker struct {
	opts Options
	log  *slog.Logger
	mesh atomic.Pointer[pbxmesh.Mesh]

	mu     sync.Mutex
	nodes  map[pbxmesh.NodeID]*node
	wanted map[pbxmesh.NodeID]pbxmesh.Wanted // outlives a node's membership
	cutOff bool
	now    time.Time // of the latest input; it never goes back

	members   []pbxmesh.Node              // of nodes, in the order of their names
	site      string                      // of this observer
	alone     bool                        // no member stands at another site than this observer
	votes     []SeenVote                  // of the other observers, fresh ones
	recounts  uint64                      // of the votes
	others    map[pbxmesh.NodeID]*ballot  // counts votes
	returning map[pbxmesh.NodeID]bool     // of whose return another observer tells
	loads     map[pbxmesh.NodeID]loadWord // of the others
	counts    map[pbxmesh.NodeID]int      // registrations
	spill     spill
	spoke     spoken // this observer's words at the last judgement
	load      uint16 // what Self wants to shed
	loadWhy   string
	word      SwitchWord // what Self's event socket shows

	readAt  time.Time            // the registry was last read
	stalled map[string]time.Time // since when most daemons of a site, "" for all, are silent
	allDown bool
}

// New returns a Tracker without members. The error names the option out of range.
func New(o Options) (*Tracker, error) {
	o.SuspectAfter = orDefault(o.SuspectAfter, DefaultSuspectAfter)
	o.DownAfter = orDefault(o.DownAfter, DefaultDownAfter)
	o.UpAfter = orDefault(o.UpAfter, DefaultUpAfter)
	switch {
	case o.SuspectAfter < 1:
		return nil, fmt.Errorf("failover: suspect after %d probes, at least 1 is needed", o.SuspectAfter)
	case o.DownAfter <= o.SuspectAfter:
		// Down must come later than the first silence of every other node, or a
		// cut of our own network would take down whoever is probed first.
		return nil, fmt.Errorf("failover: down after %d probes, it must be more than suspect after %d", o.DownAfter, o.SuspectAfter)
	case o.UpAfter < 1:
		return nil, fmt.Errorf("failover: up after %d probes, at least 1 is needed", o.UpAfter)
	}
	if o.DaemonSilentAfter == 0 {
		o.DaemonSilentAfter = DefaultDaemonSilentAfter
	}
	if o.LeaveGrace == 0 {
		o.LeaveGrace = DefaultLeaveGrace
	}
	if o.Return.MaxHold == 0 {
		o.Return.MaxHold = max(DefaultMaxHold, o.Return.Hold)
	}
	switch {
	case o.Return.Hold < 0 || o.Return.Hold > maxHold || o.Return.Ramp < 0 || o.Return.MaxHold > maxHold:
		return nil, fmt.Errorf("failover: phones come back after %v (at most %v) within %v, 0 to %v are allowed", o.Return.Hold, o.Return.MaxHold, o.Return.Ramp, maxHold)
	case o.DaemonSilentAfter < 0 || o.LeaveGrace < 0:
		return nil, fmt.Errorf("failover: a daemon is silent after %v or %v, not before", o.DaemonSilentAfter, o.LeaveGrace)
	}
	t := &Tracker{
		opts:   o,
		log:    o.Logger,
		nodes:  make(map[pbxmesh.NodeID]*node),
		wanted: make(map[pbxmesh.NodeID]pbxmesh.Wanted), stalled: make(map[string]time.Time),
		site: (&Vote{Observer: o.Observer, Self: o.Self, Site: o.Site}).SiteName(),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	t.log = t.log.With("component", "failover")
	t.mesh.Store(&pbxmesh.Mesh{})
	return t, nil
}

// Mesh returns the present picture: never nil, never written to again, without
// blocking. The same pointer is returned until something in it changes.
func (t *Tracker) Mesh() *pbxmesh.Mesh { return t.mesh.Load() }

// SetMembers replaces the members by nodes, as announced at now. Members that
// stay keep their state; one whose addresses changed is probed anew but keeps its
// state, because a new address is no proof of life.
func (t *Tracker) SetMembers(now time.Time, nodes []pbxmesh.Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed := false
	seen := make(map[pbxmesh.NodeID]bool, len(nodes))
	for _, info := range nodes {
		seen[info.ID] = true
		n, ok := t.nodes[info.ID]
		if !ok {
			n = &node{state: pbxmesh.NodeState{Wanted: t.wanted[info.ID], Since: now, Reason: "not yet probed"}, reason: "not yet probed", wordSince: now, spoke: map[string]time.Time{}, spokeMesh: map[string]time.Time{}}
			t.nodes[info.ID] = n
			t.log.Info("node joined", "node", info.ID, "wanted", n.state.Wanted.String())
		}
		if ok && equalNode(n.info, info) {
			continue
		}
		info.Addresses = slices.Clone(info.Addresses) // published: must not share the caller's array
		n.info = info
		changed = true
	}
	for id := range t.nodes {
		if !seen[id] {
			delete(t.nodes, id)
			t.log.Info("node left", "node", id)
			changed = true
		}
	}
	if changed {
		t.members = t.members[:0]
		for _, id := range slices.Sorted(maps.Keys(t.nodes)) {
			t.members = append(t.members, t.nodes[id].info)
		}
		t.alone = !anyOutside(t.members, t.site)
		t.recount()
	}
	t.settle(now, changed)
}

// outside reports whether an answer of n proves something of this observer's network.
func (t *Tracker) outside(n *node) bool { return outside(&n.info, t.site, t.opts.Self, t.alone) }

// Probe takes in the result of one probe. Results of strangers, and results older
// than the last one of that path, are ignored.
func (t *Tracker) Probe(r ProbeResult) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[r.Node]
	if n == nil || r.Path >= numPaths || r.At.IsZero() {
		return
	}
	p := &n.paths[r.Path]
	if r.At.Before(p.last.At) {
		return
	}
	p.last = r
	deciding := r.Path == n.decides()
	p.streak++
	switch r.Outcome {
	case OutcomeLate:
		p.streak-- // neither an answer nor none
	case OutcomeOK:
		p.silent, p.overloaded, p.answered = 0, 0, true
		p.quiet = p.quiet && p.streak < t.opts.UpAfter
	case OutcomeOverloaded:
		p.silent, p.streak, p.answered = 0, 0, true
		p.overloaded++
		p.quiet = p.quiet && p.overloaded < t.opts.UpAfter
	default:
		p.answered = false
		if p.silent == 0 {
			p.silentSince = r.At
			if deciding {
				n.before = n.state.Observed
			}
		}
		p.silent++
		p.overloaded, p.streak = 0, 0
		// An observer that is cut off learns nothing about others.
		p.quiet = p.quiet || p.silent >= t.opts.DownAfter && (!t.cutOff || r.Node == t.opts.Self)
	}
	if deciding && r.Outcome != OutcomeLate {
		if r.Outcome == OutcomeOK {
			n.streak++
		} else {
			n.streak = 0
		}
	}
	t.settle(r.At, false)
}

// Lease takes in the registry's view of one node. Reports about strangers are ignored.
func (t *Tracker) Lease(l LeaseReport) { t.Leases(l.At, []LeaseReport{l}) }

// Leases takes in the registry's view of several nodes at once.
func (t *Tracker) Leases(now time.Time, reports []LeaseReport) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range reports {
		n := t.nodes[reports[i].Node]
		if n == nil {
			continue
		}
		dead := n.leaseDead()
		n.lease = reports[i]
		n.daemon.left = n.lease.Left
		n.daemon.hear(n.lease.Seen)
		if !dead && n.leaseDead() {
			n.streak = 0 // answers from before the daemon's word do not lead back up
			t.doubt(n.info.ID)
		}
	}
	t.settle(now, false)
}

// SetWanted records what the operator wants of id, member or not yet. No probe
// and no lease changes it.
func (t *Tracker) SetWanted(now time.Time, id pbxmesh.NodeID, w pbxmesh.Wanted) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w == pbxmesh.WantedInService {
		delete(t.wanted, id)
	} else {
		t.wanted[id] = w
	}
	n := t.nodes[id]
	if n == nil || n.state.Wanted == w {
		return
	}
	old := n.state
	n.state.Wanted = w
	t.publish(now)
	t.announce(Transition{Node: id, Old: old, New: n.state, At: now})
}

// settle judges every node again after an input, publishes when anything is
// different, and announces what changed. One input can change several nodes: the
// one answer that ends an observer's isolation, for example.
func (t *Tracker) settle(now time.Time, changed bool) {
	if now.Before(t.now) {
		now = t.now // probes end on several goroutines
	}
	if gap := now.Sub(t.now); gap > settleGap && !t.now.IsZero() {
		t.stood(gap)
	}
	t.now = now
	t.settleLink()

	best, second := t.witnesses()
	self := voter{observer: t.opts.Observer, site: t.site, self: t.opts.Self}
	for i := range t.members {
		n := t.nodes[t.members[i].ID]
		witness := best
		if n == best {
			witness = second
		}
		n.view = view{
			cutOff: t.cutOff, own: n.info.ID == t.opts.Self, only: len(t.nodes) == 1,
			witness: witness != nil && witness.main().last.At.After(n.main().silentSince),
		}
		main, mesh := n.main(), &n.paths[PathMesh]
		main.witnessed = main.quiet && (main.witnessed || n.view.own || n.view.witness)
		if n.decides() == PathPhones { // who answers phones is a witness for its own mesh address
			mesh.witnessed = mesh.quiet && (mesh.witnessed || best != nil && best.main().last.At.After(mesh.silentSince))
		}
		t.speak(n, n.view, now)
		self.reaches = self.reaches || t.outside(n) && (n.word == WordAnswers || n.word == WordOverloaded)
	}
	down, troubled := 0, 0
	for i := range t.members {
		n := t.nodes[t.members[i].ID]
		t.tallyUp(n, self, now)
		n.old = n.state
		n.state.Mesh = t.meshReach(n)
		n.state.Observed, n.reason = judge(n, n.view, &t.opts)
		if !n.tally.Few && (n.tally.Down() || !n.tally.Shaken()) {
			n.firm = n.state.Observed
		}
		if n.state.Observed == pbxmesh.ObservedDown {
			down++
		}
		if n.trouble = trouble(n); n.trouble != "" || n.state.Wanted != pbxmesh.WantedInService {
			troubled++
		}
	}
	t.spillOver()
	var transitions []Transition
	for i := range t.members {
		n := t.nodes[t.members[i].ID]
		n.state.Full = t.spill.full[n.info.ID]
		sheds := t.settleShed(n, troubled == len(t.members), now)
		n.state.Reason = n.reason
		if n.shedWhy != "" && n.state.Observed == pbxmesh.ObservedUp {
			n.state.Reason += "; " + n.shedWhy
		}
		if n.state == n.old {
			continue
		}
		changed = true
		if n.state.Observed != n.old.Observed {
			n.state.Since = now
			n.transitions[n.state.Observed]++
		}
		if n.state.Observed != n.old.Observed || n.state.TakesCalls() != n.old.TakesCalls() {
			transitions = append(transitions, Transition{Node: n.info.ID, Old: n.old, New: n.state, At: now})
		}
		if sheds {
			t.logShed(n, n.old.Shed)
		}
	}
	if changed {
		t.publish(now)
	}
	for _, tr := range transitions {
		t.announce(tr)
	}
	if all := down > 0 && down == len(t.nodes); all != t.allDown {
		t.allDown = all
		if all {
			t.log.Error("EVERY NODE IS DOWN as this observer sees it: no phone can register; name servers answer with all nodes", "nodes", down)
		} else {
			t.log.Warn("not every node is down any more", "down", down, "nodes", len(t.nodes))
		}
	}
	if t.news(now) && t.opts.OnVote != nil {
		t.opts.OnVote()
	}
}

// settleLink finds out whether this observer is cut off itself.
func (t *Tracker) settleLink() {
	remote, answering := 0, 0
	for _, n := range t.nodes {
		if p := n.main(); t.outside(n) && p.probed() && p.last.Outcome != OutcomeLate {
			remote++
			if p.answers() {
				answering++
			}
		}
	}
	wasCutOff := t.cutOff
	t.cutOff = remote >= 2 && answering == 0
	if t.cutOff != wasCutOff {
		t.log.Warn("observer's own link", "cut_off", t.cutOff, "remote_nodes", remote)
	}
	if wasCutOff && !t.cutOff {
		// What was lost while we were cut off says nothing about the nodes.
		for id, n := range t.nodes {
			if id != t.opts.Self {
				for i := range n.paths {
					p := &n.paths[i]
					p.silent, p.quiet = 0, p.quiet && p.witnessed
				}
			}
		}
	}
}

// witnesses returns the two nodes outside that answered last and still do, nil for none.
func (t *Tracker) witnesses() (best, second *node) {
	for _, n := range t.nodes {
		if !t.outside(n) || !n.main().answers() {
			continue
		}
		switch at := n.main().last.At; {
		case best == nil || at.After(best.main().last.At):
			best, second = n, best
		case second == nil || at.After(second.main().last.At):
			second = n
		}
	}
	return best, second
}

// publish stores a new picture. Everything in it is a copy.
func (t *Tracker) publish(now time.Time) {
	m := &pbxmesh.Mesh{
		Nodes:  make(map[pbxmesh.NodeID]pbxmesh.Node, len(t.nodes)),
		States: make(map[pbxmesh.NodeID]pbxmesh.NodeState, len(t.nodes)),
		At:     now,
	}
	for id, n := range t.nodes {
		m.Nodes[id] = n.info
		m.States[id] = n.state
	}
	t.mesh.Store(m)
}

// announce logs a transition and hands it on, after the picture that shows it is
// published.
func (t *Tracker) announce(tr Transition) {
	level := slog.LevelInfo
	if tr.New.Effective() > tr.Old.Effective() {
		level = slog.LevelWarn // for the worse
	}
	t.log.Log(noContext, level, "node state",
		"node", tr.Node,
		"old", tr.Old.Observed.String(), "new", tr.New.Observed.String(),
		"wanted", tr.New.Wanted.String(),
		"effective", tr.New.Effective().String(), "was_effective", tr.Old.Effective().String(),
		"takes_calls", tr.New.TakesCalls(),
		"reason", tr.New.Reason)
	if t.opts.OnTransition != nil {
		t.opts.OnTransition(tr)
	}
}
