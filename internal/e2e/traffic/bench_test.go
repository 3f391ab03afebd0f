package traffic_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestBenchMesh prints what a mesh asks of Redis and how it takes what happens to it:
// PBXMESH_BENCH_MESH="NODES NAMESERVERS SECONDS RTT", as make bench-mesh sets it.
func TestBenchMesh(t *testing.T) {
	var nodes, servers, seconds int
	var trip string
	if n, _ := fmt.Sscan(os.Getenv("PBXMESH_BENCH_MESH"), &nodes, &servers, &seconds, &trip); n != 4 {
		t.Skip("a measurement: make bench-mesh runs it")
	}
	rtt, err := time.ParseDuration(trip)
	if err != nil || rtt < 0 || nodes < 2 || nodes > 200 || servers < 1 || seconds < 1 {
		t.Fatalf("NODES=%d (2 to 200) NAMESERVERS=%d (at least 1) SECONDS=%d RTT=%s: %v", nodes, servers, seconds, trip, err)
	}
	t.Logf("a region beside the primary, and one %s away beside a replica of it", rtt)
	t.Run("bulk", func(t *testing.T) { bulk(t, rtt) })
	t.Run("processor", func(t *testing.T) {
		m := &mesh{t: t, s: startStores(t, 0), probes: time.Second, phones: 10, taught: 20}
		m.begin(2, 1)
		m.processor(2)
	})
	t.Run("mesh", func(t *testing.T) {
		m := &mesh{t: t, s: startStores(t, rtt), probes: time.Second, phones: 10, taught: 20}
		if nodes > 20 {
			// This machine is all of them, and what switches do is not what is measured.
			m.probes, m.phones, m.taught = 10*time.Second, 2, 4
		}
		took := m.begin(nodes, servers)
		t.Logf("%d nodes with %d phones each and %d name servers are up after %.0f s; they probe each other every %s, and %d nodes teach their switches", nodes, m.phones, servers, took.Seconds(), m.probes, min(m.taught, nodes))
		t.Logf("idle for %d s, %.0f s after that:", seconds, m.s.settle().Seconds())
		idle := m.s.watch()
		time.Sleep(time.Duration(seconds) * time.Second)
		idle.print(8)

		m.busy(time.Duration(seconds) * time.Second)
		m.joins(nodes)
		m.joinsUnreadable()
		m.primaryKilled()
		m.regionCut("hiccup", 8*time.Second)
		m.regionCut("cut", time.Minute)
		m.upgrade()
	})
}

// changesEach is how often somebody registers or goes, in all nodes together.
const changesEach = 50 * time.Millisecond

// busy lets phones register at one node after the other, and prints how soon daemons of both
// regions know.
func (m *mesh) busy(over time.Duration) {
	m.t.Helper()
	nodes := m.nodes()
	watchers := []*daemon{m.daemons[0], m.daemons[1]}
	var mu sync.Mutex
	took := map[[2]bool][]time.Duration{} // by where it happened and where it was seen
	var wait sync.WaitGroup
	before := m.s.watch()
	tick := time.NewTicker(changesEach)
	defer tick.Stop()
	ctx, stop := context.WithTimeout(m.t.Context(), over+10*time.Second)
	defer stop()
	changes := 0
	for began := time.Now(); time.Since(began) < over; changes++ {
		<-tick.C
		at := nodes[changes%len(nodes)]
		aor := address("burst0", fmt.Sprintf("c%d.%s", changes, domainOf(at.name)))
		happened := time.Now()
		if _, err := at.sw.Burst(1, 1, aor.Domain()); err != nil {
			m.t.Fatal(err)
		}
		for _, w := range watchers {
			if w == at {
				continue
			}
			wait.Go(func() {
				for ctx.Err() == nil {
					if reply, err := w.Lookup(ctx, aor); err == nil && len(reply.Registrations) == 1 {
						mu.Lock()
						took[[2]bool{at.far, w.far}] = append(took[[2]bool{at.far, w.far}], time.Since(happened))
						mu.Unlock()
						return
					}
					time.Sleep(time.Millisecond)
				}
				m.t.Errorf("%s did not learn of %s", w.name, aor)
			})
		}
	}
	m.t.Logf("busy, %d registrations in %.0f s:", changes, over.Seconds())
	before.print(0)
	wait.Wait()
	where := map[bool]string{false: "beside the primary", true: "beside the replica"}
	for _, at := range []bool{false, true} {
		for _, seen := range []bool{false, true} {
			list := took[[2]bool{at, seen}]
			slices.Sort(list)
			if len(list) > 0 {
				m.t.Logf("  registered %s, visible %s: p50 %d ms, p99 %d ms of %d", where[at], where[seen],
					list[len(list)/2].Milliseconds(), list[len(list)*99/100].Milliseconds(), len(list))
			}
		}
	}
}

