package failover_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// signs drives the signs of life of daemons, in steps of 100 ms.
type signs struct {
	*world
	alive map[pbxmesh.NodeID]bool
	left  map[pbxmesh.NodeID]bool
	reads bool
	full  bool // the registry takes no writes, and can be read
	last  map[pbxmesh.NodeID]time.Time
}

func newSigns(t *testing.T, o failover.Options, ids ...pbxmesh.NodeID) *signs {
	s := &signs{world: newWorld(t, o, ids...), alive: map[pbxmesh.NodeID]bool{}, left: map[pbxmesh.NodeID]bool{}, reads: true, last: map[pbxmesh.NodeID]time.Time{}}
	for _, id := range ids {
		s.alive[id] = true
		s.probe(id, failover.OutcomeOK)
	}
	s.wait(2 * time.Second)
	return s
}

// wait lets d pass. A daemon that is alive gives a sign every half second, as by its vote.
func (s *signs) wait(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); {
		now := s.tick()
		var leases []failover.LeaseReport
		var heard []failover.SeenVote
		if s.reads {
			for id, alive := range s.alive {
				if alive && !s.full && now.Sub(s.last[id]) >= 500*time.Millisecond {
					s.last[id] = now
				}
				status := failover.LeaseFresh
				if now.Sub(s.last[id]) > 5*time.Second || s.left[id] {
					status = failover.LeaseExpired
				}
				leases = append(leases, failover.LeaseReport{Node: id, Status: status, LinkOK: true, Seen: s.last[id], Left: s.left[id], At: now})
			}
		}
		s.tr.Leases(now, leases)
		s.tr.Votes(now, heard, s.reads && !s.full)
		for id := range s.alive {
			s.tr.Probe(failover.ProbeResult{Node: id, Outcome: failover.OutcomeOK, At: now})
		}
	}
}

func (s *signs) shed(id pbxmesh.NodeID) uint16 { return s.tr.Mesh().State(id).Shed }

// TestSilentDaemon walks the chart of a daemon's signs of life.
func TestSilentDaemon(t *testing.T) {
	t.Parallel()
	s := newSigns(t, failover.Options{Observer: "la"}, buffalo, london, singapore)
	if s.shed(london) != 0 {
		t.Fatal("it sheds with everybody alive")
	}
	s.alive[london] = false
	s.wait(1400 * time.Millisecond)
	if s.shed(london) != 0 {
		t.Error("two late signs are no silence")
	}
	s.wait(2100 * time.Millisecond)
	state := s.tr.Mesh().State(london)
	if state.Shed != pbxmesh.ShedAll || state.Observed != up || !state.Effective().TakesCalls() || !strings.Contains(state.Reason, "its daemon is silent") {
		t.Errorf("after 3.5 s: %+v", state)
	}
	if s.shed(buffalo) != 0 {
		t.Error("another node sheds")
	}
	s.wait(3 * time.Second)
	if state := s.tr.Mesh().State(london); state.Observed != suspect || state.Shed != pbxmesh.ShedAll {
		t.Errorf("after its lease: %+v", state)
	}
	s.alive[london] = true
	s.wait(1200 * time.Millisecond)
	if s.shed(london) != 0 {
		t.Error("it still sheds with its daemon back")
	}
}

// TestRestartedDaemon shows the grace of an orderly restart.
func TestRestartedDaemon(t *testing.T) {
	t.Parallel()
	s := newSigns(t, failover.Options{Observer: "la"}, buffalo, london, singapore)
	s.alive[london], s.left[london] = false, true
	s.wait(9 * time.Second)
	if s.shed(london) != 0 {
		t.Error("it sheds within the grace")
	}
	s.alive[london], s.left[london] = true, false
	s.wait(20 * time.Second)
	if s.shed(london) != 0 {
		t.Error("it sheds after an orderly restart")
	}
	s.alive[london], s.left[london] = false, true
	s.wait(12 * time.Second)
	if state := s.tr.Mesh().State(london); state.Shed != pbxmesh.ShedAll || !strings.Contains(state.Reason, "lease has run out") {
		t.Errorf("after the grace: %+v", state)
	}
}

