package registry_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// bubble runs a writer's and a reader's daemon with their default intervals,
// under a virtual clock.
func bubble(t *testing.T, test func(t *testing.T, store *memory.Store, w *registry.Writer, reader *registry.Replica, s *registry.Sync)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		local := registry.NewReplica(registry.ReplicaOptions{Local: "buffalo"})
		w, err := registry.NewWriter(registry.WriterOptions{Node: pbxmesh.Node{ID: "buffalo"}, Replica: local, Backend: store})
		if err != nil {
			t.Fatal(err)
		}
		reader := registry.NewReplica(registry.ReplicaOptions{})
		s, err := registry.NewSync(registry.SyncOptions{Replica: reader, Backend: store})
		if err != nil {
			t.Fatal(err)
		}
		both(t, w, s)
		test(t, store, w, reader, s)
	})
}

// both runs a writer and a reader to the end of the test.
func both(t *testing.T, w *registry.Writer, s *registry.Sync) {
	results := make(chan error, 2)
	go func() { results <- w.Run(t.Context()) }()
	go func() { results <- s.Run(t.Context()) }()
	t.Cleanup(func() {
		if err := errors.Join(<-results, <-results); err != nil {
			t.Error(err)
		}
	})
}

func TestFreshnessAndLease(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, store *memory.Store, w *registry.Writer, reader *registry.Replica, s *registry.Sync) {
		if age := reader.Age(time.Now()); age != registry.NeverSynced && age != 0 {
			t.Errorf("before anything was read the view is %s old", age)
		}
		w.Reset("core-1", []pbxmesh.Registration{device("buffalo", 1)})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if age := reader.Age(time.Now()); age > 1200*time.Millisecond {
			t.Errorf("with all well the view is %s old", age)
		}
		if m := reader.Members(); len(m) != 1 || !m[0].LeaseHeld || time.Since(m[0].LastSeen) > 2500*time.Millisecond || m[0].Registrations != 1 {
			t.Errorf("members %+v", m)
		}
		if st := s.Status(); !st.Connected || !st.Synced || st.Following != 1 {
			t.Errorf("status %+v", st)
		}

		store.SetDown(errors.New("test"))
		time.Sleep(time.Minute)
		synctest.Wait()
		if age := reader.Age(time.Now()); age < time.Minute || age > 62*time.Second {
			t.Errorf("after a minute without a store the view is %s old", age)
		}
		if st := s.Status(); st.Connected || time.Since(st.Since) < 57*time.Second || !errors.Is(st.Err, pbxmesh.ErrUnavailable) {
			t.Errorf("status %+v", st)
		}
		// Nobody said that the lease ended: the store could not be asked.
		if m := reader.Members(); !m[0].LeaseHeld || time.Since(m[0].LastSeen) < time.Minute {
			t.Errorf("members %+v", m)
		}
		store.SetDown(nil)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if age := reader.Age(time.Now()); age > 1200*time.Millisecond {
			t.Errorf("with the store back the view is %s old", age)
		}
	})
}

// A store that was stopped holds no leases when it goes on; nobody takes that for a daemon's
// end.
func TestStoppedStoreEndsNoLease(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, store *memory.Store, w *registry.Writer, reader *registry.Replica, _ *registry.Sync) {
		w.Reset("core-1", []pbxmesh.Registration{device("buffalo", 1)})
		time.Sleep(5 * time.Second)
		for stop := 5100 * time.Millisecond; stop < time.Minute; stop = stop * 8 / 7 {
			store.SetDown(errors.New("stopped"))
			time.Sleep(stop)
			store.SetDown(nil)
			for range 40 {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if m := reader.Members(); !m[0].LeaseHeld {
					t.Fatalf("after a stop of %v the lease has run out", stop)
				}
			}
		}
	})
}

// slowStore answers reads late, and takes no more leases once it is cut.
type slowStore struct {
	*memory.Store
	delay time.Duration
	cut   atomic.Bool
	empty atomic.Bool // it shows no leases
}

func (s *slowStore) Members(ctx context.Context) ([]registry.Announcement, int, error) {
	time.Sleep(s.delay) // virtual
	return s.Store.Members(ctx)
}

