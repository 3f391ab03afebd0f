package failover_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/failover"
)

// hears gives the tracker the votes of others, as read at the next tick.
func (w *world) hears(texts ...string) {
	var seen []failover.SeenVote
	now := w.tick()
	for _, v := range votes(texts...) {
		seen = append(seen, failover.SeenVote{Vote: *v, Seen: now})
	}
	w.tr.Votes(now, seen, true)
}

// TestVotedEdges walks every edge of the chart that goes by votes, for london as a name
// server sees it. Its own probes say what probes says.
func TestVotedEdges(t *testing.T) {
	t.Parallel()
	all := []string{"la b+ l+ s+", "buffalo@buffalo l+ s+", "singapore@singapore b+ l+"}
	most := []string{"la b+ l- s+", "buffalo@buffalo l- s+", "singapore@singapore b+ l+"}
	for _, tt := range []struct {
		name   string
		probes string // of the observer itself, before and after
		before []string
		from   pbxmesh.Observed
		wait   time.Duration
		after  string // more probes
		votes  []string
		to     pbxmesh.Observed
		reason string
		shed   uint16
	}{
		{name: "unknown to up", from: unknown, votes: all, to: up, reason: "answers"},
		{name: "unknown to down", from: unknown, votes: most, to: down, reason: "does not answer 2 of 3", shed: 1000},
		{name: "unknown stays when nobody counts", from: unknown, votes: []string{"la b- l- s-"}, to: unknown},

		{name: "up to down by most observers", probes: "b+ l- b+ l- b+ l-", before: all, from: up, votes: most, to: down, reason: "does not answer 3 of 4", shed: 1000},
		{name: "up to down while this observer alone is answered", probes: "b+ l+", before: all, from: up, votes: []string{"la b+ l-", "buffalo@buffalo l- s+", "singapore@singapore b+ l-"}, to: down, reason: "3 of 4", shed: 1000},
		{name: "up stays while this observer alone is not answered", probes: "b+ l+", before: all, from: up, after: "l- b+ l- b+ l- b+", votes: all, to: up, reason: "it answers 3 of 4"},
		{name: "up stays while half are not answered", probes: "b+ l+", before: all, from: up, votes: []string{"la b+ l-", "buffalo@buffalo l- s+", "singapore@singapore b+ l+"}, to: up, reason: "it answers 2 of 4"},
		{name: "up stays while this observer is cut off", probes: "b+ l+ s+", before: all, from: up, after: "b- l- s- b- l- s- b- l- s-", votes: all, to: up, reason: "answers"},
		{name: "up to down while this observer is cut off", probes: "b+ l+ s+", before: all, from: up, after: "b- l- s- b- l- s- b- l- s-", votes: most, to: down, reason: "2 of 3", shed: 1000},
		{name: "up to suspect by doubts", probes: "b+ l+", before: all, from: up, after: "l-", votes: []string{"la b+ l~", "buffalo@buffalo l~ s+", "singapore@singapore b+ l+"}, to: suspect, reason: "most sites"},
		{name: "up stays by a minority of doubts", probes: "b+ l+", before: all, from: up, after: "l-", votes: all, to: up},
		{name: "up to suspect by 503", probes: "b+ l5", before: all, from: up, votes: []string{"la b+ l5", "buffalo@buffalo l5 s+", "singapore@singapore b+ l+"}, to: suspect, reason: "503", shed: 1000},
		{name: "up stays by a minority of 503", probes: "b+ l+", before: all, from: up, votes: []string{"la b+ l5", "buffalo@buffalo l+ s+", "singapore@singapore b+ l+"}, to: up},
		{name: "up to suspect by the mesh address", probes: "b+ l+", before: all, from: up, votes: []string{"la b+ l+", "buffalo@buffalo l+ lm- s+", "singapore@singapore b+ l+ lm-"}, to: suspect, reason: "mesh address", shed: 1000},
		{name: "up stays when one of two daemons loses the mesh address", probes: "b+ l+", before: all, from: up, votes: []string{"la b+ l+", "buffalo@buffalo l+ lm- s+", "singapore@singapore b+ l+ lm+"}, to: up},
		{name: "up to suspect by lease", probes: "b+ l+", before: all, from: up, after: "lX", votes: all, to: suspect, reason: "lease has run out"},
		{name: "up to suspect by a dead event socket", probes: "b+ l+", before: all, from: up, votes: append([]string{"london@london! b+ l+"}, all...), to: suspect, reason: "event socket", shed: 1000},
		{name: "up to down by the daemon's word and doubts", probes: "b+ l+", before: all, from: up, after: "l-", votes: []string{"london@london! b+ l~", "la b+ l~", "buffalo@buffalo l+ s+"}, to: down, reason: "own daemon", shed: 1000},
		{name: "the vote of the daemon is newer than its lease", probes: "b+ l+", before: all, from: up, after: "lD", votes: append([]string{"london@london b+ l+"}, all...), to: up},

		{name: "suspect to up", probes: "b+ l+", before: []string{"la b+ l5", "buffalo@buffalo l5 s+"}, from: suspect, votes: all, to: up},
		{name: "suspect to down", probes: "b+ l- b+", before: []string{"la b+ l~", "buffalo@buffalo l~ s+", "singapore@singapore b+ l~"}, from: suspect, votes: []string{"la b+ l-", "buffalo@buffalo l- s+", "singapore@singapore b+ l-"}, to: down, shed: 1000},

		{name: "down stays while most are not answered", probes: "b+ l- b+ l- b+ l-", before: most, from: down, votes: most, to: down, shed: 1000},
		{name: "down to up when most are answered", probes: "b+ l+", before: []string{"la b+ l-", "buffalo@buffalo l- s+"}, from: down, votes: all, to: up, reason: "answers"},
		{name: "down to suspect with a dead event socket", probes: "b+ l+", before: []string{"la b+ l-", "buffalo@buffalo l- s+"}, from: down, votes: append([]string{"london@london! b+ l+"}, all...), to: suspect, reason: "event socket", shed: 1000},
		{name: "down stays while nobody else can tell", probes: "b+ l+", before: []string{"la b+ l-", "buffalo@buffalo l- s+"}, from: down, after: "l+ l+ l+", to: down, reason: "kept: 1 of the sites that watch it can tell, 2 are needed", shed: 1000},
		{name: "up stays while nobody else can tell", probes: "b+ l+", before: all, from: up, after: "l- b+ l- b+ l- b+", to: up, reason: "kept"},
		{name: "without votes for long its own probes count again", wait: failover.Patience, probes: "b+ l+", before: []string{"la b+ l-", "buffalo@buffalo l- s+"}, from: down, after: "l+ l+ l+", to: up, reason: "gets no new phones for 30s", shed: 1000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, failover.Options{Observer: "ja", Return: failover.ReturnOptions{Hold: 30 * time.Second, Ramp: time.Minute}}, buffalo, london, singapore)
			w.run(tt.probes)
			if tt.before != nil {
				w.hears(tt.before...)
				if got := w.tr.Mesh().State(london); got.Observed != tt.from {
					t.Fatalf("before: %v because %q, want %v", got.Observed, got.Reason, tt.from)
				}
			}
			if tt.votes == nil {
				w.hears()
			}
			w.pass(tt.wait)
			w.run(tt.after)
			if tt.votes != nil {
				w.hears(tt.votes...)
			}
			got := w.tr.Mesh().State(london)
			if got.Observed != tt.to || !strings.Contains(got.Reason, tt.reason) || got.Shed != tt.shed {
				t.Errorf("%v because %q, shed %d; want %v because %q, %d", got.Observed, got.Reason, got.Shed, tt.to, tt.reason, tt.shed)
			}
		})
	}
}

