package app

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pbxmesh"
	"pbxmesh/failover/drain"
	"pbxmesh/internal/control"
	"pbxmesh/internal/esl"
	"pbxmesh/registry"
)

const (
	// progressTTL is how long a progress counts that nobody brings up to date.
	progressTTL = 10 * time.Second

	// loadsEvery bounds how often registrations are counted for the pace.
	loadsEvery = time.Second
)

// drains is the progress of drains: our own, and what other daemons say of theirs.
type drains struct {
	mu       sync.Mutex
	progress map[pbxmesh.NodeID]seenProgress
	own      drain.Progress // of the local node; zero Updated: none
	posted   time.Time      // Updated of the own one on the board
	after    uint64

	loads  []drain.Load // for the pace
	loaded time.Time
}

// seenProgress is a progress and when it came, on our clock.
type seenProgress struct {
	drain.Progress
	at time.Time
}

// buildDrain prepares what empties the local node. It runs before the wishes are read.
func (a *App) buildDrain() error {
	if a.cfg.Node == nil {
		return nil
	}
	sw, cfg := a.cfg.FreeSWITCH, a.cfg.Failover.Drain
	password, err := sw.EventSocket.PasswordFile.Read()
	if err != nil {
		return fmt.Errorf("freeswitch.event_socket.password_file: %w", err)
	}
	a.drainer = drain.New(drain.Options{
		Node: a.nodeID(), ESL: esl.Config{Address: string(sw.EventSocket.Address), Password: password},
		Settings:  drain.Settings{Method: drain.Method(cfg.Method), After: cfg.After, Grace: cfg.Grace, Again: cfg.Again},
		Directory: a.replica, TakesCalls: a.takesCalls, Pace: a.pace, Logger: a.log, Now: a.now,
		OnProgress: func(p drain.Progress) {
			a.wishes.drains.mu.Lock()
			defer a.wishes.drains.mu.Unlock()
			a.wishes.drains.own = p
		},
	})
	return nil
}

func (a *App) startWishes() {
	a.task("wishes", a.keepWishes)
	a.task("wishes told", func(ctx context.Context) error {
		return a.wishes.told.watch(ctx, a.wishes.board, a.cfg.Registry.LeaseRenew, a.log)
	})
	if a.drainer != nil {
		a.task("drain", a.drainer.Run)
	}
}

func (a *App) takesCalls(node pbxmesh.NodeID) bool {
	return a.tracker.Mesh().State(node).TakesCalls()
}

// pace is what the other nodes can take now.
func (a *App) pace() (int, string) {
	d := &a.wishes.drains
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := a.now(); now.Sub(d.loaded) >= loadsEvery {
		d.loads, d.loaded = a.loads(), now
	}
	return drain.Pace(a.nodeID(), d.loads, a.cfg.Failover.Drain.Pace, a.wishes.book.Get(a.nodeID()).Force)
}

// loads is how full every node is.
func (a *App) loads() []drain.Load {
	mesh := a.tracker.Mesh()
	members := a.replica.Members()
	out := make([]drain.Load, 0, len(members))
	for _, m := range members {
		state := mesh.State(m.Node.ID)
		l := drain.Load{
			Node: m.Node.ID, Capacity: m.Node.Capacity, Registrations: a.registrations(m.Node.ID),
			Leaving:     state.Wanted == pbxmesh.WantedDraining && state.Observed != pbxmesh.ObservedDown,
			TakesPhones: len(m.Node.Addresses) > 0 && state.Effective().TakesPhones(),
		}
		if m.LeaseHeld {
			l.Sessions, l.MaxSessions = m.Lease.Switch.Sessions, m.Lease.Switch.MaxSessions
		}
		out = append(out, l)
	}
	return out
}

// registrations counts the live ones of a node.
func (a *App) registrations(node pbxmesh.NodeID) int {
	n, now := 0, a.now()
	a.replica.WalkNode(node, func(r *pbxmesh.Registration) bool {
		if r.Live(now) {
			n++
		}
		return true
	})
	return n
}

// syncDrains posts how far our drain is and reads how far the others' are.
func (a *App) syncDrains(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, boardTimeout)
	defer cancel()
	d := &a.wishes.drains
	d.mu.Lock()
	own, posted, after := d.own, d.posted, d.after
	d.mu.Unlock()
	if a.wishes.book.Get(a.nodeID()).Wanted != pbxmesh.WantedDraining {
		own = drain.Progress{}
	}
	if !own.Updated.Equal(posted) {
		note := registry.Note{Kind: registry.NoteDrain, Key: string(a.nodeID()), TTL: progressTTL}
		if !own.Updated.IsZero() {
			text, err := own.Encode()
			if err != nil {
				return err
			}
			note.Value = text
		}
		if err := a.wishes.board.Post(ctx, note); err != nil {
			return err
		}
		d.mu.Lock()
		d.posted = own.Updated
		d.mu.Unlock()
	}
	if !a.someoneDrains() {
		return nil
	}
	notes, next, _, err := a.wishes.board.Notes(ctx, registry.NoteDrain, after)
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.after = next
	now := a.now()
	for _, n := range notes {
		p, err := drain.DecodeProgress(n.Key, n.Value)
		if err != nil {
			a.log.Debug("progress of a drain is not valid", "key", n.Key, "error", err)
			continue
		}
		d.progress[p.Node] = seenProgress{p, now}
	}
	for id, p := range d.progress {
		if now.Sub(p.at) > progressTTL {
			delete(d.progress, id)
		}
	}
	return nil
}

