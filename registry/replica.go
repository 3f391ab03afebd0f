package registry

import (
	"hash/maphash"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh"
)

// shardCount spreads writers' locks; a power of two. 256 keeps the chance small
// that a reader meets a writer, which holds a shard for about a microsecond.
const shardCount = 256

// NeverSynced is the age of a view that was never read from a store.
const NeverSynced = time.Duration(math.MaxInt64)

// Change is one registration that began, changed or ended in a replica.
type Change struct {
	Old *pbxmesh.Registration // nil when it began
	New *pbxmesh.Registration // nil when it ended
}

// ReplicaOptions configure a Replica; the zero value is usable.
type ReplicaOptions struct {
	// Local is the node beside this daemon, whose records come from its Writer
	// and never from the store. "" for a daemon without a switch.
	Local pbxmesh.NodeID

	// OnChange is called for every applied change, after Lookup shows it, in
	// order per node and from several goroutines for several nodes. It must not
	// block (it holds up that node's changes) nor write to the replica. A
	// publication that repeats what was known calls it for the differences only.
	OnChange func(Change)

	// MaxPerNode bounds the registrations taken from one node's store, because
	// anyone who can write there could fill memory. Default 2,000,000.
	MaxPerNode int
}

// Replica is a copy of the whole registry in this process. Calls read it and
// nothing else: no method but LoadState and SaveState does I/O or waits for more
// than another goroutine's short critical section. All methods are for
// concurrent use.
type Replica struct {
	opts   ReplicaOptions
	seed   maphash.Seed
	shards [shardCount]shard

	mu    sync.RWMutex // guards nodes, polled, known
	nodes map[pbxmesh.NodeID]*nodeState
	// polled is when membership was last read, and known of when what was read is; the
	// freshness of nodes is their own.
	polled, known time.Time
	synced        bool // every node known at some time was asked for

	strings *interner
	stats   counters
	mutant  mutant
}

type shard struct {
	mu    sync.RWMutex
	users users
	_     [8]byte // fills a cache line, so that no two shards' locks share one
}

// entry is a registration with its place. reg and one never change; regs and next are
// guarded by the shard's lock, everything else by the lock of node.
//
// What a call reads stands in the first 128 bytes, which the size of 256 keeps within
// two cache lines.
type entry struct {
	// regs is everything registered under the AOR, in the first entry of the AOR
	// only. It is replaced, never written to: readers hold on to it without a lock.
	regs []*pbxmesh.Registration
	one  [1]*pbxmesh.Registration // regs of a user with one device
	reg  pbxmesh.Registration
	seq  uint64
	hash uint64 // the record's share of its node's digest
	node *nodeState
	next *entry // another entry of the same AOR
	at   uint32 // place in node.index
	mark uint32 // last snapshot that held it; see replace
	_    [8]byte
}

type counters struct {
	registrations, aors, applied, stale, bad, unknown, drift, loads, swept, refused atomic.Int64
}

// Stats count what a replica holds and what it went through since its start.
type Stats struct {
	Registrations int64 // held, expired ones included
	AORs          int64
	Nodes         int64 // members, the local node included
	Applied       int64 // changes applied
	Stale         int64 // records ignored because a newer one was known
	Bad           int64 // records, leases and announcements skipped as invalid
	UnknownKinds  int64 // records skipped because a newer version wrote them
	Drift         int64 // digests that did not match twice
	Loads         int64 // full reads of a node's records
	Swept         int64 // records dropped long after they expired
	Refused       int64 // records beyond ReplicaOptions.MaxPerNode
}

// mutant holds bugs that only a test seeds, to prove that the model test finds
// them, and what makes a reader one of an older version. All are false in a daemon.
type mutant struct{ digests, gaps, epochs, unread, former, order, silent, older bool }

// laterMark is what an older reader of a test cannot read.
const laterMark = ";later"

// NewReplica returns an empty replica.
func NewReplica(opts ReplicaOptions) *Replica {
	if opts.MaxPerNode <= 0 {
		opts.MaxPerNode = 2_000_000
	}
	r := &Replica{
		opts: opts, seed: maphash.MakeSeed(),
		nodes: make(map[pbxmesh.NodeID]*nodeState), strings: newInterner(4096),
	}
	if opts.Local != "" {
		r.node(opts.Local)
	}
	return r
}

// Local returns the node whose records come from this process, "" for none.
func (r *Replica) Local() pbxmesh.NodeID { return r.opts.Local }

// Lookup returns the registrations of aor on all nodes, nil when there are none.
// It does not allocate and waits for nothing but a writer of the same shard.
//
// The slice and what it points to are shared and must not be written to; they
// never change. Expired registrations may be among them: apply
// Registration.Live. What a node published before its switch restarted is gone as
// soon as its new publication was read.
func (r *Replica) Lookup(aor pbxmesh.AOR) []*pbxmesh.Registration {
	s, hash := r.shard(aor)
	var regs []*pbxmesh.Registration
	s.mu.RLock()
	if u := s.users.find(hash, aor); u != nil {
		regs = u.head.regs
	}
	s.mu.RUnlock()
	return regs
}

// Stats returns the counters.
func (r *Replica) Stats() Stats {
	r.mu.RLock()
	nodes := len(r.nodes)
	r.mu.RUnlock()
	c := &r.stats
	return Stats{
		Registrations: c.registrations.Load(), AORs: c.aors.Load(), Nodes: int64(nodes),
		Applied: c.applied.Load(), Stale: c.stale.Load(), Bad: c.bad.Load(), UnknownKinds: c.unknown.Load(),
		Drift: c.drift.Load(), Loads: c.loads.Load(), Swept: c.swept.Load(), Refused: c.refused.Load(),
	}
}

