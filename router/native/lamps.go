package native

import (
	"container/heap"
	"context"
	"log/slog"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// Defaults and bounds of Lamps.
const (
	DefaultCallTTL = 24 * time.Second

	minCallTTL = 3 * time.Second
	maxCallTTL = 5 * time.Minute
	maxCalls   = 50_000 // of other nodes, statuses included; more are left out and counted

	// Statuses last longer than calls, and what they outlive is a daemon's restart: its
	// next life takes them up again.
	statusTTL    = 2 * time.Minute
	maxStatusTTL = 10 * time.Minute
	maxStatuses  = 10_000 // of this node
	maxDomains   = 10_000

	// answerWithin is how long after a probe a status counts as the answer to it: what
	// this switch knows, and no news.
	answerWithin = 2 * time.Second

	// probeDelay and hangupDelay let the switch send its own NOTIFY first: ours
	// must be the last word.
	probeDelay  = 150 * time.Millisecond
	hangupDelay = 100 * time.Millisecond

	// repeatEnd is when the end of a user's last call is shown once more. The
	// switch drops presence events when it is flooded, and this is the one event
	// nothing else would make good for.
	repeatEnd = 3 * time.Second
)

// LampsOptions say whose calls are told to whom.
type LampsOptions struct {
	ESL       esl.Config // of the local switch; OnEvent is ignored
	Local     pbxmesh.NodeID
	Directory Directory // tells local users
	Nodes     Nodes
	Exchange  Exchange

	// TTL is how long other nodes believe in a call that is not repeated: what a
	// lamp can stick at most when the node, its daemon or the exchange is lost.
	// Repeated at a third of it. DefaultCallTTL when 0.
	TTL time.Duration

	Logger *slog.Logger
	Dial   Dialer // nil means esl.Dial
}

// LampsStats is what listings and metrics show.
type LampsStats struct {
	Connected bool   `json:"connected"`
	Error     string `json:"error,omitempty"`

	Told     TellerStats `json:"told"`
	Statuses TellerStats `json:"statuses"` // what scripts, phones and places of this node say without a call
	Remote   int         `json:"remote"`   // running calls of other nodes' users, and statuses
	Shown    uint64      `json:"shown"`    // events injected
	Probes   uint64      `json:"probes"`   // new subscriptions that were shown a running call
	Expired  uint64      `json:"expired"`  // calls ended because nobody repeated them
	NodeLost uint64      `json:"nodelost"` // calls ended because their node went down
	Mended   uint64      `json:"mended"`   // own calls whose events had been missed
	Dropped  uint64      `json:"dropped"`  // calls over the bound
	Late     uint64      `json:"late"`     // events that came after a newer one about the same
}

// Lamps shows the calls of other nodes' users on the local switch's phones (BLF)
// and tells the other nodes about the calls of the local users; and what lights a
// lamp without a call likewise: do not disturb, parking places, conferences.
//
// Told are only events of the local switch itself about users that are registered
// here, and numbers that are registered nowhere; what is injected makes no event, so
// nothing can go round. A lamp is put out by whatever comes first: the end of the call,
// its node going down, a new life of its node's switch, or TTL without a repetition.
type Lamps struct {
	opts     LampsOptions
	link     link
	log      *slog.Logger
	teller   *teller // of calls
	statuses *teller
	wake     chan struct{}

	mu    sync.Mutex
	core  string // of the connected switch
	lamps map[lampKey]*lamp
	due   lampHeap
	calls int    // of other nodes, and their statuses
	count uint64 // of what was heard
	stats LampsStats
	// epochs are the lives of the nodes' switches that were heard of last, by kind.
	epochs map[epochKey]string

	spellings spellings
	domains   map[string]bool       // that have or had users
	over      map[string]bool       // calls that a script ended, by key, while their channels live
	asked     map[lampKey]time.Time // when a phone here last asked for a state
	order     order                 // of what the switch says
	orphans   []State               // what an earlier life told, until core is known

	// believe is how many lists to come are believed at once, mend the channels
	// without an own call in the last list. The session's alone.
	believe int
	mend    map[string]bool
}

type epochKey struct {
	kind string
	node pbxmesh.NodeID
}

// lamp is one user with running calls, or something else that is watched and lit.
type lamp struct {
	key    lampKey
	calls  map[string]*remoteCall         // of other nodes
	own    map[string]State               // of this one
	status map[pbxmesh.NodeID]*remoteCall // this node's included
	next   State                          // what to show at the time at
	again  bool                           // next has been shown and is repeated
	at     time.Time
	index  int // in the heap, -1 when not in it
}

type remoteCall struct {
	State
	until time.Time
	order uint64 // the higher one was heard later
}

// NewLamps returns Lamps that does nothing before Run.
func NewLamps(opts LampsOptions) *Lamps {
	if opts.TTL <= 0 {
		opts.TTL = DefaultCallTTL
	}
	opts.TTL = min(max(opts.TTL, minCallTTL), maxCallTTL)
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Dial == nil {
		opts.Dial = dialESL
	}
	log := opts.Logger.With("component", "native lamps")
	return &Lamps{
		opts: opts, log: log,
		link:     link{dial: opts.Dial, cfg: opts.ESL, log: log, what: "lamps"},
		teller:   newTeller(opts.Exchange, KindCall, opts.Local, opts.TTL, log),
		statuses: newTeller(opts.Exchange, KindStatus, opts.Local, statusTTL, log),
		wake:     make(chan struct{}, 1),
		lamps:    make(map[lampKey]*lamp),
		epochs:   make(map[epochKey]string), spellings: make(spellings), asked: make(map[lampKey]time.Time),
		over: make(map[string]bool), domains: make(map[string]bool),
	}
}

// Run works until ctx ends, which is the only error it returns.
func (l *Lamps) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { l.teller.publish(ctx) })
	wg.Go(func() { l.teller.follow(ctx, l.hear, nil) })
	wg.Go(func() { l.statuses.publish(ctx) })
	wg.Go(func() { l.statuses.follow(ctx, l.hearStatus, l.adopt) })
	wg.Go(func() { l.tick(ctx) })
	l.link.run(ctx, l.onEvent, l.linkState, l.session)
	wg.Wait()
	l.linkState(context.Cause(ctx))
	return context.Cause(ctx)
}

