package probe

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// lossy answers OPTIONS and loses each packet with probability p, in both directions.
func lossy(t *testing.T, p float64) pbxmesh.Node {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if there, back := rand.Float64(), rand.Float64(); there >= p && back >= p {
				_, _ = conn.WriteToUDPAddrPort(reply(string(buf[:n]), "200 OK"), from)
			}
		}
	}()
	r := responder{conn: conn}
	return r.node("")
}

// TestLoss measures how many probes fail with 30 % of the packets lost in each
// direction: 0.51 to the power of the copies that were sent in time.
func TestLoss(t *testing.T) {
	t.Parallel()
	var nodes []pbxmesh.Node
	for i := range 40 {
		n := lossy(t, 0.3)
		n.ID = pbxmesh.NodeID(fmt.Sprint("n", i))
		nodes = append(nodes, n)
	}
	p, results := start(t, Options{Interval: 600 * time.Millisecond})
	p.SetMembers(nodes)
	const probes = 200
	failed, sent := 0, 0
	for range probes {
		r := await(t, results, func(failover.ProbeResult) bool { return true })
		sent += r.Sent
		if r.Outcome != failover.OutcomeOK {
			failed++
		}
	}
	expected := math.Pow(1-0.7*0.7, copies)
	t.Logf("%d of %d probes failed (%.3f), %.2f copies each; expected %.3f", failed, probes, float64(failed)/probes, float64(sent)/probes, expected)
	// Seven of 200 are expected; without copies it would be 102.
	if failed > 30 {
		t.Errorf("%d of %d probes failed, about %.0f are expected", failed, probes, expected*probes)
	}
}
