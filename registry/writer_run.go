package registry

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"pbxmesh"
)

// Run publishes until ctx ends or Close is called. It then tries once to publish
// what still waits and to end the lease, each within Timeout, and returns nil.
// It returns an error only when it was called before.
func (w *Writer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w.mu.Lock()
	if w.started || w.closed {
		w.mu.Unlock()
		return errors.New("registry writer: Run was called before, or Close")
	}
	w.started, w.cancel = true, cancel
	w.mu.Unlock()
	defer close(w.done)

	var renewals sync.WaitGroup
	renewals.Go(func() { w.renewLoop(ctx) })
	renewals.Go(func() { w.checkLoop(ctx) })
	w.flushLoop(ctx)
	renewals.Wait()
	w.leave(context.WithoutCancel(ctx))
	return nil
}

// Close ends Run and waits for it: at most three times Timeout. The lease is
// ended, the registrations stay in the store. It is idempotent.
func (w *Writer) Close() error {
	w.mu.Lock()
	w.closed = true
	started, cancel := w.started, w.cancel
	w.mu.Unlock()
	if started {
		cancel()
		<-w.done
	}
	return nil
}

func (w *Writer) flushLoop(ctx context.Context) {
	backoff := time.Duration(0)
	sweep, held := time.NewTicker(time.Minute), time.NewTicker(time.Second)
	defer sweep.Stop()
	defer held.Stop()
	for {
		wait := w.o.Linger
		if backoff > 0 {
			wait = jitter(backoff)
		} else {
			select {
			case <-ctx.Done():
				return
			case <-sweep.C:
				w.sweepOwn()
				continue
			case <-held.C:
				if !w.release(w.o.Now()) {
					continue
				}
			case <-w.wake:
			}
		}
		if !sleep(ctx, wait) {
			return
		}
		if err := w.flush(ctx); err != nil {
			backoff = min(max(2*backoff, 50*time.Millisecond), w.o.BackoffMax)
		} else {
			backoff = 0
		}
	}
}

// flush carries everything that waits to the store, or stops at the first error.
func (w *Writer) flush(ctx context.Context) error {
	for ctx.Err() == nil {
		w.mu.Lock()
		idle := !w.ready || w.o.Now().Before(w.fenced) || !w.full && len(w.queue) == 0
		full := w.full
		w.mu.Unlock()
		if idle {
			return nil
		}
		var err error
		if full {
			err = w.publish(ctx)
		} else {
			err = w.append(ctx)
		}
		if ctx.Err() != nil { // our own end says nothing about the store
			return ctx.Err()
		}
		if err = w.outcome("publish", err); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// publish sends everything under a new term.
func (w *Writer) publish(ctx context.Context) error {
	w.renewing.Lock()
	w.mu.Lock()
	p := Publication{
		Node: w.node.ID, Epoch: w.epoch, Owner: w.o.Owner, Instance: w.instance, Over: w.over,
		Term: max(w.maxTerm+1, uint64(max(0, w.o.Now().UnixMilli()))), Digests: Digests{},
		Records: make([]Record, 0, len(w.records)),
	}
	w.full, w.queue, w.term = false, nil, 0
	sent := make([]*own, 0, len(w.records))
	for key, o := range w.records {
		o.dirty, o.pub, o.heldFor = false, false, 0
		if o.rec.Tombstone() {
			delete(w.records, key)
			continue
		}
		rec := o.rec
		rec.Seq = 1
		p.Digests.add(rec.Kind, rec.hash())
		p.Records = append(p.Records, rec)
		sent = append(sent, o)
		o.publishing()
	}
	w.held.clear()
	w.mu.Unlock()
	w.renewing.Unlock()

	ctx, cancel := context.WithTimeout(ctx, w.o.PublishTimeout)
	defer cancel()
	term, err := w.o.Backend.Publish(ctx, p)

	w.mu.Lock()
	defer w.mu.Unlock()
	w.maxTerm = max(w.maxTerm, p.Term, term)
	if err != nil {
		w.dirtyAll()
		return err
	}
	w.term, w.seq, w.tried, w.digests = term, 1, 1, p.Digests
	for i, o := range sent {
		o.pub, o.pubHash, o.pubSeq = true, p.Records[i].hash(), 1
	}
	w.status.Publications++
	w.o.Logger.Info("published everything", "node", w.node.ID, "term", term, "records", len(sent))
	notify(w.beat)
	return nil
}

// append sends the oldest changes. After an error the same keys, with their
// values of then, go first: the store may have applied the failed batch, and
// only a batch with its keys makes the digest true again.
func (w *Writer) append(ctx context.Context) error {
	w.mu.Lock()
	n := min(len(w.queue), w.o.BatchSize)
	sent := w.queue[:n:n]
	versions := make([]uint64, n)
	w.tried++
	b := Batch{
		Node: w.node.ID, Epoch: w.epoch, Term: w.term, Seq: w.tried, Prev: w.seq,
		Records: make([]Record, n), Digests: w.digests.clone(),
	}
	for i, o := range sent {
		b.Records[i], versions[i] = o.rec, o.version
		b.Records[i].Seq = b.Seq
		if o.pub {
			b.Digests.remove(o.rec.Kind, o.pubHash)
		}
		if !o.rec.Tombstone() {
			b.Digests.add(o.rec.Kind, b.Records[i].hash())
		}
	}
	w.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, w.o.Timeout)
	defer cancel()
	if err := w.o.Backend.Append(ctx, b); err != nil {
		return err
	}

	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.Batches++
	w.status.Changes += int64(n)
	w.seq, w.digests = b.Seq, b.Digests
	// mark may have asked for everything meanwhile, and with it dropped the queue.
	if !w.full {
		w.queue = w.queue[n:]
	}
	for i, o := range sent {
		o.pub, o.pubHash, o.pubSeq = !b.Records[i].Tombstone(), b.Records[i].hash(), b.Seq
		if w.full {
			continue
		}
		o.dirty = false
		if o.version != versions[i] {
			o.dirty = true
			w.queue = append(w.queue, o)
		} else if !o.pub {
			delete(w.records, recordKey(o.rec.Kind, o.rec.Key))
		} else {
			o.publishing()
		}
	}
	return nil
}

// outcome draws the conclusions from an attempt and returns what to back off for.
func (w *Writer) outcome(what string, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		if w.status.Err != nil {
			w.o.Logger.Info("publishing works again", "node", w.node.ID)
		}
		w.status.Err, w.status.Published = nil, w.o.Now()
		return nil
	case errors.Is(err, ErrLost):
		w.o.Logger.Warn("publishing everything again", "node", w.node.ID, "err", err)
		w.status.Err = err
		w.dirtyAll()
		notify(w.wake)
	case errors.Is(err, ErrFenced):
		w.stepBack(err)
	default:
		w.status.Errors++
		if w.status.Err == nil {
			w.o.Logger.Warn("the store cannot be written; changes wait and calls are routed from memory", "doing", what, "node", w.node.ID, "err", err)
		}
		w.status.Err = err
	}
	return err
}

