package native

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/internal/meshcontext"
)

func addr(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5090)
}

// newRows returns Rows on a fake switch, running, with london and singapore up.
func newRows(t *testing.T, s *fakeSwitch, w *world, change func(*RowsOptions)) *Rows {
	w.setNode("buffalo", addr(1), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	w.setNode("london", addr(2), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	w.setNode("singapore", addr(3), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	o := RowsOptions{Local: "buffalo", Directory: w, Nodes: w, Dial: s.dial}
	if change != nil {
		change(&o)
	}
	r := NewRows(o)
	start(t, r.Run)
	return r
}

// settle gives everything time to happen, without passing a minute.
func settle() {
	time.Sleep(2 * settleTime)
	synctest.Wait()
}

// expected returns what the switch should hold, worked out without the code under test.
func expected(w *world) []string {
	out := []string{}
	for aor, regs := range w.regs {
		nodes := map[pbxmesh.NodeID]bool{}
		for _, r := range regs {
			if r.Node != "buffalo" && time.Now().Before(r.Expires) {
				nodes[r.Node] = true
			}
		}
		for id := range nodes {
			if e := w.nodes.States[id].Effective(); e == pbxmesh.EffectiveDown || e == pbxmesh.EffectiveOut {
				continue
			}
			if n, ok := w.nodes.Nodes[id]; ok {
				out = append(out, fmt.Sprintf(`%s "" <sip:%s;fs_path=sip%%3A%s%%3A%d%%3Bpbxmesh-row>`, aor, aor, n.Mesh.Addr(), n.Mesh.Port()))
			}
		}
	}
	slices.Sort(out)
	return out
}

func checkRows(t *testing.T, s *fakeSwitch, w *world, when string) {
	t.Helper()
	if got, want := s.contacts(), expected(w); !slices.Equal(got, want) && len(got)+len(want) > 0 {
		t.Errorf("%s: the switch has\n  %s\nwant\n  %s", when, strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestRowsFollowTheDirectory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, w := newFakeSwitch(), newWorld()
		r := newRows(t, s, w, nil)
		anna, bob := mustAOR(t, "anna@a.test"), mustAOR(t, "bob@a.test")
		w.register(anna, "london", time.Hour)
		w.register(anna, "buffalo", time.Hour)
		w.register(bob, "singapore", time.Hour)
		settle()
		if got := s.events(); len(got) > 0 {
			t.Fatalf("events before the directory was complete: %v", got)
		}
		r.Resync()
		settle()
		checkRows(t, s, w, "after the first resync")

		w.register(anna, "singapore", time.Hour)
		r.Changed(anna)
		settle()
		checkRows(t, s, w, "second device")

		w.register(bob, "singapore", 0)
		r.Changed(bob)
		settle()
		checkRows(t, s, w, "unregistered")

		w.register(bob, "london", 30*time.Second)
		r.Changed(bob)
		settle()
		checkRows(t, s, w, "registered again")
		time.Sleep(31 * time.Second)
		checkRows(t, s, w, "expired without a word")

		s.events()
		w.setNode("london", addr(2), pbxmesh.ObservedUp, pbxmesh.WantedDraining)
		r.NodesChanged()
		settle()
		if got := s.events(); len(got) > 0 {
			t.Errorf("draining is no change, sent %v", got)
		}
		w.setNode("london", addr(9), pbxmesh.ObservedUp, pbxmesh.WantedDraining)
		r.NodesChanged()
		settle()
		checkRows(t, s, w, "node moved")
		w.setNode("london", addr(9), pbxmesh.ObservedDown, pbxmesh.WantedInService)
		r.NodesChanged()
		settle()
		checkRows(t, s, w, "node down")
		w.setNode("london", addr(9), pbxmesh.ObservedUp, pbxmesh.WantedInService)
		r.NodesChanged()
		settle()
		checkRows(t, s, w, "node back")

		if err := r.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := s.contacts(); len(got) > 0 {
			t.Errorf("left the mesh with %v", got)
		}
	})
}

// TestRowsHourOfRefreshes is an hour of phones that register again every minute:
// only half-life refreshes reach the switch.
func TestRowsHourOfRefreshes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const users = 200
		s, w := newFakeSwitch(), newWorld()
		r := newRows(t, s, w, nil)
		for i := range users {
			w.register(mustAOR(t, fmt.Sprintf("%d@a.test", i)), "london", 2*time.Minute)
		}
		r.Resync()
		phones := 0
		for range 60 {
			time.Sleep(time.Minute)
			for i := range users {
				aor := mustAOR(t, fmt.Sprintf("%d@a.test", i))
				w.register(aor, "london", 2*time.Minute)
				r.Changed(aor)
				phones++
			}
		}
		settle()
		checkRows(t, s, w, "after the hour")
		got := r.Stats()
		t.Logf("%d re-registrations an hour cost %d refreshes, %.2f an hour and row", phones, got.Refreshed, float64(got.Refreshed)/users)
		if got.Injected != users || got.Removed != 0 || got.Drift.Total() != 0 {
			t.Errorf("stats %+v", got)
		}
		// 40 to 50 % of five minutes: 24 to 30 an hour.
		if per := got.Refreshed / users; per < 23 || per > 30 {
			t.Errorf("%d refreshes a row and hour, want 24 to 30", per)
		}
	})
}

