package failover_test

import (
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// after moves the clock and lets the tracker look at it.
func (w *world) after(d time.Duration) pbxmesh.NodeState {
	w.now = w.now.Add(d)
	w.tr.Leases(w.now, nil)
	return w.tr.Mesh().State(london)
}

func slowly(hold, ramp time.Duration) failover.Options {
	return failover.Options{Observer: "la", Return: failover.ReturnOptions{Hold: hold, Ramp: ramp, MaxHold: 4 * hold}}
}

// TestReturn walks the chart of the way back: trouble, holding, ramping, steady, and
// relapses from each.
func TestReturn(t *testing.T) {
	t.Parallel()
	const hold, ramp = 30 * time.Second, 100 * time.Second
	fail := func(w *world) {
		t.Helper()
		w.run("l- b+ l- b+ l-")
		if s := w.tr.Mesh().State(london); s.Observed != down || s.Shed != pbxmesh.ShedAll {
			t.Fatalf("london is %+v, want down", s)
		}
	}
	back := func(w *world) { w.run("l+ l+ l+") }
	held := func(w *world, want time.Duration) {
		t.Helper()
		if s := w.after(want - time.Second); s.Shed != pbxmesh.ShedAll || !strings.Contains(s.Reason, "gets no new phones") || s.Effective() != pbxmesh.EffectiveUp {
			t.Errorf("a second before the end of %v: %+v", want, s)
		}
		if s := w.after(time.Second); s.Shed == pbxmesh.ShedAll || s.Shed < 800 || !strings.Contains(s.Reason, "step by step") {
			t.Errorf("after %v: %+v", want, s)
		}
	}
	w := newWorld(t, slowly(hold, ramp), buffalo, london)
	w.run("b+ l+")
	if s := w.after(time.Hour); s.Shed != 0 {
		t.Fatalf("a node that was never away sheds %d", s.Shed)
	}
	fail(w)
	if s := w.after(time.Hour); s.Shed != pbxmesh.ShedAll {
		t.Fatalf("a node that is down sheds %d", s.Shed)
	}
	back(w)
	held(w, hold)
	last := w.tr.Mesh().State(london).Shed
	steps := 0
	for range 99 {
		s := w.after(time.Second)
		if s.Shed > last {
			t.Fatalf("it sheds %d after %d", s.Shed, last)
		}
		if s.Shed < last {
			steps++
		}
		last = s.Shed
	}
	if s := w.after(2 * time.Second); s.Shed != 0 || steps != 9 || strings.Contains(s.Reason, ";") {
		t.Errorf("after %d steps and all of the ramp: %+v", steps, s)
	}

	fail(w) // a relapse of a node that is steady again
	back(w)
	held(w, 2*hold)
	fail(w) // while ramping
	back(w)
	held(w, 4*hold)
	fail(w)
	back(w)
	w.after(time.Second)
	fail(w) // while holding
	back(w)
	held(w, 4*hold) // MaxHold
	w.after(failover.RelapseWithin + time.Minute)
	fail(w)
	back(w)
	held(w, hold) // long ago
}

// TestReturnExcused: what all nodes went through, and what happens to a node that is not
// wanted in service, is no reason to come back slowly.
func TestReturnExcused(t *testing.T) {
	t.Parallel()
	const hold, ramp = 30 * time.Second, 100 * time.Second
	w := newWorld(t, slowly(hold, ramp), buffalo, london)
	w.run("b+ l+ b- l- b- l- b- l-")
	w.pass(failover.Patience)
	w.hears("london@london l-", "buffalo@buffalo b-") // each daemon of its own switch, and nobody can tell of the other
	if s := w.tr.Mesh().State(london); s.Observed != down || s.Shed != pbxmesh.ShedAll || !w.tr.AllDown() {
		t.Fatalf("all are down, and london is %+v", s)
	}
	w.hears("london@london l+", "ja b- l+", "ny b- l+")
	if s := w.tr.Mesh().State(london); s.Observed != up || s.Shed != 0 {
		t.Errorf("the first that is back: %+v", s)
	}
	w.hears("london@london l+", "ja b+ l+", "ny b+ l+")
	if s := w.tr.Mesh().State(buffalo); s.Observed != up || s.Shed != 0 {
		t.Errorf("the last that is back: %+v", s)
	}
	if o := w.tr.Vote(w.now).Nodes[buffalo].Return; o != (failover.Return{}) {
		t.Errorf("this observer tells of a return: %+v", o)
	}
	w.hears("buffalo@buffalo b-", "ja b- l+", "ny b- l+")
	w.hears("ja b+ l+", "ny b+ l+")
	if o := w.tr.Vote(w.now).Nodes[buffalo].Return; o.Hold != hold {
		t.Errorf("a node that was down alone: %+v", o)
	}

	w = newWorld(t, slowly(hold, ramp), buffalo, london)
	w.run("b+ l+")
	for range 3 { // three restarts in a row of a node that is drained are no relapses
		w.tr.SetWanted(w.tick(), london, pbxmesh.WantedDraining)
		w.hears("ja b+ l-", "ny b+ l-")
		if s := w.tr.Mesh().State(london); s.Observed != down {
			t.Fatalf("london is %+v", s)
		}
		w.hears("ja b+ l+", "ny b+ l+")
		w.tr.SetWanted(w.tick(), london, pbxmesh.WantedInService)
		w.hears("ja b+ l+", "ny b+ l+")
		if s := w.tr.Mesh().State(london); s.Observed != up || s.Shed != 0 || w.tr.Vote(w.now).Nodes[london].Return != (failover.Return{}) {
			t.Errorf("after a planned restart: %+v", s)
		}
	}
	w.hears("ja b+ l-", "ny b+ l-")
	w.hears("ja b+ l+", "ny b+ l+")
	if o := w.tr.Vote(w.now).Nodes[london].Return; o.Hold != hold {
		t.Errorf("the return from an only failure: %+v", o)
	}
}

func TestReturnAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{Observer: "la"}, buffalo, london)
	w.run("b+ l+ l- b+ l- b+ l- l+ l+ l+")
	if s := w.tr.Mesh().State(london); s.Observed != up || s.Shed != 0 {
		t.Errorf("with no hold and no ramp: %+v", s)
	}
}

