package memory

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
)

// Replica is a view of a Store that follows it some time later, as a replica of a Redis
// server does. Who reads it reads the past; what is written goes to the Store. Notes are
// those of the Store.
type Replica struct {
	*Store
	past *Store // what was followed

	mu     sync.Mutex // after Store.mu, before past.mu
	behind time.Duration
	halted bool
	ahead  []step // what the Store did and the view has not
}

// step is one thing that a Store did.
type step struct {
	at, due time.Time
	do      func(*Store)
}

var _ registry.Backend = (*Replica)(nil)

// Replica returns a new view of s, which begins as s is now.
func (s *Store) Replica() *Replica {
	r := &Replica{Store: s, past: New(Options{LogLimit: s.limit, Now: s.now})}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, n := range s.nodes {
		r.past.nodes[id] = n.clone()
	}
	maps.Copy(r.past.members, s.members)
	s.replicas = append(s.replicas, r)
	return r
}

// SetBehind makes the view d behind the Store from now on.
func (r *Replica) SetBehind(d time.Duration) {
	r.mu.Lock()
	r.behind = d
	r.mu.Unlock()
}

// Halt makes the view stand still, and catch up at once with Halt(false).
func (r *Replica) Halt(on bool) {
	r.mu.Lock()
	r.halted = on
	r.mu.Unlock()
	r.advance()
}

// Lag implements registry.Source.
func (r *Replica) Lag() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ahead) == 0 {
		return 0
	}
	return time.Since(r.ahead[0].at)
}

// did has the replicas do what the store did. The caller holds s.mu, and f keeps nothing of s.
func (s *Store) did(f func(*Store)) {
	for _, r := range s.replicas {
		r.follow(f)
	}
}

// didNode is did for what became of a node, and the batches that were told of it.
func (s *Store) didNode(id pbxmesh.NodeID, told ...registry.Batch) {
	if len(s.replicas) == 0 {
		return
	}
	now := s.nodes[id].clone()
	s.did(func(to *Store) {
		if now == nil {
			delete(to.nodes, id)
			return
		}
		to.nodes[id] = now.clone() // several replicas may follow
		for _, b := range told {
			to.tell(b)
		}
	})
}

// didLease is did for what became of a lease.
func (s *Store) didLease(id pbxmesh.NodeID) {
	lease, ends := s.nodes[id].lease, s.nodes[id].leaseEnds
	s.did(func(to *Store) {
		n := to.node(id)
		n.lease, n.leaseEnds = lease, ends
	})
}

func (n *node) clone() *node {
	if n == nil {
		return nil
	}
	c := *n
	c.records, c.log = maps.Clone(n.records), slices.Clone(n.log)
	return &c
}

func (r *Replica) follow(f func(*Store)) {
	r.mu.Lock()
	now := time.Now()
	due := now.Add(r.behind)
	if n := len(r.ahead); n > 0 && r.ahead[n-1].due.After(due) {
		due = r.ahead[n-1].due
	}
	r.ahead = append(r.ahead, step{now, due, f})
	r.mu.Unlock()
	if due.After(now) {
		time.AfterFunc(due.Sub(now), r.advance)
		return
	}
	r.advance()
}

// advance does what is due.
func (r *Replica) advance() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.past.mu.Lock()
	defer r.past.mu.Unlock()
	for !r.halted && len(r.ahead) > 0 && !r.ahead[0].due.After(now) {
		r.ahead[0].do(r.past)
		r.ahead = r.ahead[1:]
	}
}

// Members implements registry.Source.
func (r *Replica) Members(ctx context.Context) ([]registry.Announcement, int, error) {
	return r.past.Members(ctx)
}

// Leases implements registry.Source.
func (r *Replica) Leases(ctx context.Context, nodes []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	return r.past.Leases(ctx, nodes)
}

// Snapshot implements registry.Source.
func (r *Replica) Snapshot(ctx context.Context, id pbxmesh.NodeID, each func(registry.Record)) (registry.SnapshotInfo, error) {
	return r.past.Snapshot(ctx, id, each)
}

// Changes implements registry.Source.
func (r *Replica) Changes(ctx context.Context, after []registry.Cursor) ([]registry.Batch, error) {
	return r.past.Changes(ctx, after)
}

// Subscribe implements registry.Source.
func (r *Replica) Subscribe(ctx context.Context, fn func(*registry.Batch)) error {
	return r.past.Subscribe(ctx, fn)
}
