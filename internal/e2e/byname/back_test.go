package byname_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh/fixtures/browser"
	"pbxmesh/fixtures/phone"
)

// failures are ways for a node to go: its port refuses what comes, or swallows it, as a
// machine that has lost its power does.
var failures = []struct {
	name string
	do   func(m *mesh, node string)
}{
	{"kill -9", (*mesh).kill},
	{"stopped", (*mesh).stop},
}

// start starts phones that register on london, each so long before the end that it may be
// anywhere in its interval then, and returns at that end. What does not register in time is
// told, and left out.
func (m *mesh) start(wanted []func() (*handset, error), intervals []time.Duration) []*handset {
	m.t.Helper()
	longest := slices.Max(intervals)
	out := make([]*handset, len(wanted))
	var wait sync.WaitGroup
	for i, start := range wanted {
		wait.Go(func() {
			timer := time.NewTimer(longest - rand.N(intervals[i]))
			defer timer.Stop()
			<-timer.C
			h, err := start()
			if err != nil {
				m.t.Logf("LEFT OUT: %v", err)
				return
			}
			m.t.Cleanup(h.close)
			ctx, cancel := context.WithTimeout(context.Background(), soon)
			defer cancel()
			where := func() []string { return m.where(m.nodes["singapore"].app, h.user) }
			if !await(ctx, func() bool { return slices.Equal(where(), []string{"london"}) }) {
				m.t.Logf("LEFT OUT: %v is known on %v; it ends with:\n%s", h, where(), h.tail())
				h.close()
				return
			}
			out[i] = h
		})
	}
	wait.Wait()
	return out
}

// fail starts phones of every model, copies of each for every interval to be called and
// as many to dial, lets london fail, and returns what became of them.
func (m *mesh) fail(b *browser.Browser, do func(*mesh, string), intervals []time.Duration, copies int, patience time.Duration, other *phone.Phone) []outcome {
	m.t.Helper()
	var wanted []func() (*handset, error)
	var each []time.Duration
	add := func(model func(time.Duration) (*handset, error), interval time.Duration) {
		for range copies {
			wanted = append(wanted, func() (*handset, error) { return model(interval) })
			each = append(each, interval)
		}
	}
	models := m.models(b)
	for _, model := range models {
		for _, interval := range intervals {
			add(model, interval)
		}
	}
	passive := len(wanted)
	for _, model := range models {
		// Whether a phone can call does not hang on its interval by much: it looks for
		// its server when it dials.
		add(model, slices.Max(intervals))
	}
	phones := m.start(wanted, each)
	here := func(all []*handset) []*handset {
		return slices.DeleteFunc(slices.Clone(all), func(h *handset) bool { return h == nil })
	}
	began := time.Now()
	do(m, "london")
	out := m.observe(began, patience, "london", here(phones[:passive]), here(phones[passive:]), other)
	for _, h := range here(phones) {
		h.close()
	}
	return out
}

// TestScenarioPhonesComeBack kills the node that real phones are on: all of them can call
// again, and are called again, once.
func TestScenarioPhonesComeBack(t *testing.T) {
	m := newMesh(t)
	const interval = 30 * time.Second
	// A phone looks for its server when its registration is due, at the latest after the
	// interval. Over UDP it waits 32 s (64 * T1, RFC 3261 17.1.2.2) for a server that says
	// nothing, and it may take a while before it tries again; JsSIP waits up to 30 s.
	const patience = interval + 32*time.Second + 90*time.Second
	other := m.ours("1001", "singapore")
	other.SetBehaviour(phone.AutoAnswer(0))
	var b *browser.Browser
	if browser.Missing() == "" {
		b = newBrowser(m)
	}
	if len(m.models(b)) == 0 {
		t.Skip("SKIPPED, NO REAL PHONE WAS TESTED: none is installed")
	}
	outcomes := m.fail(b, (*mesh).kill, []time.Duration{interval}, 1, patience, other)
	if want := 2 * len(m.models(b)); len(outcomes) != want {
		t.Errorf("%d of %d phones were registered on london in time", len(outcomes), want)
	}
	for _, o := range outcomes {
		what := "was called"
		if o.dialled {
			what = "could call"
		}
		switch {
		case o.took == 0:
			t.Errorf("%v (%s) %s not again within %s; known on %v; it ends with:\n%s", o.handset, o.user, what, patience,
				m.where(m.nodes["singapore"].app, o.user), o.tail())
		case !o.dialled && o.rang != 1:
			t.Errorf("%v got %d INVITEs of one call", o.handset, o.rang)
		}
		t.Logf("%v %s again after %s", o.handset, what, o.took.Round(100*time.Millisecond))
	}
}

// TestBenchPhones prints how long real phones are out of reach when the node that they are
// on fails, by their registration interval. PBXMESH_BENCH_PHONES is how many rounds are
// played for each way to fail, PBXMESH_BENCH_INTERVALS the intervals, PBXMESH_BENCH_KIND a
// part of the names of the failures to measure.
func TestBenchPhones(t *testing.T) {
	rounds, _ := strconv.Atoi(os.Getenv("PBXMESH_BENCH_PHONES"))
	if rounds < 1 {
		t.Skip("not asked for: run make bench-phones")
	}
	var intervals []time.Duration
	for _, f := range strings.Fields(os.Getenv("PBXMESH_BENCH_INTERVALS")) {
		d, err := time.ParseDuration(f)
		if err != nil {
			t.Fatal(err)
		}
		intervals = append(intervals, d)
	}
	const copies = 2
	m := newMesh(t)
	other := m.ours("1001", "singapore")
	other.SetBehaviour(phone.AutoAnswer(0))
	b := newBrowser(m)
	for _, f := range failures {
		if !strings.Contains(f.name, os.Getenv("PBXMESH_BENCH_KIND")) {
			continue
		}
		called := map[string]map[time.Duration][]time.Duration{}
		calls := map[string][]time.Duration{}
		var models []string
		for range rounds {
			for _, o := range m.fail(b, f.do, intervals, copies, slices.Max(intervals)+2*time.Minute, other) {
				name := o.String()
				if called[name] == nil {
					called[name] = map[time.Duration][]time.Duration{}
					models = append(models, name)
				}
				t.Logf("%s: %s at %s: dials %v, %s", f.name, name, o.interval, o.dialled, o.took.Round(100*time.Millisecond))
				switch {
				case o.dialled:
					calls[name] = append(calls[name], o.took)
					continue
				case o.rang > 1:
					t.Errorf("%s got %d INVITEs of one call", name, o.rang)
				}
				called[name][o.interval] = append(called[name][o.interval], o.took)
			}
			m.revive("london")
		}
		for _, name := range models {
			row := fmt.Sprintf("RESULT %s | %s", f.name, name)
			for _, i := range intervals {
				row += " | " + spread(called[name][i])
			}
			t.Log(row + " | " + spread(calls[name]))
		}
	}
}

// spread says how long it took at the median and at worst of the phones that were back in
// time, and how many were not.
func spread(all []time.Duration) string {
	var back []time.Duration
	for _, d := range all {
		if d > 0 {
			back = append(back, d)
		}
	}
	slices.Sort(back)
	if len(back) == 0 {
		return "never"
	}
	text := fmt.Sprintf("%.1f, %.1f", back[len(back)/2].Seconds(), back[len(back)-1].Seconds())
	if missing := len(all) - len(back); missing > 0 {
		text += fmt.Sprintf(" (%d of %d never)", missing, len(all))
	}
	return text
}
