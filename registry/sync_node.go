package registry

import (
	"context"
	"errors"
	"time"

	"pbxmesh"
)

// hear takes in batches as they are applied, until ctx ends.
func (s *Sync) hear(ctx context.Context) {
	for ctx.Err() == nil {
		err := s.o.Backend.Subscribe(ctx, func(b *Batch) { s.heard(ctx, b) })
		s.mu.Lock()
		s.hears = false
		s.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		s.o.Logger.Debug("changes are not told; leases say when some are missing", "err", err)
		sleep(ctx, jitter(s.o.Poll))
	}
}

func (s *Sync) heard(ctx context.Context, b *Batch) {
	if b != nil {
		s.apply(ctx, b, false)
		return
	}
	// Whatever was applied before is to be asked for.
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hears = true
	for _, f := range s.nodes {
		s.miss(f)
	}
}

// miss has the changes of f asked for. The caller holds s.mu.
func (s *Sync) miss(f *followed) {
	f.missed = true
	notify(s.wake)
}

// askMissed asks for changes that may be missing, until ctx ends.
func (s *Sync) askMissed(ctx context.Context) {
	backoff := time.Duration(0)
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		cursors := s.missed()
		if len(cursors) == 0 {
			continue
		}
		asOf := s.o.Now().Add(-s.o.Backend.Lag())
		callCtx, cancel := context.WithTimeout(ctx, s.o.Timeout)
		batches, err := s.o.Backend.Changes(callCtx, cursors)
		cancel()
		s.called(ctx, "asking for changes", err)
		if err != nil {
			s.missAgain(cursors)
			backoff = min(max(2*backoff, 50*time.Millisecond), s.o.BackoffMax)
			sleep(ctx, jitter(backoff))
			continue
		}
		backoff = 0
		got, read := map[pbxmesh.NodeID]int{}, map[pbxmesh.NodeID]bool{}
		for i := range batches {
			s.apply(ctx, &batches[i], true)
			got[batches[i].Node]++
			read[batches[i].Node] = read[batches[i].Node] || !batches[i].Broken
		}
		for _, c := range cursors {
			// Those that cannot be read do not move the place: the same would come again.
			s.answered(c.Node, got[c.Node] >= MaxChanges && read[c.Node], asOf)
		}
	}
}

// missed returns the places of the nodes whose changes are to be asked for, and takes that
// they are.
func (s *Sync) missed() []Cursor {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cursors []Cursor
	for id, f := range s.nodes {
		ns := s.o.Replica.existing(id)
		if !f.missed || !f.ready || f.loading || ns == nil {
			continue
		}
		f.missed = false
		ns.mu.Lock()
		cursors = append(cursors, Cursor{Node: id, Term: ns.term, Seq: ns.seq})
		ns.mu.Unlock()
	}
	return cursors
}

func (s *Sync) missAgain(cursors []Cursor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range cursors {
		if f := s.nodes[c.Node]; f != nil {
			s.miss(f)
		}
	}
}

// answered takes in that the store told the changes of id: all of them, or more are left.
func (s *Sync) answered(id pbxmesh.NodeID, more bool, asOf time.Time) {
	s.mu.Lock()
	f := s.nodes[id]
	if f != nil {
		f.asked++
		if more {
			s.miss(f)
		}
	}
	s.mu.Unlock()
	if ns := s.o.Replica.existing(id); ns != nil && !more && s.isReady(id) && ns.complete() {
		ns.setFresh(asOf)
	}
}

func (s *Sync) isReady(id pbxmesh.NodeID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.nodes[id]
	return f != nil && f.ready && !f.loading
}

// complete reports whether what is held is what some publication said: the
// records were read, or there are none on either side.
func (ns *nodeState) complete() bool {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	return ns.term > 0 || len(ns.index) == 0
}

// apply takes over one batch, which was asked for or told.
func (s *Sync) apply(ctx context.Context, b *Batch, asked bool) {
	s.mu.Lock()
	f := s.nodes[b.Node]
	s.mu.Unlock()
	ns := s.o.Replica.existing(b.Node)
	if f == nil || ns == nil || !s.isReady(b.Node) {
		return
	}
	if b.Broken {
		// What comes behind it may be readable; whether something is missing, the next
		// lease says.
		if asked {
			s.skipped("changes", b.Bad)
		}
		s.mu.Lock()
		f.broken = true
		s.mu.Unlock()
		return
	}
	result := s.o.Replica.follow(ns, b)
	if result == batchStale {
		return
	}
	s.skipped("records", b.Bad)
	s.tell(f, ns)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case result == batchApplied:
		f.differs = 0
		if !asked && s.hears {
			ns.setFresh(s.o.Now().Add(-s.o.Backend.Lag()))
		}
	case result == batchDiffers:
		s.differs(ctx, f)
	case result == batchReset:
		f.ready, f.retry = false, time.Time{}
		s.load(ctx, f)
	case result == batchGap && s.putOff(f, asked):
	case result == batchGap && !asked:
		s.miss(f)
	case result == batchGap:
		s.o.Logger.Info("changes are missing; reading all records", "node", b.Node, "term", b.Term, "after", b.Prev)
		f.ready, f.retry = false, time.Time{}
		s.load(ctx, f)
	}
}