// TestReturnIsAgreed shows that name servers with different memories shed the same.
func TestReturnIsAgreed(t *testing.T) {
	t.Parallel()
	said := func(age, hold time.Duration, texts ...string) []failover.SeenVote {
		var out []failover.SeenVote
		for _, v := range votes(texts...) {
			o := v.Nodes[london]
			o.Return = failover.Return{Age: age, Hold: hold}
			v.Nodes[london] = o
			out = append(out, failover.SeenVote{Vote: *v})
		}
		return out
	}
	for _, tt := range []struct {
		name  string
		votes []failover.SeenVote
		away  bool // this observer saw it away itself
		shed  uint16
	}{
		{"nobody knows of a return", said(0, 0, "ja b+ l+", "ny b+ l+"), false, 0},
		{"just started, one other", said(10*time.Second, 30*time.Second, "ja b+ l+"), false, 1000},
		{"just started, two others", said(10*time.Second, 30*time.Second, "ja b+ l+", "ny b+ l+"), false, 1000},
		{"just started, one of three says so", append(said(0, 0, "ja b+ l+", "ny b+ l+"), said(10*time.Second, 30*time.Second, "liar b+ l+")...), false, 0},
		{"saw a relapse that nobody else saw", said(0, 0, "ja b+ l+", "ny b+ l+"), true, 0},
		{"saw it with others", said(10*time.Second, 30*time.Second, "ja b+ l+", "ny b+ l+"), true, 1000},
		{"the node's own daemon is not asked", said(0, 0, "london@london l+ b+"), true, 1000},
		{"a hold without end", said(0, time.Hour, "ja b+ l+", "ny b+ l+"), false, 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, slowly(30*time.Second, time.Minute), buffalo, london)
			w.run("b+ l+")
			if tt.away {
				w.run("l- b+ l- b+ l- l+ l+ l+")
			}
			now := w.tick()
			for i := range tt.votes {
				tt.votes[i].Seen = now
			}
			w.tr.Votes(now, tt.votes, true)
			if s := w.tr.Mesh().State(london); s.Shed != tt.shed {
				t.Errorf("it sheds %d because %q, want %d", s.Shed, s.Reason, tt.shed)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	marks := failover.LoadOptions{SessionsLow: 80, SessionsHigh: 90, IdleLow: 20, IdleFull: 10}
	for _, tt := range []struct {
		name  string
		o     failover.LoadOptions
		takes [][2]float64 // sessions of 1000, idle percent; a minute apart
		want  []uint16
		why   string
	}{
		{name: "idle", o: marks, takes: [][2]float64{{0, 99}, {500, 60}, {800, 20}}, want: []uint16{0, 0, 0}},
		{name: "sessions grow", o: marks, takes: [][2]float64{{809, 90}, {810, 90}, {850, 90}, {899, 90}, {900, 90}, {2000, 90}}, want: []uint16{0, 100, 500, 900, 1000, 1000}, why: "80 % of its sessions"},
		{name: "sessions fall: half a step late", o: marks, takes: [][2]float64{{850, 90}, {849, 90}, {846, 90}, {844, 90}, {806, 90}, {800, 90}}, want: []uint16{500, 500, 500, 400, 100, 0}},
		{name: "around a mark nothing moves", o: marks, takes: [][2]float64{{850, 90}, {847, 90}, {851, 90}, {846, 90}, {855, 90}}, want: []uint16{500, 500, 500, 500, 500}},
		{name: "processor", o: marks, takes: [][2]float64{{0, 15}, {0, 15}, {0, 5}}, want: []uint16{500, 500, 1000}, why: "20 % of its processor"},
		{name: "off", takes: [][2]float64{{1000, 0}}, want: []uint16{0}},
		{name: "sessions alone", o: failover.LoadOptions{SessionsLow: 50, SessionsHigh: 100}, takes: [][2]float64{{750, 0}}, want: []uint16{500}, why: "50 %"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := failover.NewLoad(tt.o)
			for i, in := range tt.takes {
				shed, why := l.Take(start.Add(time.Duration(i)*5*time.Minute), int(in[0]), 1000, in[1])
				if shed != tt.want[i] || (why == "") != (shed == 0) || shed > 0 && !strings.Contains(why, tt.why) {
					t.Errorf("take %d, %v: %d because %q, want %d", i, in, shed, why, tt.want[i])
				}
			}
		})
	}
	l := failover.NewLoad(marks)
	l.Take(start, 0, 1000, 90)
	if shed, _ := l.Take(start.Add(time.Second), 0, 1000, 0); shed != 0 {
		t.Errorf("one busy second sheds %d", shed)
	}
	if shed, _ := l.Take(start.Add(time.Minute), 900, 0, 0); shed != 0 {
		t.Errorf("a switch that has told nothing sheds %d", shed)
	}
}

// TestLoadTravels shows that a node's own daemon says what it sheds and all others do.
func TestLoadTravels(t *testing.T) {
	t.Parallel()
	own := newWorld(t, failover.Options{Observer: "london", Self: london}, buffalo, london)
	own.run("b+ l+")
	own.tr.SetSwitch(own.tick(), failover.SwitchAlive, 300, "loaded")
	if s := own.tr.Mesh().State(london); s.Shed != 300 || !strings.Contains(s.Reason, "loaded") {
		t.Errorf("at home: %+v", s)
	}
	w := newWorld(t, failover.Options{Observer: "la"}, buffalo, london)
	w.run("b+ l+")
	now := w.tick()
	w.tr.Votes(now, []failover.SeenVote{{Vote: own.tr.Vote(own.now), Seen: now}}, true)
	if s := w.tr.Mesh().State(london); s.Shed != 300 || s.Observed != up || s.Reason != "answers OPTIONS; loaded" {
		t.Errorf("elsewhere: %+v", s)
	}
	if s := w.tr.Mesh().State(buffalo); s.Shed != 0 {
		t.Errorf("another node: %+v", s)
	}
}