// TestRowsSlowSwitch: with a switch that takes a second for an event, a thousand
// changes of five users never block who reports them, cost a few events, and end in
// what is true.
func TestRowsSlowSwitch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, w := newFakeSwitch(), newWorld()
		s.slow = time.Second
		r := newRows(t, s, w, nil)
		r.Resync()
		time.Sleep(time.Second)
		began := time.Now()
		for i := range 1000 {
			aor := mustAOR(t, fmt.Sprintf("%d@a.test", i%5))
			w.register(aor, "london", time.Duration(i%3)*time.Hour) // every third time it is gone
			r.Changed(aor)
			if i%100 == 99 {
				time.Sleep(time.Second)
			}
		}
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("reporting took %s, of which 10 s were pauses", took)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		checkRows(t, s, w, "after the burst")
		if n := len(s.events()); n > 40 {
			t.Errorf("%d events for five users", n)
		}
	})
}

// TestRowsRefreshRate: many rows live longer, so that refreshing them stays bounded.
func TestRowsRefreshRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const users, rate = 500, 1
		s, w := newFakeSwitch(), newWorld()
		r := newRows(t, s, w, func(o *RowsOptions) { o.RefreshRate = rate })
		for i := range users {
			w.register(mustAOR(t, fmt.Sprintf("%d@a.test", i)), "london", 24*time.Hour)
		}
		r.Resync()
		time.Sleep(time.Hour)
		before := r.Stats().Refreshed
		time.Sleep(time.Hour)
		got := r.Stats()
		if per := float64(got.Refreshed-before) / 3600; per > 1.1*rate || per < 0.8*rate {
			t.Errorf("%.1f refreshes a second, want about %d: %+v", per, rate, got)
		}
		if got.Drift.Total() != 0 || got.Injected != users {
			t.Errorf("rows ran out: %+v", got)
		}
		checkRows(t, s, w, "after two hours")
	})
}

