package health_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pbxmesh/fixtures/realswitch"
)

// failure is a way for a node to go, and back.
type failure struct {
	name     string
	do, undo func(t *testing.T, h *host)
}

var failures = []failure{
	{
		name: "kill -9 of the switch",
		do:   func(t *testing.T, h *host) { must(t, h.sw.Kill()) },
		undo: func(t *testing.T, h *host) { must(t, h.sw.Start()) },
	},
	{
		name: "kill -9 of its daemon",
		do:   func(_ *testing.T, h *host) { h.daemon.kill() },
		undo: func(t *testing.T, h *host) { h.startDaemon(t) },
	},
	{
		name: "the whole node gone",
		do: func(t *testing.T, h *host) {
			h.daemon.kill()
			must(t, h.sw.Kill())
			if h.ns != "" {
				h.lab.netns.unplug(t, h.ns)
			}
		},
		undo: func(t *testing.T, h *host) {
			if h.ns != "" {
				h.lab.netns.plug(t, h.name, h.addr)
			}
			must(t, h.sw.Start())
			h.startDaemon(t)
		},
	},
	{
		name: "SIGSTOP of the switch",
		do:   func(t *testing.T, h *host) { must(t, h.sw.Pause()) },
		undo: func(t *testing.T, h *host) { must(t, h.sw.Resume()) },
	},
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// times are the measurements of one kind of failure.
type times []time.Duration

func (d times) String() string {
	sorted := slices.Sorted(slices.Values(d))
	return fmt.Sprintf("min %4.2f s, median %4.2f s, worst %4.2f s of %d", sorted[0].Seconds(),
		sorted[len(sorted)/2].Seconds(), sorted[len(sorted)-1].Seconds(), len(sorted))
}

// measure fails the victim rounds times in one way, and returns how long it took each
// time until both name servers answered with another node.
func measure(l *lab, f failure, rounds int) times {
	var all times
	v := l.victim()
	for range rounds {
		l.answers(v)
		// Somewhere between two probes, two votes and two renewals.
		time.Sleep(rand.N(2 * time.Second))
		began := time.Now()
		f.do(l.t, v)
		all = append(all, slices.Max(l.changed(v, began)))
		f.undo(l.t, v)
	}
	l.answers(v)
	return all
}

// TestBenchFailover prints, for each way to fail, how long both name servers' answers
// take to change, with the intervals of the default configuration.
// PBXMESH_BENCH_FAILOVER is the number of rounds, PBXMESH_BENCH_KIND a part of the names
// of the failures to measure.
func TestBenchFailover(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("PBXMESH_BENCH_FAILOVER"))
	if rounds < 1 {
		t.Skip("not asked for: run make bench-failover")
	}
	realSwitch := os.Getenv(realswitch.EnvBinary) != ""
	namespaces := !realSwitch && os.Geteuid() == 0
	l := newLab(t, pace{}, namespaces)
	t.Logf("%d rounds each, default intervals, namespaces %v, real switch %v", rounds, namespaces, realSwitch)
	for _, f := range failures {
		if !strings.Contains(f.name, os.Getenv("PBXMESH_BENCH_KIND")) {
			continue
		}
		t.Logf("RESULT %-22s %v", f.name, measure(l, f, rounds))
	}
}

// TestFailures fails the node that everybody prefers in each way, once.
func TestFailures(t *testing.T) {
	t.Parallel()
	namespaces := os.Geteuid() == 0
	if namespaces {
		needNamespaces(t)
	}
	l := newLab(t, pace{renew: 400 * time.Millisecond, probe: 500 * time.Millisecond, timeout: 300 * time.Millisecond}, namespaces)
	v := l.victim()
	for _, f := range failures {
		began := time.Now()
		f.do(t, v)
		t.Logf("%s: %v", f.name, slices.Max(l.changed(v, began)).Round(10*time.Millisecond))
		if f.name == "kill -9 of its daemon" {
			if out := l.servers[0].query("nodes", v.name); !strings.Contains(out, "its daemon is silent") || strings.Contains(out, "observed down") {
				t.Errorf("with its daemon dead:\n%s", out)
			}
		}
		began = time.Now()
		f.undo(t, v)
		l.answers(v)
		t.Logf("back after %v", time.Since(began).Round(10*time.Millisecond))
	}
}
