package registry_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// link stands between one daemon and the store and can be cut.
type link struct {
	registry.Backend
	cut  atomic.Bool
	deaf atomic.Bool  // the store does what it is told, and its answer is lost
	idle atomic.Bool  // no changes are told or asked for
	lose atomic.Bool  // a record of the next batch is lost, as in a broken memory
	seen atomic.Int64 // calls that read the leases, and were answered

	near  *memory.Replica // what is read, unless avoid says that it is the store itself; nil for none
	avoid atomic.Bool
	bugs  int
	told  *atomic.Int64 // subscriptions of the whole mesh; nil when nobody counts them
	began atomic.Int64  // subscriptions

	mu                          sync.Mutex
	cuts                        map[int]context.CancelCauseFunc // of subscriptions
	loseTold, swapTold, retells bool                            // what becomes of the next batch that is told
	swapped                     *registry.Batch
	last                        []*registry.Batch // that were told
}

// Bugs of what stands between a daemon and its store, beside those of Replica.Mutate.
const (
	DeafReaders = 1 << (16 + iota) // no more than three readers are told of changes
	BlindToLag                     // a replica of the store is taken for the store
	HearsOnce                      // a subscription that ended is not renewed
)

func newLink(store registry.Backend, bugs int) *link {
	l := &link{Backend: store, bugs: bugs, cuts: map[int]context.CancelCauseFunc{}}
	l.near, _ = store.(*memory.Replica)
	if l.near != nil {
		l.Backend = l.near.Store
	}
	return l
}

// source is where the daemon reads.
func (l *link) source() registry.Source {
	if l.near != nil && !l.avoid.Load() {
		return l.near
	}
	return l.Backend
}

func (l *link) Lag() time.Duration {
	if l.bugs&BlindToLag != 0 {
		return 0
	}
	return l.source().Lag()
}

// breakOff cuts the link, and with it what is told over it.
func (l *link) breakOff() {
	l.cut.Store(true)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, cut := range l.cuts {
		cut(fmt.Errorf("%w: the link is cut", pbxmesh.ErrUnavailable))
	}
}

func (l *link) answer(err error) error {
	if err == nil && l.deaf.Load() {
		return fmt.Errorf("%w: the answer is lost", pbxmesh.ErrUnavailable)
	}
	return err
}

func (l *link) err() error {
	if l.cut.Load() {
		return fmt.Errorf("%w: the link is cut", pbxmesh.ErrUnavailable)
	}
	return nil
}

func (l *link) Publish(ctx context.Context, p registry.Publication) (uint64, error) {
	if err := l.err(); err != nil {
		return 0, err
	}
	term, err := l.Backend.Publish(ctx, p)
	return term, l.answer(err)
}

func (l *link) Append(ctx context.Context, b registry.Batch) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.answer(l.Backend.Append(ctx, b))
}

func (l *link) Renew(ctx context.Context, x registry.Lease) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.answer(l.Backend.Renew(ctx, x))
}

func (l *link) Leave(ctx context.Context, x registry.Lease) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.Backend.Leave(ctx, x)
}

func (l *link) Announce(ctx context.Context, a registry.Announcement) error {
	if err := l.err(); err != nil {
		return err
	}
	return l.Backend.Announce(ctx, a)
}

func (l *link) Members(ctx context.Context) ([]registry.Announcement, int, error) {
	if err := l.err(); err != nil {
		return nil, 0, err
	}
	return l.source().Members(ctx)
}

func (l *link) Leases(ctx context.Context, n []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	if err := l.err(); err != nil {
		return nil, 0, err
	}
	leases, bad, err := l.source().Leases(ctx, n)
	if err == nil {
		l.seen.Add(1)
	}
	return leases, bad, err
}

func (l *link) Snapshot(ctx context.Context, n pbxmesh.NodeID, each func(registry.Record)) (registry.SnapshotInfo, error) {
	if err := l.err(); err != nil {
		return registry.SnapshotInfo{}, err
	}
	return l.source().Snapshot(ctx, n, each)
}

func (l *link) Changes(ctx context.Context, after []registry.Cursor) ([]registry.Batch, error) {
	if err := l.err(); err != nil {
		return nil, err
	}
	batches, err := l.source().Changes(ctx, after)
	if l.idle.Load() {
		return nil, fmt.Errorf("%w: no changes are told", pbxmesh.ErrUnavailable)
	}
	if cut := l.err(); cut != nil { // the answer of a call that was under way is lost too
		return nil, cut
	}
	batches = slices.Clone(batches)
	for i := range batches {
		l.loseOne(&batches[i])
	}
	return batches, err
}

func (l *link) loseOne(b *registry.Batch) {
	if len(b.Records) > 0 && l.lose.CompareAndSwap(true, false) {
		b.Records = b.Records[1:]
	}
}

func (l *link) Subscribe(ctx context.Context, fn func(*registry.Batch)) error {
	if err := l.err(); err != nil {
		return err
	}
	n := l.began.Add(1)
	if l.bugs&HearsOnce != 0 && n > 1 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	deaf := l.told != nil && l.told.Add(1) > 3 && l.bugs&DeafReaders != 0
	ctx, cut := context.WithCancelCause(ctx)
	l.mu.Lock()
	l.cuts[int(n)] = cut
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.cuts, int(n))
		cut(nil)
	}()
	return l.source().Subscribe(ctx, func(b *registry.Batch) {
		switch {
		case l.err() != nil || l.idle.Load(): // lost
		case b == nil:
			fn(nil)
		case !deaf:
			told := *b
			l.loseOne(&told)
			l.tell(&told, fn)
		}
	})
}

// tell tells b, or what is to happen to it happens.
func (l *link) tell(b *registry.Batch, fn func(*registry.Batch)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) == 16 {
		l.last = l.last[1:]
	}
	l.last = append(l.last, b)
	switch {
	case l.loseTold:
		l.loseTold = false
		return
	case l.swapTold:
		l.swapTold, l.swapped = false, b
		return
	}
	fn(b)
	if l.swapped != nil {
		fn(l.swapped)
		l.swapped = nil
	}
	if l.retells {
		l.retells = false
		for _, again := range l.last { // the newest first, so that what is over comes last
			defer fn(again)
		}
	}
}

// calm ends what was to happen to the next batch.
func (l *link) calm() {
	l.lose.Store(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.loseTold, l.swapTold, l.retells = false, false, false
}

// next has something happen to the next batch that is told.
func (l *link) next(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch what {
	case "lose told":
		l.loseTold = true
	case "swap told":
		l.swapTold = true
	case "tell again":
		l.retells = true
	}
}