func (w *Writer) renewLoop(ctx context.Context) {
	for {
		w.mu.Lock()
		waiting := w.o.Now().Before(w.fenced)
		w.mu.Unlock()
		if !waiting {
			err := w.renew(ctx)
			if ctx.Err() != nil {
				return
			}
			if w.outcome("renewing the lease", err) == nil {
				w.mu.Lock()
				if w.full && w.ready { // after a fence nothing else would begin it
					notify(w.wake)
				}
				w.mu.Unlock()
			}
		}
		timer := time.NewTimer(jitter(w.o.RenewEvery))
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-w.beat:
		}
		timer.Stop()
		if ctx.Err() != nil { // also of a daemon that stepped back and renews nothing
			return
		}
	}
}

// renew writes the lease, and the announcement when the store may lack it.
func (w *Writer) renew(ctx context.Context) error {
	w.renewing.Lock()
	defer w.renewing.Unlock()
	ctx, cancel := context.WithTimeout(ctx, w.o.Timeout)
	defer cancel()

	w.mu.Lock()
	l := w.currentLease()
	a, told := Announcement{Node: w.node}, w.told
	w.mu.Unlock()
	err := w.o.Backend.Renew(ctx, l)
	held := err == nil || errors.Is(err, ErrLost)
	w.o.Replica.seeLocalLease(&l, held, w.o.Now())
	if !held {
		return err
	}
	w.mu.Lock()
	w.leaseIsOurs()
	w.mu.Unlock()
	// A store that lost records has lost the members too; and one that lost
	// nothing but them is found by telling it every now and then.
	if err == nil && told && l.Beat%30 != 0 {
		return nil
	}
	if aerr := w.o.Backend.Announce(ctx, a); aerr != nil {
		return errors.Join(err, aerr)
	}
	w.mu.Lock()
	w.told = a.Node.Software == w.node.Software
	w.mu.Unlock()
	return err
}

// currentLease returns the next lease. The caller holds w.mu.
func (w *Writer) currentLease() Lease {
	w.beats++
	l := Lease{
		Node: w.node.ID, Owner: w.o.Owner, Instance: w.instance, Over: w.over, Beat: w.beats,
		Epoch: w.epoch, Switch: w.lease, TTL: w.o.LeaseTTL, Clock: min(max(0, w.o.Now().UnixMilli()), maxUnixMilli),
	}
	if w.term > 0 && !w.full {
		l.Term, l.Seq, l.Digests = w.term, w.seq, w.digests.clone()
	}
	return l
}

// leave publishes what waits, ends the lease and marks the node as left.
func (w *Writer) leave(ctx context.Context) {
	w.mu.Lock()
	fenced, reachable := errors.Is(w.status.Err, ErrFenced), !errors.Is(w.status.Err, pbxmesh.ErrUnavailable)
	l, a := w.currentLease(), Announcement{Node: w.node, Left: true}
	w.mu.Unlock()
	if fenced {
		return
	}
	if reachable {
		// Refreshes that were held back go too: nobody may renew them for a while.
		flushCtx, cancel := context.WithTimeout(ctx, w.o.Timeout)
		w.release(time.UnixMilli(maxUnixMilli))
		_ = w.flush(flushCtx)
		cancel()
	}
	ctx, cancel := context.WithTimeout(ctx, w.o.Timeout)
	defer cancel()
	if err := errors.Join(w.o.Backend.Announce(ctx, a), w.o.Backend.Leave(ctx, l)); err != nil {
		w.o.Logger.Warn("leaving without telling the store; the lease ends by itself", "node", l.Node, "err", err)
	}
}

// sweepOwn removes records that expired long ago: the switch's word about their
// end was lost.
func (w *Writer) sweepOwn() {
	w.mu.Lock()
	defer w.mu.Unlock()
	cutoff := w.o.Now().Add(-w.o.SweepAfter)
	for key, o := range w.records {
		if !o.rec.Tombstone() && !cutoff.Before(o.expires) {
			w.remove(key, o)
			w.status.Swept++
			notify(w.wake)
		}
	}
	for id, expires := range w.unpublished {
		if !cutoff.Before(expires) {
			w.removeUnpublished(id)
			w.status.Swept++
		}
	}
}

// jitter returns d changed by up to a tenth, so that daemons that were started
// together do not stay together.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// sleep waits for d; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