// NodesChanged says that a node's state may have changed: the calls of one that is
// down are over.
func (l *Lamps) NodesChanged() { l.dropDead(time.Now()) }

// Stats returns the present figures.
func (l *Lamps) Stats() LampsStats {
	told, statuses := l.teller.snapshot(), l.statuses.snapshot()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.stats
	s.Told, s.Statuses, s.Remote = told, statuses, l.calls
	return s
}

func (l *Lamps) linkState(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stats.Connected, l.stats.Error = err == nil, ""
	if err != nil {
		l.stats.Error = err.Error()
	}
}

// hear takes another node's state.
func (l *Lamps) hear(st State) {
	now := time.Now()
	st.TTL = min(max(st.TTL, minCallTTL), maxCallTTL)
	if !st.Ended && l.opts.Nodes.Mesh().State(st.Node).Observed == pbxmesh.ObservedDown {
		return // or its repetitions would light what dropDead puts out
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if st.AOR.IsZero() {
		return
	}
	if key, ok := watched(protoSIP, st.From); !ok || key != userLamp(st.AOR) {
		st.From = st.AOR.String()
	}
	p := l.lamps[userLamp(st.AOR)]
	id := string(st.Node) + "/" + st.Key
	var old *remoteCall
	if p != nil {
		old = p.calls[id]
	}
	if old != nil && old.Run == st.Run && st.Seq <= old.Seq {
		return
	}
	if st.Ended {
		if old != nil {
			l.drop(p, id, st, now)
		}
		return
	}
	if old == nil {
		l.dropEpochs(st, now)
		if l.calls >= maxCalls {
			l.stats.Dropped++
			return
		}
		l.calls++
		p = l.lamp(userLamp(st.AOR))
		l.dropStatuses(p)
	}
	p.calls[id] = l.heard(st, now)
	if old == nil || old.Run != st.Run || old.Change != st.Change {
		l.show(p, st, now)
	}
}

// lamp returns the lamp of key, a new one if there is none. l.mu is held.
func (l *Lamps) lamp(key lampKey) *lamp {
	p := l.lamps[key]
	if p == nil {
		p = &lamp{key: key, calls: make(map[string]*remoteCall), own: make(map[string]State), status: make(map[pbxmesh.NodeID]*remoteCall), index: -1}
		l.lamps[key] = p
	}
	return p
}

func (l *Lamps) heard(st State, now time.Time) *remoteCall {
	l.count++
	return &remoteCall{State: st, until: now.Add(st.TTL), order: l.count}
}

// dropEpochs ends the calls and statuses of an earlier life of the switch that st is from.
func (l *Lamps) dropEpochs(st State, now time.Time) {
	key := epochKey{st.Kind, st.Node}
	if l.epochs[key] == st.Epoch {
		return
	}
	l.epochs[key] = st.Epoch
	l.dropIf(now, func(c *remoteCall) bool {
		return c.Kind == st.Kind && c.Node == st.Node && c.Epoch != st.Epoch && (c.Run != st.Run || c.Seq < st.Seq)
	})
}

// dropIf ends the other nodes' calls and statuses for which over is true.
func (l *Lamps) dropIf(now time.Time, over func(*remoteCall) bool) {
	for _, p := range l.lamps {
		for id, c := range p.calls {
			if over(c) {
				l.drop(p, id, c.State, now)
			}
		}
		for node, c := range p.status {
			if node != l.opts.Local && over(c) {
				delete(p.status, node)
				l.calls--
				l.showEnd(p, c.State, now)
			}
		}
	}
}

// drop ends one call of p. With others left the lamp goes on showing one of them:
// a full state without the ended call says that it is over.
func (l *Lamps) drop(p *lamp, id string, st State, now time.Time) {
	delete(p.calls, id)
	l.calls--
	l.showEnd(p, st, now)
}

// showEnd shows that st is over, or what else there is to show.
func (l *Lamps) showEnd(p *lamp, st State, at time.Time) {
	if best, ok := p.best(); ok {
		st = best
	} else {
		st.Ended = true
	}
	l.show(p, st, at)
}

// best returns the call that the lamp should show, else the status.
func (p *lamp) best() (State, bool) {
	var best State
	found := false
	for _, c := range p.calls {
		if better(c.State, best) || !found {
			best, found = c.State, true
		}
	}
	for _, st := range p.own {
		if better(st, best) || !found {
			best, found = st, true
		}
	}
	if found {
		return best, true
	}
	var status *remoteCall
	for _, c := range p.status {
		if status == nil || weight(c.State) > weight(status.State) || weight(c.State) == weight(status.State) && c.order > status.order {
			status = c
		}
	}
	if status == nil {
		return State{}, false
	}
	return status.State, true
}

func better(a, b State) bool {
	return weight(a) > weight(b) || weight(a) == weight(b) && a.Key < b.Key
}

// show queues st for p, in place of what was queued: only the newest matters.
func (l *Lamps) show(p *lamp, st State, at time.Time) {
	p.next, p.again, p.at = st, false, at
	l.queue(p)
}

func (l *Lamps) queue(p *lamp) {
	if p.index >= 0 {
		heap.Fix(&l.due, p.index)
	} else {
		heap.Push(&l.due, p)
	}
	poke(l.wake)
}

// showAgain shows what there is to show of key once more, in a moment.
func (l *Lamps) showAgain(key lampKey, delay time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.showBest(key, time.Now().Add(delay))
}

// showBest is called with l.mu held.
func (l *Lamps) showBest(key lampKey, at time.Time) bool {
	p := l.lamps[key]
	if p == nil {
		return false
	}
	best, ok := p.best()
	if ok {
		l.show(p, best, at)
	}
	return ok
}

// take returns what is to be shown now, and in which spellings it is watched, or when
// something will be.
func (l *Lamps) take(now time.Time) (p *lamp, st State, watchedAs []string, next time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.due) == 0 {
		return nil, State{}, nil, time.Time{}
	}
	if l.due[0].at.After(now) {
		return nil, State{}, nil, l.due[0].at
	}
	p = heap.Pop(&l.due).(*lamp)
	return p, p.next, l.spellings.of(p.key), time.Time{}
}