// TestMeshAddressNeedsVoices: while a site that could tell of the mesh address is missing, the
// other one alone decides nothing.
func TestMeshAddressNeedsVoices(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{Observer: "ja"}, buffalo, london, singapore)
	w.run("b+ l+ s+")
	w.hears("la b+ l+ s+", "buffalo@buffalo l+ lm- s+", "singapore@singapore b+ l+ lm+")
	alone := []string{"la b+ l+ s+", "buffalo@buffalo l+ lm- s+"}
	w.hears(alone...) // singapore is stalled, or gone
	if s := w.tr.Mesh().State(london); s.Observed != up || s.Shed != 0 {
		t.Errorf("one of two daemons says that the mesh address is silent: %+v", s)
	}
	w.pass(failover.Patience)
	w.hears(alone...)
	if s := w.tr.Mesh().State(london); s.Observed != suspect || !strings.Contains(s.Reason, "mesh address") {
		t.Errorf("when that has lasted: %+v", s)
	}
	w.hears("la b+ l+ s+", "buffalo@buffalo l+ lm+ s+")
	w.hears("la b+ l+ s+") // nobody can tell
	if s := w.tr.Mesh().State(london); s.Observed != up {
		t.Errorf("answered, and then nobody can tell: %+v", s)
	}
}

