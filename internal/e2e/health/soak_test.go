package health_test

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
	"time"
)

// lossyFor is how long a lossy node is watched: PBXMESH_SOAK_FAILOVER, or a little.
func lossyFor(t *testing.T) time.Duration { return soakTime(t, 3*time.Second) }

func soakTime(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	text := os.Getenv("PBXMESH_SOAK_FAILOVER")
	if text == "" {
		return short
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("PBXMESH_SOAK_FAILOVER: %v", err)
	}
	return d
}

// TestFlappingNode stops and continues the node that everybody prefers, again and again,
// and counts how often the answers change: once, when it goes out.
func TestFlappingNode(t *testing.T) {
	t.Parallel()
	needNamespaces(t)
	d := soakTime(t, 6*time.Second)
	p := pace{hold: 30 * time.Second, ramp: 2 * time.Minute} // the default configuration
	stopped, runs := 4*time.Second, 12*time.Second
	if os.Getenv("PBXMESH_SOAK_FAILOVER") == "" {
		p = pace{renew: 300 * time.Millisecond, probe: 300 * time.Millisecond, timeout: 200 * time.Millisecond, hold: 30 * time.Second, ramp: time.Second}
		stopped, runs = 1200*time.Millisecond, 1500*time.Millisecond
	}
	l := newLab(t, p, true)
	v := l.victim()
	end := time.Now().Add(d)
	flaps, changes := 0, make([]int, len(l.servers))
	last := []netip.Addr{v.addr, v.addr}
	watch := func(d time.Duration) {
		for until := time.Now().Add(d); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			for i, s := range l.servers {
				if first, ok := s.ask(); ok && first != last[i] {
					changes[i]++
					t.Logf("%s changes from %s to %s in flap %d", s.name, last[i], first, flaps)
					last[i] = first
				}
			}
		}
	}
	for time.Now().Before(end) {
		flaps++
		must(t, v.sw.Pause())
		watch(stopped + rand.N(stopped/4))
		must(t, v.sw.Resume())
		watch(runs + rand.N(runs/4))
	}
	// A machine that is busy may not have noticed yet that it was stopped.
	if last[0] == v.addr || last[1] == v.addr {
		must(t, v.sw.Pause())
		l.changed(v, time.Now())
		watch(0)
	}
	t.Logf("RESULT %v, %d flaps: answers changed %d and %d times", d, flaps, changes[0], changes[1])
	for i, n := range changes {
		if n > 1 {
			t.Errorf("%s changed its answer %d times, want once", l.servers[i].name, n)
		}
	}
}
