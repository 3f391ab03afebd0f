package router

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// TestDecide walks every rule. want is Plan.String without the address, whys the
// verdict on each registration in the order given.
func TestDecide(t *testing.T) {
	t.Parallel()
	regs := func(r ...*pbxmesh.Registration) []*pbxmesh.Registration { return r }
	tests := []struct {
		name     string
		mesh     *pbxmesh.Mesh
		fromMesh bool
		regs     []*pbxmesh.Registration
		want     string
		whys     []string
	}{
		{name: "nobody", mesh: towns(), want: "not-registered"},
		{
			name: "a phone that moved rings where it is now", mesh: towns(),
			regs: regs(device("buffalo", moved(1)), device("london", moved(3)), device("singapore", moved(2))),
			want: "routed: london (192.0.2.2:5090, 1 device)",
			whys: []string{"left-out moved", "rings node-up", "left-out moved"},
		},
		{
			name: "here", mesh: towns(), regs: regs(device("london", moved(1)), device("buffalo", moved(2))),
			want: "routed: buffalo (internal, 1 device)", whys: []string{"left-out moved", "rings local"},
		},
		{
			name: "where it was while its node is down", mesh: towns(observed("london", pbxmesh.ObservedDown, "no answer")),
			regs: regs(device("buffalo", moved(1)), device("london", moved(2))),
			want: "routed: buffalo (internal, 1 device)", whys: []string{"rings local", "left-out node-down"},
		},
		{
			name: "and where a call from another node looks for it", mesh: towns(), fromMesh: true,
			regs: regs(device("buffalo", moved(1)), device("london", moved(2))),
			want: "routed: buffalo (internal, 1 device)", whys: []string{"rings local", "left-out mesh-call"},
		},
		{
			name: "one of two phones moved", mesh: towns(),
			regs: regs(device("buffalo", moved(1)), device("buffalo", moved(1), otherPhone), device("london", moved(2))),
			want: "routed: buffalo (internal, 1 device) + london (192.0.2.2:5090, 1 device)",
			whys: []string{"left-out moved", "rings local", "rings node-up"},
		},
		{
			name: "one local device", mesh: towns(), regs: regs(device("buffalo")),
			want: "routed: buffalo (internal, 1 device)", whys: []string{"rings local"},
		},
		{
			name: "two local devices on one profile are one target", mesh: towns(),
			regs: regs(device("buffalo"), device("buffalo")),
			want: "routed: buffalo (internal, 2 devices)", whys: []string{"rings local", "rings local"},
		},
		{
			name: "two profiles are two targets, in order", mesh: towns(),
			regs: regs(device("buffalo", onProfile("tls")), device("buffalo")),
			want: "routed: buffalo (internal, 1 device) + buffalo (tls, 1 device)",
			whys: []string{"rings local", "rings local"},
		},
		{
			name: "local device of unknown profile", mesh: towns(), regs: regs(device("buffalo", onProfile(""))),
			want: "routed: buffalo (local, 1 device)", whys: []string{"rings local"},
		},
		{
			name: "several devices on one remote node are one target", mesh: towns(),
			regs: regs(device("london"), device("london", onProfile("tls")), device("london")),
			want: "routed: london (192.0.2.2:5090, 3 devices)",
			whys: []string{"rings node-up", "rings node-up", "rings node-up"},
		},
		{
			name: "here and everywhere ring together, local first, whatever the order", mesh: towns(),
			regs: regs(device("singapore"), device("london"), device("buffalo")),
			want: "routed: buffalo (internal, 1 device) + london (192.0.2.2:5090, 1 device) + singapore (192.0.2.3:5090, 1 device)",
			whys: []string{"rings node-up", "rings node-up", "rings local"},
		},
		{
			name: "down is left out", mesh: towns(observed("london", pbxmesh.ObservedDown, "no answer")),
			regs: regs(device("london"), device("singapore")),
			want: "routed: singapore (192.0.2.3:5090, 1 device)", whys: []string{"left-out node-down", "rings node-up"},
		},
		{
			name: "calls do not wait for a mesh address that is silent", mesh: towns(reached("london", pbxmesh.MeshSilent)),
			regs: regs(device("london"), device("singapore")),
			want: "routed: singapore (192.0.2.3:5090, 1 device)", whys: []string{"left-out mesh-silent", "rings node-up"},
		},
		{
			name: "down for phones, and calls get there",
			mesh: towns(observed("london", pbxmesh.ObservedDown, "no answer"), reached("london", pbxmesh.MeshAnswers)),
			regs: regs(device("london"), device("singapore")),
			want: "routed: singapore (192.0.2.3:5090, 1 device), then london (192.0.2.2:5090, 1 device)",
			whys: []string{"rings-next mesh-answers", "rings node-up"},
		},
		{
			name: "out, and calls would get there",
			mesh: towns(wanted("london", pbxmesh.WantedOut), reached("london", pbxmesh.MeshAnswers)),
			regs: regs(device("london")), want: "unreachable", whys: []string{"left-out node-out"},
		},
		{
			name: "out is left out", mesh: towns(wanted("london", pbxmesh.WantedOut)),
			regs: regs(device("london"), device("singapore")),
			want: "routed: singapore (192.0.2.3:5090, 1 device)", whys: []string{"left-out node-out", "rings node-up"},
		},
		{
			name: "draining keeps its calls", mesh: towns(wanted("london", pbxmesh.WantedDraining)), regs: regs(device("london")),
			want: "routed: london (192.0.2.2:5090, 1 device)", whys: []string{"rings node-draining"},
		},
		{
			name: "draining and suspect goes behind",
			mesh: towns(wanted("london", pbxmesh.WantedDraining), observed("london", pbxmesh.ObservedSuspect, "")),
			regs: regs(device("london"), device("singapore")),
			want: "routed: singapore (192.0.2.3:5090, 1 device), then london (192.0.2.2:5090, 1 device)",
			whys: []string{"rings-next node-suspect", "rings node-up"},
		},
		{
			name: "draining and down is down",
			mesh: towns(wanted("london", pbxmesh.WantedDraining), observed("london", pbxmesh.ObservedDown, "")),
			regs: regs(device("london")), want: "unreachable", whys: []string{"left-out node-down"},
		},
		{
			name: "suspect rings behind healthy", mesh: towns(observed("london", pbxmesh.ObservedSuspect, "late")),
			regs: regs(device("london"), device("buffalo"), device("singapore"), device("london")),
			want: "routed: buffalo (internal, 1 device) + singapore (192.0.2.3:5090, 1 device), then london (192.0.2.2:5090, 2 devices)",
			whys: []string{"rings-next node-suspect", "rings local", "rings node-up", "rings-next node-suspect"},
		},
		{
			name: "suspect and unknown ring at once when nobody else is there",
			mesh: towns(observed("london", pbxmesh.ObservedSuspect, ""), observed("singapore", pbxmesh.ObservedUnknown, "")),
			regs: regs(device("singapore"), device("london")),
			want: "routed: london (192.0.2.2:5090, 1 device) + singapore (192.0.2.3:5090, 1 device)",
			whys: []string{"rings node-unknown", "rings node-suspect"},
		},
		{
			name: "all holders down is unreachable, not not-registered",
			mesh: towns(observed("london", pbxmesh.ObservedDown, ""), wanted("singapore", pbxmesh.WantedOut)),
			regs: regs(device("london"), device("singapore")),
			want: "unreachable", whys: []string{"left-out node-down", "left-out node-out"},
		},
		{
			name: "expired is not registered", mesh: towns(), regs: regs(device("buffalo", expiring(now)), device("london", expiring(now.Add(-1)))),
			want: "not-registered", whys: []string{"left-out expired", "left-out expired"},
		},
		{
			name: "a nanosecond left is live", mesh: towns(), regs: regs(device("buffalo", expiring(now.Add(1)))),
			want: "routed: buffalo (internal, 1 device)", whys: []string{"rings local"},
		},
		{
			name: "a mesh call rings local devices only", mesh: towns(), fromMesh: true,
			regs: regs(device("london"), device("buffalo"), device("singapore")),
			want: "routed: buffalo (internal, 1 device)",
			whys: []string{"left-out mesh-call", "rings local", "left-out mesh-call"},
		},
		{
			name: "a mesh call for a phone that moved on is not registered here", mesh: towns(), fromMesh: true,
			regs: regs(device("london")), want: "not-registered", whys: []string{"left-out mesh-call"},
		},
		{
			name: "the local node's own state does not silence its phones",
			mesh: towns(wanted("buffalo", pbxmesh.WantedOut), observed("buffalo", pbxmesh.ObservedDown, "")),
			regs: regs(device("buffalo")), want: "routed: buffalo (internal, 1 device)", whys: []string{"rings local"},
		},
		{
			name: "no mesh address", mesh: towns(meshAt("london", netip.AddrPort{})), regs: regs(device("london")),
			want: "unreachable", whys: []string{"left-out no-mesh-address"},
		},
		{
			name: "IPv6 mesh address", mesh: towns(meshAt("london", netip.MustParseAddrPort("[2001:db8::1]:5090"))),
			regs: regs(device("london")), want: "unreachable", whys: []string{"left-out no-mesh-address"},
		},
		{
			name: "mapped IPv4 mesh address", mesh: towns(meshAt("london", netip.MustParseAddrPort("[::ffff:192.0.2.9]:5090"))),
			regs: regs(device("london")), want: "routed: london (192.0.2.9:5090, 1 device)", whys: []string{"rings node-up"},
		},
		{
			name: "mesh port 0", mesh: towns(meshAt("london", netip.MustParseAddrPort("192.0.2.2:0"))),
			regs: regs(device("london")), want: "unreachable", whys: []string{"left-out no-mesh-address"},
		},
		{
			name: "a node that never announced itself", mesh: towns(), regs: regs(device("paris")),
			want: "unreachable", whys: []string{"left-out not-a-member"},
		},
		{
			name: "no mesh at all", regs: regs(device("london"), device("buffalo")),
			want: "routed: buffalo (internal, 1 device)", whys: []string{"left-out not-a-member", "rings local"},
		},
		{
			name: "a member nobody has observed", mesh: towns(func(m *pbxmesh.Mesh) { m.States = nil }),
			regs: regs(device("london"), device("buffalo")),
			want: "routed: buffalo (internal, 1 device), then london (192.0.2.2:5090, 1 device)",
			whys: []string{"rings-next node-unknown", "rings local"},
		},
		{
			name: "a hostile profile name is left out", mesh: towns(), regs: regs(device("buffalo", onProfile("internal/x,sofia/gateway/x"))),
			want: "unreachable", whys: []string{"left-out bad-profile"},
		},
		{
			name: "a record of somebody else", mesh: towns(), regs: regs(device("buffalo", of(mustAOR("1002@pbx.test")))),
			want: "not-registered", whys: []string{"left-out other-address"},
		},
		{
			name: "a missing record", mesh: towns(), regs: regs(nil, device("buffalo"), nil),
			want: "routed: buffalo (internal, 1 device)", whys: []string{"rings local"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			in := Input{AOR: callee, Local: buffalo, FromMesh: tt.fromMesh, Registrations: tt.regs, Mesh: tt.mesh, Now: now}
			p := Decide(in)
			if got := strings.TrimPrefix(p.String(), "1001@pbx.test: "); got != tt.want {
				t.Errorf("plan\n got %s\nwant %s", got, tt.want)
			}
			var whys []string
			for _, r := range p.Reasons {
				whys = append(whys, r.What.String()+" "+r.Why.String())
			}
			if !slices.Equal(whys, tt.whys) {
				t.Errorf("reasons\n got %q\nwant %q", whys, tt.whys)
			}
			// The order in which the registry hands records out must not show.
			rev := slices.Clone(tt.regs)
			slices.Reverse(rev)
			in.Registrations = rev
			if got := Decide(in).String(); got != p.String() {
				t.Errorf("reversed input\n got %s\nwant %s", got, p)
			}
			for _, g := range p.Targets {
				if len(g) == 0 {
					t.Error("an empty group")
				}
			}
		})
	}
}