func TestRowsSwitchFaults(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		fault  func(s *fakeSwitch, w *world, r *Rows)
		within time.Duration
	}{
		{"restart", func(s *fakeSwitch, _ *world, _ *Rows) { s.restart() }, time.Second},
		{"away for a minute", func(s *fakeSwitch, w *world, r *Rows) {
			s.cut(true)
			time.Sleep(time.Minute)
			w.register(bobA, "london", time.Hour)
			r.Changed(bobA)
			w.register(annaA, "london", 0)
			r.Changed(annaA)
			s.cut(false)
		}, 6 * time.Second},
		{"profile restart", func(s *fakeSwitch, _ *world, _ *Rows) { s.restartProfile(true) }, time.Second},
		{"rows flushed by hand", func(s *fakeSwitch, _ *world, _ *Rows) { s.flush("mesh") }, time.Second},
		{"rows flushed while another user registers", func(s *fakeSwitch, w *world, r *Rows) {
			w.register(bobA, "london", time.Hour)
			s.flush("mesh")
			r.Changed(bobA)
		}, time.Second},
		{"rows flushed just after they were written", func(s *fakeSwitch, w *world, r *Rows) {
			w.register(bobA, "london", time.Hour)
			r.Changed(bobA)
			synctest.Wait()
			s.flush("mesh")
		}, time.Second},
		{"silent profile restart", func(s *fakeSwitch, _ *world, _ *Rows) { s.restartProfile(false) }, 61 * time.Second},
		{"profile not there for a while", func(s *fakeSwitch, _ *world, _ *Rows) {
			s.mu.Lock()
			s.profile = false
			s.mu.Unlock()
			s.restartProfile(true)
			time.Sleep(5 * time.Second)
			s.mu.Lock()
			s.profile = true
			s.mu.Unlock()
		}, time.Second},
		{"restart, and mod_sofia takes its time", func(s *fakeSwitch, _ *world, _ *Rows) {
			s.mu.Lock()
			s.booting = true
			s.mu.Unlock()
			s.restart()
			time.Sleep(20 * time.Second)
			s.mu.Lock()
			s.booting = false
			s.mu.Unlock()
		}, time.Second},
		{"lost event", func(s *fakeSwitch, w *world, r *Rows) {
			s.mu.Lock()
			s.lose = func(sentEvent) bool { return true }
			s.mu.Unlock()
			w.register(bobA, "london", time.Hour)
			r.Changed(bobA)
			time.Sleep(time.Second)
			s.mu.Lock()
			s.lose = nil
			s.mu.Unlock()
		}, 2 * time.Minute},
		{"lost notification", func(_ *fakeSwitch, w *world, _ *Rows) { w.register(bobA, "london", time.Hour) }, 61 * time.Second},
		{"rows of ours that nobody knows", func(s *fakeSwitch, _ *world, _ *Rows) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.rows["pbxmesh/old/name/x@a.test"] = fakeRow{"x@a.test", `"" <sip:x@a.test>`, agent, "buffalo", time.Now().Add(time.Hour)}
		}, 61 * time.Second},
		{"a row of ours that leads elsewhere", func(s *fakeSwitch, _ *world, _ *Rows) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for id, row := range s.rows {
				row.contact = `"" <sip:elsewhere>`
				s.rows[id] = row
			}
		}, 61 * time.Second},
		{"rows as an older daemon wrote them", func(s *fakeSwitch, _ *world, _ *Rows) {
			s.cut(true)
			s.mu.Lock()
			for id, row := range s.rows {
				if row.agent == agent && row.host == "buffalo" {
					row.contact = strings.NewReplacer("%3B"+meshcontext.Mark, "", "%3A", ":").Replace(row.contact)
				}
				s.rows[id] = row
			}
			s.mu.Unlock()
			s.cut(false)
		}, 6 * time.Second},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, w := newFakeSwitch(), newWorld()
				phone := fakeRow{"9@a.test", `"" <sip:9@198.51.100.1>`, "a phone", "buffalo", time.Now().Add(24 * time.Hour)}
				neighbour := fakeRow{"8@a.test", `"" <sip:8@198.51.100.1>`, agent, "elsewhere", time.Now().Add(24 * time.Hour)}
				r := newRows(t, s, w, nil)
				w.register(annaA, "london", time.Hour)
				r.Resync()
				time.Sleep(30 * time.Second)
				checkRows(t, s, w, "before")
				c.fault(s, w, r)
				s.mu.Lock()
				s.rows["phone"], s.rows["pbxmesh/other/x/8@a.test"] = phone, neighbour
				s.mu.Unlock()
				time.Sleep(c.within)
				synctest.Wait()
				checkRows(t, s, w, "after")
				s.mu.Lock()
				defer s.mu.Unlock()
				if s.rows["phone"] != phone || s.rows["pbxmesh/other/x/8@a.test"] != neighbour {
					t.Error("a row that is not ours was touched")
				}
			})
		})
	}
}