func (s *slowStore) Leases(ctx context.Context, nodes []pbxmesh.NodeID) (map[pbxmesh.NodeID]registry.Lease, int, error) {
	time.Sleep(s.delay)
	if s.empty.Load() {
		nodes = nil
	}
	return s.Store.Leases(ctx, nodes)
}

func (s *slowStore) Renew(ctx context.Context, l registry.Lease) error {
	if s.cut.Load() {
		return pbxmesh.ErrUnavailable
	}
	return s.Store.Renew(ctx, l)
}

// The lease of a daemon that is gone runs out, at every pace and distance of the store.
func TestLeaseRunsOut(t *testing.T) {
	t.Parallel()
	for _, renew := range []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second} {
		for _, delay := range []time.Duration{0, 60 * time.Millisecond, 200 * time.Millisecond, time.Second} {
			synctest.Test(t, func(t *testing.T) {
				store := &slowStore{Store: memory.New(memory.Options{}), delay: delay}
				w, err := registry.NewWriter(registry.WriterOptions{
					Node: pbxmesh.Node{ID: "buffalo"}, Replica: registry.NewReplica(registry.ReplicaOptions{Local: "buffalo"}), Backend: store,
					LeaseTTL: 5 * renew, RenewEvery: renew,
				})
				if err != nil {
					t.Fatal(err)
				}
				reader := registry.NewReplica(registry.ReplicaOptions{})
				s, err := registry.NewSync(registry.SyncOptions{Replica: reader, Backend: store, Poll: renew, Timeout: 5 * time.Second})
				if err != nil {
					t.Fatal(err)
				}
				both(t, w, s)
				w.Reset("core-1", nil)
				time.Sleep(10*renew + 10*delay)
				held := func() bool { return len(reader.Members()) == 1 && reader.Members()[0].LeaseHeld }
				if !held() {
					t.Fatalf("renewed every %v, %v away: no lease at all", renew, delay)
				}
				store.cut.Store(true)
				began := time.Now()
				for held() && time.Since(began) < 10*time.Minute {
					time.Sleep(renew)
				}
				took := time.Since(began)
				polls := 4
				if 2*delay > renew*8/10 {
					polls = 12 // each one is late
				}
				if limit := 5*renew + time.Duration(polls)*(renew*11/10+2*delay) + renew; took < 4*renew || took > limit {
					t.Errorf("renewed every %v, %v away: it ran out after %v, want at most %v", renew, delay, took, limit)
				}
			})
		}
	}
}

// A poll that finds no lease counts anew after a time in which the store could not be asked.
func TestLeasesMissedBeforeAStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{Store: memory.New(memory.Options{})}
		node := pbxmesh.Node{ID: "buffalo"}
		if err := errors.Join(store.Announce(t.Context(), registry.Announcement{Node: node}),
			store.Renew(t.Context(), registry.Lease{Node: node.ID, Owner: "host", Instance: "1", Beat: 1, TTL: time.Hour})); err != nil {
			t.Fatal(err)
		}
		reader := registry.NewReplica(registry.ReplicaOptions{})
		s, err := registry.NewSync(registry.SyncOptions{Replica: reader, Backend: store})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.Run(t.Context()) }()
		t.Cleanup(func() { <-done })
		for range 20 {
			time.Sleep(3 * time.Second)
			store.empty.Store(true)
			time.Sleep(1750 * time.Millisecond) // one or two polls, as again below
			store.SetDown(errors.New("stopped"))
			time.Sleep(10 * time.Second)
			store.SetDown(nil)
			time.Sleep(1750 * time.Millisecond)
			if !reader.Members()[0].LeaseHeld {
				t.Fatal("two polls after the stop the lease has run out")
			}
			time.Sleep(2 * time.Second)
			if reader.Members()[0].LeaseHeld {
				t.Fatal("four polls after the stop it holds")
			}
			store.empty.Store(false)
		}
	})
}

// A change is seen as soon as it is published, not at the next poll.
func TestChangesAreNotPolled(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, _ *memory.Store, w *registry.Writer, reader *registry.Replica, _ *registry.Sync) {
		w.Reset("core-1", nil)
		time.Sleep(5 * time.Second)
		for n := range 20 {
			time.Sleep(time.Duration(rand.IntN(2000)) * time.Millisecond)
			reg := device("buffalo", n)
			w.Put(reg)
			time.Sleep(6 * time.Millisecond) // the writer's linger is 5 ms
			synctest.Wait()
			if len(reader.Lookup(reg.AOR)) != 1 {
				t.Fatalf("change %d is not there", n)
			}
		}
		if s := reader.Stats(); s.Loads != 2 && s.Loads != 1 || s.Drift != 0 {
			t.Errorf("stats %+v: changes must come by the stream", s)
		}
	})
}