// shown records that p was shown as st, by so many events, or could not be.
func (l *Lamps) shown(p *lamp, st State, events int, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		if p.index < 0 {
			l.queue(p)
		}
		return
	case p.index >= 0: // something newer came meanwhile
	case st.Ended && !p.again:
		p.again, p.at = true, time.Now().Add(repeatEnd)
		l.queue(p)
	case len(p.calls)+len(p.own)+len(p.status) == 0:
		delete(l.lamps, p.key)
	}
	l.stats.Shown += uint64(events)
}

// tick ends what nobody repeats and repeats what is ours.
func (l *Lamps) tick(ctx context.Context) {
	t := time.NewTicker(time.Second)
	defer t.Stop()
	repeat, repeatStatus := time.Now(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			l.dropDead(now)
			if now.Sub(repeat) >= l.opts.TTL/3 {
				repeat = now
				l.teller.repeat()
			}
			if now.Sub(repeatStatus) >= statusTTL/3 {
				repeatStatus = now
				l.statuses.repeat()
			}
		}
	}
}

func (l *Lamps) dropDead(now time.Time) {
	mesh := l.opts.Nodes.Mesh()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropIf(now, func(c *remoteCall) bool {
		switch {
		case !now.Before(c.until):
			l.stats.Expired++
		case mesh.State(c.Node).Observed == pbxmesh.ObservedDown:
			l.stats.NodeLost++
		default:
			return false
		}
		return true
	})
	l.spellings.expire(now)
	l.order.forget(now)
	for key, at := range l.asked {
		if now.Sub(at) > answerWithin {
			delete(l.asked, key)
		}
	}
}

// lampHeap is a min-heap of lamps by the time they are to be shown.
type lampHeap []*lamp

func (h lampHeap) Len() int           { return len(h) }
func (h lampHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h lampHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *lampHeap) Push(x any) {
	p := x.(*lamp)
	p.index = len(*h)
	*h = append(*h, p)
}

// Pop implements heap.Interface.
func (h *lampHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	old[len(old)-1] = nil
	p.index = -1
	*h = old[:len(old)-1]
	return p
}
