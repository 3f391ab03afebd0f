package registry_test

import (
	"context"
	"errors"
	"maps"
	"path/filepath"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

func TestChangesReachEveryDaemon(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		<-dns.s.Synced()
		buffalo.register(100, 101)
		buffalo.unregister(0, 1)
		london.register(30) // a refresh
		london.unregister(31, 999)
		converge(t, []*daemon{buffalo, london}, dns)
		if st := dns.r.Stats(); st.Drift != 0 || st.Bad != 0 {
			t.Errorf("after nothing but changes: %+v", st)
		}
		aor := device("london", 35).AOR
		if got := dns.r.Lookup(aor); len(got) != 2 {
			t.Errorf("%s has %d devices, want one on each node", aor, len(got))
		}
	})
}

func TestFlushed(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		f.flush()
		began := time.Now()
		buffalo.register(100)
		london.unregister(30)
		converge(t, []*daemon{buffalo, london}, dns)
		t.Logf("emptied: converged after %.2f s", time.Since(began).Seconds())
		if n := len(dns.r.Lookup(device("buffalo", 5).AOR)); n != 1 {
			t.Errorf("a phone that was registered all the time is found %d times", n)
		}
		// A daemon that starts now finds everything in the store again.
		converge(t, []*daemon{buffalo, london}, start(t, "", f.store, tuning{}))
	})
}

func TestStoreRestartsEmpty(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		f.away()
		registrytest.WaitFor(t, "the name server to notice", func() bool { return !dns.s.Status().Connected })
		before := dns.r.Age(time.Now())
		buffalo.register(100)
		london.boot("core-l2", 50, 51, 52)
		if n := len(buffalo.r.Lookup(device("buffalo", 100).AOR)); n != 1 {
			t.Errorf("with the store away a local registration is found %d times", n)
		}
		if n := len(dns.r.Lookup(device("london", 40).AOR)); n != 1 {
			t.Errorf("with the store away what was known is found %d times", n)
		}
		registrytest.WaitFor(t, "the view to grow old", func() bool { return dns.r.Age(time.Now()) > before+50*time.Millisecond })
		registrytest.WaitFor(t, "the writer to say so", func() bool { return errors.Is(buffalo.w.Status().Err, pbxmesh.ErrUnavailable) })
		f.back()
		began := time.Now()
		converge(t, []*daemon{buffalo, london}, dns)
		t.Logf("killed and restarted empty: converged %.2f s after its end", time.Since(began).Seconds())
		registrytest.WaitFor(t, "the view to be fresh", func() bool { return dns.r.Age(time.Now()) < time.Second })
	})
}

func TestCutOffReader(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		// Away for a moment: the stream still has what was missed.
		loads := dns.r.Stats().Loads
		dns.link.cut.Store(true)
		registrytest.WaitFor(t, "the cut", func() bool { return !dns.s.Status().Connected })
		buffalo.register(100)
		buffalo.unregister(3)
		dns.link.cut.Store(false)
		converge(t, []*daemon{buffalo, london}, dns)
		if n := dns.r.Stats().Loads; n != loads {
			t.Errorf("%d full reads for a gap that the stream could fill", n-loads)
		}
		// Away for longer: it was trimmed.
		dns.link.cut.Store(true)
		registrytest.WaitFor(t, "the cut", func() bool { return !dns.s.Status().Connected })
		for n := range 20 {
			buffalo.register(200 + n)
			registrytest.WaitFor(t, "a batch", func() bool { return buffalo.w.Status().Pending == 0 })
		}
		buffalo.unregister(4, 5, 6)
		registrytest.WaitFor(t, "the last batch", func() bool { return buffalo.w.Status().Pending == 0 })
		f.trim("buffalo")
		dns.link.cut.Store(false)
		converge(t, []*daemon{buffalo, london}, dns)
		if n := dns.r.Stats().Loads; n == loads {
			t.Error("a trimmed gap was closed without reading the records")
		}
	})
}

// A stream that is reached again later than the leases is caught up with: nobody reads
// all records of a node for a few changes. One that stays out of reach is not waited
// for.
func TestStreamLaterThanLeases(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		loads := dns.r.Stats().Loads
		polls := func(n int64) {
			from := dns.link.seen.Load()
			registrytest.WaitFor(t, "polls", func() bool { return dns.link.seen.Load() >= from+n })
		}
		dns.link.idle.Store(true)
		buffalo.register(100)
		buffalo.unregister(3)
		registrytest.WaitFor(t, "the changes to be written", func() bool { return buffalo.w.Status().Pending == 0 })
		polls(4)
		dns.link.idle.Store(false)
		converge(t, []*daemon{buffalo, london}, dns)
		if n := dns.r.Stats().Loads; n != loads {
			t.Errorf("%d full reads for changes that the stream had", n-loads)
		}
		dns.link.idle.Store(true)
		buffalo.register(101)
		converge(t, []*daemon{buffalo, london}, dns)
		if n := dns.r.Stats().Loads; n == loads {
			t.Error("without a stream the change has come, but nothing was read")
		}
	})
}

