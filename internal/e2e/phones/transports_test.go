package phones_test

import (
	"slices"
	"testing"

	"pbxmesh/fixtures/softphone"
)

// TestScenarioTransports has Linphones call one another over TCP, TLS and UDP, on two real
// switches and on one. What becomes of a call across nodes must be what becomes of it on one,
// whatever each phone's own transport is; between the nodes it is UDP.
func TestScenarioTransports(t *testing.T) {
	if realBinary() == "" {
		t.Skip("SKIPPED, NOT TESTED: simulated switches have no TCP and no TLS")
	}
	m := newMesh(t, options{net: 148, nodes: 2, plan: matrixPlan, tls: true})
	meter, err := softphone.NewMeter()
	must(t, err)
	t.Cleanup(meter.Close)
	pcmu := slices.IndexFunc(offers, func(o offer) bool { return o.name == "pcmu" })
	var todo []pair
	for _, transports := range [][2]string{{"tcp", "tcp"}, {"tls", "tls"}, {"tcp", "tls"}, {"tls", "udp"}} {
		for _, between := range [][2]string{{"buffalo", "buffalo"}, {"buffalo", "london"}, {"london", "buffalo"}} {
			if transports[0] != transports[1] && between[0] == "london" {
				continue // one way is enough for mixtures
			}
			todo = append(todo, pair{
				caller: softphone.Linphone, callee: softphone.Linphone, from: between[0], to: between[1],
				offer: pcmu, accept: pcmu, by: transports[0], with: transports[1],
			})
		}
	}
	x := newMatrix(m, meter, todo)
	x.all(todo)
	for p, got := range x.got {
		for o, want := range map[string]string{
			"hold by caller": "sendonly answered recvonly, both heard afterwards",
			"hold by callee": "sendonly answered recvonly, both heard afterwards",
			"busy":           `486 Q.850;cause=17;text="USER_BUSY"`,
			"refuse":         `603 Q.850;cause=21;text="CALL_REJECTED"`,
			"no answer":      `480 Q.850;cause=16;text="NORMAL_CLEARING", callee 487`,
			"cancel":         "487, callee 487",
		} {
			if got[o] != want {
				t.Errorf("%s: %s: %s, want %s", p, o, got[o], want)
			}
		}
	}
}