// TestLateObserverDoubtsNoSwitch: a daemon calls its switch dead, and SIP answers; that the
// observers are late for a moment does not take it down.
func TestLateObserverDoubtsNoSwitch(t *testing.T) {
	t.Parallel()
	check := func(w *world, when string, want pbxmesh.Observed) {
		t.Helper()
		if s := w.tr.Mesh().State(london); s.Observed != want {
			t.Errorf("%s: %v because %q, want %v", when, s.Observed, s.Reason, want)
		}
	}
	two := newWorld(t, failover.Options{Observer: "buffalo", Self: buffalo}, buffalo, london)
	two.run("b+ l+ l+ l+")
	two.hears("london@london! b+")
	two.run("l?")
	check(two, "two nodes, and the other one is late", suspect)
	two.run("l-")
	check(two, "and gets no answer then", down)

	own := newWorld(t, failover.Options{Observer: "london", Self: london}, london)
	own.run("l+")
	own.tr.SetSwitch(own.tick(), failover.SwitchDead, 0, "")
	own.run("l?")
	check(own, "the only node, which is late itself", suspect)
	own.run("l-")
	check(own, "its switch does not answer", down)

	many := newWorld(t, failover.Options{Observer: "ja"}, buffalo, london, singapore)
	many.run("b+ l+ s+")
	many.hears("london@london! b+ s+", "la b+ l+ s+", "buffalo@buffalo l+ s+", "singapore@singapore b+ l+")
	many.run("l?")
	late := []string{"london@london! b+ s+", "la b+ s+", "buffalo@buffalo s+", "singapore@singapore b+"}
	many.hears(late...)
	check(many, "all are late", suspect)
	many.hears("london@london! b+ s+", "la b+ l~ s+", "buffalo@buffalo s+", "singapore@singapore b+")
	check(many, "all are late but one, which lost an answer", suspect)
	many.hears(late...)
	many.pass(failover.Patience)
	many.hears(late...)
	check(many, "all are late for long", down)
}

// TestStoppedObserverHasPatience: for an observer that was stopped itself no time has passed in
// which the others said nothing.
func TestStoppedObserverHasPatience(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{Observer: "ja"}, buffalo, london, singapore)
	all := []string{"la b+ l+ s+", "buffalo@buffalo l+ s+", "singapore@singapore b+ l+"}
	w.run("b+ l+ s+")
	w.hears(all...)
	w.run("l- b+ l- b+ l- b+ s+") // this observer alone
	w.hears(all...)
	w.now = w.now.Add(15 * time.Second)
	w.hears() // nothing could be read yet
	if s := w.tr.Mesh().State(london); s.Observed != up {
		t.Errorf("after 15 s in which it was stopped: %v because %q", s.Observed, s.Reason)
	}
	w.pass(failover.Patience + time.Second)
	if s := w.tr.Mesh().State(london); s.Observed != down {
		t.Errorf("10 s later: %v because %q", s.Observed, s.Reason)
	}
}