func TestCutOffWriter(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		buffalo.link.cut.Store(true)
		registrytest.WaitFor(t, "the lease to end", func() bool { return !member(dns, "buffalo").LeaseHeld })
		if m := member(dns, "buffalo"); m.Left || m.Registrations != 40 {
			t.Errorf("a node that is cut off: %+v", m)
		}
		buffalo.register(count(100, 150)...)
		buffalo.unregister(count(0, 10)...)
		for range 50 { // one phone again and again: coalesced
			buffalo.register(100)
		}
		if p := buffalo.w.Status().Pending; p > 60 {
			t.Errorf("%d changes wait for 60 devices", p)
		}
		buffalo.link.cut.Store(false)
		converge(t, []*daemon{buffalo, london}, dns)
		registrytest.WaitFor(t, "the lease", func() bool { return member(dns, "buffalo").LeaseHeld })
	})
}

func TestSwitchRestarts(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		london.w.SetSwitch(registry.SwitchState{Alive: true, Sessions: 7, MaxSessions: 1000})
		registrytest.WaitFor(t, "the switch's state", func() bool { return member(dns, "london").Lease.Switch.Sessions == 7 })
		london.w.SetSwitch(registry.SwitchState{})
		registrytest.WaitFor(t, "the switch's death", func() bool { return !member(dns, "london").Lease.Switch.Alive })
		began := time.Now()
		london.boot("core-l2", 31, 90)
		converge(t, []*daemon{buffalo, london}, dns)
		t.Logf("another Core-UUID: converged after %.2f s", time.Since(began).Seconds())
		registrytest.WaitFor(t, "the new epoch", func() bool { return member(dns, "london").Epoch == "core-l2" })
		// The same switch, read again: differences only.
		publications := london.w.Status().Publications
		london.boot("core-l2", 31, 91)
		converge(t, []*daemon{buffalo, london}, dns)
		if n := london.w.Status().Publications; n != publications {
			t.Errorf("reading the switch again published everything %d times", n-publications)
		}
	})
}

func TestLeaveRestartAndForget(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		london.register(70) // leaving takes along what waits
		london.stop()
		registrytest.WaitFor(t, "london to leave", func() bool { m := member(dns, "london"); return m.Left && !m.LeaseHeld })
		london.link.cut.Store(true)
		all := maps.Clone(london.held)
		registrytest.WaitFor(t, "london's registrations to stay", func() bool { return member(dns, "london").Registrations == len(all) })

		again := start(t, "london", f.store, tuning{})
		registrytest.WaitFor(t, "london to be back", func() bool { m := member(dns, "london"); return !m.Left && m.LeaseHeld })
		again.boot("core-l1", 30, 70)
		converge(t, []*daemon{buffalo, again}, dns)

		again.kill()
		if err := f.store.Forget(context.Background(), "london"); err != nil {
			t.Fatal(err)
		}
		converge(t, []*daemon{buffalo}, dns)
		if m := member(dns, "london"); m.Node.ID != "" {
			t.Errorf("a node that was removed is still a member: %+v", m)
		}
		// And may come back.
		back := start(t, "london", f.store, tuning{})
		back.boot("core-l9", 77)
		converge(t, []*daemon{buffalo, back}, dns)
	})
}

func TestKilledDaemonComesBack(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		london.register(80)
		london.kill() // its lease is still there
		began := time.Now()
		again := start(t, "london", f.store, tuning{})
		again.boot("core-l1", 33, 80)
		converge(t, []*daemon{buffalo, again}, dns)
		t.Logf("daemon killed and started again: converged after %.2f s", time.Since(began).Seconds())
	})
}

// One that holds the lock of its former life does not wait for the lease.
func TestFaultKilledDaemonWithItsLock(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		tune := tuning{lock: "a"}
		london, dns := start(t, "london", f.store, tune), start(t, "", f.store, tuning{})
		london.boot("core-l1", 33, 80)
		converge(t, []*daemon{london}, dns)
		registrytest.WaitFor(t, "the lease", func() bool { return member(dns, "london").LeaseHeld })
		london.kill()
		began := time.Now()
		again := start(t, "london", f.store, tune)
		again.boot("core-l1", 33, 81)
		converge(t, []*daemon{again}, dns)
		t.Logf("daemon killed and started again with its lock: converged after %.2f s", time.Since(began).Seconds())
	})
}