// shard returns where aor belongs, and its hash there.
func (r *Replica) shard(aor pbxmesh.AOR) (*shard, uint64) {
	hash := maphash.String(r.seed, aor.String())
	return &r.shards[hash%shardCount], hash
}

// first returns the first entry of aor, nil for none. The caller holds s.mu.
func (s *shard) first(hash uint64, aor pbxmesh.AOR) *entry {
	if u := s.users.find(hash, aor); u != nil {
		return u.head
	}
	return nil
}

// find returns ns's entry of id, nil for none. The caller holds ns.mu.
func (r *Replica) find(ns *nodeState, id pbxmesh.RegistrationID) *entry {
	s, hash := r.shard(id.AOR)
	s.mu.RLock()
	defer s.mu.RUnlock()
	for e := s.first(hash, id.AOR); e != nil; e = e.next {
		if e.node == ns && e.reg.CallID == id.CallID {
			return e
		}
	}
	return nil
}

// findKey is find for a tombstone, which knows a key only.
func (r *Replica) findKey(ns *nodeState, aor pbxmesh.AOR, key string) *entry {
	s, hash := r.shard(aor)
	s.mu.RLock()
	defer s.mu.RUnlock()
	for e := s.first(hash, aor); e != nil; e = e.next {
		if e.node == ns && RegistrationKey(e.reg.ID()) == key {
			return e
		}
	}
	return nil
}

// put makes reg visible in place of old, which may be nil. The caller holds
// ns.mu and keeps the digest.
func (r *Replica) put(ns *nodeState, old *entry, reg *pbxmesh.Registration) *entry {
	e := &entry{reg: r.compact(reg), node: ns}
	e.one[0] = &e.reg
	s, hash := r.shard(reg.AOR)
	s.mu.Lock()
	user := s.users.find(hash, reg.AOR)
	if user == nil {
		user = s.users.add(hash)
		r.stats.aors.Add(1)
	}
	if old != nil {
		e.at = old.at
		ns.index[e.at] = e
		link := &user.head
		for *link != old {
			link = &(*link).next
		}
		e.next, *link = old.next, e
	} else {
		e.at = uint32(len(ns.index))
		ns.index = append(ns.index, e)
		e.next, user.head = user.head, e
		r.stats.registrations.Add(1)
	}
	user.head.publish()
	s.mu.Unlock()

	change := Change{New: &e.reg}
	if old != nil {
		change.Old = &old.reg
	}
	r.changed(change)
	return e
}

// drop removes e. The caller holds e.node.mu and keeps the digest.
func (r *Replica) drop(e *entry) {
	ns := e.node
	s, hash := r.shard(e.reg.AOR)
	s.mu.Lock()
	user := s.users.find(hash, e.reg.AOR)
	if user.head == e && e.next == nil {
		s.users.remove(hash, e.reg.AOR)
		r.stats.aors.Add(-1)
	} else {
		link := &user.head
		for *link != e {
			link = &(*link).next
		}
		*link = e.next
		user.head.publish()
	}
	s.mu.Unlock()
	r.stats.registrations.Add(-1)

	// The last entry moves into the hole: no search, no shifting.
	last := len(ns.index) - 1
	moved := ns.index[last]
	ns.index[e.at], moved.at = moved, e.at
	ns.index[last] = nil
	ns.index = ns.index[:last]
	if cap(ns.index) > 1024 && len(ns.index) < cap(ns.index)/4 {
		ns.index = append(make([]*entry, 0, 2*len(ns.index)), ns.index...)
	}
	r.changed(Change{Old: &e.reg})
}

// publish makes regs say what the list that begins at head holds. The caller holds
// the shard's lock.
func (head *entry) publish() {
	if head.next == nil {
		head.regs = head.one[:]
		return
	}
	n := 0
	for e := head; e != nil; e = e.next {
		n++
	}
	regs := make([]*pbxmesh.Registration, 0, n)
	for e := head; e != nil; e = e.next {
		regs = append(regs, &e.reg)
		e.regs = nil // or an older list would keep what it names from being freed
	}
	head.regs = regs
}

func (r *Replica) changed(c Change) {
	r.stats.applied.Add(1)
	if r.opts.OnChange != nil {
		r.opts.OnChange(c)
	}
}

// compact returns a copy of reg that shares no memory with the message it was
// read from: strings that many registrations have in common are kept once, and
// the two that are a device's own share one allocation.
func (r *Replica) compact(reg *pbxmesh.Registration) pbxmesh.Registration {
	c := *reg
	own := reg.CallID + reg.Contact
	c.CallID, c.Contact = own[:len(reg.CallID)], own[len(reg.CallID):]
	c.Node = pbxmesh.NodeID(r.strings.get(string(reg.Node)))
	c.Profile = r.strings.get(reg.Profile)
	c.Transport = r.strings.get(reg.Transport)
	c.UserAgent = r.strings.get(reg.UserAgent)
	return c
}

// same reports whether a and b say the same; both have the same ID.
func same(a, b *pbxmesh.Registration) bool {
	return a.Contact == b.Contact && a.Profile == b.Profile && a.Source == b.Source &&
		a.Transport == b.Transport && a.UserAgent == b.UserAgent && a.Since == b.Since && a.Expires.Equal(b.Expires)
}
