package registry

import (
	"errors"
	"strings"
	"time"
)

// stepBack draws the conclusions of ErrFenced: this daemon does not fight for the
// node. Whoever came first keeps it for as long as it renews its lease; the lease of a
// former instance of this same daemon, which held the lock that this one holds, is taken
// over at once. The caller holds w.mu.
func (w *Writer) stepBack(err error) {
	now := w.o.Now()
	w.status.Err = err
	w.term = 0
	w.dirtyAll()
	// Without a HeldError somebody published under a higher term. If it lives, its
	// lease is there by then.
	w.fenced = now.Add(w.o.LeaseTTL)
	var held *HeldError
	if errors.As(err, &held) {
		if w.former != "" && strings.HasPrefix(held.Instance, w.former) {
			w.o.Logger.Info("the former daemon of this node is gone: taking its lease over", "node", w.node.ID, "instance", held.Instance)
			w.over, w.fenced = held.Instance, time.Time{}
			notify(w.beat)
			return
		}
		w.fenced = now.Add(w.o.RenewEvery / 2)
	}
	switch {
	case w.refused.IsZero():
		w.refused = now
		w.o.Logger.Info("waiting for the lease of this node to end", "node", w.node.ID, "err", err)
	case !w.rival && now.Sub(w.refused) > w.o.LeaseTTL:
		// A lease that lasted longer than one lasts is renewed.
		w.rival = true
		w.o.Logger.Error("another daemon publishes for this node: stop one of them, or give one another node.id; this one steps back until the other's lease ends",
			"node", w.node.ID, "err", err)
	}
}

// leaseIsOurs ends what was known about other daemons. The caller holds w.mu.
func (w *Writer) leaseIsOurs() {
	w.former, w.over, w.refused, w.rival = "", "", time.Time{}, false
}