// TestWhatAnObserverSays shows the words of an observer's own vote.
func TestWhatAnObserverSays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, probes string
		self         pbxmesh.NodeID
		word, mesh   failover.Word
		cut          bool
	}{
		{name: "nothing yet", word: failover.WordNone},
		{name: "answers", probes: "b+ l+", word: failover.WordAnswers},
		{name: "doubted", probes: "b+ l+ l-", word: failover.WordDoubted},
		{name: "doubted twice", probes: "b+ l+ l- l- b+", word: failover.WordDoubted},
		{name: "silent", probes: "b+ l+ l- l- b+ l-", word: failover.WordSilent},
		{name: "silent without a witness", probes: "b+ l+ l- l- l-", word: failover.WordNone},
		{name: "silent until the streak is full", probes: "b+ l- l- b+ l- l+ l+", word: failover.WordSilent},
		{name: "answers again", probes: "b+ l- l- b+ l- l+ l+ l+", word: failover.WordAnswers},
		{name: "answers again between other losses", probes: "b+ l- l- b+ l- l+ l+ l- l+ l+ l+", word: failover.WordAnswers},
		{name: "overloaded", probes: "b+ l5", word: failover.WordOverloaded},
		{name: "overloaded twice is no way back", probes: "b+ l- l- b+ l- l5 l5", word: failover.WordSilent},
		{name: "overloaded three times is, to overloaded", probes: "b+ l- l- b+ l- l5 l5 l5", word: failover.WordOverloaded},
		{name: "this observer was late", probes: "b+ l+ l?", word: failover.WordNone},
		{name: "late and silent", probes: "b+ l- l- b+ l- l?", word: failover.WordNone},
		{name: "late between answers", probes: "b+ l+ l? l+", word: failover.WordAnswers},
		{name: "late between silences", probes: "b+ l- l? b+ l- l? b+ l-", word: failover.WordSilent},
		{name: "late for all is not cut off", probes: "b+ l+ s+ b? l? s? b? l? s? b? l? s?", word: failover.WordNone},
		{name: "cut off", probes: "b+ l+ s+ b- l- s- b- l- s- b- l- s-", word: failover.WordNone, cut: true},
		{name: "not cut off any more", probes: "b+ l+ s+ b- l- s- b- l- s- b- l- s- b+ l+", word: failover.WordAnswers},
		{name: "one's own switch needs no witness", self: london, probes: "l+ l- l- l-", word: failover.WordSilent},
		{name: "mesh address", self: buffalo, probes: "l+ lm+", word: failover.WordAnswers, mesh: failover.WordAnswers},
		{name: "mesh address doubted", self: buffalo, probes: "l+ s+ lm+ lm-", word: failover.WordAnswers, mesh: failover.WordDoubted},
		{name: "mesh address silent", self: buffalo, probes: "l+ s+ lm- lm- l+ lm-", word: failover.WordAnswers, mesh: failover.WordSilent},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, failover.Options{Observer: "la", Self: tt.self}, buffalo, london, singapore)
			w.run(tt.probes)
			v := w.tr.Vote(w.now)
			if o := v.Nodes[london]; o.Phones != tt.word || o.Mesh != tt.mesh || v.CutOff != tt.cut || v.Observer != "la" || v.Self != tt.self {
				t.Errorf("it says %+v, want %v, mesh %v, cut off %v", v, tt.word, tt.mesh, tt.cut)
			}
		})
	}
}

