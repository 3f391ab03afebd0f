package native

import (
	"fmt"
	"testing"
	"time"

	"pbxmesh/internal/esl"
)

// TestScenarioIdle leaves three nodes with 1,000 users alone for two minutes: the
// switches' own event counters must not grow faster in the second one.
func TestScenarioIdle(t *testing.T) {
	if testing.Short() {
		t.Skip("takes more than two minutes")
	}
	w, nodes := meshOf(t, "buffalo", "london", "singapore")
	for i := range 1000 {
		aor := mustAOR(t, fmt.Sprintf("%d@t%d.test", 2000+i, i%20))
		w.register(aor, nodes[i%3].id, time.Hour)
		for _, n := range nodes {
			n.rows.Changed(aor)
			n.boxes.Changed(aor)
		}
	}
	counters := make([]func() uint64, len(nodes))
	for i, n := range nodes {
		counters[i] = n.counter()
		eventually(t, time.Minute, func() string {
			if s := n.rows.Stats(); s.Rows < 666 || s.Queue > 0 {
				return fmt.Sprintf("%+v", s)
			}
			n.boxes.mu.Lock()
			defer n.boxes.mu.Unlock()
			if len(n.boxes.ask) > 0 {
				return "the voicemail is still being asked"
			}
			return ""
		})
	}
	read := func() (out []uint64) {
		for _, c := range counters {
			out = append(out, c())
		}
		return out
	}
	wait := func(d time.Duration) { <-time.After(d) }
	wait(5 * time.Second)
	a := read()
	wait(time.Minute)
	b := read()
	wait(time.Minute)
	c := read()
	for i, n := range nodes {
		first, second := b[i]-a[i], c[i]-b[i]
		s := n.rows.Stats()
		t.Logf("%s: %d events in the first minute, %d in the second; %d refreshes, drift %+v", n.Name(), first, second, s.Refreshed, s.Drift)
		// 667 rows are refreshed within 120 to 150 s of being written, all of them
		// in the second minute here; the switch's own events are a few dozen.
		if first > 300 || second > 1000 {
			t.Errorf("%s is not idle", n.Name())
		}
		if s.Drift.Total() != 0 {
			t.Errorf("%s: drift without a fault", n.Name())
		}
	}
}

// counter returns a function that reads the switch's Event-Sequence, by means of an
// event of its own.
func (n *realNode) counter() func() uint64 {
	n.t.Helper()
	seen := make(chan uint64, 1)
	cfg := n.esl()
	cfg.OnEvent = func(e *esl.Event) { seen <- e.Sequence() }
	c, err := esl.Dial(n.t.Context(), cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { _ = c.Close() })
	if err := c.Subscribe(n.t.Context(), nil, []string{"pbxmesh::tick"}); err != nil {
		n.t.Fatal(err)
	}
	return func() uint64 {
		n.t.Helper()
		if err := c.SendEvent(n.t.Context(), "CUSTOM", []esl.Header{{Name: "Event-Subclass", Value: "pbxmesh::tick"}}, nil); err != nil {
			n.t.Fatal(err)
		}
		select {
		case s := <-seen:
			return s
		case <-time.After(5 * time.Second):
			n.t.Fatal("the switch does not count")
			return 0
		}
	}
}
