package failover_test

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/failover"
)

// vote makes a vote from "name[@self][!] b+ l- s?": + answers, ~ doubted, 5 overloaded,
// - silent, ? no opinion; m- and m+ behind a name are about the mesh address; ! says
// that the switch of self is dead.
func vote(text string) *failover.Vote {
	fields := strings.Fields(text)
	name, dead := strings.CutSuffix(fields[0], "!")
	name, self, _ := strings.Cut(name, "@")
	v := &failover.Vote{Observer: name, Instance: "1", Self: pbxmesh.NodeID(self), Nodes: map[pbxmesh.NodeID]failover.Opinion{}}
	if self != "" {
		v.Switch = failover.SwitchAlive
	}
	if dead {
		v.Switch = failover.SwitchDead
	}
	ids := map[byte]pbxmesh.NodeID{'b': buffalo, 'l': london, 's': singapore}
	words := map[string]failover.Word{"+": failover.WordAnswers, "~": failover.WordDoubted, "5": failover.WordOverloaded, "-": failover.WordSilent, "?": failover.WordNone}
	for _, f := range fields[1:] {
		id := ids[f[0]]
		o := v.Nodes[id]
		if mesh, ok := strings.CutPrefix(f[1:], "m"); ok {
			o.Mesh = words[mesh]
		} else {
			o.Phones = words[f[1:]]
		}
		v.Nodes[id] = o
	}
	return v
}

// three are nodes at sites of their own.
var three = []pbxmesh.Node{member(buffalo, 1), member(london, 2), member(singapore, 3)}

func votes(texts ...string) []*failover.Vote {
	var out []*failover.Vote
	for _, t := range texts {
		out = append(out, vote(t))
	}
	return out
}

func TestCount(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		votes  []*failover.Vote
		silent string // "silent of counted"
		down   bool
	}{
		{"nobody", nil, "0 of 0", false},
		{"all well", votes("la b+ l+", "ja b+ l+", "buffalo@buffalo b+ l+"), "0 of 3", false},
		{"all say silent", votes("la b+ l-", "ja b+ l-"), "2 of 2", true},
		{"one of one", votes("la b+ l-"), "1 of 1", true},
		{"half is not enough", votes("la b+ l-", "ja b+ l+"), "1 of 2", false},
		{"two of three", votes("la b+ l-", "ja b+ l-", "buffalo@buffalo b+ l+ s+"), "2 of 3", true},
		{"two of four", votes("la b+ l-", "ja b+ l-", "buffalo@buffalo l+", "singapore@singapore l+"), "2 of 4", false},
		{"one alone cannot reach it", votes("la b+ l-", "ja b+ l+", "buffalo@buffalo b+ l+ s+"), "1 of 3", false},
		{"who reaches nobody does not count", votes("la b- l- s-", "ja b+ l+"), "0 of 1", false},
		{"who reaches nobody does not count, though many", votes("la b- l-", "ja b- l-", "ny b- l-", "bo b+ l+"), "0 of 1", false},
		{"nobody reaches anybody", votes("la b- l-", "ja b- l-"), "0 of 0", false},
		{"a doubted node is no proof of a connection", votes("la b~ l-"), "0 of 0", false},
		{"an overloaded node is", votes("la b5 l-"), "1 of 1", true},
		{"one's own switch is no proof of a connection", votes("buffalo@buffalo b+ l-"), "0 of 0", false},
		{"a daemon is not heard when its own switch answers", votes("london@london l+ b+", "la b+ l-"), "1 of 1", true},
		{"but when it is silent, though it reaches nobody", votes("london@london l-"), "1 of 1", true},
		{"and as one of several", votes("london@london l- b+", "la b+ l+", "ja b+ l+"), "1 of 3", false},
		{"doubts are answers", votes("la b+ l~", "ja b+ l~", "ny b+ l-"), "1 of 3", false},
		{"overloaded is an answer", votes("la b+ l5", "ja b+ l-"), "1 of 2", false},
		{"no opinion does not count", votes("la b+ l?", "ja b+ l-", "ny b+"), "1 of 1", true},
		{"strangers do not matter", votes("la x+ l-"), "0 of 0", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tally := failover.Count(three, tt.votes)[london]
			if got := fmt.Sprintf("%d of %d", tally.Silent, tally.Counted); got != tt.silent || tally.Down() != tt.down {
				t.Errorf("%s silent, down %v; want %s and %v", got, tally.Down(), tt.silent, tt.down)
			}
			if tally.Counted != tally.Answers+tally.Doubted+tally.Overloaded+tally.Silent {
				t.Errorf("%+v does not add up", tally)
			}
		})
	}
}

