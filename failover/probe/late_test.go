package probe

import (
	"errors"
	"testing"
	"time"

	"pbxmesh/failover"
)

// TestLateIsNoSilence stops the process, in virtual time, while a probe of a silent node
// is under way: that probe says nothing. A stop shorter than a fifth of the wait is none.
func TestLateIsNoSilence(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		after int // packets of the probe
		stop  time.Duration
		want  failover.Outcome
	}{
		{"not at all", 1, 0, failover.OutcomeTimeout},
		{"for less than the bound", 1, 26*ms + 20*ms, failover.OutcomeTimeout},
		{"between two copies", 1, 27*ms + 30*ms, failover.OutcomeLate},
		{"until all is over", 1, 3 * time.Second, failover.OutcomeLate},
		{"after the last copy", 5, 3 * time.Second, failover.OutcomeLate},
		{"a little, after the last copy", 5, 60 * ms, failover.OutcomeLate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(ms/5, 0)
			var r results
			onMeasured(t, n, &r, func() {
				r.next() // no probe is under way
				n.set(func(n *network) {
					n.frozen = time.Now()
					n.stopAt, n.block = len(n.times)+tt.after, tt.stop
				})
				if got := r.next(); got.Outcome != tt.want || got.Err == nil {
					t.Errorf("%+v, want %v and a reason", got, tt.want)
				}
			})
		})
	}
}

// TestLateAnswerCounts stops the process until its probe is over, while the answer comes:
// whatever is read first, the node is not silent, and what was read late is not taken for
// a long path.
func TestLateAnswerCounts(t *testing.T) {
	t.Parallel()
	n := newNetwork(10*ms, 0) // one packet a probe
	var r results
	onMeasured(t, n, &r, func() {
		r.next() // no probe is under way
		n.set(func(n *network) { n.stopAt, n.block, n.hold = len(n.times)+1, 3*time.Second, 3*time.Second+ms })
		time.Sleep(6 * time.Second)
		all := r.take()
		if len(all) < 2 || all[0].Outcome != failover.OutcomeLate || count(all, failover.OutcomeOK) != len(all)-1 {
			t.Errorf("%v, want one that is late, then answers only", outcomes(all))
		}
		before := n.sent()
		time.Sleep(10 * time.Second)
		if sent := n.sent() - before; sent > 20 {
			t.Errorf("%d packets in ten seconds, as on a path that was measured anew", sent)
		}
	})
}

// TestLateIsNoStorm stops the process again and again: its probes become rarer, not
// more, and come back at once when it runs.
func TestLateIsNoStorm(t *testing.T) {
	t.Parallel()
	n := newNetwork(ms/5, 0)
	var r results
	onMeasured(t, n, &r, func() {
		n.set(func(n *network) { n.frozen, n.always = time.Now(), 200*ms })
		time.Sleep(30 * time.Second)
		all := r.take()
		if len(all) > 35 || count(all, failover.OutcomeLate) != len(all) {
			t.Errorf("%d probes in 30 seconds: %v", len(all), outcomes(all))
		}
		if next := all[1].At.Sub(all[0].At); next > time.Second {
			t.Errorf("the next probe came after %v", next)
		}
		n.set(func(n *network) { n.frozen, n.always = time.Time{}, 0 })
		time.Sleep(1500 * ms)
		if all := r.take(); count(all, failover.OutcomeOK) == 0 {
			t.Errorf("running again: %v", outcomes(all))
		}
	})
}

// TestUnsentIsNoSilence has sends fail: some copies that could not leave make a silence no
// claim, and when none could, the result is the error, for ever and without more probes
// than a silent node gets.
func TestUnsentIsNoSilence(t *testing.T) {
	t.Parallel()
	broken := errors.New("network is down")
	n := newNetwork(ms/5, 0)
	var r results
	onMeasured(t, n, &r, func() {
		r.next() // no probe is under way
		n.set(func(n *network) { n.frozen, n.fail, n.fails = time.Now(), broken, 1 })
		if got := r.next(); got.Outcome != failover.OutcomeLate || got.Sent != copies-1 {
			t.Errorf("one copy could not be sent: %+v", got)
		}
		n.set(func(n *network) { n.fails = 1 << 30 })
		time.Sleep(time.Minute)
		all := r.take()
		if got := count(all, failover.OutcomeError); got < len(all)-1 || got < 60 || got > 90 {
			t.Errorf("%d of %d results are errors in a minute", got, len(all))
		}
		if last := all[len(all)-1]; !errors.Is(last.Err, broken) || last.Sent != 0 {
			t.Errorf("the error is not told: %+v", last)
		}
		n.set(func(n *network) { n.frozen, n.fails = time.Time{}, 0 })
		time.Sleep(2 * time.Second)
		if all := r.take(); count(all, failover.OutcomeOK) == 0 {
			t.Errorf("mended: %v", outcomes(all))
		}
	})
}

