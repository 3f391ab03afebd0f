package memory

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
)

// Options configure a Store; the zero value is usable.
type Options struct {
	// LogLimit is how many batches of a node are kept for readers. Default 1024.
	LogLimit int
	Now      func() time.Time
}

// Store keeps everything in memory. All methods are for concurrent use and none
// waits for anything, but Subscribe and Watch.
type Store struct {
	limit int
	now   func() time.Time

	mu       sync.Mutex
	nodes    map[pbxmesh.NodeID]*node
	members  map[pbxmesh.NodeID]registry.Announcement
	boards   map[registry.NoteKind]*board
	watchers map[*watcher]bool
	down     error

	subscribers map[*subscriber]bool
	replicas    []*Replica
}

var _ registry.Backend = (*Store)(nil)

type key struct {
	kind registry.Kind
	key  string
}

type node struct {
	term, seq uint64 // term 0: nothing was published
	epoch     string
	records   map[key]registry.Record
	log       []registry.Batch
	lease     registry.Lease
	leaseEnds time.Time
}

// New returns an empty store.
func New(o Options) *Store {
	if o.LogLimit <= 0 {
		o.LogLimit = 1024
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Store{
		limit: o.LogLimit, now: o.Now, subscribers: make(map[*subscriber]bool),
		nodes: make(map[pbxmesh.NodeID]*node), members: make(map[pbxmesh.NodeID]registry.Announcement),
		boards:   make(map[registry.NoteKind]*board),
		watchers: make(map[*watcher]bool),
	}
}

// SetDown makes every call fail with pbxmesh.ErrUnavailable and the cause, until
// it is called with nil. Subscriptions end.
func (s *Store) SetDown(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down = cause; cause == nil {
		return
	}
	for sub := range s.subscribers {
		sub.ended = fmt.Errorf("%w: memory store: %w", pbxmesh.ErrUnavailable, cause)
		sub.notify()
	}
}

// Clear forgets everything, as a store does that is restarted empty.
func (s *Store) Clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.nodes)
	clear(s.members)
	clear(s.boards)
	s.did(func(to *Store) {
		clear(to.nodes)
		clear(to.members)
	})
}

// Tamper calls change with the records of id, for tests of what a stranger does
// to a store. Subscribers are not told.
func (s *Store) Tamper(id pbxmesh.NodeID, change func(get func(kind registry.Kind, key string) (registry.Record, bool), set func(registry.Record))) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.node(id)
	change(func(k registry.Kind, name string) (registry.Record, bool) {
		rec, ok := n.records[key{k, name}]
		return rec, ok
	}, func(rec registry.Record) {
		if rec.Tombstone() {
			delete(n.records, key{rec.Kind, rec.Key})
			return
		}
		n.records[key{rec.Kind, rec.Key}] = rec
	})
	s.didNode(id)
}

// Drop forgets the records and the lease of id, as Redis does with those of a node that
// was not heard of for long.
func (s *Store) Drop(id pbxmesh.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, id)
	s.didNode(id)
}

// Trim drops all but the keep last batches of id.
func (s *Store) Trim(id pbxmesh.NodeID, keep int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.node(id)
	if len(n.log) > keep {
		n.log = slices.Clone(n.log[len(n.log)-keep:])
	}
	s.didNode(id)
}

// ready reports why a call cannot be served. The caller holds s.mu.
func (s *Store) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: memory store: %w", pbxmesh.ErrUnavailable, err)
	}
	if s.down != nil {
		return fmt.Errorf("%w: memory store: %w", pbxmesh.ErrUnavailable, s.down)
	}
	return nil
}

func (s *Store) node(id pbxmesh.NodeID) *node {
	n := s.nodes[id]
	if n == nil {
		n = &node{records: make(map[key]registry.Record)}
		s.nodes[id] = n
	}
	return n
}