func TestCountOtherWords(t *testing.T) {
	t.Parallel()
	count := func(texts ...string) failover.Tally {
		return failover.Count(three, votes(texts...))[london]
	}
	if c := count("la b+ l5", "ja b+ l5", "ny b+ l+"); !c.Busy() || c.Down() || !c.Alive() {
		t.Errorf("two of three get 503: %+v", c)
	}
	if c := count("la b+ l~", "ja b+ l-", "ny b+ l+"); !c.Shaken() || c.Down() || c.Alive() {
		t.Errorf("two of three lost a probe: %+v", c)
	}
	// Only other nodes' daemons are heard about the mesh address.
	if c := count("la b+ l+ lm-", "ja b+ l+ lm-", "london@london l+ lm-", "buffalo@buffalo l+ s+ lm+"); c.MeshDown() || c.MeshCounted != 1 {
		t.Errorf("name servers and itself are heard about the mesh address: %+v", c)
	}
	if c := count("buffalo@buffalo l+ s+ lm-", "singapore@singapore l+ b+ lm-", "la l+ b+"); !c.MeshDown() {
		t.Errorf("all daemons lost the mesh address: %+v", c)
	}
	if c := count("london@london! l+"); !c.Told || c.Switch != failover.SwitchDead {
		t.Errorf("the daemon's word is lost: %+v", c)
	}
}

// genVotes draws up to n votes on three nodes, each from an observer of its own.
func genVotes(t *rapid.T, n int) []*failover.Vote {
	ids := []pbxmesh.NodeID{buffalo, london, singapore}
	word := rapid.SampledFrom([]failover.Word{failover.WordNone, failover.WordAnswers, failover.WordAnswers, failover.WordDoubted, failover.WordOverloaded, failover.WordSilent})
	var out []*failover.Vote
	for i := range rapid.IntRange(0, n).Draw(t, "observers") {
		v := &failover.Vote{Observer: fmt.Sprint("o", i), Nodes: map[pbxmesh.NodeID]failover.Opinion{}}
		if i < len(ids) && rapid.Bool().Draw(t, "daemon") {
			v.Self = ids[i]
		}
		for _, id := range ids {
			v.Nodes[id] = failover.Opinion{Phones: word.Draw(t, "word"), Mesh: word.Draw(t, "mesh")}
		}
		out = append(out, v)
	}
	return out
}

func TestCountProperties(t *testing.T) {
	t.Parallel()
	ids := []pbxmesh.NodeID{buffalo, london, singapore}
	rapid.Check(t, func(t *rapid.T) {
		all := genVotes(t, 8)
		tallies := failover.Count(three, all)
		for id, c := range tallies {
			says := 0
			for _, v := range all {
				if v.Nodes[id].Phones == failover.WordSilent {
					says++
				}
			}
			if c.Down() && 2*c.Silent <= c.Counted {
				t.Fatalf("%s is down by %d of %d", id, c.Silent, c.Counted)
			}
			if c.Silent > says || c.Counted > len(all) {
				t.Fatalf("%s: %+v from %d votes, %d of them silent", id, c, len(all), says)
			}
		}
		// Whoever hears them in another order says the same.
		shuffled := append([]*failover.Vote(nil), all...)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if got := failover.Count(three, shuffled); !reflect.DeepEqual(got, tallies) {
			t.Fatalf("another order gives %+v, not %+v", got, tallies)
		}
		// An observer that reaches nobody changes nothing.
		isolated := &failover.Vote{Observer: "isolated", Nodes: map[pbxmesh.NodeID]failover.Opinion{}}
		for _, id := range ids {
			isolated.Nodes[id] = failover.Opinion{Phones: rapid.SampledFrom([]failover.Word{failover.WordNone, failover.WordSilent}).Draw(t, "isolated")}
		}
		if got := failover.Count(three, append(shuffled, isolated)); !reflect.DeepEqual(got, tallies) {
			t.Fatalf("an isolated observer changes %+v to %+v", tallies, got)
		}
		// One more answer never takes a node down, one more silence never brings it back.
		for _, id := range ids {
			for w, wrong := range map[failover.Word]bool{failover.WordAnswers: true, failover.WordSilent: false} {
				more := &failover.Vote{Observer: "more", Nodes: map[pbxmesh.NodeID]failover.Opinion{id: {Phones: w}}}
				got := failover.Count(three, append(shuffled, more))[id]
				if before := tallies[id]; got.Down() != before.Down() && got.Down() == wrong {
					t.Fatalf("one more %v: down %v becomes %v", w, before.Down(), got.Down())
				}
			}
		}
	})
}
