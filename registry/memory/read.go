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

// Follow implements registry.Source.
func (s *Store) Follow(ctx context.Context, after []registry.Cursor, wait time.Duration) ([]registry.Batch, error) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		s.mu.Lock()
		if err := s.ready(ctx); err != nil {
			s.mu.Unlock()
			return nil, err
		}
		var batches []registry.Batch
		for _, c := range after {
			batches = append(batches, s.after(c)...)
		}
		changed := s.changed
		s.mu.Unlock()
		if len(batches) > 0 {
			return batches, nil
		}
		select {
		case <-changed:
		case <-timer.C:
			return nil, nil
		case <-ctx.Done():
		}
	}
}

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
	return n.log[i:len(n.log):len(n.log)]
}

// Partition implements registry.Source: one call can follow every node.
func (s *Store) Partition(pbxmesh.NodeID) string { return "" }

// Forget implements registry.Backend.
func (s *Store) Forget(ctx context.Context, id pbxmesh.NodeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	delete(s.nodes, id)
	s.members[id] = registry.Announcement{Node: pbxmesh.Node{ID: id}, Gone: true}
	s.wake()
	return nil
}

// Close implements registry.Backend. There is nothing to close, and the other
// daemons of the process may use the store on.
func (s *Store) Close() error { return nil }