// nodes returns the daemons that have switches.
func (m *mesh) nodes() (list []*daemon) {
	for _, d := range m.daemons {
		if d.sw != nil {
			list = append(list, d)
		}
	}
	return list
}

// joins lets another node join.
func (m *mesh) joins(i int) {
	m.t.Helper()
	began := time.Now()
	m.node(i)
	known := m.until("the new node's phones are known", time.Minute, m.knowsAll)
	m.up()
	oldest, _ := m.oldest(2 * time.Second)
	m.t.Logf("a node joins: its phones are known everywhere after %.1f s (%.1f s of that its own start), it is up for everybody after %.1f s; afterwards no view is older than %.1f s",
		time.Since(began).Seconds()-2, (time.Since(began)-known).Seconds()-2, time.Since(began).Seconds()-2, oldest.Seconds())
}

// primaryKilled kills the primary, which comes back empty after five seconds.
func (m *mesh) primaryKilled() {
	m.t.Helper()
	if err := m.s.primary.Kill(); err != nil {
		m.t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	for _, d := range m.daemons {
		if !m.knowsAll(d) {
			m.t.Errorf("without Redis %s does not know all phones", d.name)
		}
	}
	if err := m.s.primary.Start(); err != nil {
		m.t.Fatal(err)
	}
	back := time.Now()
	m.until("every view is fresh", time.Minute, func(d *daemon) bool { return age(d) < 3*time.Second && m.knowsAll(d) })
	fresh := time.Since(back)
	oldest, out := m.oldest(5 * time.Second)
	m.t.Logf("the primary is killed, and is back after 5 s, empty: every view is fresh %.1f s after that, no phone was unknown meanwhile; in the 5 s after, no view is older than %.1f s, and %d nodes are taken out", fresh.Seconds(), oldest.Seconds(), out)
}

// regionCut cuts the far region off the primary, its replica as well.
func (m *mesh) regionCut(name string, over time.Duration) {
	m.t.Helper()
	m.s.far.Cut()
	m.s.mirror.Cut()
	domains := map[*daemon]string{}
	for i, d := range m.nodes()[:2] {
		domains[d] = fmt.Sprintf("%s%d.%s", name, i, domainOf(d.name))
		if _, err := d.sw.Burst(1, 1, domains[d]); err != nil {
			m.t.Fatal(err)
		}
	}
	oldest, out := m.oldest(over)
	m.s.far.Heal()
	m.s.mirror.Heal()
	m.s.far.SetDelay(m.s.trip / 2)
	m.s.mirror.SetDelay(m.s.trip / 2)
	took := m.until("what happened meanwhile is known", time.Minute, func(d *daemon) bool {
		for _, domain := range domains {
			reply, err := d.Lookup(context.Background(), address("burst0", domain))
			if err != nil || len(reply.Registrations) != 1 {
				return false
			}
		}
		return age(d) < 3*time.Second
	})
	m.t.Logf("a region is cut off the primary for %s: its view is %.0f s old at most, %d nodes are taken out; %.1f s after the cut every view is fresh and whole", over, oldest.Seconds(), out, took.Seconds())
}
