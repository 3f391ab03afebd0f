package doctor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
	"pbxmesh/failover/probe"
)

// meshPorts sends SIP OPTIONS to the mesh port of every node, this one among them.
func (p *patient) meshPorts(ctx context.Context) {
	start := time.Now()
	peers := p.peers()
	if p.cfg.Node != nil {
		peers = append([]member{{id: p.cfg.Node.ID, mesh: p.cfg.Node.MeshAddress}}, peers...)
	}
	if len(peers) == 0 {
		p.say("mesh port", "mesh port", start, skip("no node is known"))
		return
	}
	found, err := options(ctx, p.o.Timeout, peers)
	if err != nil {
		p.say("mesh port", "mesh port", start, fail("no socket to ask from: "+err.Error(), "are there free file descriptors?"))
		return
	}
	for _, m := range peers {
		p.say("mesh port", "mesh port of "+string(m.id), start, reachable(m, found[m.id]))
	}
}

// options probes each node until it answers once or ctx is about to end, and returns
// the best result of each.
func options(ctx context.Context, timeout time.Duration, peers []member) (map[pbxmesh.NodeID]failover.ProbeResult, error) {
	// Three tries fit, the first after at most one interval.
	interval := max(100*time.Millisecond, timeout/5)
	ctx, cancel := context.WithTimeout(ctx, timeout*9/10)
	defer cancel()
	var mu sync.Mutex
	found := map[pbxmesh.NodeID]failover.ProbeResult{}
	missing := len(peers)
	prober, err := probe.New(probe.Options{
		Interval: interval, Timeout: interval * 4 / 5, Mesh: true, Logger: discard,
		OnResult: func(r failover.ProbeResult) {
			mu.Lock()
			defer mu.Unlock()
			old, known := found[r.Node]
			if known && old.Err == nil {
				return
			}
			found[r.Node] = r
			if r.Err == nil {
				if missing--; missing == 0 {
					cancel()
				}
			}
		},
	})
	if err != nil {
		return nil, err
	}
	var nodes []pbxmesh.Node
	for _, m := range peers {
		nodes = append(nodes, pbxmesh.Node{ID: m.id, Mesh: m.mesh})
	}
	prober.SetMembers(nodes)
	err = prober.Run(ctx)
	mu.Lock()
	defer mu.Unlock()
	if len(found) > 0 || ctx.Err() != nil {
		err = nil // it ended because it was told to
	}
	return found, err
}

func reachable(m member, r failover.ProbeResult) Result {
	firewall := fmt.Sprintf("is FreeSWITCH running there, its mesh profile up, and UDP port %d let through both firewalls?", m.mesh.Port())
	var out Result
	switch {
	case r.Node == "":
		out = fail(fmt.Sprintf("%s does not answer", m.mesh), firewall)
	case r.Err == nil && r.Outcome == failover.OutcomeOverloaded:
		out = warn(fmt.Sprintf("%s answers %d: it is overloaded", m.mesh, r.Code), "look at that switch")
	case r.Err == nil:
		return ok("%s answers %d after %s", m.mesh, r.Code, ms(r.RTT))
	case r.Outcome == failover.OutcomeRefused:
		out = fail(fmt.Sprintf("nobody listens at %s", m.mesh), "fs_cli -x 'sofia status' there; the mesh profile is not up")
	case r.Outcome == failover.OutcomeTimeout:
		out = fail(fmt.Sprintf("%s does not answer", m.mesh), firewall)
	default:
		out = fail(fmt.Sprintf("%s: %v", m.mesh, r.Err), firewall)
	}
	// Whom the operator took out of service may be away.
	if m.wanted == pbxmesh.WantedOut.String() && out.Status == Fail {
		out.Status = Warn
	}
	return out
}
