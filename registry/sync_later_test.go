package registry_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// membersOnly is a store whose primary is away, and whose replica knows members, but no leases.
type membersOnly struct{ registry.Backend }

func (membersOnly) Leases(context.Context, []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	return nil, 0, pbxmesh.ErrUnavailable
}

// A store that shows members and no leases is away, all the time: the log says so once.
func TestOldReplicaIsNoAnswer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		if err := store.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: "london"}}); err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		s, err := registry.NewSync(registry.SyncOptions{
			Replica: registry.NewReplica(registry.ReplicaOptions{}), Backend: membersOnly{store}, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		since := time.Since(s.Status().Since)
		cancel()
		<-done
		if n := strings.Count(log.String(), "the store"); n > 3 || since < 50*time.Second {
			t.Errorf("the log says %d times in a minute how the store does, the last time %s ago", n, since)
		}
	})
}

// laterChanges is a store in which this version can read records, and no changes.
type laterChanges struct {
	registry.Backend
	asked, loads atomic.Int64
}

func (l *laterChanges) Subscribe(ctx context.Context, fn func(*registry.Batch)) error {
	return l.Backend.Subscribe(ctx, func(b *registry.Batch) {
		if b != nil {
			b = &registry.Batch{Node: b.Node, Broken: true, Bad: 1}
		}
		fn(b)
	})
}

func (l *laterChanges) Changes(_ context.Context, after []registry.Cursor) ([]registry.Batch, error) {
	l.asked.Add(1)
	var batches []registry.Batch
	for _, c := range after {
		for range registry.MaxChanges {
			batches = append(batches, registry.Batch{Node: c.Node, Broken: true, Bad: 1})
		}
	}
	return batches, nil
}

func (l *laterChanges) Snapshot(ctx context.Context, id pbxmesh.NodeID, each func(registry.Record)) (registry.SnapshotInfo, error) {
	l.loads.Add(1)
	return l.Backend.Snapshot(ctx, id, each)
}

// A node whose changes nobody here can read is read as a whole now and then, in pauses that
// double: neither in a loop, nor with every change, nor never. The view of the others stays young.
func TestChangesOfALaterVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		later := &laterChanges{Backend: store}
		buffalo := start(t, "buffalo", store, tuning{productive: true})
		buffalo.boot("core-1", 1)
		reader := start(t, "", later, tuning{productive: true})
		const seconds = 600
		for n := range seconds {
			buffalo.register(n + 2)
			time.Sleep(time.Second)
			synctest.Wait()
			if age := reader.r.Age(time.Now()); n > 2 && age > 5*time.Second {
				t.Fatalf("after %d s the view is %s old", n, age)
			}
		}
		if loads, asked := later.loads.Load(), later.asked.Load(); loads < 10 || loads > 40 || asked > 100 {
			t.Errorf("in %d s it was read %d times and its changes were asked for %d times", seconds, loads, asked)
		}
		buffalo.stop()
		time.Sleep(70 * time.Second)
		synctest.Wait()
		if n := reader.r.Held("buffalo"); n != seconds+1 {
			t.Errorf("%d registrations of it are known", n)
		}
		reader.stop()
	})
}
