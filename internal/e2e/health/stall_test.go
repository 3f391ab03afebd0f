package health_test

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh/internal/control"
	"pbxmesh/internal/esl"
)

// stallFor is how long processes are stopped.
const stallFor = 3 * time.Second

// TestStalls stops processes for three seconds: all, all but one, all switches. Whoever
// goes on then has no news about the nodes: no answer changes, and no node's phones are sent
// elsewhere.
func TestStalls(t *testing.T) {
	t.Parallel()
	l := newLab(t, pace{hold: 30 * time.Second, ramp: 2 * time.Minute}, false)
	signal := func(h *host, sig os.Signal) {
		if err := h.daemon.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	all := append(slices.Clone(l.nodes), l.servers...)
	stop := func(spared *host, daemons bool) {
		if daemons {
			must(t, l.store.Pause())
		}
		for _, h := range all {
			if h.sw != nil {
				must(t, h.sw.Pause())
			}
			if daemons && h != spared {
				signal(h, syscall.SIGSTOP)
			}
		}
	}
	goOn := func(daemons bool) {
		for _, h := range all {
			if h.sw != nil {
				must(t, h.sw.Resume())
			}
			if daemons {
				signal(h, syscall.SIGCONT)
			}
		}
		if daemons {
			must(t, l.store.Resume())
		}
	}
	rounds := 1
	if os.Getenv("PBXMESH_SOAK_FAILOVER") != "" {
		rounds = 10
	}
	changes := 0
	// watch counts answers with another node than london's.
	watch := func(what string, d time.Duration) {
		last := [2]netip.Addr{l.victim().addr, l.victim().addr}
		asked := 0
		for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			for i, s := range l.servers {
				first, ok := s.ask()
				if !ok {
					continue
				}
				if asked++; first != last[i] {
					changes++
					t.Errorf("%s: %s answers with %s, before with %s\n%s", what, s.name, first, last[i], s.query("nodes"))
					last[i] = first
				}
			}
		}
		if asked < 10 {
			t.Errorf("%s: %d answers in %v prove nothing", what, asked, d)
		}
	}
	for round := range rounds {
		for _, s := range []struct {
			name    string
			spared  *host
			daemons bool
		}{
			{"all processes", nil, true},
			{"all but a name server", l.servers[round%2], true},
			{"all but a daemon", l.nodes[round%3], true},
			{"all switches", nil, false},
		} {
			stop(s.spared, s.daemons)
			if s.daemons {
				time.Sleep(stallFor)
			} else {
				watch(s.name+" are stopped", stallFor)
			}
			goOn(s.daemons)
			watch("after a stall of "+s.name, 3*time.Second)
			l.answers(l.victim())
			for _, h := range l.servers {
				for _, n := range h.all().Nodes {
					if n.Shed > 0 { // for as long as the return takes
						t.Errorf("after a stall of %s: %s sends phones of %s elsewhere: %s", s.name, h.name, n.ID, n.ShedReason)
					}
				}
			}
		}
	}
	t.Logf("RESULT %d stalls of each kind: answers changed %d times", rounds, changes)
}

// TestStoreTakesNoWrites: a Redis that refuses writes and can be read makes no daemon
// silent, and moves nobody, not even when it takes writes again.
func TestStoreTakesNoWrites(t *testing.T) {
	t.Parallel()
	l := newLab(t, pace{renew: 300 * time.Millisecond, probe: 500 * time.Millisecond, timeout: 300 * time.Millisecond, hold: 30 * time.Second, ramp: 2 * time.Minute}, false)
	opts, err := redis.ParseURL(l.redis)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opts)
	t.Cleanup(func() { _ = client.Close() })
	replicas := func(n string) {
		if err := client.ConfigSet(context.Background(), "min-replicas-to-write", n).Err(); err != nil {
			t.Fatal(err)
		}
	}
	before := map[*host]int{} // daemons that had not started yet were silent
	for _, s := range l.servers {
		before[s] = len(s.daemon.log.String())
	}
	replicas("1")
	l.eventually("the others' votes are over", func() bool { return l.servers[0].all().Observers == 1 })
	l.steady("the store takes no writes", l.victim(), 11*time.Second) // longer than a hiccup
	replicas("0")
	l.eventually("all observers are heard", func() bool { return l.servers[0].all().Observers == 5 && l.servers[1].all().Observers == 5 })
	l.steady("the store takes writes again", l.victim(), 2*time.Second)
	l.seen("up, with all phones", l.victim(), func(n *control.Node) bool { return n.Effective == "up" && n.Shed == 0 })
	for _, s := range l.servers {
		if log := s.daemon.log.String()[before[s]:]; strings.Contains(log, "its daemon is silent") {
			t.Errorf("%s took a daemon for silent:\n%s", s.name, log)
		}
	}
}

// TestScenarioMeshProfileStops: a switch that answers phones, but no other node, says so on
// every board within seconds.
func TestScenarioMeshProfileStops(t *testing.T) {
	t.Parallel()
	l := newLab(t, pace{}, false)
	london := l.victim()
	address, password := london.sw.EventSocket()
	conn, err := esl.Dial(t.Context(), esl.Config{Address: address, Password: password})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	profile := func(verb string) {
		t.Helper()
		if _, err := conn.API(t.Context(), "sofia profile mesh "+verb); err != nil {
			t.Fatal(err)
		}
	}
	profile("stop")
	began := time.Now()
	l.seen("with a silent mesh address", london, func(n *control.Node) bool {
		return n.Observed == "suspect" && strings.Contains(n.Reason, "mesh address") && n.ShedReason == "its mesh address is silent"
	})
	l.changed(london, began)
	t.Logf("on every board and in both name servers' answers after %v", time.Since(began).Round(10*time.Millisecond))
	profile("start")
	l.seen("up", london, func(n *control.Node) bool { return n.Effective == "up" && n.Shed == 0 })
}
