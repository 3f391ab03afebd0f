package registry

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"pbxmesh"
)

// maxTombstones bounds what a node's state remembers of ended records that could
// still arrive late. Sync applies in order and needs none; a tombstone that is
// forgotten too early leaves a ghost, which the digest finds.
const maxTombstones = 4096

// nodeState is everything that a replica holds of one node.
type nodeState struct {
	id pbxmesh.NodeID

	mu    sync.Mutex // guards what follows, down to tombs
	index []*entry   // every entry of the node
	// term and seq are the place up to which the records are complete. Both are
	// 0 until the records were read from a store.
	term, seq uint64
	epoch     string
	// ahead is the highest sequence of a record that a snapshot held: the digest
	// is comparable only once seq has reached it.
	ahead   uint64
	mark    uint32
	digests Digests // of the kinds that this version knows
	// unread are the records that this version cannot read, by key. They count in
	// the digest as they stand; nothing else comes of them.
	unread map[string]unread
	tombs  map[string]uint64
	// skew is how far this daemon's clock is ahead of the node's; records expire by
	// the node's clock, and are held with their expiry on this one.
	skew time.Duration
	// doubt is what one renewal said of skew that the next one has not confirmed yet.
	doubt   time.Duration
	doubted bool
	// swept says that records were dropped which their node still counts: no
	// digest fits until all records are read again.
	swept bool
	gone  bool // forgotten: whoever still holds the state must not fill it again

	info sync.Mutex // guards member; never held together with a wait
	member
}

// setUnread takes note of a record that cannot be read, and of the newer one when it
// is told twice. The caller holds ns.mu.
func (r *Replica) setUnread(ns *nodeState, key string, u unread) {
	if before, twice := ns.unread[key]; twice && before.seq >= u.seq || r.mutant.unread {
		return
	}
	ns.dropUnread(key)
	if ns.unread == nil {
		ns.unread = make(map[string]unread)
	}
	ns.unread[key] = u
	ns.digests.add(KindRegistration, u.hash)
}

// decode reads a registration of id.
func (r *Replica) decode(id pbxmesh.NodeID, rec *Record) (pbxmesh.Registration, error) {
	if r.mutant.older && strings.Contains(rec.Value, laterMark) {
		return pbxmesh.Registration{}, fmt.Errorf("%w: of a later version", pbxmesh.ErrInvalidRecord)
	}
	return decodeRegistration(id, rec)
}

// dropUnread forgets such a record, if there is one. The caller holds ns.mu.
func (ns *nodeState) dropUnread(key string) {
	if before, was := ns.unread[key]; was {
		ns.digests.remove(KindRegistration, before.hash)
		delete(ns.unread, key)
	}
}

// example returns how many records of the node cannot be read, and the key of one.
func (ns *nodeState) example() (n int, key string) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for key = range ns.unread {
		break
	}
	return len(ns.unread), key
}

func newNodeState(id pbxmesh.NodeID) *nodeState {
	return &nodeState{id: id, digests: Digests{}}
}

// unread is what is known of a record that this version cannot read.
type unread struct{ seq, hash uint64 }

// outcome says what became of a batch.
type outcome uint8

const (
	batchApplied outcome = iota
	batchStale           // known already, or of an older term
	batchGap             // something is missing before it: read a snapshot
	batchReset           // the node published everything anew: read a snapshot
	batchDiffers         // applied, and the digest does not match
)