// TestRegistryAwayMakesNobodySilent: neither a registry that cannot be read, nor one that
// hung and answers again, nor one whose writers all stall says anything about a daemon.
func TestRegistryAwayMakesNobodySilent(t *testing.T) {
	t.Parallel()
	all := []pbxmesh.NodeID{buffalo, london, singapore}
	none := func(s *signs, when string) {
		t.Helper()
		for _, id := range all {
			if s.shed(id) != 0 {
				t.Errorf("%s: %s sheds: %s", when, id, s.tr.Mesh().State(id).Reason)
			}
		}
	}
	s := newSigns(t, failover.Options{Observer: "la"}, all...)
	s.reads = false
	s.wait(time.Minute)
	none(s, "not readable")
	s.reads = true
	for _, id := range all { // the writers come back later than the first read
		s.alive[id] = false
	}
	s.wait(1500 * time.Millisecond)
	none(s, "just back")
	for _, id := range all {
		s.alive[id] = true
	}
	s.wait(5 * time.Second)
	none(s, "back")

	s.full = true
	s.wait(time.Minute)
	none(s, "it takes no writes")
	s.full = false
	s.wait(3 * time.Second)
	none(s, "it takes writes again")

	s.log.Reset()
	for _, id := range all {
		s.alive[id] = false
	}
	s.wait(9 * time.Second)
	none(s, "all stall")
	if n := strings.Count(s.log.String(), "most daemons fell silent at once"); n != 1 {
		t.Errorf("%d log lines about it, want 1", n)
	}
	s.wait(6 * time.Second) // too long for a hiccup
	for _, id := range all {
		if s.shed(id) != pbxmesh.ShedAll {
			t.Errorf("%s does not shed after 15 s", id)
		}
	}

	// They come back one by one, and nobody is taken for the last one that is silent.
	s = newSigns(t, failover.Options{Observer: "la"}, all...)
	for _, id := range all {
		s.alive[id] = false
	}
	s.wait(5 * time.Second)
	for _, id := range all {
		s.alive[id] = true
		s.wait(700 * time.Millisecond)
		none(s, "back one by one")
	}

	// Two of three that die one after the other are no stall.
	s = newSigns(t, failover.Options{Observer: "la"}, all...)
	s.alive[london] = false
	s.wait(4 * time.Second)
	s.alive[singapore] = false
	s.wait(4 * time.Second)
	if s.shed(london) != pbxmesh.ShedAll || s.shed(singapore) != pbxmesh.ShedAll || s.shed(buffalo) != 0 {
		t.Errorf("one after the other: %d, %d, %d", s.shed(london), s.shed(singapore), s.shed(buffalo))
	}
	// And a daemon never takes itself for silent.
	s = newSigns(t, failover.Options{Observer: "london", Self: london}, buffalo, london)
	s.alive[london] = false
	s.wait(4 * time.Second)
	if s.shed(london) != 0 {
		t.Errorf("a daemon takes itself for silent")
	}
}

// TestStallMakesNobodySilent: whoever could not read the registry for a while gives a daemon
// the time of two renewals, however late its last sign was before; and then the silence counts.
func TestStallMakesNobodySilent(t *testing.T) {
	t.Parallel()
	for stall := 1600 * time.Millisecond; stall < 20*time.Second; stall = stall * 5 / 4 {
		s := newSigns(t, failover.Options{Observer: "la"}, buffalo, london, singapore)
		s.alive[london] = false
		s.wait(1400 * time.Millisecond)
		s.reads = false
		s.wait(stall)
		s.reads = true
		s.wait(2200 * time.Millisecond)
		if shed := s.shed(london); shed != 0 {
			t.Errorf("2.2 s after a stall of %v it sheds %d", stall, shed)
		}
		s.wait(1200 * time.Millisecond)
		if shed := s.shed(london); shed != pbxmesh.ShedAll {
			t.Errorf("3.4 s after a stall of %v it sheds %d", stall, shed)
		}
	}
}

