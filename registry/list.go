package registry

import (
	"container/heap"
	"slices"
	"time"

	"pbxmesh"
)

// Walk calls yield for every registration, in no order, until it returns false.
// No lock is held during yield. What changes meanwhile may be seen or not, and
// whatever stands still is seen exactly once.
func (r *Replica) Walk(yield func(*pbxmesh.Registration) bool) {
	var batch [][]*pbxmesh.Registration
	for i := range r.shards {
		s := &r.shards[i]
		batch = batch[:0]
		s.mu.RLock()
		for _, user := range s.users.slots {
			if user.head != nil {
				batch = append(batch, user.head.regs)
			}
		}
		s.mu.RUnlock()
		for _, regs := range batch {
			for _, reg := range regs {
				if !yield(reg) {
					return
				}
			}
		}
	}
}

// WalkNode is Walk for one node's registrations.
func (r *Replica) WalkNode(node pbxmesh.NodeID, yield func(*pbxmesh.Registration) bool) {
	ns := r.existing(node)
	if ns == nil {
		return
	}
	ns.mu.Lock()
	regs := make([]*pbxmesh.Registration, len(ns.index))
	for i, e := range ns.index {
		regs[i] = &e.reg
	}
	ns.mu.Unlock()
	for _, reg := range regs {
		if !yield(reg) {
			return
		}
	}
}

// Held returns how many registrations of a node the replica holds, expired ones that were
// not swept yet included. It does not walk them.
func (r *Replica) Held(node pbxmesh.NodeID) int {
	ns := r.existing(node)
	if ns == nil {
		return 0
	}
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return len(ns.index)
}

// Stranded counts the live registrations of a node whose device has not come to another node
// (pbxmesh.Superseded). It looks each one's address up.
func (r *Replica) Stranded(node pbxmesh.NodeID, mesh *pbxmesh.Mesh, now time.Time) int {
	n := 0
	r.WalkNode(node, func(reg *pbxmesh.Registration) bool {
		if reg.Live(now) && pbxmesh.Superseded(reg, r.Lookup(reg.AOR), mesh, r.opts.Local, now) == nil {
			n++
		}
		return true
	})
	return n
}

// MaxList is how many AORs one page of List may have.
const MaxList = 10_000

// List returns a page: all registrations that f selects of the limit first AORs after
// the given one, in order, and the AOR from which to go on, zero at the end. It looks
// at every AOR but keeps limit of them (at most MaxList).
func (r *Replica) List(f Filter, after pbxmesh.AOR, limit int) (regs []*pbxmesh.Registration, next pbxmesh.AOR) {
	limit = min(max(limit, 1), MaxList)
	first := make(largestFirst, 0, limit)
	more := false
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.RLock()
		for _, user := range s.users.slots {
			if user.head == nil {
				continue
			}
			switch aor := user.head.reg.AOR; {
			case aor.String() <= after.String() || !f.matchUser(aor, user.head.regs):
			case len(first) < limit:
				heap.Push(&first, aor)
			default:
				more = true
				if aor.String() < first[0].String() {
					first[0] = aor
					heap.Fix(&first, 0)
				}
			}
		}
		s.mu.RUnlock()
	}
	if more {
		next = first[0]
	}
	sorted := make([]pbxmesh.AOR, len(first))
	for i := len(first) - 1; i >= 0; i-- {
		sorted[i], _ = heap.Pop(&first).(pbxmesh.AOR)
	}
	for _, aor := range sorted {
		for _, reg := range r.Lookup(aor) {
			if f.Match(reg) {
				regs = append(regs, reg)
			}
		}
	}
	return regs, next
}

// matchUser reports whether f selects any of regs, which are aor's.
func (f *Filter) matchUser(aor pbxmesh.AOR, regs []*pbxmesh.Registration) bool {
	return f.MatchAOR(aor) && (f.Node == "" || slices.ContainsFunc(regs, func(reg *pbxmesh.Registration) bool { return reg.Node == f.Node }))
}

// largestFirst is a heap whose root is the largest AOR of a page: the first to
// make room.
type largestFirst []pbxmesh.AOR

func (h largestFirst) Len() int           { return len(h) }
func (h largestFirst) Less(i, j int) bool { return h[i].String() > h[j].String() }
func (h largestFirst) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *largestFirst) Push(x any)        { aor, _ := x.(pbxmesh.AOR); *h = append(*h, aor) }
func (h *largestFirst) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