// TestVoteIsToldOnce shows that OnVote comes with every news and with nothing else, and
// that OnDoubt asks for a probe when others lose a node that we think well.
func TestVoteIsToldOnce(t *testing.T) {
	t.Parallel()
	told := 0
	var doubts []string
	w := newWorld(t, failover.Options{Observer: "la", OnVote: func() { told++ }, OnDoubt: func(id pbxmesh.NodeID) { doubts = append(doubts, string(id)) }}, buffalo, london, singapore)
	for _, step := range []struct {
		script string
		told   int
	}{{"b+ l+ s+", 3}, {"b+ l+ s+ l+", 0}, {"l-", 1}, {"l- b+", 0}, {"l-", 1}, {"l- l- l-", 0}, {"l+ l+", 0}, {"l+", 1}} {
		told = 0
		w.run(step.script)
		if told != step.told {
			t.Errorf("%q is told %d times, want %d", step.script, told, step.told)
		}
	}
	w.hears("ja b+ l~ s+")
	w.hears("ja b+ l~ s+")
	w.hears("ja b+ l- s+")
	w.hears("ja b+ l+ s+", "singapore@singapore! b+ l+")
	w.hears("ja b+ l+ s+", "singapore@singapore! b+ l+")
	w.run("lD lD")
	if got := strings.Join(doubts, " "); got != "london singapore london" {
		t.Errorf("probes are asked for of %s", got)
	}
}

func TestAllDownIsLoud(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{Observer: "la"}, buffalo, london)
	w.hears("buffalo@buffalo b-", "london@london l+")
	if strings.Contains(w.log.String(), "EVERY NODE IS DOWN") {
		t.Fatal("one of two is down")
	}
	w.hears("buffalo@buffalo b-", "london@london l-")
	w.hears("buffalo@buffalo b-", "london@london l-")
	if n := strings.Count(w.log.String(), "level=ERROR"); n != 1 || !w.tr.AllDown() {
		t.Errorf("%d loud lines, want 1:\n%s", n, w.log.String())
	}
	w.hears("buffalo@buffalo b-", "ja l+")
	if w.tr.AllDown() {
		t.Error("still said after london came back")
	}
}

// TestTrackerProperties feeds several trackers of different observers with random probes
// and lets them hear each other's votes. Whenever all have heard all:
// a node is down only if most of those who count say so, all name servers say the same
// of it, and what an isolated name server sees changes nothing.
func TestTrackerProperties(t *testing.T) {
	t.Parallel()
	ids := []pbxmesh.NodeID{buffalo, london, singapore}
	names := []string{"buffalo", "london", "singapore", "la", "ja"}
	judged, kept := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		now := start
		var trackers []*failover.Tracker
		for i, name := range names {
			o := failover.Options{Observer: name, Instance: name, Return: failover.ReturnOptions{Hold: 5 * time.Second, Ramp: 10 * time.Second}}
			if i < len(ids) {
				o.Self = ids[i]
			}
			tr, err := failover.New(o)
			if err != nil {
				rt.Fatal(err)
			}
			tr.SetMembers(now, []pbxmesh.Node{member(buffalo, 1), member(london, 2), member(singapore, 3)})
			trackers = append(trackers, tr)
		}
		isolated := rapid.Bool().Draw(rt, "ja is isolated")
		// A seed, because a draw for each of thousands of probes would take minutes.
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		broken := map[string]bool{} // observer>node that is cut
		dead := map[pbxmesh.NodeID]bool{}
		for range 20 {
			now = now.Add(time.Second)
			switch rng.IntN(6) {
			case 0:
				pair := names[rng.IntN(len(names))] + ">" + string(ids[rng.IntN(len(ids))])
				broken[pair] = !broken[pair]
			case 1:
				id := ids[rng.IntN(len(ids))]
				dead[id] = !dead[id]
			}
			for i, tr := range trackers {
				for _, id := range ids {
					outcome := failover.OutcomeOK
					if dead[id] || broken[names[i]+">"+string(id)] && names[i] != string(id) || isolated && names[i] == "ja" {
						outcome = failover.OutcomeTimeout
					} else if rng.IntN(20) == 0 {
						outcome = failover.OutcomeOverloaded
					}
					tr.Probe(failover.ProbeResult{Node: id, Outcome: outcome, At: now.Add(time.Duration(rng.IntN(900)) * time.Millisecond)})
				}
			}
			now = now.Add(time.Second)
			var all []failover.SeenVote
			for range 2 { // what the first round brings about is told in the second
				all = nil
				for _, tr := range trackers {
					all = append(all, failover.SeenVote{Vote: tr.Vote(now), Seen: now})
				}
				for i, tr := range trackers {
					others := slices.Delete(slices.Clone(all), i, i+1)
					tr.Votes(now, others, true)
				}
			}
			var pointers []*failover.Vote
			for i := range all {
				pointers = append(pointers, &all[i].Vote)
			}
			tallies := failover.Count(three, pointers)
			la, ja := trackers[3].Mesh(), trackers[4].Mesh()
			few := map[pbxmesh.NodeID]bool{}
			for _, tr := range trackers[3:] {
				details, _ := tr.Details()
				for i := range details {
					few[details[i].Node.ID] = few[details[i].Node.ID] || details[i].Tally.Few
				}
			}
			for _, id := range ids {
				c := tallies[id]
				if withoutUs := failover.Count(three, pointers[:3])[id]; withoutUs.Counted == 0 {
					continue // no daemon counts: each name server may be alone
				}
				a, b := la.State(id), ja.State(id)
				if few[id] {
					kept++
					continue // see TestPartitions
				}
				judged++
				if (a.Observed == pbxmesh.ObservedDown) != c.Down() {
					rt.Fatalf("%s is %v because %q, but the votes are %+v", id, a.Observed, a.Reason, c)
				}
				if a.Observed != b.Observed || a.Shed != b.Shed {
					rt.Fatalf("%s: la says %v, shed %d (%s); ja says %v, shed %d (%s); votes %+v", id, a.Observed, a.Shed, a.Reason, b.Observed, b.Shed, b.Reason, c)
				}
				if isolated {
					if four := failover.Count(three, pointers[:4])[id]; fmt.Sprint(four) != fmt.Sprint(c) {
						rt.Fatalf("the isolated ja changes %+v to %+v", four, c)
					}
				}
			}
		}
	})
	if t.Logf("%d verdicts, %d times too few could tell", judged, kept); judged < 2*kept {
		t.Error("hardly a verdict was seen")
	}
}

