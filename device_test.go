package pbxmesh

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

// phoneAt is a desk phone over UDP at its own address, registered at node.
func phoneAt(node NodeID, change ...func(*Registration)) *Registration {
	a, _ := NewAOR("1001", "pbx.test")
	r := &Registration{
		AOR: a, Node: node, CallID: string(node) + "-8f1b2c3d4e5f@192.168.1.7", Contact: "sip:1001@192.168.1.7:5060",
		Profile: "internal", Source: netip.MustParseAddrPort("203.0.113.9:5060"), Transport: "udp", UserAgent: "Desk 5.1",
		Expires: recordTime.Add(time.Hour), Since: StampOf(recordTime),
	}
	for _, c := range change {
		c(r)
	}
	return r
}

func contact(s string) func(*Registration)   { return func(r *Registration) { r.Contact = s } }
func callID(s string) func(*Registration)    { return func(r *Registration) { r.CallID = s } }
func agent(s string) func(*Registration)     { return func(r *Registration) { r.UserAgent = s } }
func transport(s string) func(*Registration) { return func(r *Registration) { r.Transport = s } }
func from(s string) func(*Registration) {
	return func(r *Registration) { r.Source = netip.MustParseAddrPort(s) }
}

func TestSameDevice(t *testing.T) {
	t.Parallel()
	const jssip, uuid = "sip:q8rtv0ut@s3jm0v1g2k8p.invalid;transport=ws", "urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
	tcp := transport("tcp")
	alice := func(r *Registration) { r.AOR, _ = NewAOR("alice", "pbx.test") }
	for name, c := range map[string]struct {
		a, b *Registration
		same bool
	}{
		"moved: same contact, another Call-ID": {phoneAt("a"), phoneAt("b"), true},
		"seen from another port of its NAT":    {phoneAt("a"), phoneAt("b", from("203.0.113.9:41002")), true},
		"the switch's own parameters": {
			phoneAt("a", contact("sip:1001@192.168.1.7:5060;fs_nat=yes;fs_path=sip:1001@203.0.113.9:5060")),
			phoneAt("b", contact("sip:1001@192.168.1.7;received=203.0.113.9:6001")), true,
		},
		"transport in another case": {phoneAt("a", contact("sip:1001@192.168.1.7:5060;transport=UDP")), phoneAt("b", contact("sip:1001@192.168.1.7:5060;transport=udp")), true},
		"moved network, same Call-ID": {
			phoneAt("a", callID("7a6b5c4d@x")), phoneAt("b", callID("7a6b5c4d@x"), from("198.51.100.3:9000"), contact("sip:1001@10.8.0.2:5060")), true,
		},
		"moved network, another Call-ID":     {phoneAt("a"), phoneAt("b", from("198.51.100.3:9000"), contact("sip:1001@10.8.0.2:5060")), false},
		"two sites with one private address": {phoneAt("a"), phoneAt("b", from("198.51.100.3:5060")), false},

		"two phones of one make behind one NAT":        {phoneAt("a"), phoneAt("b", contact("sip:1001@192.168.1.8:5060")), false},
		"the same whose router writes its own address": {phoneAt("a", contact("sip:1001@203.0.113.9:5060")), phoneAt("b", contact("sip:1001@203.0.113.9:5061")), false},
		"the same over TCP":                            {phoneAt("a", tcp), phoneAt("b", tcp, contact("sip:1001@192.168.1.8:5060")), false},
		"router's address over TCP": {
			phoneAt("a", tcp, contact("sip:1001@203.0.113.9:40001;transport=tcp")), phoneAt("b", tcp, contact("sip:1001@203.0.113.9:40002;transport=tcp")), false,
		},
		"router's address over TCP, the account in capitals": {
			phoneAt("a", tcp, contact("sip:ALICE@203.0.113.9:40001"), alice), phoneAt("b", tcp, contact("sip:ALICE@203.0.113.9:40002"), alice), false,
		},
		"another make at one address":      {phoneAt("a"), phoneAt("b", agent("Soft 2")), false},
		"one Call-ID, two makes":           {phoneAt("a", callID("1@h")), phoneAt("b", callID("1@h"), agent("Soft 2")), false},
		"another port over UDP, restarted": {phoneAt("a"), phoneAt("b", contact("sip:1001@192.168.1.7:5072")), false},
		"one that does not name itself":    {phoneAt("a"), phoneAt("b", agent("")), true},
		"no Call-ID is no equal one":       {phoneAt("a", callID("")), phoneAt("b", callID(""), contact("sip:1001@192.168.1.8:5060")), false},
		"two lines of one phone":           {phoneAt("a", contact("sip:line1@192.168.1.7:5060")), phoneAt("b", contact("sip:line2@192.168.1.7:5060")), false},
		"a user part with a parameter": {
			phoneAt("a", contact("sip:1001;x=y@192.168.1.7:5060")), phoneAt("b", contact("sip:1001;x=y@192.168.1.8:5060")), false,
		},

		"TCP: a new connection's port": {
			phoneAt("a", tcp, contact("sip:1001@192.168.1.7:49152;transport=tcp")), phoneAt("b", tcp, contact("sip:1001@192.168.1.7:49188;transport=tcp")), true,
		},
		"TLS without a NAT": {
			phoneAt("a", transport("tls"), from("10.1.2.3:1"), contact("sip:1001@10.1.2.3:1;transport=tls")),
			phoneAt("b", transport("tls"), from("10.1.2.3:2"), contact("sip:1001@10.1.2.3:2;transport=tls")), true,
		},
		"TCP, a public address of its own network": {
			phoneAt("a", tcp, contact("sip:1001@198.51.100.70:49152")), phoneAt("b", tcp, contact("sip:1001@198.51.100.70:49188")), true,
		},
		"TCP here, UDP there: the port is the phone's": {
			phoneAt("a", tcp, contact("sip:1001@192.168.1.7:49152")), phoneAt("b", contact("sip:1001@192.168.1.7:5060")), false,
		},
		"a connection that only the contact tells": {
			phoneAt("a", contact("sip:1001@192.168.1.7:49152;transport=TCP")), phoneAt("b", contact("sip:1001@192.168.1.7:49188;transport=TCP")), true,
		},
		"TCP, software unknown": {
			phoneAt("a", tcp, agent("unknown"), contact("sip:1001@192.168.1.7:49152")), phoneAt("b", tcp, agent("unknown"), contact("sip:1001@192.168.1.7:49188")), false,
		},
		"TCP, the contact's user is a token": {
			phoneAt("a", tcp, contact("sip:k3j2h1g0@203.0.113.9:40001")), phoneAt("b", tcp, contact("sip:k3j2h1g0@203.0.113.9:40002")), true,
		},

		"browser: same page":                 {phoneAt("a", contact(jssip)), phoneAt("b", contact(jssip), from("198.51.100.3:9000")), true},
		"browser: another page":              {phoneAt("a", contact(jssip)), phoneAt("b", contact("sip:zzzzzzzz@aaaaaaaaaaaa.invalid;transport=ws")), false},
		"a library's one name for all pages": {phoneAt("a", contact("sip:1001@df7jal23ls0d.invalid;transport=ws")), phoneAt("b", contact("sip:1001@df7jal23ls0d.invalid;transport=ws")), false},
		"equal instance from anywhere": {
			phoneAt("a", contact("sip:1001@192.168.1.7:5060;gr="+uuid)), phoneAt("b", contact("sip:1001@10.0.0.1:7777;ob;gr="+uuid), from("198.51.100.3:9000"), agent("Desk 5.2")), true,
		},
		"two instances at one contact": {
			phoneAt("a", contact(`sip:1001@192.168.1.7:5060;+sip.instance="<`+uuid+`>"`)), phoneAt("b", contact(`sip:1001@192.168.1.7:5060;+sip.instance="<urn:uuid:0>"`)), false,
		},
		"instance and gr, in any case": {
			phoneAt("a", contact(`sip:1001@192.168.1.7:5060;+SIP.Instance="<`+uuid+`>"`)), phoneAt("b", contact("sip:1001@10.0.0.1:7777;GR="+uuid), from("198.51.100.3:9000")), true,
		},
		"two users of one browser": {
			phoneAt("a", contact(jssip)), phoneAt("b", contact("sip:zzzzzzzz@s3jm0v1g2k8p.invalid;transport=ws")), false,
		},
		"rinstance": {
			phoneAt("a", contact("sip:1001@192.168.1.7:5060;rinstance=1d2c3b4a5f6e")), phoneAt("b", contact("sip:1001@10.0.0.1:6000;rinstance=1d2c3b4a5f6e"), from("198.51.100.3:9000")), true,
		},
		"an instance of the switch's path is not the phone's": {
			phoneAt("a", contact("sip:1001@192.168.1.7:5060;fs_path=sip:p;gr=x")), phoneAt("b", contact("sip:1001@10.0.0.1:6000;fs_path=sip:p;gr=x")), false,
		},
		"another account": {phoneAt("a"), phoneAt("b", func(r *Registration) { r.AOR, _ = NewAOR("1002", "pbx.test") }), false},
		"source unknown":  {phoneAt("a", func(r *Registration) { r.Source = netip.AddrPort{} }), phoneAt("b", func(r *Registration) { r.Source = netip.AddrPort{} }), false},
		"no contact":      {phoneAt("a", contact("")), phoneAt("b", contact("")), false},
		"IPv6":            {phoneAt("a", contact("sip:1001@[2001:db8::7]:5060"), from("[2001:db8::7]:5060")), phoneAt("b", contact("sip:1001@[2001:DB8::7]"), from("[2001:db8::7]:9")), true},
	} {
		if got := SameDevice(c.a, c.b); got != c.same {
			t.Errorf("%s: got %v", name, got)
		}
		if got := SameDevice(c.b, c.a); got != c.same {
			t.Errorf("%s, the other way round: got %v", name, got)
		}
	}
}

