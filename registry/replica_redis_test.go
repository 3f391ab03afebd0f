package registry_test

import (
	"context"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// TestSyncFromReplica follows a node through a replica whose primary is 150 ms away: nothing is read
// twice, no lease is lost, and the age is small. Cut off from both ways to the primary the
// view grows as old as it is, and nobody is silent for that.
func TestSyncFromReplica(t *testing.T) {
	t.Parallel()
	primary := registrytest.StartRedis(t)
	link, way := registrytest.StartProxy(t, primary.Addr()), registrytest.StartProxy(t, primary.Addr())
	near := registrytest.StartReplica(t, link.Addr())
	link.SetDelay(75 * time.Millisecond)
	way.SetDelay(75 * time.Millisecond)
	open := func(o redisstore.Options) *redisstore.Store {
		s, err := redisstore.New(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	ctx, cancel := context.WithCancel(t.Context())
	var tasks [2]chan struct{}
	run := func(i int, f func(context.Context) error) {
		tasks[i] = make(chan struct{})
		go func() { defer close(tasks[i]); _ = f(ctx) }()
	}
	defer func() { cancel(); <-tasks[0]; <-tasks[1] }()

	w, err := registry.NewWriter(registry.WriterOptions{
		Node: pbxmesh.Node{ID: "london"}, Backend: open(redisstore.Options{URL: primary.URL()}),
		Replica: registry.NewReplica(registry.ReplicaOptions{Local: "london"}), LeaseTTL: 2 * time.Second, RenewEvery: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Reset("epoch", []pbxmesh.Registration{device("london", 0), device("london", 1)})
	run(0, w.Run)
	r := registry.NewReplica(registry.ReplicaOptions{})
	store := open(redisstore.Options{URL: way.URL(), Read: near.URL()})
	s, err := registry.NewSync(registry.SyncOptions{Replica: r, Backend: store, Poll: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	run(1, s.Run)
	age := func() time.Duration { return r.Age(time.Now()) }
	held := func() {
		t.Helper()
		for _, m := range r.Members() {
			if !m.LeaseHeld && !m.LastSeen.IsZero() {
				t.Fatalf("%s is silent", m.Node.ID)
			}
		}
	}
	fresh := func() bool { held(); return r.Held("london") >= 2 && age() < 1500*time.Millisecond }
	registrytest.WaitFor(t, "both registrations", fresh)
	for n := 2; n < 20; n++ {
		w.Put(device("london", n))
		registrytest.WaitFor(t, "the next one", func() bool { held(); return r.Held("london") == n+1 })
	}
	if st, _ := store.Replica(); !st.Used {
		t.Errorf("the replica is not read: %+v", st)
	}
	if st := r.Stats(); st.Drift != 0 || st.Loads > 2 {
		t.Errorf("what changed was read again: %+v", st)
	}

	link.Cut()
	registrytest.WaitFor(t, "the primary to be read", func() bool { held(); st, _ := store.Replica(); return !st.Used })
	w.Put(device("london", 20))
	registrytest.WaitFor(t, "the next one from the primary", func() bool { held(); return r.Held("london") == 21 && age() < 1500*time.Millisecond })

	way.Cut()
	began := time.Now()
	registrytest.WaitFor(t, "the view to grow older than a lease", func() bool {
		held()
		if a := age(); a < time.Since(began)-time.Second {
			t.Fatalf("the view says it is %s old, and nothing was heard for %s", a, time.Since(began))
		}
		return age() > 4*time.Second
	})
	if n := r.Held("london"); n != 21 {
		t.Errorf("%d registrations are left", n)
	}
	link.Heal()
	way.Heal()
	w.Put(device("london", 21))
	registrytest.WaitFor(t, "the replica to be read again", func() bool {
		held()
		st, _ := store.Replica()
		return st.Used && r.Held("london") == 22 && age() < 1500*time.Millisecond
	})
}
