package failover_test

import (
	"fmt"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// BenchmarkProbe takes in one probe on a mesh of so many nodes, each with a daemon that
// votes, and two name servers.
func BenchmarkProbe(b *testing.B) {
	for _, size := range []int{5, 50} {
		b.Run(fmt.Sprint(size, "nodes"), func(b *testing.B) {
			tr, err := failover.New(failover.Options{Observer: "la"})
			if err != nil {
				b.Fatal(err)
			}
			var nodes []pbxmesh.Node
			words := map[pbxmesh.NodeID]failover.Opinion{}
			for i := range size {
				n := member(pbxmesh.NodeID(fmt.Sprint("n", i)), byte(i+1))
				nodes = append(nodes, n)
				words[n.ID] = failover.Opinion{Phones: failover.WordAnswers}
			}
			tr.SetMembers(start, nodes)
			var votes []failover.SeenVote
			for i := range size + 1 {
				v := failover.Vote{Observer: fmt.Sprint("o", i), Nodes: words}
				if i < size {
					v.Self = nodes[i].ID
				}
				votes = append(votes, failover.SeenVote{Vote: v, Seen: start})
			}
			tr.Votes(start, votes, true)
			b.ReportAllocs()
			now := start
			for i := 0; b.Loop(); i++ {
				now = now.Add(time.Millisecond)
				tr.Probe(failover.ProbeResult{Node: nodes[i%size].ID, At: now})
			}
		})
	}
}
