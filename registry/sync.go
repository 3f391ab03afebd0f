package registry

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"pbxmesh"
)

// SyncOptions configure a Sync. Replica and Backend are required; zero means the
// default everywhere else.
type SyncOptions struct {
	Replica *Replica
	Backend Source

	// Poll is how often members and leases are read, jittered by a tenth.
	// Default 1 s. A new node is known after that long at most.
	Poll time.Duration

	Timeout         time.Duration // of one call beside its wait, default 2 s
	SnapshotTimeout time.Duration // of reading all of one node's records, default 1 min
	Parallel        int           // nodes read at once, default 4
	BackoffMax      time.Duration // between attempts after errors, default 2 s; they start at 50 ms

	// SweepAfter is how long after its expiry a record is dropped whose node's
	// lease is gone. Default 5 min.
	SweepAfter time.Duration

	// StateFile is written when something changed, every SaveEvery (default
	// 30 s) and at the end; "" for none. Who wants to start from it calls
	// Replica.LoadState first.
	StateFile string
	SaveEvery time.Duration

	// OnPoll, when not nil, is called after each look at members and leases, and when Status
	// says Synced. It must not block.
	OnPoll func()

	Now    func() time.Time
	Logger *slog.Logger // nil discards
}

// Sync keeps a Replica equal to what the other nodes publish in a Backend. The
// local node's records are left alone: its Writer applies them.
type Sync struct {
	o      SyncOptions
	loads  chan struct{} // one token per node that is being read
	wake   chan struct{} // a node missed changes; capacity 1
	synced chan struct{} // closed once every known node was asked for
	tasks  sync.WaitGroup

	mu      sync.Mutex // guards everything below
	nodes   map[pbxmesh.NodeID]*followed
	hears   bool // batches are told as they are applied
	status  SyncStatus
	started bool
	asked   bool // the store answered or failed at least once
}

// followed is where a node stands with this Sync. Guarded by Sync.mu.
type followed struct {
	id      pbxmesh.NodeID
	missed  bool  // changes of it may be missing here: ask for them
	asked   int64 // how often they were asked for, and the store answered
	loading bool  // its records are being read; it is not followed meanwhile
	ready   bool  // its records were read, or the store has none: follow it
	tried   bool  // ready once, or the store holds nothing that can be read

	differs int       // consecutive digests that did not match
	late    *lateness // nil unless the last lease was ahead of what was followed
	retry   time.Time // no read before
	backoff time.Duration

	// Changes of a node that cannot be read (a later version's) are found by reading all of its
	// records, in pauses that double up to brokenMax.
	broken bool          // there was one since all records were read for it
	gap    time.Duration // the last pause
	again  time.Time     // its end

	unread bool // it was said that records of the node cannot be read
}

// Bounds of the pauses between reads of a node that differs from what its daemon
// says, or cannot be read: whatever the reason, nobody but the reader can know of it,
// and reading all records of a large node costs as much as it did the first time.
const (
	rereadMin, rereadMax = 250 * time.Millisecond, 10 * time.Minute
	brokenMax            = time.Minute
	corruptMax           = 5 * time.Second // looking whether they can be read costs little
)

// lateness is what a lease spoke of that no batch had brought.
type lateness struct {
	term, seq uint64
	asked     int64 // followed.asked by then
	polls     int   // since then, all of them with a lease that was ahead
}

// SyncStatus is how reading goes.
type SyncStatus struct {
	Connected bool      // the last call succeeded
	Since     time.Time // when Connected last changed
	Err       error     // of the last failed call
	Synced    bool      // every node known at the time was asked for at least once
	Following int       // nodes followed now
	Bad       int64     // entries of the store that were skipped
	StateErr  error     // of the last attempt to write the state file
}

// NewSync returns a Sync that does nothing until Run.
func NewSync(o SyncOptions) (*Sync, error) {
	if o.Replica == nil || o.Backend == nil {
		return nil, errors.New("registry sync: no replica or no backend")
	}
	setDefault(&o.Poll, time.Second)
	setDefault(&o.Timeout, 2*time.Second)
	setDefault(&o.SnapshotTimeout, time.Minute)
	setDefault(&o.Parallel, 4)
	setDefault(&o.BackoffMax, 2*time.Second)
	setDefault(&o.SweepAfter, 5*time.Minute)
	setDefault(&o.SaveEvery, 30*time.Second)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.OnPoll == nil {
		o.OnPoll = func() {}
	}
	o.Logger = logger(o.Logger, "registry.sync")
	return &Sync{
		o: o, loads: make(chan struct{}, o.Parallel), wake: make(chan struct{}, 1), synced: make(chan struct{}),
		nodes: make(map[pbxmesh.NodeID]*followed),
	}, nil
}