// TestLossTakesNobodyDown lets five observers of three nodes lose probes for an hour, as
// they do with 30 % of the packets lost in each direction, see docs/failover.md.
func TestLossTakesNobodyDown(t *testing.T) {
	t.Parallel()
	const fails = 0.035 // a probe of five copies
	nodes := []pbxmesh.Node{member(buffalo, 1), member(london, 2), member(singapore, 3)}
	names := []string{"buffalo", "london", "singapore", "la", "ja"}
	now := start
	var trackers []*failover.Tracker
	for i, name := range names {
		o := failover.Options{Observer: name}
		if i < 3 {
			o.Self = pbxmesh.NodeID(name)
		}
		tr, err := failover.New(o)
		if err != nil {
			t.Fatal(err)
		}
		tr.SetMembers(now, nodes)
		trackers = append(trackers, tr)
	}
	rng := rand.New(rand.NewPCG(30, 30))
	alone := 0
	for range 3600 {
		now = now.Add(time.Second)
		var all []failover.SeenVote
		for _, tr := range trackers {
			for _, n := range nodes {
				outcome := failover.OutcomeOK
				if rng.Float64() < fails {
					outcome = failover.OutcomeTimeout
				}
				tr.Probe(failover.ProbeResult{Node: n.ID, Outcome: outcome, At: now})
			}
			all = append(all, failover.SeenVote{Vote: tr.Vote(now), Seen: now})
		}
		for i, tr := range trackers {
			tr.Votes(now, slices.Delete(slices.Clone(all), i, i+1), true)
			for _, n := range nodes {
				if s := tr.Mesh().State(n.ID); s.Observed == down || s.Shed > 0 {
					t.Fatalf("%s takes %s for %v, shed %d: %s", names[i], n.ID, s.Observed, s.Shed, s.Reason)
				}
				if all[i].Nodes[n.ID].Phones == failover.WordSilent {
					alone++
				}
			}
		}
	}
	t.Logf("in an hour an observer said %d times for a second that a node is silent; nobody followed it", alone)
}