var annaA, bobA = aorOrPanic("anna@a.test"), aorOrPanic("bob@a.test")

func aorOrPanic(s string) pbxmesh.AOR {
	a, err := pbxmesh.ParseAOR(s)
	if err != nil {
		panic(err)
	}
	return a
}

// TestRowsQueueBound gives up the queue for a walk, and loses nothing by it.
func TestRowsQueueBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, w := newFakeSwitch(), newWorld()
		s.down = true
		r := newRows(t, s, w, func(o *RowsOptions) { o.MaxQueue = 10 })
		r.Resync()
		for i := range 100 {
			aor := mustAOR(t, fmt.Sprintf("%d@a.test", i))
			w.register(aor, "london", time.Hour)
			r.Changed(aor)
		}
		r.mu.Lock()
		if len(r.changes) > 10 {
			t.Errorf("%d in a queue of 10", len(r.changes))
		}
		r.mu.Unlock()
		s.cut(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		checkRows(t, s, w, "after the walk")
	})
}

// TestRowsProperty: whatever happens, two quiet minutes later the switch has what
// the mesh says.
func TestRowsProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.SliceOfN(rapid.IntRange(0, 1<<20), 0, 60).Draw(rt, "deeds")
		var failed string
		synctest.Test(t, func(t *testing.T) { failed = playRows(t, seed) })
		if failed != "" {
			rt.Fatal(failed)
		}
	})
}

func playRows(t *testing.T, deeds []int) string {
	s, w := newFakeSwitch(), newWorld()
	dice := 0
	s.lag = func() time.Duration { dice++; return time.Duration(dice*37%200) * time.Millisecond } // out of order, within settleTime
	r := newRows(t, s, w, nil)
	r.Resync()
	nodes := []pbxmesh.NodeID{"london", "singapore", "buffalo"}
	for _, d := range deeds {
		aor := aorOrPanic(fmt.Sprintf("%d@a.test", d>>4%5))
		node := nodes[d>>7%3]
		switch d % 13 {
		case 0, 1, 2:
			w.register(aor, node, time.Duration(d>>9%600+1)*time.Second)
			r.Changed(aor)
		case 3:
			w.register(aor, node, 0)
			r.Changed(aor)
		case 4:
			w.register(aor, node, time.Duration(d>>9%600+1)*time.Second) // and nobody says so
		case 5, 6:
			state := []pbxmesh.Observed{pbxmesh.ObservedUp, pbxmesh.ObservedDown, pbxmesh.ObservedSuspect, pbxmesh.ObservedUnknown}[d>>4%4]
			w.setNode(node, addr(d>>9%7+1), state, pbxmesh.Wanted(d>>12%3))
			r.NodesChanged()
		case 7:
			s.restart()
		case 8:
			s.cut(d>>4%2 == 0)
		case 9:
			s.restartProfile(d>>4%2 == 0)
		case 10:
			s.mu.Lock()
			n := d>>4%4 + 1
			s.lose = func(sentEvent) bool { n--; return n%2 == 0 && n > -6 }
			s.mu.Unlock()
		default:
			time.Sleep(time.Duration(d>>4%300_000) * time.Millisecond)
		}
	}
	s.mu.Lock()
	s.lose, s.down = nil, false
	s.mu.Unlock()
	time.Sleep(2 * time.Minute)
	synctest.Wait()
	if !slices.Equal(s.contacts(), expected(w)) {
		time.Sleep(time.Second) // something may have expired at this very instant
		synctest.Wait()
	}
	got, want := s.contacts(), expected(w)
	s.wg.Wait()
	if !slices.Equal(got, want) && len(got)+len(want) > 0 {
		return fmt.Sprintf("the switch has\n  %s\nwant\n  %s\nstats %+v", strings.Join(got, "\n  "), strings.Join(want, "\n  "), r.Stats())
	}
	return ""
}
