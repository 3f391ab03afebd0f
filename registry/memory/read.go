package memory

import (
	"context"
	"fmt"
	"sort"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
)

// Members implements registry.Source.
func (s *Store) Members(ctx context.Context) ([]registry.Announcement, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return nil, 0, err
	}
	members := make([]registry.Announcement, 0, len(s.members))
	for _, a := range s.members {
		members = append(members, a)
	}
	return members, 0, nil
}

// Leases implements registry.Source.
func (s *Store) Leases(ctx context.Context, nodes []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	leases := make(map[pbxmesh.NodeID]registry.Lease, len(nodes))
	if err := s.ready(ctx); err != nil {
		return leases, 0, err
	}
	now := s.now()
	for _, id := range nodes {
		if n := s.nodes[id]; n != nil && now.Before(n.leaseEnds) {
			leases[id] = n.lease
		}
	}
	return leases, 0, nil
}

// Snapshot implements registry.Source. It sees one moment: no record is newer
// than the cursor.
func (s *Store) Snapshot(ctx context.Context, id pbxmesh.NodeID, each func(registry.Record)) (registry.SnapshotInfo, error) {
	s.mu.Lock()
	if err := s.ready(ctx); err != nil {
		s.mu.Unlock()
		return registry.SnapshotInfo{}, err
	}
	n := s.nodes[id]
	if n == nil || n.term == 0 {
		s.mu.Unlock()
		return registry.SnapshotInfo{}, fmt.Errorf("%w: %s", registry.ErrNoNode, id)
	}
	info := registry.SnapshotInfo{Cursor: registry.Cursor{Node: id, Term: n.term, Seq: n.seq}, Epoch: n.epoch}
	records := make([]registry.Record, 0, len(n.records))
	for _, rec := range n.records {
		records = append(records, rec)
	}
	s.mu.Unlock()
	for _, rec := range records {
		if err := rec.Validate(); err != nil {
			info.Bad++
			continue
		}
		each(rec)
	}
	return info, nil
}

// Changes implements registry.Source.
func (s *Store) Changes(ctx context.Context, after []registry.Cursor) ([]registry.Batch, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return nil, err
	}
	var batches []registry.Batch
	for _, c := range after {
		batches = append(batches, s.after(c)...)
	}
	return batches, nil
}

// subscriber is a call of Subscribe. Guarded by Store.mu.
type subscriber struct {
	waiting []*registry.Batch
	wake    chan struct{} // capacity 1
	ended   error
}

// Subscribe implements registry.Source.
func (s *Store) Subscribe(ctx context.Context, fn func(*registry.Batch)) error {
	s.mu.Lock()
	if err := s.ready(ctx); err != nil {
		s.mu.Unlock()
		return err
	}
	sub := &subscriber{wake: make(chan struct{}, 1)}
	s.subscribers[sub] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subscribers, sub)
	}()
	fn(nil)
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-sub.wake:
		}
		s.mu.Lock()
		waiting, ended := sub.waiting, sub.ended
		sub.waiting = nil
		s.mu.Unlock()
		for _, b := range waiting {
			fn(b)
		}
		if ended != nil {
			return ended
		}
	}
}

// tell gives a batch to all subscribers. The caller holds s.mu.
func (s *Store) tell(b registry.Batch) {
	for sub := range s.subscribers {
		sub.waiting = append(sub.waiting, &b)
		sub.notify()
	}
}

func (sub *subscriber) notify() {
	select {
	case sub.wake <- struct{}{}:
	default:
	}
}

// Lag implements registry.Source: everything is read where it is written.
func (s *Store) Lag() time.Duration { return 0 }

// after returns the batches behind c. The caller holds s.mu.
func (s *Store) after(c registry.Cursor) []registry.Batch {
	n := s.nodes[c.Node]
	if n == nil {
		return nil
	}
	i := sort.Search(len(n.log), func(i int) bool {
		b := &n.log[i]
		return b.Term > c.Term || b.Term == c.Term && b.Seq > c.Seq
	})
	end := min(len(n.log), i+registry.MaxChanges)
	return n.log[i:end:end]
}

// Forget implements registry.Backend.
func (s *Store) Forget(ctx context.Context, id pbxmesh.NodeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	delete(s.nodes, id)
	gone := registry.Announcement{Node: pbxmesh.Node{ID: id}, Gone: true}
	s.members[id] = gone
	s.didNode(id)
	s.did(func(to *Store) { to.members[id] = gone })
	return nil
}

// Close implements registry.Backend. There is nothing to close, and the other
// daemons of the process may use the store on.
func (s *Store) Close() error { return nil }