func (a *App) someoneDrains() bool {
	for _, w := range a.wishes.book.All() {
		if w.Wanted == pbxmesh.WantedDraining && w.Node != a.nodeID() {
			return true
		}
	}
	return false
}

// progressOf returns how far node's drain is; ok is false when its daemon says nothing
// or no drain goes on. What was said before the present wish is about another drain.
func (a *App) progressOf(node pbxmesh.NodeID) (p drain.Progress, ok bool) {
	wish := a.wishes.book.Get(node)
	if wish.Wanted != pbxmesh.WantedDraining {
		return p, false
	}
	d := &a.wishes.drains
	d.mu.Lock()
	defer d.mu.Unlock()
	if node == a.nodeID() {
		p = d.own
		return p, p.Turn == wish.Turn && a.now().Sub(p.Updated) < progressTTL
	}
	seen, ok := d.progress[node]
	return seen.Progress, ok && seen.Turn == wish.Turn && a.now().Sub(seen.at) < progressTTL
}

func shownDrain(p drain.Progress) *control.Drain {
	out := &control.Drain{
		Method: string(p.Method), Started: p.Started, Updated: p.Updated, Registrations: p.Registrations, InCall: p.InCall,
		Calls: p.Calls, Total: p.Total, Moved: p.Moved, Told: p.Told, Flushed: p.Flushed, Returned: p.Returned,
		Pace: p.Pace, Pause: p.Pause, Error: p.Err,
	}
	if p.LeftSeconds >= 0 {
		out.LeftSeconds = &p.LeftSeconds
	}
	return out
}

// Drain answers how far a node is from being empty.
func (a *App) Drain(_ context.Context, node pbxmesh.NodeID) (*control.DrainReply, error) {
	m, err := a.member(node)
	if err != nil {
		return nil, err
	}
	state, wish := a.tracker.Mesh().State(node), a.wishes.book.Get(node)
	reply := &control.DrainReply{
		Node: node, Wanted: state.Wanted.String(), Effective: state.Effective().String(), Registrations: a.registrations(node),
		WantedBy: wish.By, WantedReason: wish.Reason,
	}
	if !wish.At.IsZero() {
		reply.WantedSince = &wish.Since
	}
	p, told := a.progressOf(node)
	switch {
	case told:
		reply.Drain, reply.Empty = shownDrain(p), p.Done()
		reply.Notice = p.Err
		if reply.Notice == "" {
			reply.Notice = p.Pause
		}
	case state.Observed == pbxmesh.ObservedDown:
		reply.Empty, reply.Notice = true, string(node)+" is down: "+state.Reason
	case !m.Local && !m.LeaseHeld:
		reply.Notice = fmt.Sprintf("the daemon of %s is silent: its phones leave by themselves, and its calls cannot be counted", node)
		if reply.Registrations == 0 {
			reply.Notice = fmt.Sprintf("the daemon of %s is silent: no phone is left there, and its calls cannot be counted; `fs_cli -x 'show calls count'` does there", node)
		}
	case state.Wanted == pbxmesh.WantedDraining:
		reply.Notice = fmt.Sprintf("the daemon of %s has not answered yet", node)
	}
	return reply, nil
}

// showWish puts what the operator wanted, and how far that is, into a listing.
func (a *App) showWish(n *control.Node) {
	wish := a.wishes.book.Get(n.ID)
	if !wish.At.IsZero() {
		n.WantedSince, n.WantedBy, n.WantedReason = &wish.Since, wish.By, wish.Reason
	}
	if p, ok := a.progressOf(n.ID); ok {
		n.Drain = shownDrain(p)
	}
}

// hearArrival tells our drain of a registration that began on another node.
func (a *App) hearArrival(c registry.Change) {
	if a.drainer != nil && c.Old == nil && c.New != nil && c.New.Node != a.nodeID() {
		a.drainer.Arrived(c.New)
	}
}

var (
	descWanted = prometheus.NewDesc("pbxmesh_node_wanted",
		"1 for what an operator wants of a node.", []string{"node", "wanted"}, nil)
	descDrainLeft = prometheus.NewDesc("pbxmesh_drain_left",
		"What is left on this node while it is drained; absent otherwise.", []string{"what"}, nil)
	descDrainPhones = prometheus.NewDesc("pbxmesh_drain_phones",
		"Phones of this node's drain by what happened to them since it started; absent when none goes on.", []string{"what"}, nil)
	descDrainPace = prometheus.NewDesc("pbxmesh_drain_pace",
		"Registrations per second that the other nodes may receive from this node's drain; 0 while it is held up.", nil, nil)
)

// drainCollector is collector for wishes and the drain.
type drainCollector struct{ a *App }

// Describe implements prometheus.Collector.
func (drainCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descWanted, descDrainLeft, descDrainPhones, descDrainPace} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c drainCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	mesh := c.a.tracker.Mesh()
	for id := range mesh.Nodes {
		gauge(descWanted, 1, string(id), mesh.State(id).Wanted.String())
	}
	p, ok := c.a.progressOf(c.a.nodeID())
	if !ok {
		return
	}
	gauge(descDrainLeft, p.Registrations, "registrations")
	if p.Calls >= 0 {
		gauge(descDrainLeft, p.Calls, "calls")
	}
	for what, n := range map[string]int{"moved": p.Moved, "told": p.Told, "flushed": p.Flushed, "returned": p.Returned, "in-call": p.InCall} {
		gauge(descDrainPhones, n, what)
	}
	gauge(descDrainPace, p.Pace)
}