func TestTwoDaemonsForOneNode(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		first, dns := start(t, "buffalo", f.store, tuning{owner: "one"}), start(t, "", f.store, tuning{})
		first.boot("core-1", 1, 2)
		converge(t, []*daemon{first}, dns)
		// On another machine: it waits.
		second := start(t, "buffalo", f.store, tuning{owner: "two"})
		second.boot("core-2", 8, 9)
		registrytest.WaitFor(t, "the second to be fenced", func() bool { return errors.Is(second.w.Status().Err, registry.ErrFenced) })
		first.register(3)
		registrytest.WaitFor(t, "the first to go on", func() bool { return len(view(dns.r)) == 3 })
		first.stop()
		converge(t, []*daemon{second}, dns)
		registrytest.WaitFor(t, "the second's error to end", func() bool { return second.w.Status().Err == nil })
	})
}

// On the same machine too the first one stays, for as long as it lives.
func TestTwoDaemonsOnOneMachine(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		tune := tuning{owner: "host", renew: 150 * time.Millisecond}
		first, dns := start(t, "buffalo", f.store, tune), start(t, "", f.store, tuning{})
		first.boot("core-1", 1, 2)
		converge(t, []*daemon{first}, dns)
		second := start(t, "buffalo", f.store, tune)
		second.boot("core-2", 8, 9)
		registrytest.WaitFor(t, "the second to be fenced", func() bool { return errors.Is(second.w.Status().Err, registry.ErrFenced) })
		// It goes on asking, and goes on being refused, while the first one works.
		beat := member(dns, "buffalo").Lease.Beat
		registrytest.WaitFor(t, "ten renewals of the first", func() bool { return member(dns, "buffalo").Lease.Beat > beat+10 })
		first.register(3)
		converge(t, []*daemon{first}, dns)
		var held *registry.HeldError
		if err := second.w.Status().Err; !errors.As(err, &held) || held.Owner != "host" {
			t.Errorf("the second says %v, want who holds the lease", err)
		}
		if n := second.w.Status().Publications; n != 0 {
			t.Errorf("the second published %d times", n)
		}
		if err := first.w.Status().Err; err != nil {
			t.Errorf("the first was disturbed: %v", err)
		}
		// The first is killed: the second does not wait for the lease's end.
		first.kill()
		began := time.Now()
		converge(t, []*daemon{second}, dns)
		t.Logf("taken over after %.2f s, with a lease of 1.5 s", time.Since(began).Seconds())
		registrytest.WaitFor(t, "the second's error to end", func() bool { return second.w.Status().Err == nil })
	})
}

func TestStartsWithTheStoreAway(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, _ := three(t, f)
		file := filepath.Join(t.TempDir(), "state")
		dns := start(t, "", f.store, tuning{stateFile: file})
		converge(t, []*daemon{buffalo, london}, dns)
		dns.stop()
		f.away()
		began := time.Now()
		again := start(t, "", f.store, tuning{stateFile: file})
		if n := len(view(again.r)); n != 70 {
			t.Fatalf("%d registrations from the state file, want 70", n)
		}
		if m := member(again, "buffalo"); m.Node.Mesh.Port() != 5090 || m.LeaseHeld {
			t.Errorf("member from the state file: %+v", m)
		}
		if age := again.r.Age(began.Add(time.Minute)); age < time.Minute || age > 2*time.Minute {
			t.Errorf("a minute later the view is %s old", age)
		}
		buffalo.register(100)
		f.back()
		converge(t, []*daemon{buffalo, london}, again)
	})
}

// In a cluster all of a mesh is in one slot.
func TestCluster(t *testing.T) {
	t.Parallel()
	store, err := redisstore.New(redisstore.Options{Addresses: registrytest.StartCluster(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	buffalo, london, dns := three(t, faults{store: store})
	buffalo.register(100)
	london.boot("core-l2", 50, 51)
	converge(t, []*daemon{buffalo, london}, dns)
	buffalo.unregister(100)
	converge(t, []*daemon{buffalo, london}, dns)
	if err := store.Forget(context.Background(), "paris"); err != nil {
		t.Error(err)
	}
}

// A store that was emptied, and a node whose clock went back: its terms begin
// below what readers follow, and its stream never reaches them.
func TestClockGoesBack(t *testing.T) {
	t.Parallel()
	store := memory.New(memory.Options{})
	buffalo, london, dns := three(t, faults{store: store})
	london.kill()
	store.Clear()
	again := start(t, "london", store, tuning{off: -time.Hour})
	again.boot("core-l2", 31, 95)
	converge(t, []*daemon{buffalo, again}, dns)
	again.register(96)
	converge(t, []*daemon{buffalo, again}, dns)
}