// A dead node's registrations go once they expired long ago.
func TestDeadNodeIsSwept(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, _ *memory.Store, w *registry.Writer, reader *registry.Replica, _ *registry.Sync) {
		short, long := device("buffalo", 1), device("buffalo", 2)
		short.Expires = time.Now().Add(time.Minute)
		w.Reset("core-1", []pbxmesh.Registration{short, long})
		time.Sleep(5 * time.Second)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Minute)
		synctest.Wait()
		if n := reader.Stats().Registrations; n != 2 {
			t.Errorf("%d registrations after 3 minutes, want both", n)
		}
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if len(reader.Lookup(short.AOR)) != 0 || len(reader.Lookup(long.AOR)) != 1 {
			t.Errorf("after 8 minutes: %v and %v", reader.Lookup(short.AOR), reader.Lookup(long.AOR))
		}
		if m := reader.Members(); len(m) != 1 || !m[0].Left || m[0].LeaseHeld {
			t.Errorf("members %+v", m)
		}
	})
}

func TestSyncOptions(t *testing.T) {
	t.Parallel()
	if _, err := registry.NewSync(registry.SyncOptions{}); err == nil {
		t.Error("a sync of nothing with nothing was accepted")
	}
}

// oddNodes answers for some nodes as a store whose place of theirs is broken or slow.
type oddNodes struct {
	registry.Backend
	corrupt, slow pbxmesh.NodeID
	alsoCorrupt   atomic.Value // of a pbxmesh.NodeID
}

func (o *oddNodes) Snapshot(ctx context.Context, id pbxmesh.NodeID, each func(registry.Record)) (registry.SnapshotInfo, error) {
	switch id {
	case o.corrupt, o.alsoCorrupt.Load():
		return registry.SnapshotInfo{}, registry.ErrCorrupt
	case o.slow:
		select {
		case <-time.After(50 * time.Second):
		case <-ctx.Done():
			return registry.SnapshotInfo{}, ctx.Err()
		}
	}
	return o.Backend.Snapshot(ctx, id, each)
}