// TestStaleRefusal has a port unreachable come in that quotes a packet of the probe before:
// it says nothing of the one under way, which gets an answer.
func TestStaleRefusal(t *testing.T) {
	t.Parallel()
	n := newNetwork(40*ms, 0)
	var r results
	onMeasured(t, n, &r, func() {
		r.next() // no probe is under way
		n.set(func(n *network) { n.frozen = time.Now() })
		first := n.sent() // of the next probe
		if got := r.next(); got.Outcome != failover.OutcomeTimeout {
			t.Errorf("%+v, want a timeout", got)
		}
		if n.sent() != first+copies+1 {
			t.Errorf("%d packets, want those of one probe and the first of the next", n.sent()-first)
		}
		n.unreachable(first)
		n.set(func(n *network) { n.frozen = time.Time{} })
		if got := r.next(); got.Outcome != failover.OutcomeOK {
			t.Errorf("refused by what an earlier probe met: %+v", got)
		}
		first = n.sent()
		n.set(func(n *network) { n.frozen = time.Now() })
		for n.sent() == first {
			time.Sleep(ms)
		}
		n.unreachable(first)
		if got := r.next(); got.Outcome != failover.OutcomeRefused {
			t.Errorf("%+v, want refused", got)
		}
	})
}

// TestRestart has a switch refuse for less than a second, as one does whose profile is
// restarted: that is no row of three.
func TestRestart(t *testing.T) {
	t.Parallel()
	n := newNetwork(ms/5, 0)
	var r results
	onMeasured(t, n, &r, func() {
		r.next() // no probe is under way
		n.set(func(n *network) { n.closed = true })
		if got := r.next(); got.Outcome != failover.OutcomeRefused {
			t.Errorf("%+v, want refused", got)
		}
		time.Sleep(950 * ms)
		n.set(func(n *network) { n.closed = false })
		time.Sleep(time.Second)
		if all := r.take(); count(all, failover.OutcomeRefused) != 1 || count(all, failover.OutcomeOK) == 0 {
			t.Errorf("after the first refusal: %v", outcomes(all))
		}
	})
}

// TestStallLeavesNoTrace stops a switch for two seconds: what it answers to old requests
// then is no long path.
func TestStallLeavesNoTrace(t *testing.T) {
	t.Parallel()
	n := newNetwork(20*ms, 0)
	var r results
	onMeasured(t, n, &r, func() {
		before := n.sent()
		time.Sleep(10 * time.Second)
		usual := n.sent() - before
		r.next() // no probe is under way
		n.set(func(n *network) { n.resume = time.Now().Add(2500 * ms) })
		time.Sleep(2500 * ms)
		if all := r.take(); count(all, failover.OutcomeTimeout) < 3 {
			t.Errorf("a stopped switch: %v", outcomes(all))
		}
		for r.next().Outcome != failover.OutcomeOK { // what the switch answers late
		}
		r.next() // the first one that is answered in its time
		n.set(func(n *network) { n.frozen = time.Now() })
		first := r.next()
		second, third := r.next(), r.next()
		if row := third.At.Sub(first.At); count([]failover.ProbeResult{first, second, third}, failover.OutcomeTimeout) != 3 || row > 460*ms {
			t.Errorf("the next silences are %v apart", row)
		}
		n.set(func(n *network) { n.frozen = time.Time{} })
		time.Sleep(3 * time.Second)
		before = n.sent()
		time.Sleep(10 * time.Second)
		if now := n.sent() - before; now > usual+2 {
			t.Errorf("%d packets in ten seconds, %d before", now, usual)
		}
	})
}

// TestMeasurement says which answers measure the path.
func TestMeasurement(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		first   int           // request of the probe under way
		late    bool          // an earlier timer of it was
		due     time.Duration // when the next timer is to come
		at      time.Duration // when the answer is read
		measure bool
	}{
		{"in time", 1, false, 27 * ms, 20 * ms, true},
		{"by the last copy", 1, false, 120 * ms, 119 * ms, true},
		{"a timer was late before", 1, true, 120 * ms, 119 * ms, false},
		{"the next timer is late", 1, false, 27 * ms, 60 * ms, false},
		{"the probe is over", 1, false, time.Second, 121 * ms, false},
		{"not the first probe of the row", 6, false, 27 * ms, 20 * ms, false},
	} {
		p := newProber(Options{Timeout: 500 * ms, MaxInFlight: 1}, newNetwork(0, 0))
		start := time.Now()
		w := watch{p: p, start: start, last: plan{timeout: 120 * ms}, first: tt.first, late: tt.late, due: start.Add(tt.due), backOff: 1}
		w.newRow()
		for range tt.first {
			w.row.sent = append(w.row.sent, start)
		}
		got := w.answered(answer{number: tt.first, code: 200, at: start.Add(tt.at)})
		if measured := w.trip.smooth != 0; got.RTT != tt.at || measured != tt.measure || (w.backOff == 0) != tt.measure {
			t.Errorf("%s: %v, measured %v, back-off %d; want measured %v", tt.name, got.RTT, measured, w.backOff, tt.measure)
		}
		if len(w.row.sent) != 0 || got.Outcome != failover.OutcomeOK {
			t.Errorf("%s: %+v, and the row goes on", tt.name, got)
		}
	}
}
