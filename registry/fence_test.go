package registry_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// takeover starts first, ends it by end, starts second, and returns how long after that
// the second one's records are in the store. A lease lasts 5 s, renewed every 500 ms.
func takeover(t *testing.T, first, second tuning, end func(*daemon)) time.Duration {
	t.Helper()
	store := memory.New(memory.Options{})
	first.productive, second.productive = true, true
	dns := start(t, "", store, tuning{productive: true})
	former := start(t, "buffalo", store, first)
	former.boot("core-1", 1)
	time.Sleep(10 * time.Second)
	end(former)
	began := time.Now()
	next := start(t, "buffalo", store, second)
	next.boot("core-1", 1, 2)
	for next.w.Status().Publications == 0 {
		if time.Since(began) > time.Minute {
			t.Fatal("it does not publish")
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	time.Sleep(2 * time.Second)
	if n := len(view(dns.r)); n != 2 || next.w.Status().Err != nil {
		t.Errorf("a name server holds %d registrations, want 2; the writer says %v", n, next.w.Status().Err)
	}
	next.stop()
	former.stop()
	dns.stop()
	return took
}

// Who holds the lock follows a killed daemon at once, and everybody else waits for the
// end of the lease: also on the same machine, and with the lock of another file.
func TestLeaseOfAKilledDaemon(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		first, second tuning
		from, to      time.Duration
	}{
		"the same lock":                     {tuning{owner: "host", lock: "a"}, tuning{owner: "host", lock: "a"}, 0, 100 * time.Millisecond},
		"the same lock, the host renamed":   {tuning{owner: "host", lock: "a"}, tuning{owner: "new", lock: "a"}, 0, 100 * time.Millisecond},
		"another lock on a host so called":  {tuning{owner: "host", lock: "a"}, tuning{owner: "host", lock: "b"}, 4 * time.Second, 6 * time.Second},
		"a lock that begins as the other":   {tuning{owner: "host", lock: "ab"}, tuning{owner: "host", lock: "a"}, 4 * time.Second, 6 * time.Second},
		"no locks":                          {tuning{owner: "host"}, tuning{owner: "host"}, 4 * time.Second, 6 * time.Second},
		"the former one knew no locks":      {tuning{owner: "host"}, tuning{owner: "host", lock: "a"}, 4 * time.Second, 6 * time.Second},
		"the next one has no lock any more": {tuning{owner: "host", lock: "a"}, tuning{owner: "host"}, 4 * time.Second, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				took := takeover(t, tt.first, tt.second, func(d *daemon) { d.kill() })
				if t.Logf("published %s after its start", took); took < tt.from || took > tt.to {
					t.Errorf("published after %s, want %s to %s", took, tt.from, tt.to)
				}
			})
		})
	}
}

// A life that ended before it reached the store does not hide the one before it.
func TestKilledTwiceInARow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		took := takeover(t, tuning{lock: "a"}, tuning{lock: "a"}, func(d *daemon) {
			d.kill()
			short := start(t, "buffalo", d.link.Backend, tuning{productive: true, lock: "a"})
			short.kill()
		})
		if took > 100*time.Millisecond {
			t.Errorf("published after %s", took)
		}
	})
}

// Two daemons live, and one is stopped for as long as its lease allows: nobody takes the
// node from it. Who waits says after the time of a lease that the other one lives.
func TestLivingDaemonKeepsItsLease(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		first := start(t, "buffalo", store, tuning{productive: true, owner: "host"})
		first.boot("core-1", 1)
		time.Sleep(time.Second)
		var log bytes.Buffer
		second := start(t, "buffalo", store, tuning{productive: true, owner: "host", lock: "b", log: &log})
		second.boot("core-2", 2)
		time.Sleep(4 * time.Second)
		first.link.cut.Store(true)
		time.Sleep(4 * time.Second)
		first.link.cut.Store(false)
		time.Sleep(10 * time.Second)
		if n := second.w.Status().Publications; n != 0 || !errors.Is(second.w.Status().Err, registry.ErrFenced) {
			t.Errorf("the second published %d times and says %v", n, second.w.Status().Err)
		}
		if err := first.w.Status().Err; err != nil {
			t.Errorf("the first says %v", err)
		}
		first.stop()
		time.Sleep(2 * time.Second)
		if second.w.Status().Publications != 1 || second.w.Status().Err != nil {
			t.Errorf("the first has left, and the second says %v", second.w.Status().Err)
		}
		second.stop()
		if n := strings.Count(log.String(), "another daemon publishes for this node: stop one of them"); n != 1 {
			t.Errorf("the log says %d times that another daemon lives:\n%s", n, &log)
		}
	})
}

// The log calls nobody a second daemon who is only dead.
func TestDeadDaemonIsNoRival(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		takeover(t, tuning{owner: "host"}, tuning{owner: "host", log: &log}, func(d *daemon) { d.kill() })
		if text := log.String(); strings.Contains(text, "stop one of them") || strings.Count(text, "waiting for the lease of this node to end") != 1 {
			t.Errorf("the log says:\n%s", text)
		}
	})
}

// A machine that was copied while it ran has its lock twice. The node goes from one to
// the other once, and not to and fro.
func TestCopiedLock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		tune := tuning{productive: true, lock: "a"}
		first := start(t, "buffalo", store, tune)
		first.boot("core-1", 1)
		time.Sleep(time.Second)
		second := start(t, "buffalo", store, tune)
		second.boot("core-2", 2)
		time.Sleep(time.Minute)
		if a, b := first.w.Status().Publications, second.w.Status().Publications; a != 1 || b != 1 {
			t.Errorf("they published %d and %d times, want once each", a, b)
		}
		first.stop()
		second.stop()
	})
}

func TestBadLockID(t *testing.T) {
	t.Parallel()
	for _, lock := range []string{"a.b", "a\n", strings.Repeat("a", 65)} {
		_, err := registry.NewWriter(registry.WriterOptions{
			Replica: registry.NewReplica(registry.ReplicaOptions{Local: "buffalo"}), Backend: memory.New(memory.Options{}),
			Node: pbxmesh.Node{ID: "buffalo"}, Lock: lock,
		})
		if err == nil {
			t.Errorf("%q is taken for the ID of a lock", lock)
		}
	}
}
