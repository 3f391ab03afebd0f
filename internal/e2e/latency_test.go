package e2e_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pbxmesh/internal/control"
)

// scenarioLatency: what one node's phones showed is known on another one, which says so
// when it is asked which node such a client gets. Who is nearest is not looked at: on one
// machine all are, and what a switch's event socket adds decides.
func scenarioLatency(t *testing.T, c *cluster) {
	p := c.registered("1077", "127.0.155.1", "buffalo")
	client := netip.MustParseAddr("127.0.155.9")
	registered := time.Now()
	var reply *control.DNSExplainReply
	var measured control.DNSNode
	c.eventually("singapore knows what buffalo measured", func() bool {
		// One registration may have been earlier than the connection that listens.
		if time.Since(registered) > 500*time.Millisecond {
			registered = time.Now()
			if err := p.Refresh(c.ctx()); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if reply, err = c.nodes["singapore"].app.DNSExplain(c.ctx(), domain, client); err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(reply.Nodes, func(n control.DNSNode) bool { return n.Node == "buffalo" })
		if i < 0 {
			return false
		}
		measured = reply.Nodes[i]
		// The samples are there a moment before the network is ranked by them.
		return measured.Samples > 0 && reply.Network.String() == "127.0.155.0/24"
	})
	if measured.Source != "own samples" || !(measured.Own > 0) || measured.Own > 4000 || measured.Score <= 0 {
		t.Errorf("buffalo: %+v", measured)
	}
	if len(reply.Nodes) != 3 || reply.Rule != "latency" {
		t.Errorf("%+v", reply)
	}
	for i, n := range reply.Nodes {
		if n.Place != i+1 || n.Node != "buffalo" && n.Samples != 0 {
			t.Errorf("%s: place %d in line %d, %d samples", n.Node, n.Place, i, n.Samples)
		}
	}
	if len(reply.Nodes) > 1 && reply.Next != reply.Nodes[1].Node {
		t.Errorf("next is %q, in the second place stands %q", reply.Next, reply.Nodes[1].Node)
	}
	if len(reply.Answers) != 0 || len(reply.Remarks) == 0 || len(reply.Stages) != 6 {
		t.Errorf("a daemon without name server answers %v, %v, %v", reply.Answers, reply.Remarks, reply.Stages)
	}
	t.Logf("challenge round trip on this machine: %.2f ms, %d samples", measured.Own, measured.Samples)
}
