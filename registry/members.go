package registry

import (
	"slices"
	"strings"
	"time"

	"pbxmesh"
)

// member is what a replica knows of a node beside its records.
type member struct {
	node      pbxmesh.Node
	announced bool
	left      bool
	lease     Lease
	held      bool
	missing   int       // polls in turn, none of them late, that found no lease
	misses    int       // the same, the late ones too
	seen      time.Time // when the lease was last seen renewed, on our clock
	fresh     time.Time // when the records were last known to equal the store's
	corrupt   bool      // what the store holds of the node could not be read at all
	absent    bool      // the store holds no records of the node
	drift     uint64
}

// Member is a node that announced itself at some time.
type Member struct {
	Node  pbxmesh.Node
	Local bool // the node of this daemon

	// Left says that its daemon was stopped in an orderly way.
	Left bool

	// LeaseHeld says that the lease has not run out: the store held it at one of the last
	// three polls (ten, when they come late), or could not be polled since. Lease is the last
	// one seen, zero when there was none yet, and LastSeen when it was last seen renewed, on
	// this daemon's clock.
	LeaseHeld bool
	Lease     Lease
	LastSeen  time.Time

	// Fresh is when the records held here were last known to equal those in the
	// store; zero for never. The local node's are always fresh.
	Fresh time.Time

	Registrations int    // held, expired ones included
	Unread        int    // that this version cannot read, beside those
	Epoch         string // of the records held
	Drift         uint64 // digests that did not match twice

	// Skew is how far this daemon's clock is ahead of the node's; 0 below
	// MaxSkew. The expiry of the registrations held here is corrected by it.
	Skew time.Duration
}

// Members returns every known node, sorted by name.
func (r *Replica) Members() []Member {
	states := r.states()
	members := make([]Member, 0, len(states))
	for _, ns := range states {
		ns.mu.Lock()
		count, others, epoch, skew := len(ns.index), len(ns.unread), ns.epoch, ns.skew
		ns.mu.Unlock()
		ns.info.Lock()
		if ns.announced {
			members = append(members, Member{
				Node: ns.node, Local: ns.id == r.opts.Local, Left: ns.left,
				LeaseHeld: ns.held, Lease: ns.lease, LastSeen: ns.seen, Fresh: ns.fresh,
				Registrations: count, Unread: others, Epoch: epoch, Drift: ns.drift, Skew: skew,
			})
		}
		ns.info.Unlock()
	}
	return members
}

// Age returns how old the view of the other nodes is: the time since the last
// moment at which everything held here was known to equal the store. It grows
// while the store is away. NeverSynced until every node that was known at the time
// was asked for once, by this daemon or by the one that wrote the state file.
//
// What is not known of one node says nothing about the others: one that has joined and
// is being read, whose place in the store cannot be read, or of which the store has
// nothing any more does not count. Member.Fresh says how each of them stands.
func (r *Replica) Age(now time.Time) time.Duration {
	r.mu.RLock()
	oldest, synced := r.known, r.synced
	r.mu.RUnlock()
	if !synced || oldest.IsZero() {
		return NeverSynced
	}
	for _, ns := range r.states() {
		if ns.id == r.opts.Local {
			continue
		}
		ns.info.Lock()
		if ns.announced && !ns.fresh.IsZero() && !ns.corrupt && !ns.absent && ns.fresh.Before(oldest) {
			oldest = ns.fresh
		}
		ns.info.Unlock()
	}
	return max(0, now.Sub(oldest))
}

// states returns all nodes, sorted by name.
func (r *Replica) states() []*nodeState {
	r.mu.RLock()
	states := make([]*nodeState, 0, len(r.nodes))
	for _, ns := range r.nodes {
		states = append(states, ns)
	}
	r.mu.RUnlock()
	slices.SortFunc(states, func(a, b *nodeState) int { return strings.Compare(string(a.id), string(b.id)) })
	return states
}