// checkSilent is check for a node without a lease, or one that publishes nothing: nobody
// writes for it, so what is held equals the store.
func (s *Sync) checkSilent(ctx context.Context, id pbxmesh.NodeID, asOf time.Time) {
	s.mu.Lock()
	hears, f := s.hears, s.nodes[id]
	if f != nil && f.ready && !f.loading && f.broken && !s.putOff(f, true) {
		f.ready, f.retry = false, time.Time{}
		s.load(ctx, f)
	}
	hears = hears && (f == nil || !f.broken)
	s.mu.Unlock()
	if ns := s.o.Replica.existing(id); ns != nil && hears && s.isReady(id) && ns.complete() {
		ns.setFresh(asOf)
	}
}

// check compares a lease with what is held.
func (s *Sync) check(ctx context.Context, l *Lease, asOf time.Time) {
	if l.Term == 0 {
		s.checkSilent(ctx, l.Node, asOf)
		return
	}
	ns := s.o.Replica.existing(l.Node)
	if ns == nil {
		return
	}
	ns.mu.Lock()
	// A lower term counts too: a store that was emptied while its node's clock
	// went back begins with one, and its stream is never followed from up here.
	ahead := l.Term != ns.term || l.Seq > ns.seq
	same := l.Term == ns.term && l.Seq == ns.seq
	matches := s.o.Replica.matches(ns, l.Term, l.Seq, l.Digests)
	swept, term, seq := ns.swept, ns.term, ns.seq
	ns.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.nodes[l.Node]
	if f == nil || !f.ready || f.loading {
		return
	}
	switch {
	case swept: // and the node is back
		f.ready = false
		s.load(ctx, f)
	case ahead && s.putOff(f, false):
	case ahead:
		// A batch is quicker than the poll, unless it was lost, or nobody tells.
		if !f.behind(term, seq, l) {
			s.miss(f)
			return
		}
		f.late, f.retry = nil, time.Time{}
		s.putOff(f, true)
		f.ready = false
		s.o.Logger.Info("a lease is ahead of the changes; reading all records", "node", l.Node, "term", l.Term, "seq", l.Seq)
		s.load(ctx, f)
	case !matches:
		f.late = nil
		s.differs(ctx, f)
	default:
		f.late = nil
		if same {
			f.differs, f.backoff = 0, 0
			ns.setFresh(asOf)
		}
	}
}

// putOff reports whether reading all records of f is put off: changes of it cannot be read, and
// all were read for that a moment ago. Who is about to read them begins the next pause. What is
// not known of f meanwhile says nothing about the others' records. The caller holds s.mu.
func (s *Sync) putOff(f *followed, begin bool) bool {
	now := s.o.Now()
	if now.Before(f.again) {
		s.setPlace(f, true, false)
		return true
	}
	if begin && f.broken {
		if now.Sub(f.again) > brokenMax {
			f.gap = 0
		}
		f.gap = min(max(2*f.gap, rereadMin), brokenMax)
		f.again, f.broken = now.Add(f.gap), false
	}
	return false
}

// behind takes note of a lease that is ahead of the place up to which f's records
// are complete, and reports whether asking for changes is in vain: the store has answered
// twice since (the first may have been asked before), or never in ten polls, and what the first such lease spoke of has still not come. The caller holds
// Sync.mu.
func (f *followed) behind(term, seq uint64, l *Lease) bool {
	w := f.late
	if w == nil || term == w.term && seq >= w.seq {
		f.late = &lateness{term: l.Term, seq: l.Seq, asked: f.asked}
		return false
	}
	w.polls++
	return f.asked >= w.asked+2 || w.polls >= 10
}