// meshOf has the named nodes, those after "-" down.
func meshOf(nodes ...NodeID) *Mesh {
	m := &Mesh{Nodes: map[NodeID]Node{}, States: map[NodeID]NodeState{}}
	observed := ObservedUp
	for _, id := range nodes {
		if id == "-" {
			observed = ObservedDown
			continue
		}
		m.Nodes[id] = Node{ID: id, Mesh: netip.MustParseAddrPort("192.0.2.1:5090")}
		m.States[id] = NodeState{Observed: observed}
	}
	return m
}

func since(d time.Duration) func(*Registration) {
	return func(r *Registration) { r.Since = StampOf(recordTime.Add(d)) }
}
func stamp(s Stamp) func(*Registration) { return func(r *Registration) { r.Since = s } }
func expires(d time.Duration) func(*Registration) {
	return func(r *Registration) { r.Expires = recordTime.Add(d) }
}

func TestSuperseded(t *testing.T) {
	t.Parallel()
	up, portless := meshOf("a", "b", "c"), meshOf("a", "b")
	reached := func(id NodeID, m *Mesh, r MeshReach) *Mesh {
		s := m.States[id]
		s.Mesh = r
		m.States[id] = s
		return m
	}
	portless.Nodes["b"] = Node{ID: "b", Mesh: netip.MustParseAddrPort("192.0.2.1:0")}
	for name, c := range map[string]struct {
		r, o  *Registration
		mesh  *Mesh
		local NodeID
		by    bool
	}{
		"the newer one counts":                       {phoneAt("a"), phoneAt("b", since(time.Second)), up, "", true},
		"the older one does not":                     {phoneAt("a", since(time.Second)), phoneAt("b"), up, "", false},
		"whatever expires":                           {phoneAt("a", expires(3*time.Hour)), phoneAt("b", since(1)), up, "", false},
		"a tie is broken by the expiry":              {phoneAt("a"), phoneAt("b", expires(2*time.Hour)), up, "", true},
		"then by the name":                           {phoneAt("a"), phoneAt("b"), up, "", true},
		"another device":                             {phoneAt("a"), phoneAt("b", since(time.Second), contact("sip:1001@192.168.1.8:5060")), up, "", false},
		"one that is over":                           {phoneAt("a"), phoneAt("b", since(time.Second), expires(0)), up, "", false},
		"its node is down":                           {phoneAt("a"), phoneAt("b", since(time.Second)), meshOf("a", "-", "b"), "", false},
		"its node's mesh address is silent":          {phoneAt("a"), phoneAt("b", since(time.Second)), reached("b", meshOf("a", "b"), MeshSilent), "", false},
		"down, but calls get there":                  {phoneAt("a"), phoneAt("b", since(time.Second)), reached("b", meshOf("a", "-", "b"), MeshAnswers), "", false},
		"down, but calls get there, and to no other": {phoneAt("a"), phoneAt("b", since(time.Second)), reached("b", meshOf("-", "a", "b"), MeshAnswers), "", true},
		"no call gets to its node":                   {phoneAt("a"), phoneAt("b", since(time.Second)), portless, "", false},
		"its node is none":                           {phoneAt("a"), phoneAt("b", since(time.Second)), meshOf("a"), "", false},
		"none is known to take calls":                {phoneAt("a"), phoneAt("b", since(time.Second)), nil, "", true},
		"the switch that asks is there":              {phoneAt("a"), phoneAt("b", since(time.Second)), nil, "b", true},
		"ours is down: the older one counts":         {phoneAt("a", since(time.Second)), phoneAt("b"), meshOf("b", "-", "a"), "", true},
		"not on the switch that asks":                {phoneAt("a", since(time.Second)), phoneAt("b"), meshOf("b", "-", "a"), "a", false},
		"found, not heard: anything heard counts":    {phoneAt("a", stamp(StampFound)), phoneAt("b", stamp(StampFound+1)), up, "", true},
		"both found: who expires later":              {phoneAt("b", stamp(StampFound)), phoneAt("a", stamp(StampFound), expires(2*time.Hour)), up, "", true},
		"a daemon that claims nothing":               {phoneAt("a"), phoneAt("b", stamp(StampUnknown)), up, "", false},
		"nor gives way":                              {phoneAt("a", stamp(StampUnknown)), phoneAt("b"), up, "", false},
		"a clock days ahead":                         {phoneAt("a"), phoneAt("b", since(48*time.Hour)), up, "", false},
		"loses to one that is right":                 {phoneAt("a", since(48*time.Hour)), phoneAt("b"), up, "", true},
	} {
		got := Superseded(c.r, []*Registration{c.r, nil, c.o}, c.mesh, c.local, recordTime)
		if c.by != (got == c.o) || !c.by && got != nil {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// TestStampOf: a clock that stands at its beginning still makes a stamp that was heard.
func TestStampOf(t *testing.T) {
	t.Parallel()
	if s := StampOf(time.Unix(0, 0)); s <= StampFound {
		t.Errorf("got %d, which is not later than one that was found (%d)", s, StampFound)
	}
}

func TestSupersededAllocatesNothing(t *testing.T) {
	a, b, m := phoneAt("a"), phoneAt("b"), meshOf("a", "b")
	all := []*Registration{a, b}
	if n := testing.AllocsPerRun(100, func() { Superseded(a, all, m, "", recordTime) }); n > 0 {
		t.Errorf("%.0f allocations", n)
	}
}

// TestOneOfEachDeviceCounts: from any registrations and node states exactly one of each
// device's counts, on a node that takes calls if any of them does, and it is the newest there.
func TestOneOfEachDeviceCounts(t *testing.T) {
	t.Parallel()
	nodes := []NodeID{"a", "b", "c", "d"}
	for seed := range uint64(3000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		m := meshOf(nodes...)
		for _, id := range nodes {
			m.States[id] = NodeState{Observed: Observed(rng.IntN(4)), Wanted: Wanted(rng.IntN(3)), Mesh: MeshReach(rng.IntN(3))}
		}
		local := append(nodes, "")[rng.IntN(5)]
		var all []*Registration
		for d := range 1 + rng.IntN(3) { // devices, told apart by their host
			for _, id := range nodes {
				if rng.IntN(2) == 0 {
					continue
				}
				all = append(all, phoneAt(id, contact(fmt.Sprintf("sip:1001@192.168.1.%d:5060", d)),
					stamp(Stamp(1+rng.IntN(4))), expires(time.Duration(1+rng.IntN(3))*time.Minute), callID(fmt.Sprint(d, id))))
			}
		}
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		devices, count := map[string][]*Registration{}, map[string]*Registration{}
		for _, r := range all {
			devices[r.Contact] = append(devices[r.Contact], r)
			if Superseded(r, all, m, local, recordTime) == nil {
				if count[r.Contact] != nil {
					t.Fatalf("seed %d: two of %s count: %v and %v", seed, r.Contact, r, count[r.Contact])
				}
				count[r.Contact] = r
			}
		}
		for device, regs := range devices {
			c := count[device]
			if c == nil {
				t.Fatalf("seed %d: none of %s counts", seed, device)
			}
			for _, r := range regs {
				rank, best := m.rank(r.Node, local), m.rank(c.Node, local)
				if rank > best || rank == best && r != c && r.newer(c, recordTime) {
					t.Fatalf("seed %d: %v counts, %v is better", seed, c, r)
				}
			}
		}
	}
}
