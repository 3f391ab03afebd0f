package probe

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pbxmesh/failover"
)

// TestLoss holds the share of failed probes with 30 % of the packets lost in each
// direction to 0.51 to the power of 5: all five copies are in time, on long paths as on short
// ones, and whatever the losses did to the estimate of the round trip. Four copies that
// count would be 0.068, three 0.13.
func TestLoss(t *testing.T) {
	t.Parallel()
	for _, rtt := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 90 * time.Millisecond, 250 * time.Millisecond, 285 * time.Millisecond} {
		t.Run(rtt.String(), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(rtt, 0.3)
			begun, failed, streak, verdicts := 0, 0, make(map[string]int), 0
			virtually(t, n, Options{}, func(r failover.ProbeResult) {
				begun++
				if r.Outcome == failover.OutcomeOK {
					streak[string(r.Node)] = 0
					if (r.RTT - rtt).Abs() > time.Nanosecond {
						t.Errorf("a round trip of %v was measured as %v", rtt, r.RTT)
					}
					return
				}
				if r.Outcome != failover.OutcomeTimeout {
					t.Errorf("%+v", r)
				}
				failed++
				if streak[string(r.Node)]++; streak[string(r.Node)] == 3 {
					verdicts++
				}
			}, func(p *Prober) {
				p.SetMembers(nodes(40))
				time.Sleep(250 * time.Second) // virtual
			})
			share := float64(failed) / float64(begun)
			expected := math.Pow(1-0.7*0.7, 5)
			t.Logf("%d of %d probes failed (%.4f, expected %.4f); %.2f copies each; %d times three in a row (expected %.1f)", failed, begun,
				share, expected, float64(n.sent())/float64(begun), verdicts, math.Pow(expected, 3)*float64(begun))
			// Four standard deviations of a share of ten thousand.
			if begun < 10000 || math.Abs(share-expected) > 0.0073 {
				t.Errorf("%d probes, of which %.4f failed; expected %.4f", begun, share, expected)
			}
			if verdicts > 4 {
				t.Errorf("%d times three in a row", verdicts)
			}
		})
	}
}

// TestSilence measures in virtual time, with a round trip of 20 ms, how long a switch is
// silent until three probes in a row failed, and how long it can be silent without.
func TestSilence(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ rtt, most, least time.Duration }{
		// The longest is one interval with its jitter and the three waits.
		{20 * time.Millisecond, 1100*time.Millisecond + 570*time.Millisecond, 500 * time.Millisecond},
		{90 * time.Millisecond, 1100*time.Millisecond + 1250*time.Millisecond, 900 * time.Millisecond},
		{250 * time.Millisecond, 1100*time.Millisecond + 1500*time.Millisecond, 1500 * time.Millisecond},
	} {
		t.Run(tt.rtt.String(), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(tt.rtt, 0)
			var r results
			virtually(t, n, Options{}, r.add, func(p *Prober) {
				p.SetMembers(nodes(60))      // no more than MaxInFlight, so that none waits for another
				time.Sleep(20 * time.Second) // virtual, as all below
				r.take()
				n.set(func(n *network) { n.frozen = time.Now() })
				began := n.frozen
				time.Sleep(4 * time.Second)
				third, first := make(map[string]time.Duration), make(map[string]time.Time)
				silent := make(map[string]int)
				for _, one := range r.take() {
					id := string(one.Node)
					if one.Outcome == failover.OutcomeOK {
						continue // was on its way
					}
					if silent[id]++; silent[id] == 1 {
						first[id] = one.At
					}
					if silent[id] == 3 {
						third[id] = one.At.Sub(began)
					}
				}
				least, most := time.Hour, time.Duration(0)
				for _, d := range third {
					least, most = min(least, d), max(most, d)
				}
				t.Logf("three silences after %v to %v", least, most)
				if len(third) != 60 || most > tt.most || least < tt.least-tt.rtt/2 {
					t.Errorf("%d of 60 switches silent after %v to %v, want %v to %v", len(third), least, most, tt.least, tt.most)
				}
			})
		})
	}
}

// TestSlowAnswers shows that a switch which begins to answer late is heard: no silence
// of three, and soon no silence at all.
func TestSlowAnswers(t *testing.T) {
	t.Parallel()
	for _, rtt := range []time.Duration{130 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 450 * time.Millisecond} {
		t.Run(fmt.Sprint(rtt), func(t *testing.T) {
			t.Parallel()
			n := newNetwork(20*time.Millisecond, 0)
			var r results
			virtually(t, n, Options{}, r.add, func(p *Prober) {
				p.SetMembers(nodes(1))
				time.Sleep(20 * time.Second) // virtual, as below
				n.set(func(n *network) { n.rtt = rtt })
				r.take()
				time.Sleep(10 * time.Second)
				all := r.take()
				row := 0
				for _, one := range all {
					if row++; one.Outcome == failover.OutcomeOK {
						row = 0
						if one.RTT < 20*time.Millisecond || one.RTT > rtt || one.At.Sub(all[0].At) > 2*time.Second && one.RTT != rtt {
							t.Errorf("a round trip of %v was measured as %v", rtt, one.RTT)
						}
					}
					if row == 3 {
						t.Errorf("three silences in a row: %v", outcomes(all))
					}
				}
				time.Sleep(10 * time.Second)
				if all := r.take(); count(all, failover.OutcomeOK) != len(all) {
					t.Errorf("after ten seconds: %v", outcomes(all))
				}
			})
		})
	}
}

// TestOutOfStep: probes that began together, because one of them lost an answer or because
// what was silent answers again, do not go on together: of those who watch a node, one soon
// notices its next silence.
func TestOutOfStep(t *testing.T) {
	t.Parallel()
	const watches, quarter = 200, DefaultInterval / 4
	for _, tt := range []struct {
		name     string
		together func(n *network, p *Prober)
	}{
		{"hurried", func(_ *network, p *Prober) {
			for _, node := range nodes(watches) {
				p.Hurry(node.ID)
			}
		}},
		{"answered again", func(n *network, _ *Prober) {
			n.set(func(n *network) { n.frozen = time.Now() })
			time.Sleep(8 * time.Second) // virtual
			n.set(func(n *network) { n.frozen = time.Time{} })
			time.Sleep(DefaultTimeout)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n, r := newNetwork(20*time.Millisecond, 0), new(results)
			virtually(t, n, Options{}, r.add, func(p *Prober) {
				p.SetMembers(nodes(watches))
				time.Sleep(20 * time.Second)
				tt.together(n, p)
				time.Sleep(100 * time.Millisecond)
				r.take()
				for i := range 4 {
					time.Sleep(quarter)
					if got := len(r.take()); got < watches/8 {
						t.Errorf("%d of %d watches probe in quarter %d of the interval", got, watches, i+1)
					}
				}
			})
		})
	}
}