// What is not known of one node says nothing about the others: the view stays as young as
// it was when a node joins and is being read, cannot be read, has no records any more, or
// is removed, and a daemon that starts beside such a node has a view of the rest.
func TestAgeIsThatOfTheOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		odd := &oddNodes{Backend: store, corrupt: "corrupt", slow: "slow"}
		buffalo := start(t, "buffalo", store, tuning{productive: true})
		buffalo.boot("core-1", 1, 2)
		file := filepath.Join(t.TempDir(), "state")
		reader := start(t, "", odd, tuning{productive: true, stateFile: file})
		most := 1500 * time.Millisecond
		young := func(r *daemon, when string) {
			t.Helper()
			for range 30 {
				time.Sleep(time.Second)
				synctest.Wait()
				if age := r.r.Age(time.Now()); age > most {
					t.Fatalf("%s the view is %s old", when, age)
				}
			}
		}
		young(reader, "with one node")
		for _, id := range []pbxmesh.NodeID{"corrupt", "slow", "empty"} {
			a := registry.Announcement{Node: pbxmesh.Node{ID: id}}
			if err := store.Announce(t.Context(), a); err != nil {
				t.Fatal(err)
			}
			young(reader, "beside the "+string(id)+" node")
		}
		if m := member(reader, "corrupt"); !m.Fresh.IsZero() {
			t.Errorf("what was never read is fresh: %+v", m)
		}
		began := time.Now()
		late := start(t, "", odd, tuning{productive: true})
		for late.r.Age(time.Now()) == registry.NeverSynced {
			time.Sleep(time.Second)
			synctest.Wait()
			if time.Since(began) > 55*time.Second {
				t.Fatal("a daemon that starts has no view")
			}
		}
		young(late, "after a start")
		// One that was read cannot be read any more.
		victim := start(t, "victim", store, tuning{productive: true})
		victim.boot("core-v", 1)
		young(reader, "with one more node")
		odd.alsoCorrupt.Store(pbxmesh.NodeID("victim"))
		victim.boot("core-v2", 1)
		young(reader, "when it cannot be read any more")
		if m := member(reader, "victim"); time.Since(m.Fresh) < 29*time.Second {
			t.Errorf("it is as fresh as ever: %+v", m)
		}
		odd.alsoCorrupt.Store(pbxmesh.NodeID("nobody"))
		time.Sleep(10 * time.Second)
		if m := member(reader, "victim"); time.Since(m.Fresh) > 2*time.Second {
			t.Errorf("it can be read, and is not: %+v", m)
		}
		// A node dies, and its records end in the store before they do here.
		gone := start(t, "gone", store, tuning{productive: true})
		gone.boot("core-g", 1)
		young(reader, "with a node that will die")
		gone.kill()
		store.Drop("gone")
		most = 6 * time.Second // no lease says every second how its records are
		time.Sleep(10 * time.Second)
		young(reader, "after a node's end")
		if len(reader.r.Lookup(device("gone", 1).AOR)) != 3 {
			t.Error("what the dead node had is gone before it expired")
		}
		reader.stop()
		reader = start(t, "", odd, tuning{productive: true, stateFile: file})
		time.Sleep(time.Minute) // until the slow node was read
		young(reader, "after a restart with what the dead node had")
		if err := store.Forget(t.Context(), "gone"); err != nil {
			t.Fatal(err)
		}
		young(reader, "after a node was forgotten")
		store.SetDown(errors.New("test"))
		time.Sleep(time.Minute)
		if age := reader.r.Age(time.Now()); age < time.Minute {
			t.Errorf("with the store away for a minute the view is %s old", age)
		}
		store.SetDown(nil)
		for _, d := range []*daemon{buffalo, victim, reader, late} {
			d.stop()
		}
	})
}

// stuck keeps renewals back, as a socket does whose other end is stopped.
type stuck struct {
	registry.Backend
	mu    sync.Mutex
	on    bool
	first *registry.Lease
}

func (s *stuck) Renew(ctx context.Context, l registry.Lease) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.on {
		return s.Backend.Renew(ctx, l)
	}
	if s.first == nil {
		s.first = &l
	}
	return pbxmesh.ErrUnavailable
}

// A renewal that arrives 20 s late, because the store was stopped, says nothing about the
// clock of its node: nothing is corrected, logged or read again. A clock that is really
// wrong is believed with the second renewal.
func TestLateRenewalIsNoClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		link := &stuck{Backend: store}
		buffalo := start(t, "buffalo", link, tuning{productive: true})
		buffalo.boot("core-1", 1, 2)
		var log bytes.Buffer
		reader := start(t, "", store, tuning{productive: true, log: &log})
		time.Sleep(5 * time.Second)
		loads := reader.r.Stats().Loads
		for range 5 {
			link.mu.Lock()
			link.on, link.first = true, nil
			link.mu.Unlock()
			time.Sleep(20 * time.Second)
			link.mu.Lock()
			if err := store.Renew(t.Context(), *link.first); err != nil {
				t.Fatal(err)
			}
			link.mu.Unlock()
			time.Sleep(1200 * time.Millisecond) // the reader sees it
			synctest.Wait()
			if m := member(reader, "buffalo"); !m.LeaseHeld || time.Since(time.UnixMilli(m.Lease.Clock)) < 20*time.Second {
				t.Fatalf("the late lease is not the one that is held: %+v", m)
			}
			link.mu.Lock()
			link.on = false
			link.mu.Unlock()
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
		if m := member(reader, "buffalo"); m.Skew != 0 || reader.r.Stats().Loads != loads || strings.Contains(log.String(), "clocks") {
			t.Errorf("member %+v, %d loads instead of %d, log:\n%s", m, reader.r.Stats().Loads, loads, log.String())
		}
		buffalo.setOff(20 * time.Second)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if m := member(reader, "buffalo"); (m.Skew+20*time.Second).Abs() > 3*time.Second || reader.r.Stats().Loads != loads+1 {
			t.Errorf("a clock that is wrong: %+v", m)
		}
		buffalo.stop()
		reader.stop()
	})
}
