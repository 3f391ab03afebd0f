package router

import (
	"fmt"
	"net/netip"
	"time"

	"pbxmesh"
)

// The running example: a plan is made on buffalo for 1001@pbx.test.
var (
	now     = time.Date(2026, 11, 22, 15, 4, 5, 0, time.UTC)
	callee  = mustAOR("1001@pbx.test")
	buffalo = pbxmesh.NodeID("buffalo")
)

func mustAOR(s string) pbxmesh.AOR {
	a, err := pbxmesh.ParseAOR(s)
	if err != nil {
		panic(err)
	}
	return a
}

// device returns a live registration of callee on node; each option mutates it.
func device(node string, options ...func(*pbxmesh.Registration)) *pbxmesh.Registration {
	r := &pbxmesh.Registration{
		AOR: callee, Node: pbxmesh.NodeID(node), CallID: "call-" + node, Contact: "sip:1001@192.0.2.7:5062",
		Profile: "internal", Transport: "udp", Expires: now.Add(time.Minute),
	}
	for _, o := range options {
		o(r)
	}
	return r
}

// moved makes the record one of a phone that keeps its Call-ID from node to node.
func moved(since pbxmesh.Stamp) func(*pbxmesh.Registration) {
	return func(r *pbxmesh.Registration) { r.CallID, r.Since = "7f3a", pbxmesh.StampFound+since }
}

func otherPhone(r *pbxmesh.Registration) { r.CallID, r.Contact = "9c1d", "sip:1001@192.0.2.8:5062" }

func onProfile(p string) func(*pbxmesh.Registration) {
	return func(r *pbxmesh.Registration) { r.Profile = p }
}

func expiring(t time.Time) func(*pbxmesh.Registration) {
	return func(r *pbxmesh.Registration) { r.Expires = t }
}

func of(a pbxmesh.AOR) func(*pbxmesh.Registration) {
	return func(r *pbxmesh.Registration) { r.AOR = a }
}

// towns returns buffalo, london and singapore, all up and in service; each
// option changes one thing about them.
func towns(options ...func(*pbxmesh.Mesh)) *pbxmesh.Mesh {
	m := &pbxmesh.Mesh{At: now, Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
	for i, id := range []pbxmesh.NodeID{"buffalo", "london", "singapore"} {
		m.Nodes[id] = pbxmesh.Node{ID: id, Mesh: netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:5090", i+1))}
		m.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
	}
	for _, o := range options {
		o(m)
	}
	return m
}

func observed(id pbxmesh.NodeID, o pbxmesh.Observed, reason string) func(*pbxmesh.Mesh) {
	return func(m *pbxmesh.Mesh) { s := m.States[id]; s.Observed, s.Reason = o, reason; m.States[id] = s }
}

func reached(id pbxmesh.NodeID, r pbxmesh.MeshReach) func(*pbxmesh.Mesh) {
	return func(m *pbxmesh.Mesh) { s := m.States[id]; s.Mesh = r; m.States[id] = s }
}

func wanted(id pbxmesh.NodeID, w pbxmesh.Wanted) func(*pbxmesh.Mesh) {
	return func(m *pbxmesh.Mesh) { s := m.States[id]; s.Wanted = w; m.States[id] = s }
}

func meshAt(id pbxmesh.NodeID, a netip.AddrPort) func(*pbxmesh.Mesh) {
	return func(m *pbxmesh.Mesh) { n := m.Nodes[id]; n.Mesh = a; m.Nodes[id] = n }
}

func decide(m *pbxmesh.Mesh, regs ...*pbxmesh.Registration) Plan {
	return Decide(Input{AOR: callee, Local: buffalo, Registrations: regs, Mesh: m, Now: now, DataAge: 4200 * time.Millisecond})
}
