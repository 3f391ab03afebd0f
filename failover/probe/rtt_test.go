package probe

import (
	"testing"
	"time"
)

const ms = time.Millisecond

// measured is the estimate after a thousand answers that took r.
func measured(r ...time.Duration) *roundTrip {
	var e roundTrip
	for i := range 1000 {
		e.add(r[i%len(r)])
	}
	return &e
}

// TestPlan walks the bounds of the wait.
func TestPlan(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		trip    *roundTrip
		most    time.Duration
		unheard int
		want    plan
	}{
		{"nothing measured", &roundTrip{}, 500 * ms, 0, plan{500 * ms, 50 * ms}},
		{"nothing measured, silent", &roundTrip{}, 500 * ms, 9, plan{500 * ms, 50 * ms}},
		{"next door", measured(ms / 5), 500 * ms, 0, plan{120 * ms, 27450 * time.Microsecond}},
		{"20 ms", measured(20 * ms), 500 * ms, 0, plan{120 * ms, 22500 * time.Microsecond}},
		{"20 ms, one silence", measured(20 * ms), 500 * ms, 1, plan{180 * ms, 37500 * time.Microsecond}},
		{"20 ms, two silences", measured(20 * ms), 500 * ms, 2, plan{270 * ms, 60 * ms}},
		{"20 ms, silent for long", measured(20 * ms), 500 * ms, 1000, plan{500 * ms, 117500 * time.Microsecond}},
		{"90 ms", measured(90 * ms), 500 * ms, 0, plan{300 * ms, 50 * ms}},
		{"250 ms", measured(250 * ms), 500 * ms, 0, plan{500 * ms, 60 * ms}},
		{"longer than the longest wait", measured(4 * time.Second), 500 * ms, 0, plan{500 * ms, 50 * ms}},
		{"a short longest wait", measured(20 * ms), 80 * ms, 0, plan{80 * ms, 12500 * time.Microsecond}},
	} {
		got := tt.trip.plan(tt.most, tt.unheard)
		if (got.timeout-tt.want.timeout).Abs() > ms/10 || (got.gap-tt.want.gap).Abs() > ms/10 {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		if last := 4 * got.gap; last+min(tt.trip.bound(), got.timeout*3/5) > got.timeout {
			t.Errorf("%s: the last copy leaves after %v, too late for an answer within %v", tt.name, last, got.timeout)
		}
	}
	if a, b := measured(15*ms, 25*ms).bound(), measured(20*ms).bound(); a <= b {
		t.Errorf("a path that varies may take %v, one that does not %v", a, b)
	}
	// Three waits in a row.
	total := time.Duration(0)
	for unheard := range 3 {
		total += measured(ms).plan(500*ms, unheard).timeout
	}
	if total < 500*ms {
		t.Errorf("three waits last %v: a switch that pauses for half a second is silent", total)
	}
}

// TestEstimate holds the sums to those of RFC 6298 section 2.
func TestEstimate(t *testing.T) {
	t.Parallel()
	var e roundTrip
	e.add(100 * ms)
	if e.smooth != 100*ms || e.vary != 50*ms || e.bound() != 300*ms {
		t.Errorf("after 100 ms: %+v, may take %v; want 100 ms, 50 ms, 300 ms", e, e.bound())
	}
	e.add(180 * ms)
	// RTTVAR = 3/4 · 50 + 1/4 · |100 − 180|, then SRTT = 7/8 · 100 + 1/8 · 180.
	if e.smooth != 110*ms || e.vary != 57500*time.Microsecond || e.bound() != 340*ms {
		t.Errorf("after 180 ms: %+v, may take %v; want 110 ms, 57.5 ms, 340 ms", e, e.bound())
	}
}
