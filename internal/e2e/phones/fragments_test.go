package phones_test

import (
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pbxmesh/fixtures/softphone"
)

// envSmallMTU says that the test runs where packets are as small as those of Ethernet.
const envSmallMTU = "PBXMESH_TEST_SMALL_MTU"

// smallMTU makes a network namespace like a machine with a network card: with a route to
// elsewhere, without which Linphone does nothing, and packets of at most 1,500 bytes also to
// itself.
const smallMTU = `set -e
ip link set lo up mtu 1500
ip link add away type veth peer name there
ip addr add 192.0.2.1/24 dev away
ip link set away up
ip link set there up
ip route add default via 192.0.2.2
exec "$@"`

// inSmallMTU runs the test once more, in a network namespace of its own, and returns true in
// there. The namespace belongs to a process, because switches and phones live in it too.
func inSmallMTU(t *testing.T) bool {
	t.Helper()
	if os.Getenv(envSmallMTU) != "" {
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: only root can make a network namespace")
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", smallMTU, "sh", os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), envSmallMTU+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	out, err := cmd.CombinedOutput()
	t.Logf("in a network namespace with an MTU of 1500:\n%s", out)
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("the test in the namespace: %v", err)
	}
	return false
}

// TestScenarioFragmentedInvite has real phones send INVITEs over UDP that are larger than a
// packet. Each leg carries them in fragments: to the node, between the nodes, to the phone.
// What becomes of the calls must be what becomes of them on one node.
func TestScenarioFragmentedInvite(t *testing.T) {
	if realBinary() == "" {
		t.Skip("SKIPPED, NOT TESTED: how a switch sends large requests is for a real one to show")
	}
	if !inSmallMTU(t) {
		return
	}
	m := newMesh(t, options{net: 149, nodes: 2, plan: matrixPlan})
	meter, err := softphone.NewMeter()
	must(t, err)
	t.Cleanup(meter.Close)
	pcmu := slices.IndexFunc(offers, func(o offer) bool { return o.name == "pcmu" })
	var todo []pair
	for _, callee := range softphone.Kinds {
		for _, between := range [][2]string{{"buffalo", "buffalo"}, {"buffalo", "london"}} {
			todo = append(todo, pair{caller: softphone.Linphone, callee: callee, from: between[0], to: between[1], offer: pcmu, accept: pcmu})
		}
	}
	x := newMatrix(m, meter, todo)
	// An INVITE with it does not fit into a packet. baresip has no room for more than 400
	// bytes, so it is called only.
	x.name = strings.TrimSpace(strings.Repeat("Head office, second floor, meeting room. ", 22))
	x.all(todo)
	buffalo, london := m.nodes["buffalo"].sw.SIP().Addr(), m.nodes["london"].sw.SIP().Addr()
	split := func(what string, from, to netip.Addr) {
		n := meter.Split(from, to, "INVITE ")
		t.Logf("%s: an INVITE of %d bytes came in fragments", what, n)
		if n <= 1500 {
			t.Errorf("%s: no INVITE came in fragments", what)
		}
	}
	split("between the nodes", buffalo, london)
	for p := range x.got {
		if p.from != p.to {
			split(p.String()+": caller to node", x.phones[p.calling()].Local(), buffalo)
			split(p.String()+": node to callee", london, x.phones[p.called()].Local())
		}
	}
}
