package native

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"time"

	"pbxmesh"
)

// want is one remote node that holds an address of record.
type want struct {
	node  pbxmesh.NodeID
	mesh  netip.AddrPort
	until time.Time // when the last registration there ends
}

// row is one row as it should be and as the switch was told.
type row struct {
	key rowKey

	want  netip.AddrPort // zero: it should not be there
	until time.Time      // want holds until then

	have    netip.AddrPort // zero: the switch does not have it
	expires time.Time      // when the switch drops it
	refresh time.Time      // when to write it again
	touched time.Time      // when we last told the switch about it
}

// user is all rows of one address of record. It is in the table while it has any.
type user struct {
	aor   pbxmesh.AOR
	rows  []*row
	due   time.Time // when the next row needs something
	index int       // in the heap, -1 when not in it
	dirty bool      // in the queue of changed users
	round uint64    // of the last setAll that saw it
}

// op is one event to send. A row is nil for what only the switch knows about.
type op struct {
	row    *row
	remove bool
	callID string
	aor    string

	to      netip.AddrPort // where the row leads
	ttl     time.Duration  // how long the switch keeps it
	refresh bool           // the switch has this row already
	urgent  bool           // to be removed at once: the phone it leads to is here
}

// table is the desired rows beside those the switch has. It is pure bookkeeping
// for one goroutine: no clock, no network.
type table struct {
	local  pbxmesh.NodeID
	ttl    time.Duration // of a row in the switch, at least
	rate   int           // of refreshes, in events a second
	settle time.Duration // least time between two events for one row

	users map[pbxmesh.AOR]*user
	byID  map[string]*row
	timed dueHeap
	dirty []*user // changed users, in order of change; they go before what is timed
	alien []op    // rows of ours that belong to no user here

	round uint64
	have  int // rows that the switch has as far as we know
}

func newTable(local pbxmesh.NodeID, ttl time.Duration, rate int) *table {
	return &table{
		local: local, ttl: ttl, rate: rate, settle: settleTime,
		users: make(map[pbxmesh.AOR]*user), byID: make(map[string]*row),
	}
}

// set makes wants the desired rows of aor, at most one for each node.
func (t *table) set(aor pbxmesh.AOR, wants []want, now time.Time) {
	u := t.users[aor]
	if u == nil {
		if len(wants) == 0 {
			return
		}
		u = &user{aor: aor, index: -1}
		t.users[aor] = u
	}
	t.assign(u, wants)
	t.plan(u, now)
}

// assign is set without the planning, for a user that next has handed out.
func (t *table) assign(u *user, wants []want) {
	u.round = t.round
	for _, r := range u.rows {
		r.want = netip.AddrPort{}
	}
	for _, w := range wants {
		r := t.row(u, w.node)
		r.want, r.until = w.mesh, w.until
	}
}

// setAll makes wants(aor) the desired rows of every aor and of every user that the
// table has.
func (t *table) setAll(aors []pbxmesh.AOR, wants func(pbxmesh.AOR) []want, now time.Time) {
	t.round++
	for _, aor := range aors {
		t.set(aor, wants(aor), now)
	}
	for aor, u := range t.users {
		if u.round != t.round {
			t.set(aor, wants(aor), now)
		}
	}
}

// row returns the row of u at node, a new one if need be.
func (t *table) row(u *user, node pbxmesh.NodeID) *row {
	for _, r := range u.rows {
		if r.key.node == node {
			return r
		}
	}
	r := &row{key: rowKey{u.aor, node}}
	u.rows = append(u.rows, r)
	t.byID[r.key.callID(t.local)] = r
	return r
}

// pending says what r needs and when. The zero time means nothing.
func (t *table) pending(r *row) (remove bool, at time.Time) {
	switch {
	case !r.want.IsValid() && !r.have.IsValid():
		return false, time.Time{}
	case !r.want.IsValid():
		remove, at = true, r.touched.Add(t.settle)
	case r.have != r.want:
		at = r.touched.Add(t.settle)
	default:
		at = r.refresh
		if early := r.touched.Add(t.settle); at.Before(early) {
			at = early
		}
	}
	return remove, at
}

// plan puts u where its next deed finds it: in the queue when it is due, in the
// heap when it will be, out of the table when there is nothing left of it.
func (t *table) plan(u *user, now time.Time) {
	var due time.Time
	keep := u.rows[:0]
	for _, r := range u.rows {
		_, at := t.pending(r)
		if at.IsZero() {
			delete(t.byID, r.key.callID(t.local))
			continue
		}
		keep = append(keep, r)
		// A wanted row is looked at again when the registration ends.
		if r.want.IsValid() && r.until.Before(at) {
			at = r.until
		}
		if due.IsZero() || at.Before(due) {
			due = at
		}
	}
	clear(u.rows[len(keep):])
	u.rows = keep
	if len(keep) == 0 {
		if u.index >= 0 {
			heap.Remove(&t.timed, u.index)
		}
		if !u.dirty { // else next forgets it
			delete(t.users, u.aor)
		}
		return
	}
	u.due = due
	if !due.After(now) && t.changed(u) {
		if u.index >= 0 {
			heap.Remove(&t.timed, u.index)
		}
		if !u.dirty {
			u.dirty = true
			t.dirty = append(t.dirty, u)
		}
		return
	}
	if u.index >= 0 {
		heap.Fix(&t.timed, u.index)
	} else if !u.dirty {
		heap.Push(&t.timed, u)
	}
}

