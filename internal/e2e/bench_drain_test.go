package e2e_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh/failover/drain"
	"pbxmesh/fixtures/phone"
	"pbxmesh/internal/control"
)

const envBenchDrain = "PBXMESH_BENCH_DRAIN" // "phones calls pace"

// TestBenchDrain empties a node of any number of phones and calls, without a pause, and
// shows what the others received in every second.
func TestBenchDrain(t *testing.T) {
	text := os.Getenv(envBenchDrain)
	if text == "" {
		t.Skip("make bench-drain runs it")
	}
	var size drainSize
	if _, err := fmt.Sscan(text, &size.phones, &size.calls, &size.pace); err != nil {
		t.Fatalf("%s=%q: want phones, calls and pace: %v", envBenchDrain, text, err)
	}
	if size.phones < 1 || size.calls < 0 || 2*size.calls > size.phones || size.pace < 1 || size.pace > drain.MaxPace {
		t.Fatalf("%d phones with %d calls at a pace of %d: two phones a call are needed, and a pace of 1 to %d", size.phones, size.calls, size.pace, drain.MaxPace)
	}
	size.soon = 2*time.Minute + 4*time.Second*time.Duration(size.phones/size.pace)

	s := newStage(t, size)
	s.allRegister()
	caller := s.callsBegin()
	t.Logf("%d phones and %d calls on london, pace %d", size.phones, size.calls, size.pace)
	began := time.Now()
	s.want("buffalo", control.StateDraining)
	s.eventually("only phones that talk are left on london", func() bool { return s.on("london") == 2*size.calls })
	idle := time.Since(began)
	cut := 0
	for _, c := range caller {
		if c.Info().State != phone.Answered {
			cut++
		}
	}
	s.reinvite(caller)
	for _, c := range caller {
		if err := c.Hangup(s.ctx()); err != nil {
			t.Errorf("hang up: %v", err)
		}
	}
	ended := time.Now()
	s.eventually("london is empty", func() bool {
		r, err := s.nodes["singapore"].app.Drain(s.ctx(), "london")
		return err == nil && r.Empty
	})
	talkers := time.Since(ended)

	worst, all := s.fullestSecond(began, "buffalo", "singapore")
	t.Logf("registrations that the others received, by second since the command: %s", perSecond(s.times(began, "buffalo", "singapore"), began))
	t.Logf("idle phones gone after %.1f s, of which nobody is told for %.1f s; the %d that talked %.1f s after their calls",
		idle.Seconds(), s.nodes["london"].cfg.Failover.Drain.After.Seconds(), 2*size.calls, talkers.Seconds())
	t.Logf("received %d registrations, at most %d in any second of a pace of %d; %d of %d calls cut", all, worst, size.pace, cut, size.calls)
	if worst > size.pace || cut > 0 || all < size.phones {
		t.Errorf("the others received %d of %d registrations, at most %d in a second of %d, and %d calls were cut", all, size.phones, worst, size.pace, cut)
	}
}

// perSecond is "0*2 98 100*3 7": how many of the moments are in each second since then,
// runs of one number in short.
func perSecond(at []time.Time, since time.Time) string {
	var counts []int
	for _, a := range at {
		i := int(a.Sub(since) / time.Second)
		for len(counts) <= i {
			counts = append(counts, 0)
		}
		counts[i]++
	}
	var out []string
	for len(counts) > 0 {
		n := len(counts)
		if i := slices.IndexFunc(counts, func(c int) bool { return c != counts[0] }); i > 0 {
			n = i
		}
		word := fmt.Sprint(counts[0])
		if n > 1 {
			word += fmt.Sprint("*", n)
		}
		out = append(out, word)
		counts = counts[n:]
	}
	return strings.Join(out, " ")
}

func TestPerSecond(t *testing.T) {
	t.Parallel()
	var at []time.Time
	since := time.Unix(1e9, 0)
	for _, ms := range []int{2000, 2999, 3000, 3500, 4999} {
		at = append(at, since.Add(time.Duration(ms)*time.Millisecond))
	}
	if got := perSecond(at, since); got != "0*2 2*2 1" {
		t.Errorf("%q", got)
	}
	if got := perSecond(nil, since); got != "" {
		t.Errorf("nothing is %q", got)
	}
}