// Synced is closed once every node that was announced at that time was asked for. It
// stays open while the store is away.
func (s *Sync) Synced() <-chan struct{} { return s.synced }

// Status returns how reading goes.
func (s *Sync) Status() SyncStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status
	for _, f := range s.nodes {
		if f.ready && !f.loading {
			st.Following++
		}
	}
	return st
}

// Run reads until ctx ends, then waits for what it started, Timeout at most, and saves
// the state file. No error of the store ends it. It
// returns an error only when it was called before.
func (s *Sync) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.mu.Lock()
	if s.started {
		s.mu.Unlock()
		return errors.New("registry sync: Run was called before")
	}
	s.started, s.status.Since = true, s.o.Now()
	s.mu.Unlock()

	if s.o.StateFile != "" {
		s.tasks.Go(func() { s.keepState(ctx) })
	}
	s.tasks.Go(func() { s.hear(ctx) })
	s.tasks.Go(func() { s.askMissed(ctx) })
	swept := s.o.Now()
	for {
		s.poll(ctx)
		s.o.OnPoll()
		now := s.o.Now()
		if now.Sub(swept) >= min(time.Minute, s.o.SweepAfter) {
			swept = now
			s.sweep(now)
		}
		if !sleep(ctx, jitter(s.o.Poll)) {
			break
		}
	}
	s.tasks.Wait()
	s.save()
	return nil
}

// keepState writes the state file now and then, beside everything else: a million
// registrations take a while.
func (s *Sync) keepState(ctx context.Context) {
	mark := s.o.Replica.stats.applied.Load()
	for sleep(ctx, s.o.SaveEvery) {
		if m := s.o.Replica.stats.applied.Load(); m != mark {
			mark = m
			s.save()
		}
	}
}

// poll reads members and leases and sees to every node that needs something.
func (s *Sync) poll(ctx context.Context) {
	callCtx, cancel := context.WithTimeout(ctx, s.o.Timeout)
	defer cancel()
	members, bad, err := s.o.Backend.Members(callCtx)
	s.skipped("announcements", bad)
	if err != nil {
		s.called(ctx, "reading the members", err)
		return // with an answer the leases say how the store does: an old replica still knows members
	}
	for i := range members {
		if members[i].Node.ID == s.o.Replica.Local() {
			continue // its Writer knows better
		}
		s.o.Replica.announce(&members[i])
		if members[i].Gone {
			s.unfollow(members[i].Node.ID)
		}
	}
	// Nodes known from the state file, or from a store that was emptied since,
	// are asked for too: membership only ends with Gone.
	var ids []pbxmesh.NodeID
	for _, ns := range s.o.Replica.states() {
		if ns.id != s.o.Replica.Local() {
			ids = append(ids, ns.id)
		}
	}
	leases, bad, err := s.o.Backend.Leases(callCtx, ids)
	s.called(ctx, "reading the leases", err)
	s.skipped("leases", bad)
	now := s.o.Now()
	asOf := now.Add(-s.o.Backend.Lag())
	late := now.Sub(s.o.Replica.lastPoll()) > 2*s.o.Poll
	for _, id := range ids {
		lease, held := leases[id]
		if held {
			s.seeClock(ctx, &lease, now)
			s.o.Replica.seeLease(id, &lease, now, late)
			s.check(ctx, &lease, asOf)
		} else if err == nil {
			s.o.Replica.seeLease(id, nil, now, late)
			s.checkSilent(ctx, id, asOf)
			s.o.Replica.bury(id)
		}
		s.follow(ctx, id)
	}
	if err == nil {
		s.o.Replica.setPolled(now, asOf)
		s.dropRenamed()
	}
	s.mu.Lock()
	s.noteSynced()
	s.mu.Unlock()
}

// follow makes sure that id is read, and that its changes are taken in from then on.
func (s *Sync) follow(ctx context.Context, id pbxmesh.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.nodes[id]
	if f == nil {
		f = &followed{id: id}
		s.nodes[id] = f
	}
	if !f.ready {
		s.load(ctx, f)
	}
}

