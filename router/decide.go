package router

import (
	"cmp"
	"net/netip"
	"time"

	"pbxmesh"
)

// MaxTargets bounds the remote targets of a plan; local profiles come on top, at
// most as many again. A switch that is told of more legs than it can fork to
// drops some in silence, here they are named in the reasons.
const MaxTargets = 32

// Input is everything a decision depends on. Decide keeps no pointer into
// Registrations or Mesh beyond the strings of the records.
type Input struct {
	AOR pbxmesh.AOR

	// Local is the node whose switch has the call.
	Local pbxmesh.NodeID

	// FromMesh says that another node sent the call: it rings here or nowhere.
	FromMesh bool

	// Registrations are the records of AOR on all nodes, expired ones included.
	Registrations []*pbxmesh.Registration

	// Mesh is one picture of all nodes; nil knows none.
	Mesh *pbxmesh.Mesh

	// Now is the instant expiry is judged at.
	Now time.Time

	// DataAge is how old Registrations may be. It decides nothing and is shown.
	DataAge time.Duration
}

// smallPlan is the one allocation of an ordinary plan: a user with one or two
// devices. largePlan serves the others, who pay a second allocation for the reasons.
// Zeroing and marking them is most of a decision's cost, so small stays small.
type (
	smallPlan struct {
		groups  [2][]Target
		targets [2]Target
		reasons [2]Reason
	}
	largePlan struct {
		groups  [2][]Target
		targets [4]Target
	}
)

// room returns empty slices with room for the plan of n registrations.
func room(n int) (groups [][]Target, targets []Target, reasons []Reason) {
	if n <= len(smallPlan{}.reasons) {
		b := new(smallPlan)
		return b.groups[:0], b.targets[:0], b.reasons[:0]
	}
	b := new(largePlan)
	return b.groups[:0], b.targets[:0], make([]Reason, 0, n)
}

// Decide returns the plan for one call. It is a pure function; its cost grows
// with the records of the one AOR, never with the registry.
//
//   - Live local devices ring, one target per sofia profile. The local node's own
//     state does not matter: a switch that asks is alive, and taking a node out
//     keeps other nodes' calls away, not a call from one of its desks to the next.
//   - Every remote node that holds the AOR is one target: it rings its own devices.
//   - Down and out nodes are left out; draining nodes keep the calls to their phones.
//   - Suspect and not yet observed nodes come in a second group, tried when
//     the first one failed, because a dead one costs the caller 4 s of silence. With
//     nobody else there they are the first group: refusing would be a guess.
//   - Of the registrations that one device has on several nodes only the newest rings
//     (pbxmesh.Superseded); the next one does while its node takes no calls.
//   - A call that came over the mesh rings what is here, also what a newer one stands in
//     for: whoever sent it knew of no other. It never goes back into the mesh, so no two
//     views of the registry can make a loop.
func Decide(in Input) Plan {
	p := Plan{AOR: in.AOR, FromMesh: in.FromMesh, DataAge: in.DataAge}
	if in.AOR.IsZero() {
		return p // ResultInvalid
	}
	p.Result = ResultNotRegistered
	if len(in.Registrations) == 0 {
		return p
	}

	groups, targets, reasons := room(len(in.Registrations))
	first := 0    // how many of targets are in the first group
	held := false // a live registration is there that this call could have used
	for _, r := range in.Registrations {
		if r == nil {
			continue
		}
		v := judge(&in, r)
		if v.what != LeftOut {
			if i := indexTarget(targets, r, v); i >= 0 {
				targets[i].Devices++
			} else if full(targets, v) {
				v.what, v.why = LeftOut, WhyTooMany
			} else {
				targets = insertTarget(targets, r, v, first)
				if v.what == Rings {
					first++
				}
			}
		}
		held = held || v.held
		reasons = append(reasons, Reason{
			Node: r.Node, Contact: r.Contact, Profile: r.Profile,
			What: v.what, Why: v.why, Detail: v.detail, Until: r.Expires,
		})
	}
	p.Reasons = reasons

	switch {
	case len(targets) == 0 && held:
		p.Result = ResultUnreachable
	case len(targets) > 0:
		p.Result = ResultRouted
		if first > 0 {
			groups = append(groups, targets[:first:first])
		}
		if first < len(targets) {
			groups = append(groups, targets[first:])
		}
		if first == 0 {
			for i := range reasons {
				if reasons[i].What == RingsNext {
					reasons[i].What = Rings
				}
			}
		}
		p.Targets = groups
	}
	return p
}