// node returns the state of id, making it when it is new.
func (r *Replica) node(id pbxmesh.NodeID) *nodeState {
	if ns := r.existing(id); ns != nil {
		return ns
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ns := r.nodes[id]
	if ns == nil {
		ns = newNodeState(id)
		r.nodes[id] = ns
	}
	return ns
}

// existing returns the state of id, nil when it is no member.
func (r *Replica) existing(id pbxmesh.NodeID) *nodeState {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.nodes[id]
}

// follow applies a batch that came in stream order.
func (r *Replica) follow(ns *nodeState, b *Batch) outcome {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	switch {
	case ns.gone:
		return batchStale
	case b.Term < ns.term || b.Term == ns.term && b.Seq <= ns.seq && (b.Reset || !r.mutant.order):
		return batchStale
	case b.Reset:
		return batchReset
	case b.Term > ns.term || b.Prev > ns.seq && !r.mutant.gaps:
		return batchGap
	}
	r.merge(ns, b.Term, b.Records)
	ns.seq = max(ns.seq, b.Seq)
	// Nothing below this sequence can arrive any more.
	clear(ns.tombs)
	if !r.matches(ns, b.Term, b.Seq, b.Digests) {
		return batchDiffers
	}
	return batchApplied
}

// merge applies records in whatever order they come: of one term, the highest
// sequence wins per kind and key, tombstones included; a lower term is void, a
// higher one makes everything of the lower terms void. What ended goes last, so that
// readers never miss a phone whose registration was replaced. The caller holds ns.mu.
func (r *Replica) merge(ns *nodeState, term uint64, records []Record) {
	if term < ns.term {
		r.stats.stale.Add(int64(len(records)))
		return
	}
	if term > ns.term {
		for len(ns.index) > 0 {
			r.drop(ns.index[len(ns.index)-1])
		}
		ns.term, ns.seq, ns.ahead = term, 0, 0
		clear(ns.digests)
		clear(ns.unread)
		clear(ns.tombs)
	}
	for i := range records {
		switch rec := &records[i]; {
		case rec.Kind != KindRegistration:
			r.stats.unknown.Add(1)
		case !rec.Tombstone():
			r.mergeRecord(ns, rec)
		}
	}
	for i := range records {
		if rec := &records[i]; rec.Kind == KindRegistration && rec.Tombstone() {
			r.mergeTombstone(ns, rec)
		}
	}
}

func (r *Replica) mergeTombstone(ns *nodeState, rec *Record) {
	var e *entry
	if aor, err := keyAOR(rec.Key); err == nil {
		e = r.findKey(ns, aor, rec.Key)
	}
	before, was := ns.unread[rec.Key]
	if e != nil && e.seq > rec.Seq && !r.mutant.order || was && before.seq > rec.Seq {
		r.stats.stale.Add(1)
		return
	}
	ns.dropUnread(rec.Key)
	if e != nil {
		ns.digests.remove(KindRegistration, e.hash)
		r.drop(e)
	}
	if ns.tombs == nil {
		ns.tombs = make(map[string]uint64)
	}
	if len(ns.tombs) >= maxTombstones {
		clear(ns.tombs)
	}
	ns.tombs[rec.Key] = max(ns.tombs[rec.Key], rec.Seq)
}

// mergeRecord applies a record that is no tombstone. One that cannot be read takes
// the place of what was known under its key: whatever it says, that is over.
func (r *Replica) mergeRecord(ns *nodeState, rec *Record) {
	reg, err := r.decode(ns.id, rec)
	var old *entry
	if err == nil {
		old = r.find(ns, reg.ID())
	} else if aor, err := keyAOR(rec.Key); err == nil {
		old = r.findKey(ns, aor, rec.Key)
	}
	before, was := ns.unread[rec.Key]
	if old != nil && old.seq >= rec.Seq && !r.mutant.order || was && before.seq >= rec.Seq || ns.tombs[rec.Key] >= rec.Seq && rec.Seq > 0 {
		r.stats.stale.Add(1)
		return
	}
	if old == nil && !was && len(ns.index)+len(ns.unread) >= r.opts.MaxPerNode {
		r.stats.refused.Add(1)
		return
	}
	delete(ns.tombs, rec.Key)
	ns.dropUnread(rec.Key)
	if old != nil {
		ns.digests.remove(KindRegistration, old.hash)
	}
	hash := rec.hash()
	if err != nil {
		r.stats.bad.Add(1)
		if old != nil && !r.mutant.former {
			r.drop(old)
		}
		r.setUnread(ns, rec.Key, unread{seq: rec.Seq, hash: hash})
		return
	}
	ns.digests.add(KindRegistration, hash)
	reg.Expires = reg.Expires.Add(ns.skew)
	e := old
	if old == nil || !same(&old.reg, &reg) {
		e = r.put(ns, old, &reg)
	}
	e.seq, e.hash = rec.Seq, hash
}

// staged is a record of a snapshot.
type staged struct {
	reg       pbxmesh.Registration
	unread    string // the key of a record that this version cannot read; reg is empty then
	seq, hash uint64
}

// replace makes records everything that is held of ns. It is linear in what the
// node had and has. An entry that stays the same is not touched, so that readers
// and OnChange see differences only; none is missing in between.
func (r *Replica) replace(ns *nodeState, at SnapshotInfo, records []staged) {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.gone {
		return
	}
	ns.mark++
	clear(ns.digests)
	clear(ns.tombs)
	ns.term, ns.seq, ns.ahead, ns.epoch, ns.swept = at.Term, at.Seq, at.Seq, at.Epoch, false
	ns.unread = nil
	for i := range records {
		s := &records[i]
		ns.ahead = max(ns.ahead, s.seq)
		if s.unread != "" {
			r.setUnread(ns, s.unread, unread{seq: s.seq, hash: s.hash})
			continue
		}
		s.reg.Expires = s.reg.Expires.Add(ns.skew)
		old := r.find(ns, s.reg.ID())
		if old != nil && old.mark == ns.mark { // a scan may return a record twice
			if old.seq >= s.seq {
				continue
			}
			ns.digests.remove(KindRegistration, old.hash)
		}
		e := old
		if old == nil || !same(&old.reg, &s.reg) {
			e = r.put(ns, old, &s.reg)
		}
		e.seq, e.hash, e.mark = s.seq, s.hash, ns.mark
		ns.digests.add(KindRegistration, e.hash)
	}
	for i := len(ns.index) - 1; i >= 0; i-- {
		if e := ns.index[i]; e.mark != ns.mark && !r.mutant.epochs {
			r.drop(e)
		}
	}
}

// matches reports whether the digest fits, or cannot be compared now. Kinds that
// this version does not know are not compared. The caller holds ns.mu.
func (r *Replica) matches(ns *nodeState, term, seq uint64, want Digests) bool {
	if r.mutant.digests || term == 0 || term != ns.term || seq != ns.seq || seq < ns.ahead || ns.swept {
		return true
	}
	return want[KindRegistration] == ns.digests[KindRegistration]
}

// forget drops everything that is held of id.
func (r *Replica) forget(id pbxmesh.NodeID) {
	r.mu.Lock()
	ns := r.nodes[id]
	delete(r.nodes, id)
	r.mu.Unlock()
	if ns == nil {
		return
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	ns.gone = true
	for len(ns.index) > 0 {
		r.drop(ns.index[len(ns.index)-1])
	}
}

// sweep drops the entries of ns that expired before cutoff and returns how many.
// They stay in the store, and are read again should the node come back.
func (r *Replica) sweep(ns *nodeState, cutoff time.Time) int {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	n := 0
	for i := len(ns.index) - 1; i >= 0; i-- {
		if e := ns.index[i]; !e.reg.Live(cutoff) {
			ns.digests.remove(KindRegistration, e.hash)
			r.drop(e)
			n++
		}
	}
	if n > 0 {
		ns.swept = true
		r.stats.swept.Add(int64(n))
	}
	return n
}

// putLocal applies the local node's own change at once; see Writer.
func (r *Replica) putLocal(reg *pbxmesh.Registration) {
	ns := r.node(reg.Node)
	ns.mu.Lock()
	defer ns.mu.Unlock()
	old := r.find(ns, reg.ID())
	if old == nil || !same(&old.reg, reg) {
		r.put(ns, old, reg)
	}
}

func (r *Replica) removeLocal(node pbxmesh.NodeID, id pbxmesh.RegistrationID) {
	ns := r.node(node)
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if e := r.find(ns, id); e != nil {
		r.drop(e)
	}
}

// keepLocal drops the local node's entries for which keep is false.
func (r *Replica) keepLocal(node pbxmesh.NodeID, keep func(*pbxmesh.Registration) bool) {
	ns := r.node(node)
	ns.mu.Lock()
	defer ns.mu.Unlock()
	for i := len(ns.index) - 1; i >= 0; i-- {
		if e := ns.index[i]; !keep(&e.reg) {
			r.drop(e)
		}
	}
}

func (r *Replica) setLocalEpoch(node pbxmesh.NodeID, epoch string) {
	ns := r.node(node)
	ns.mu.Lock()
	ns.epoch = epoch
	ns.mu.Unlock()
}

// seeLocalLease takes over the lease that this daemon just tried to renew. Its
// content is true whatever became of it in the store.
func (r *Replica) seeLocalLease(l *Lease, held bool, now time.Time) {
	ns := r.node(l.Node)
	ns.seeLease(l, now, false)
	ns.setFresh(now)
	ns.info.Lock()
	ns.held = held
	ns.info.Unlock()
}

// bury drops what is held of a node that has no lease: only as a bug that tests seed.
func (r *Replica) bury(id pbxmesh.NodeID) {
	if ns := r.existing(id); ns != nil && r.mutant.silent {
		r.sweep(ns, time.Unix(maxUnixMilli/1000, 0).Add(time.Hour))
	}
}
