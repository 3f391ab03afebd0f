package main

import (
	"context"
	"fmt"
	"net/netip"

	"pbxmesh"
	"pbxmesh/internal/control"
)

func fakeDNSExplain(_ context.Context, name string, client netip.Addr) (*control.DNSExplainReply, error) {
	if name == "a..b" {
		return nil, fmt.Errorf("%w: %q is no domain name", control.ErrInvalid, name)
	}
	return &control.DNSExplainReply{
		Name: name, Client: client, Block: netip.MustParsePrefix("198.51.100.0/24"), Rule: "latency", Network: netip.MustParsePrefix("198.51.100.0/24"), Next: "buffalo",
		Answers: []control.DNSAnswer{
			{Type: "A", Result: "NOERROR", Records: []string{"30 A 192.0.2.20"}}, {Type: "AAAA", Result: "NOERROR", Records: []string{}},
			{Type: "_sip._udp SRV", Result: "NOERROR", Records: []string{"30 SRV 10 0 5060 london.pbx.test.", "30 SRV 20 0 5060 buffalo.pbx.test."}},
		},
		Nodes: []control.DNSNode{
			{Node: "london", Place: 1, State: "up", Score: 38.25, Source: "own samples", Own: 38.25, Samples: 8, Phones: 12, Present: true},
			{Node: "buffalo", Place: 2, State: "up", Shed: 300, Refuses: true, Score: 101.5, Source: "parent network"},
			{Node: "singapore", State: "down", Score: 214.1, Source: "distance"},
		},
		Stages: []control.DNSStage{
			{Stage: "order", Nodes: []pbxmesh.NodeID{"london", "buffalo", "singapore"}, Reasons: []string{"ranked by what is known of 198.51.100.0/24"}},
			{Stage: "state", Nodes: []pbxmesh.NodeID{"london", "buffalo"}, Reasons: []string{"singapore is down"}},
			{Stage: "spill"},
		},
		Remarks: []string{"the place of the client is wrong"},
	}, nil
}