// seeClock corrects the expiry of what l's node wrote when its clock and ours are
// apart: all of its records are read again.
func (s *Sync) seeClock(ctx context.Context, l *Lease, now time.Time) {
	ns := s.o.Replica.existing(l.Node)
	if ns == nil || !ns.seeClock(l, now) {
		return
	}
	s.o.Logger.Warn("the clocks of two nodes differ; the expiry of its registrations is corrected: let NTP set both",
		"node", l.Node, "ours_ahead", now.Sub(time.UnixMilli(l.Clock)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.nodes[l.Node]; f != nil && f.ready {
		f.ready = false
		s.load(ctx, f)
	}
}

// differs counts a digest that does not match and reads all records at the second,
// at most once in a pause that doubles. Its owner looks for itself whether the store
// holds what it published. The caller holds s.mu.
func (s *Sync) differs(ctx context.Context, f *followed) {
	if f.differs++; f.differs < 2 {
		return
	}
	f.differs = 0
	now := s.o.Now()
	if now.Before(f.retry) {
		return // read a moment ago, in vain
	}
	if ns := s.o.Replica.existing(f.id); ns != nil {
		ns.info.Lock()
		ns.drift++
		ns.info.Unlock()
	}
	s.o.Replica.stats.drift.Add(1)
	s.o.Logger.Warn("the records differ from what their node says; reading them again", "node", f.id)
	f.ready = false
	s.load(ctx, f)
	f.pause(now, rereadMax)
}

// pause puts off the next read of all records. The caller holds Sync.mu.
func (f *followed) pause(now time.Time, most time.Duration) {
	f.backoff = min(max(2*f.backoff, rereadMin), most)
	f.retry = now.Add(f.backoff)
}

// load starts reading all records of f, unless that is under way or was tried a
// moment ago. The caller holds s.mu.
func (s *Sync) load(ctx context.Context, f *followed) {
	if f.loading || s.nodes[f.id] != f || s.o.Now().Before(f.retry) {
		return
	}
	f.loading = true
	s.tasks.Go(func() {
		select {
		case s.loads <- struct{}{}:
		case <-ctx.Done():
			return
		}
		err := s.snapshot(ctx, f.id)
		for range 3 { // the node published anew meanwhile: no reason to wait
			if !errors.Is(err, ErrChanged) {
				break
			}
			err = s.snapshot(ctx, f.id)
		}
		<-s.loads
		s.called(ctx, "reading all records", err)

		s.mu.Lock()
		defer s.mu.Unlock()
		f.loading = false
		now := s.o.Now()
		switch {
		case err == nil || errors.Is(err, ErrNoNode):
			f.ready, f.tried, f.late, f.differs = true, true, nil, 0
			s.setPlace(f, false, err != nil)
			s.miss(f) // what was applied while all records were read
		case errors.Is(err, ErrCorrupt):
			if f.backoff == 0 {
				s.o.Logger.Warn("the records cannot be read; trying again until they can", "node", f.id, "err", err)
			}
			f.tried = true
			s.setPlace(f, true, false)
			f.pause(now, corruptMax)
		default: // tried again at the next poll
			f.retry = now.Add(jitter(100 * time.Millisecond))
		}
		s.noteSynced()
	})
}

func (s *Sync) setPlace(f *followed, corrupt, absent bool) {
	if ns := s.o.Replica.existing(f.id); ns != nil {
		ns.setPlace(corrupt, absent)
	}
}

// snapshot reads all records of id and makes them what the replica holds. When
// the store has none, what was held stays: the node publishes it again, or it
// expires.
func (s *Sync) snapshot(ctx context.Context, id pbxmesh.NodeID) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.SnapshotTimeout)
	defer cancel()
	r := s.o.Replica
	ns := r.existing(id)
	if ns == nil {
		return ErrNoNode // forgotten meanwhile
	}
	asOf := s.o.Now().Add(-s.o.Backend.Lag())
	var records []staged
	var bad, unknown, refused int64
	at, err := s.o.Backend.Snapshot(ctx, id, func(rec Record) {
		if rec.Kind != KindRegistration {
			unknown++
			return
		}
		reg, err := r.decode(id, &rec)
		switch {
		case len(records) >= r.opts.MaxPerNode:
			refused++
		case err != nil:
			bad++
			records = append(records, staged{unread: rec.Key, seq: rec.Seq, hash: rec.hash()})
		default:
			records = append(records, staged{reg: reg, seq: rec.Seq, hash: rec.hash()})
		}
	})
	if errors.Is(err, ErrNoNode) {
		ns.mu.Lock()
		ns.term, ns.seq = 0, 0
		ns.mu.Unlock()
	}
	if err != nil {
		return err
	}
	r.stats.loads.Add(1)
	r.stats.unknown.Add(unknown)
	r.stats.refused.Add(refused)
	s.skipped("records", at.Bad+int(bad))
	r.replace(ns, at, records)
	ns.setFresh(asOf)
	s.mu.Lock()
	f := s.nodes[id]
	s.mu.Unlock()
	if f != nil {
		s.tell(f, ns)
	}
	return nil
}