// verdict is what judge says about one registration.
type verdict struct {
	what   What
	why    Why
	held   bool // live and meant for this call, even when left out
	local  bool
	mesh   netip.AddrPort
	detail string
}

func judge(in *Input, r *pbxmesh.Registration) verdict {
	switch {
	case r.AOR != in.AOR:
		return verdict{why: WhyOtherAOR}
	case !r.Live(in.Now):
		return verdict{why: WhyExpired}
	case r.Node == in.Local:
		if r.Profile != "" && !validProfile(r.Profile) {
			return verdict{why: WhyBadProfile, held: true}
		}
		if !in.FromMesh {
			if by := pbxmesh.Superseded(r, in.Registrations, in.Mesh, in.Local, in.Now); by != nil {
				return verdict{why: WhyMoved, held: true, detail: string(by.Node)}
			}
		}
		return verdict{what: Rings, why: WhyLocal, held: true, local: true}
	case in.FromMesh:
		// Not held: the sending node knows about the other holders itself.
		return verdict{why: WhyMeshCall}
	}

	state := in.Mesh.State(r.Node)
	v := verdict{held: true, detail: state.Reason}
	switch {
	case state.TakesCalls():
	case state.Wanted == pbxmesh.WantedOut:
		v.why = WhyNodeOut
		return v
	case state.Mesh == pbxmesh.MeshSilent && state.Observed != pbxmesh.ObservedDown:
		v.why = WhyMeshSilent
		return v
	default:
		v.why = WhyNodeDown
		return v
	}
	node, ok := in.Mesh.Node(r.Node)
	if !ok {
		v.why = WhyNotMember
		return v
	}
	if v.mesh, ok = meshAddr(node.Mesh); !ok {
		v.why = WhyNoMeshAddr
		return v
	}
	if by := pbxmesh.Superseded(r, in.Registrations, in.Mesh, in.Local, in.Now); by != nil {
		v.why, v.detail = WhyMoved, string(by.Node)
		return v
	}
	// The group follows from what is observed, not from the effective state: a
	// draining node may be suspect at the same time.
	switch {
	case state.Observed == pbxmesh.ObservedDown:
		v.what, v.why = RingsNext, WhyMeshAnswers
	case state.Observed == pbxmesh.ObservedSuspect:
		v.what, v.why = RingsNext, WhyNodeSuspect
	case state.Observed != pbxmesh.ObservedUp:
		v.what, v.why = RingsNext, WhyNodeUnknown
	case state.Wanted == pbxmesh.WantedDraining:
		v.what, v.why = Rings, WhyNodeDraining
	default:
		v.what, v.why = Rings, WhyNodeUp
	}
	return v
}

// full reports whether the plan has no room for the target of v. Local profiles
// have room of their own, so that no number of remote nodes can silence a desk.
func full(targets []Target, v verdict) bool {
	if v.local {
		return len(targets) >= 2*MaxTargets
	}
	return len(targets) >= MaxTargets
}

// insertTarget inserts the target of r so that targets stay sorted: first group
// before second, local before remote, then by node and profile. The registry gives
// no order, and two daemons must not show two plans for one state. first is how
// many targets the first group has.
func insertTarget(targets []Target, r *pbxmesh.Registration, v verdict, first int) []Target {
	t := Target{Node: r.Node, Devices: 1}
	if v.local {
		t.Local, t.Profile = true, r.Profile
	} else {
		t.Mesh = v.mesh
	}
	low, at := 0, first
	if v.what == RingsNext {
		low, at = first, len(targets)
	}
	for at > low && compareTargets(&t, &targets[at-1]) < 0 {
		at--
	}
	targets = append(targets, Target{})
	copy(targets[at+1:], targets[at:])
	targets[at] = t
	return targets
}

// indexTarget returns which target rings the device r already, or -1.
func indexTarget(targets []Target, r *pbxmesh.Registration, v verdict) int {
	for i := range targets {
		t := &targets[i]
		if t.Local == v.local && t.Node == r.Node && (!v.local || t.Profile == r.Profile) {
			return i
		}
	}
	return -1
}

func compareTargets(a, b *Target) int {
	switch {
	case a.Local && !b.Local:
		return -1
	case !a.Local && b.Local:
		return 1
	}
	return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Profile, b.Profile))
}

// meshAddr returns a as a bridge string can hold it. IPv6 is refused: its '['
// starts a leg's variables and its ':' cannot be told from the port's.
func meshAddr(a netip.AddrPort) (netip.AddrPort, bool) {
	ip := a.Addr().Unmap()
	if !ip.Is4() || ip.IsUnspecified() || ip.IsMulticast() || ip == broadcast || a.Port() == 0 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip, a.Port()), true
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})
