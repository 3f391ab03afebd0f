package registry

import (
	"context"
	"errors"
)

// checkLoop looks now and then whether the store holds what this node published.
// Readers cannot tell a record that a stranger changed from one that a version
// cannot read, so they ask for nothing: whoever wrote it looks after it.
func (w *Writer) checkLoop(ctx context.Context) {
	for sleep(ctx, jitter(w.o.CheckEvery)) {
		found, err := w.check(ctx)
		if err == nil && len(found) > 0 {
			// A record that is changed meanwhile differs once, not twice.
			var again map[string]uint64
			again, err = w.check(ctx)
			for key, hash := range found {
				if again[key] != hash {
					delete(found, key)
				}
			}
		}
		if err != nil || len(found) == 0 {
			continue // a store that is away, or lost something, is the next renewal's matter
		}
		w.mu.Lock()
		w.status.Foreign += int64(len(found))
		w.o.Logger.Warn("the store holds what this node did not publish; publishing everything again", "node", w.node.ID, "entries", len(found))
		w.dirtyAll()
		notify(w.wake)
		w.mu.Unlock()
	}
}

// check returns what stands in this node's place in the store and is not what was
// published: hashes by kind, NUL and key. What has no key stands under "".
func (w *Writer) check(ctx context.Context) (map[string]uint64, error) {
	w.mu.Lock()
	at := Cursor{Node: w.node.ID, Term: w.term, Seq: w.seq}
	idle := w.full || w.term == 0
	w.mu.Unlock()
	if idle {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.o.PublishTimeout)
	defer cancel()
	found := map[string]uint64{}
	info, err := w.o.Backend.Snapshot(ctx, at.Node, func(rec Record) {
		hash := rec.hash()
		key := recordKey(rec.Kind, rec.Key)
		w.mu.Lock()
		defer w.mu.Unlock()
		o := w.records[key]
		published := o != nil && (o.pubHash == hash && o.pub || o.pubSeq > at.Seq)
		if !published && rec.Seq <= at.Seq {
			found[key] = hash
		}
	})
	if errors.Is(err, ErrCorrupt) || err == nil && info.Bad > 0 {
		found[""], err = 1, nil
	}
	if err != nil {
		return nil, err
	}
	batches, err := w.o.Backend.Changes(ctx, []Cursor{at})
	if err != nil {
		return nil, err
	}
	for i := range batches {
		if batches[i].Broken {
			found[""] = 1
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.term != at.Term || w.full { // everything was published anew meanwhile
		return nil, nil
	}
	return found, nil
}