func TestDecideZeroAOR(t *testing.T) {
	t.Parallel()
	p := Decide(Input{Local: buffalo, Registrations: []*pbxmesh.Registration{{Node: buffalo, Expires: now.Add(time.Hour)}}, Mesh: towns(), Now: now})
	if p.Result != ResultInvalid || len(p.Targets) != 0 || p.String() != "no address: invalid" {
		t.Errorf("got %s with %d groups", p, len(p.Targets))
	}
	if (Plan{}).Result != ResultInvalid {
		t.Error("the zero plan must not route")
	}
}

// TestDecideBound: however many nodes claim a user, the plan stays bounded, says
// whom it left out, and the local phone rings even when it comes last.
func TestDecideBound(t *testing.T) {
	t.Parallel()
	m := towns()
	var regs []*pbxmesh.Registration
	for i := range 3 * MaxTargets {
		id := pbxmesh.NodeID(fmt.Sprintf("n%03d", i))
		m.Nodes[id] = pbxmesh.Node{ID: id, Mesh: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 5090)}
		m.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
		regs = append(regs, device(string(id)), device(string(id)))
	}
	regs = append(regs, device("buffalo"))
	p := decide(m, regs...)
	if len(p.Targets) != 1 || len(p.Targets[0]) != MaxTargets+1 || !p.Targets[0][0].Local {
		t.Fatalf("got %s", p)
	}
	left := 0
	for _, r := range p.Reasons {
		if r.Why == WhyTooMany && r.What == LeftOut {
			left++
		}
	}
	if want := 2 * 2 * MaxTargets; left != want || len(p.Reasons) != len(regs) {
		t.Errorf("%d of %d reasons say too-many, want %d of %d", left, len(p.Reasons), want, len(regs))
	}
	if !slices.IsSortedFunc(p.Targets[0], func(a, b Target) int { return compareTargets(&a, &b) }) {
		t.Error("targets are not sorted")
	}
}