// announce takes over what a node says about itself.
func (r *Replica) announce(a *Announcement) {
	if a.Gone {
		r.forget(a.Node.ID)
		return
	}
	ns := r.node(a.Node.ID)
	ns.info.Lock()
	ns.node, ns.left, ns.announced = a.Node, a.Left, true
	ns.info.Unlock()
}

// leaseMisses is how many polls in turn find no lease until it has run out. A store that was
// stopped for a while holds none when it goes on, and each daemon needs a renewal to give
// its own back.
const (
	leaseMisses = 3
	lateMisses  = 10 // where every poll is late: a store that is always slow
)

// seeLease takes over a lease read at now; nil when the store holds none. The poll was late
// when the one before it is missing: nobody knows what the store held meanwhile.
func (ns *nodeState) seeLease(l *Lease, now time.Time, late bool) {
	ns.info.Lock()
	defer ns.info.Unlock()
	if l == nil {
		if late {
			ns.missing = 0
		}
		ns.missing++
		ns.misses++
		ns.held = ns.held && !ns.left && ns.missing < leaseMisses && ns.misses < lateMisses
		return
	}
	ns.held, ns.missing, ns.misses = true, 0, 0
	// A little lower is what a replica of the store shows that has not come so far.
	if l.Beat > ns.lease.Beat || l.Beat+BeatTurn/2 < ns.lease.Beat || l.Instance != ns.lease.Instance {
		ns.seen = now
	}
	ns.lease = *l
}

func (r *Replica) seeLease(id pbxmesh.NodeID, l *Lease, now time.Time, late bool) {
	if ns := r.existing(id); ns != nil {
		ns.seeLease(l, now, late)
	}
}

// MaxSkew is by how much the clocks of two daemons may differ, or seem to differ
// because a lease was read late, before a reader corrects what the other one wrote.
const MaxSkew = 5 * time.Second

// seeClock compares a lease that was renewed since the last look with our clock,
// and reports whether the correction changed. Two renewals in turn must say the same:
// one alone may have waited in a socket while the store was stopped.
func (ns *nodeState) seeClock(l *Lease, now time.Time) bool {
	ns.info.Lock()
	renewed := l.Beat != ns.lease.Beat && l.Instance == ns.lease.Instance
	ns.info.Unlock()
	// The first lease that is seen of an instance may have been written long ago.
	if l.Clock == 0 || !renewed {
		return false
	}
	skew := now.Sub(time.UnixMilli(l.Clock))
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if skew.Abs() < MaxSkew {
		skew = 0
	}
	// A correction that follows every late answer would read all records each time.
	if diff := (skew - ns.skew).Abs(); diff < MaxSkew && (skew != 0 || ns.skew == 0) {
		ns.doubted = false
		return false
	}
	if !ns.doubted || (skew-ns.doubt).Abs() >= MaxSkew {
		ns.doubted, ns.doubt = true, skew
		return false
	}
	ns.skew, ns.doubted = skew, false
	return true
}

func (ns *nodeState) setFresh(now time.Time) {
	ns.info.Lock()
	if now.After(ns.fresh) {
		ns.fresh = now
	}
	ns.info.Unlock()
}

// setSynced says that every node known now was asked for.
func (r *Replica) setSynced() {
	r.mu.Lock()
	r.synced = true
	r.mu.Unlock()
}

// setPlace takes note of what the store holds in the node's place.
func (ns *nodeState) setPlace(corrupt, absent bool) {
	ns.info.Lock()
	ns.corrupt, ns.absent = corrupt, absent
	ns.info.Unlock()
}

// lastPoll is when members and leases were last read; zero for never.
func (r *Replica) lastPoll() time.Time {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.polled
}

// setPolled takes note of a poll at now, of what the store held at asOf.
func (r *Replica) setPolled(now, asOf time.Time) {
	r.mu.Lock()
	r.polled = now
	if asOf.After(r.known) {
		r.known = asOf
	}
	r.mu.Unlock()
}
