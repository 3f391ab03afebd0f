package dnsserver

import (
	"net/netip"
	"testing"
	"time"

	"pbxmesh/fixtures"
)

// TestResolversAreTold: a query without client subnet is told with the node of its answer, one
// of a network in ten seconds; one with a client subnet never.
func TestResolversAreTold(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	w := newWorker(testResponder(z), z.log)
	var told []Asked
	w.asked = newAskedLog(func(list []Asked) { told = append(told, list...) })
	buf := make([]byte, 0, MaxUDPSize)
	ask := func(query, from string, at time.Time) {
		t.Helper()
		for range 2 { // at first a name is answered the slow way
			if w.respond(buf, benchQueries(t)[query], netip.MustParseAddr(from), at) == nil {
				t.Fatal("no answer")
			}
		}
		w.flush()
	}
	warm(t, w, benchQueries(t)["A"], defaultClient)
	warm(t, w, benchQueries(t)["ECS"], defaultClient)
	w.flush()
	told = nil

	at := testTime.Add(time.Minute)
	ask("A", "203.0.113.53", at)
	ask("A", "203.0.113.54", at.Add(time.Second))   // the same network
	ask("ECS", "203.0.114.53", at.Add(time.Second)) // says where its client is
	ask("A", "2001:db8:113::53", at.Add(2*time.Second))
	ask("A", "2001:db8:114::53", at.Add(2*time.Second))
	ask("A", "203.0.113.53", at.Add(askedEvery-1))
	ask("A", "203.0.113.53", at.Add(askedEvery))
	first := told[0]
	if first.Resolver != netip.MustParseAddr("203.0.113.53") || !first.At.Equal(at) || len(told) != 4 {
		t.Fatalf("%+v", told)
	}
	d, _ := w.view.choices.For(first.Resolver, familyOf(1))
	if first.Node != d.Nodes[0] {
		t.Errorf("told %s, answered %s", first.Node, d.Nodes[0])
	}
	if told[1].Resolver != netip.MustParseAddr("2001:db8:113::53") || told[2].Resolver != netip.MustParseAddr("2001:db8:114::53") || !told[3].At.Equal(at.Add(askedEvery)) {
		t.Errorf("%+v", told[1:])
	}
}
