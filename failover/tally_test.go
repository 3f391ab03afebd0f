package failover_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/failover"
)

// TestTalliesAreCountedWhenNeeded plays the same to two trackers. One of them counts at every
// input, and the other one must come to the same at each.
func TestTalliesAreCountedWhenNeeded(t *testing.T) {
	t.Parallel()
	ids := []pbxmesh.NodeID{"buffalo", "london", "singapore", "tokyo"}
	words := []failover.Word{failover.WordNone, failover.WordAnswers, failover.WordDoubted, failover.WordOverloaded, failover.WordSilent}
	rapid.Check(t, func(t *rapid.T) {
		var nodes []pbxmesh.Node
		for i, id := range ids {
			n := member(id, byte(i+1))
			n.Site = rapid.SampledFrom([]string{"", "europe", "asia"}).Draw(t, "site of "+string(id))
			nodes = append(nodes, n)
		}
		self := rapid.SampledFrom([]pbxmesh.NodeID{"", "buffalo", "london"}).Draw(t, "self")
		var both [2]*failover.Tracker
		for i := range both {
			var err error
			if both[i], err = failover.New(failover.Options{Observer: "me", Self: self, Site: nodes[max(0, len(self)-7)].Site}); err != nil {
				t.Fatal(err)
			}
			both[i].SetMembers(start, nodes)
		}
		now := start
		vote := func(observer string, of pbxmesh.NodeID) failover.SeenVote {
			v := failover.Vote{Observer: observer, Self: of, Nodes: map[pbxmesh.NodeID]failover.Opinion{}}
			for _, id := range ids {
				v.Nodes[id] = failover.Opinion{Phones: rapid.SampledFrom(words).Draw(t, "phones"), Mesh: rapid.SampledFrom(words).Draw(t, "mesh")}
			}
			v.Switch = failover.SwitchWord(rapid.IntRange(0, 2).Draw(t, "switch"))
			return failover.SeenVote{Vote: v, Seen: now}
		}
		for step := range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.SampledFrom([]int{1, 100, 100, 1000, 3000, 7000, 12000}).Draw(t, "ms")) * time.Millisecond)
			var input func(*failover.Tracker)
			switch rapid.IntRange(0, 7).Draw(t, "input") {
			case 0:
				votes := []failover.SeenVote{}
				for i, observer := range []string{"b", "l", "s", "ns1", "ns2"} {
					if rapid.Bool().Draw(t, observer+" votes") {
						of := pbxmesh.NodeID("")
						if i < 3 {
							of = ids[i]
						}
						votes = append(votes, vote(observer, of))
					}
				}
				input = func(tr *failover.Tracker) { tr.Votes(now, votes, true) }
			case 1:
				word := failover.SwitchWord(rapid.IntRange(0, 2).Draw(t, "switch"))
				input = func(tr *failover.Tracker) { tr.SetSwitch(now, word, 0, "") }
			case 2:
				i, site := rapid.IntRange(0, len(nodes)-1).Draw(t, "node"), rapid.SampledFrom([]string{"", "europe", "asia"}).Draw(t, "site")
				nodes[i].Site = site
				input = func(tr *failover.Tracker) { tr.SetMembers(now, nodes) }
			default:
				r := failover.ProbeResult{
					Node: rapid.SampledFrom(ids).Draw(t, "node"), Path: failover.Path(rapid.IntRange(0, 1).Draw(t, "path")),
					Outcome: failover.Outcome(rapid.SampledFrom([]int{0, 0, 0, 1, 2, 3, 4}).Draw(t, "outcome")), At: now,
				}
				input = func(tr *failover.Tracker) { tr.Probe(r) }
			}
			var said [2]string
			for i, tr := range both {
				if i == 1 {
					tr.CountAnew()
				}
				input(tr)
				details, cutOff := tr.Details()
				said[i] = fmt.Sprintf("cut off %t\n%+v", cutOff, details)
			}
			if said[0] != said[1] {
				t.Fatalf("step %d:\n%s\nwant\n%s", step, said[0], said[1])
			}
		}
	})
}