// TestSiteOffTheRegistry: when the daemons of one site fall silent at once, among many others
// that go on, it is their way to the registry for a while, and no verdict about their nodes.
func TestSiteOffTheRegistry(t *testing.T) {
	t.Parallel()
	asia := []pbxmesh.NodeID{singapore, "tokyo", "seoul"}
	ids := append([]pbxmesh.NodeID{buffalo, london, "paris", "denver", "rome", "oslo"}, asia...)
	s := newSigns(t, failover.Options{Observer: "la"}, ids...)
	var nodes []pbxmesh.Node
	for i, id := range ids {
		n := member(id, byte(i+1))
		if slices.Contains(asia, id) {
			n.Site = "asia"
		}
		nodes = append(nodes, n)
	}
	s.tr.SetMembers(s.now, nodes)
	set := func(alive bool, ids ...pbxmesh.NodeID) {
		for _, id := range ids {
			s.alive[id] = alive
		}
	}
	shed := func(when string, want ...pbxmesh.NodeID) {
		t.Helper()
		for _, id := range ids {
			if sheds := s.shed(id) != 0; sheds != slices.Contains(want, id) {
				t.Errorf("%s: %s sheds: %t, %s", when, id, sheds, s.tr.Mesh().State(id).Reason)
			}
		}
	}
	set(false, asia...)
	s.wait(9 * time.Second)
	shed("the site is off the registry for 9 s")
	set(true, asia...)
	s.wait(5 * time.Second)
	shed("it is back")
	set(false, "tokyo")
	s.wait(3500 * time.Millisecond)
	shed("one daemon of the site is silent", "tokyo")
	set(true, "tokyo")
	s.wait(5 * time.Second)
	set(false, append([]pbxmesh.NodeID{london}, asia...)...)
	s.wait(3500 * time.Millisecond)
	shed("so is the site, and a daemon of another one", london)
	set(true, london)
	s.wait(11 * time.Second)
	shed("the site stays silent", asia...)
}

// TestSilentInSpiteOfStalls: a registry that is slow, or hangs again and again, hides a dead
// daemon for a while only.
func TestSilentInSpiteOfStalls(t *testing.T) {
	t.Parallel()
	// dead plays reads at the given times; buffalo and singapore are alive, london is not.
	dead := func(renew time.Duration, next func(time.Duration) time.Duration) time.Duration {
		w := newWorld(t, failover.Options{Observer: "la", DaemonSilentAfter: 3 * renew}, buffalo, london, singapore)
		for at := time.Duration(0); at < 5*time.Minute; at += next(at) {
			w.now = start.Add(time.Second + at)
			var alive []failover.LeaseReport
			for _, id := range []pbxmesh.NodeID{buffalo, singapore} {
				alive = append(alive, failover.LeaseReport{Node: id, Status: failover.LeaseFresh, LinkOK: true, Seen: w.now, At: w.now})
			}
			w.tr.Leases(w.now, alive)
			w.tr.Votes(w.now, nil, true)
			if w.tr.Mesh().State(london).Shed > 0 {
				return at
			}
		}
		return time.Hour
	}
	for _, renew := range []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, time.Second, 10 * time.Second} {
		for _, rtt := range []time.Duration{0, 60 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond} {
			period := max(renew, rtt+50*time.Millisecond)
			if took := dead(renew, func(time.Duration) time.Duration { return period }); took > 12*period {
				t.Errorf("renewed every %v, %v away: silent after %v", renew, rtt, took)
			}
		}
	}
	for _, every := range []time.Duration{3 * time.Second, 4 * time.Second, 5 * time.Second, 8 * time.Second} {
		took := dead(time.Second, func(at time.Duration) time.Duration {
			if at%every == every-2*time.Second {
				return 2 * time.Second
			}
			return time.Second
		})
		if took > 15*time.Second {
			t.Errorf("2 s of every %v not readable: silent after %v", every, took)
		}
	}
}

// A member that nobody has heard of since this observer started is silent, too.
func TestNeverHeardDaemon(t *testing.T) {
	t.Parallel()
	s := newSigns(t, failover.Options{Observer: "la"}, buffalo, london, singapore)
	s.tr.SetMembers(s.tick(), []pbxmesh.Node{member(buffalo, 1), member(london, 2), member(singapore, 3), member("paris", 4)})
	s.wait(4 * time.Second)
	if s.shed("paris") != pbxmesh.ShedAll || s.shed(london) != 0 {
		t.Errorf("paris sheds %d, london %d", s.shed("paris"), s.shed(london))
	}
}