// TestDecideGroupsDoNotAlias: a caller that appends to the first group must not
// overwrite the second.
func TestDecideGroupsDoNotAlias(t *testing.T) {
	t.Parallel()
	p := decide(towns(observed("london", pbxmesh.ObservedSuspect, "")), device("buffalo"), device("london"))
	_ = append(p.Targets[0], Target{Node: "intruder"})
	if got := p.Targets[1][0].Node; got != "london" {
		t.Errorf("second group is %s", got)
	}
}

func TestDecideAllocations(t *testing.T) {
	m := towns()
	for _, tt := range []struct {
		regs []*pbxmesh.Registration
		max  float64
	}{
		{nil, 0},
		{[]*pbxmesh.Registration{device("buffalo")}, 1},
		{[]*pbxmesh.Registration{device("buffalo"), device("london")}, 1},
		{[]*pbxmesh.Registration{device("buffalo"), device("london"), device("singapore"), device("london")}, 2},
		{[]*pbxmesh.Registration{device("buffalo"), device("london"), device("singapore"), device("london"), device("london")}, 2},
	} {
		in := Input{AOR: callee, Local: buffalo, Registrations: tt.regs, Mesh: m, Now: now}
		var p Plan
		if got := testing.AllocsPerRun(100, func() { p = Decide(in) }); got > tt.max {
			t.Errorf("%d devices (%s): %.0f allocations, at most %.0f", len(tt.regs), p, got, tt.max)
		}
	}
}