// changed reports whether a row of u is not as it should be. A refresh is no
// change: it waits behind all changes.
func (t *table) changed(u *user) bool {
	for _, r := range u.rows {
		if r.have != r.want {
			return true
		}
	}
	return false
}

// next returns a user that is due, changed ones first, and takes it from its
// queue: the caller looks it up, calls assign, step until it says no more, then plan.
func (t *table) next(now time.Time) (*user, bool) {
	for len(t.dirty) > 0 {
		u := t.dirty[0]
		t.dirty[0] = nil
		t.dirty = t.dirty[1:]
		u.dirty = false
		if len(u.rows) == 0 {
			delete(t.users, u.aor)
			continue
		}
		return u, true
	}
	t.dirty = nil
	if len(t.timed) > 0 && !t.timed[0].due.After(now) {
		return heap.Pop(&t.timed).(*user), true
	}
	return nil, false
}

// step returns the next event for u, which must not be queued. Rows are written before
// others are taken away: a phone that moves is never in none.
func (t *table) step(u *user, now time.Time) (op, bool) {
	for _, removing := range [...]bool{false, true} {
		for _, r := range u.rows {
			remove, at := t.pending(r)
			if remove == removing && !at.IsZero() && !at.After(now) {
				return op{row: r, remove: remove, callID: r.key.callID(t.local), aor: u.aor.String()}, true
			}
		}
	}
	return op{}, false
}

// lifetime is how long a row written now is to live: longer than ttl when refreshing
// that many rows would cost the switch more than rate events a second.
func (t *table) lifetime() time.Duration {
	// A row is refreshed after 0.45 lifetimes on average.
	need := time.Duration(float64(t.have) / (0.45 * float64(t.rate)) * float64(time.Second))
	return max(t.ttl, need.Truncate(time.Second))
}

// told records that the switch is given o.
func (t *table) told(o op, now time.Time) {
	r := o.row
	if r == nil {
		return
	}
	r.touched = now
	if o.remove {
		t.setHave(r, netip.AddrPort{})
		return
	}
	t.setHave(r, r.want)
	r.expires = now.Add(o.ttl)
	r.refresh = now.Add(halfLife(o.ttl))
}

func (t *table) setHave(r *row, a netip.AddrPort) {
	switch {
	case a.IsValid() && !r.have.IsValid():
		t.have++
	case !a.IsValid() && r.have.IsValid():
		t.have--
	}
	r.have = a
}

// wake returns when next will have something, zero for never.
func (t *table) wake(now time.Time) time.Time {
	switch {
	case len(t.dirty) > 0 || len(t.alien) > 0:
		return now
	case len(t.timed) > 0:
		return t.timed[0].due
	}
	return time.Time{}
}

// lose records that the switch dropped these rows: those that are wanted are written
// again.
func (t *table) lose(callIDs []string, now time.Time) {
	for _, id := range callIDs {
		r := t.byID[id]
		if r == nil || !r.have.IsValid() {
			continue
		}
		t.setHave(r, netip.AddrPort{})
		if u := t.users[r.key.aor]; u != nil {
			t.plan(u, now)
		}
	}
}

// forget records that the switch has none of our rows: it was started anew.
func (t *table) forget(now time.Time) {
	for _, u := range t.users {
		for _, r := range u.rows {
			t.setHave(r, netip.AddrPort{})
			r.touched = time.Time{}
		}
		t.plan(u, now)
	}
	t.alien = nil
}

// halfLife is when to write a row of this lifetime again: at 40 to 50 % of it, so
// that rows written together do not come back together.
func halfLife(ttl time.Duration) time.Duration {
	return ttl*2/5 + time.Duration(rand.Int64N(int64(ttl/10)+1))
}

// dueHeap is a min-heap of users by due time.
type dueHeap []*user

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *dueHeap) Push(x any) {
	u := x.(*user)
	u.index = len(*h)
	*h = append(*h, u)
}

// Pop implements heap.Interface.
func (h *dueHeap) Pop() any {
	old := *h
	u := old[len(old)-1]
	old[len(old)-1] = nil
	u.index = -1
	*h = old[:len(old)-1]
	return u
}