// held reports another instance's live lease, unless it is over's.
func (s *Store) held(n *node, id pbxmesh.NodeID, instance, over string) error {
	l := &n.lease
	if !s.now().Before(n.leaseEnds) || l.Instance == "" || l.Instance == instance || over != "" && l.Instance == over {
		return nil
	}
	return &registry.HeldError{Node: id, Owner: l.Owner, Instance: l.Instance, Beat: l.Beat}
}

// Publish implements registry.Publisher.
func (s *Store) Publish(ctx context.Context, p registry.Publication) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return 0, err
	}
	n := s.node(p.Node)
	if err := s.held(n, p.Node, p.Instance, p.Over); err != nil {
		return 0, err
	}
	n.term, n.seq, n.epoch = max(n.term+1, p.Term), 1, p.Epoch
	n.records = make(map[key]registry.Record, len(p.Records))
	for _, rec := range p.Records {
		n.records[key{rec.Kind, rec.Key}] = rec
	}
	n.log = []registry.Batch{{
		Node: p.Node, Term: n.term, Seq: 1, Epoch: p.Epoch, Digests: maps.Clone(p.Digests), Reset: true,
	}}
	s.tell(n.log[0])
	s.didNode(p.Node, n.log[0])
	return n.term, nil
}

// Append implements registry.Publisher.
func (s *Store) Append(ctx context.Context, b registry.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	n := s.node(b.Node)
	switch {
	case n.term == 0 || n.term < b.Term:
		return fmt.Errorf("%w: term %d, not %d", registry.ErrLost, n.term, b.Term)
	case n.term > b.Term || n.seq > b.Seq:
		return fmt.Errorf("%w: term %d, sequence %d", registry.ErrFenced, n.term, n.seq)
	case n.seq == b.Seq:
		return nil
	case n.seq < b.Prev:
		return fmt.Errorf("%w: sequence %d, not %d", registry.ErrLost, n.seq, b.Prev)
	}
	b.Prev, n.seq = n.seq, b.Seq
	b.Records, b.Digests = slices.Clone(b.Records), maps.Clone(b.Digests)
	for _, rec := range b.Records {
		if rec.Tombstone() {
			delete(n.records, key{rec.Kind, rec.Key})
		} else {
			n.records[key{rec.Kind, rec.Key}] = rec
		}
	}
	n.log = append(n.log, b)
	if len(n.log) > 2*s.limit { // trimmed now and then, not for every batch
		n.log = slices.Clone(n.log[len(n.log)-s.limit:])
	}
	s.tell(b)
	s.didNode(b.Node, b)
	return nil
}

// Renew implements registry.Publisher.
func (s *Store) Renew(ctx context.Context, l registry.Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	n := s.node(l.Node)
	if err := s.held(n, l.Node, l.Instance, l.Over); err != nil {
		return err
	}
	l.Over = ""
	if l.Term > 0 && n.term > l.Term {
		return fmt.Errorf("%w: term %d, not %d", registry.ErrFenced, n.term, l.Term)
	}
	l.Digests = maps.Clone(l.Digests)
	n.lease, n.leaseEnds = l, s.now().Add(l.TTL)
	s.didLease(l.Node)
	switch {
	case l.Term == 0:
		return nil
	case n.term < l.Term || n.seq < l.Seq:
		return fmt.Errorf("%w: term %d, sequence %d", registry.ErrLost, n.term, n.seq)
	case n.seq == l.Seq && len(n.records) != l.Digests.Count():
		return fmt.Errorf("%w: %d records, not %d", registry.ErrLost, len(n.records), l.Digests.Count())
	}
	return nil
}

// Leave implements registry.Publisher.
func (s *Store) Leave(ctx context.Context, l registry.Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	if n := s.node(l.Node); n.lease.Instance == l.Instance {
		n.leaseEnds = time.Time{}
		s.didLease(l.Node)
	}
	return nil
}

// Announce implements registry.Publisher.
func (s *Store) Announce(ctx context.Context, a registry.Announcement) error {
	if err := a.Validate(); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	s.members[a.Node.ID] = a
	s.did(func(to *Store) { to.members[a.Node.ID] = a })
	return nil
}
