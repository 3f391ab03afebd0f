package registry

import (
	"errors"
	"time"
)

// silentAfter is how many renewals of a former instance must be missing until its
// lease is taken over.
const silentAfter = 3

// rival is another instance that holds this node's lease.
type rival struct {
	instance string
	beat     uint64
	since    time.Time // when this beat was first seen, on our clock
	alive    bool      // it renewed its lease while we watched
	told     bool      // the log says so
	over     string    // its lease may be replaced; see Lease.Over
}

// stepBack draws the conclusions of ErrFenced: this daemon does not fight for the
// node. Whoever came first keeps it for as long as it renews its lease; a former
// instance of this same daemon does not renew any more, and is followed at once.
// The caller holds w.mu.
func (w *Writer) stepBack(err error) {
	now := w.o.Now()
	w.status.Err = err
	w.term = 0
	w.dirtyAll()
	var held *HeldError
	if !errors.As(err, &held) {
		// Somebody published under a higher term. If it lives, its lease is there
		// by then.
		w.fenced = now.Add(w.o.LeaseTTL)
		w.tellRival("", err)
		return
	}
	r := &w.rival
	if r.instance != held.Instance {
		*r = rival{instance: held.Instance, beat: held.Beat, since: now, told: r.told}
	} else if r.beat != held.Beat {
		r.beat, r.since, r.alive, r.over = held.Beat, now, true, ""
	}
	same := held.Owner == w.o.Owner
	if same && now.Sub(r.since) >= silentAfter*w.o.RenewEvery {
		w.o.Logger.Info("the former daemon of this node is gone: taking its lease over", "node", w.node.ID, "instance", r.instance)
		r.over, w.fenced = r.instance, time.Time{}
		notify(w.beat)
		return
	}
	w.fenced = now.Add(w.o.RenewEvery / 2)
	if !same || r.alive {
		w.tellRival(held.Owner, err)
	}
}

// tellRival logs once per rival. The caller holds w.mu.
func (w *Writer) tellRival(owner string, err error) {
	if w.rival.told {
		return
	}
	w.rival.told = true
	w.o.Logger.Error("another daemon publishes for this node: stop one of them, or give one another node.id; this one steps back until the other's lease ends",
		"node", w.node.ID, "other", owner, "err", err)
}