// unfollow forgets a node that was removed for good.
func (s *Sync) unfollow(id pbxmesh.NodeID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, id)
}

// called keeps Connected and logs when it changes.
func (s *Sync) called(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return // our own end says nothing about the store
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	connected := err == nil || !errors.Is(err, pbxmesh.ErrUnavailable)
	if err != nil {
		s.status.Err = err
	}
	// The first answer is told too: a daemon may start while the store is away.
	if connected == s.status.Connected && s.asked {
		return
	}
	s.asked = true
	s.status.Connected, s.status.Since = connected, s.o.Now()
	if connected {
		s.o.Logger.Info("the store answers")
	} else {
		s.o.Logger.Warn("the store does not answer; calls are routed from memory", "doing", what, "err", err)
	}
}

func (s *Sync) skipped(what string, n int) {
	if n == 0 {
		return
	}
	s.o.Replica.stats.bad.Add(int64(n))
	s.mu.Lock()
	first := s.status.Bad == 0
	s.status.Bad += int64(n)
	s.mu.Unlock()
	if first {
		s.o.Logger.Warn("the store holds entries that no daemon writes; they are skipped and counted", "what", what, "entries", n)
	}
}

// tell says once that records of a node cannot be read, and when they can again.
func (s *Sync) tell(f *followed, ns *nodeState) {
	n, key := ns.example()
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.unread == (n > 0) {
		return
	}
	if f.unread = n > 0; f.unread {
		s.o.Logger.Warn("registrations of another node cannot be read by this version: they ring on their own node only",
			"node", f.id, "registrations", n, "first", key)
	} else {
		s.o.Logger.Info("all registrations of the node can be read again", "node", f.id)
	}
}

// noteSynced closes synced when no node is left to be asked for. The caller holds s.mu.
func (s *Sync) noteSynced() {
	if s.status.Synced {
		return
	}
	for _, f := range s.nodes {
		if !f.tried {
			return
		}
	}
	s.status.Synced = true
	s.o.Replica.setSynced()
	close(s.synced)
	s.o.OnPoll()
}

// sweep drops what expired long ago on nodes without a lease. A node that holds
// one removes its own records, and its digest counts them until then.
func (s *Sync) sweep(now time.Time) {
	for _, ns := range s.o.Replica.states() {
		ns.info.Lock()
		skip := ns.held || ns.id == s.o.Replica.Local()
		ns.info.Unlock()
		if skip {
			continue
		}
		if n := s.o.Replica.sweep(ns, now.Add(-s.o.SweepAfter)); n > 0 {
			s.o.Logger.Info("dropped registrations that expired on a node without a lease", "node", ns.id, "registrations", n)
		}
	}
}

// dropRenamed drops what is held of a node without a lease whose switch now
// belongs to another node: the same life of one switch (its Core-UUID) cannot be
// two nodes, so the node was renamed. Its records stay in the store, and are read
// again should its lease come back.
func (s *Sync) dropRenamed() {
	states := s.o.Replica.states()
	owners := make(map[string]pbxmesh.NodeID, len(states))
	for _, ns := range states {
		ns.info.Lock()
		if ns.held && ns.lease.Epoch != "" && ns.lease.Term > 0 {
			owners[ns.lease.Epoch] = ns.id
		}
		ns.info.Unlock()
	}
	for _, ns := range states {
		ns.info.Lock()
		held := ns.held
		ns.info.Unlock()
		ns.mu.Lock()
		owner, count := owners[ns.epoch], len(ns.index)
		ns.mu.Unlock()
		if held || count == 0 || owner == "" || owner == ns.id || ns.id == s.o.Replica.Local() {
			continue
		}
		n := s.o.Replica.sweep(ns, time.Unix(maxUnixMilli/1000, 0).Add(time.Hour))
		s.o.Logger.Info("a node was renamed: dropped what it had published", "node", ns.id, "now", owner, "registrations", n)
	}
}

func (s *Sync) save() {
	if s.o.StateFile == "" {
		return
	}
	err := s.o.Replica.SaveState(s.o.StateFile, s.o.Now())
	s.mu.Lock()
	first := err != nil && s.status.StateErr == nil
	s.status.StateErr = err
	s.mu.Unlock()
	if first {
		s.o.Logger.Error("the state file could not be written", "err", err)
	}
}
