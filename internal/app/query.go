package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
	"pbxmesh/router"
	"pbxmesh/router/native"
)

// Lookup answers who is registered where, from the replica alone.
func (a *App) Lookup(_ context.Context, aor pbxmesh.AOR) (*control.LookupReply, error) {
	now := a.now()
	age, err := a.age(now)
	if err != nil {
		return nil, err
	}
	mesh := a.tracker.Mesh()
	reply := &control.LookupReply{AOR: aor, Registrations: []control.Registration{}, DataAge: control.SecondsOf(age), Source: "replica"}
	for _, r := range a.replica.Lookup(aor) {
		if r.Live(now) {
			reply.Registrations = append(reply.Registrations,
				control.NewRegistration(r, mesh.State(r.Node).Effective().String(), now))
		}
	}
	return reply, nil
}

// Nodes answers which nodes there are and how they do.
func (a *App) Nodes(_ context.Context) (*control.NodesReply, error) {
	now := a.now()
	age, err := a.age(now)
	if err != nil {
		return nil, err
	}
	mesh := a.tracker.Mesh()
	reply := &control.NodesReply{Nodes: []control.Node{}, DataAge: control.SecondsOf(age), Observer: a.cfg.Name}
	health := a.health(reply, now)
	for _, m := range a.replica.Members() {
		state := mesh.State(m.Node.ID)
		n := control.Node{
			ID: m.Node.ID, Local: m.Local, Addresses: m.Node.Addresses, Mesh: m.Node.Mesh,
			Ports: m.Node.Ports, Software: m.Node.Software,
			Observed: state.Observed.String(), Wanted: state.Wanted.String(), Effective: state.Effective().String(),
			Since: state.Since, Reason: state.Reason, Shed: int(state.Shed),
		}
		health(&n)
		a.showWish(&n)
		a.replica.WalkNode(m.Node.ID, func(r *pbxmesh.Registration) bool {
			if r.Live(now) {
				n.Registrations++
			}
			return true
		})
		if !m.LastSeen.IsZero() {
			seen, sw := control.SecondsOf(now.Sub(m.LastSeen)), m.Lease.Switch
			n.LeaseAge = &seen
			if m.LeaseHeld { // what a silent daemon said last is old news
				n.SwitchConnected = &sw.Alive
			}
			if m.LeaseHeld && sw.MaxSessions > 0 { // known since the first heartbeat
				n.Sessions, n.MaxSessions = &sw.Sessions, &sw.MaxSessions
			}
		}
		reply.Nodes = append(reply.Nodes, n)
	}
	return reply, nil
}

// Explain answers what would happen to a call that arrived here now, and why. It
// decides as the hooks do; nothing rings.
func (a *App) Explain(_ context.Context, aor pbxmesh.AOR, fromMesh bool) (*control.ExplainReply, error) {
	now := a.now()
	age, err := a.age(now)
	if err != nil {
		return nil, err
	}
	plan := router.Decide(router.Input{
		AOR: aor, Local: a.nodeID(), FromMesh: fromMesh,
		Registrations: a.replica.Lookup(aor), Mesh: a.tracker.Mesh(), Now: now, DataAge: age,
	})
	reply := &control.ExplainReply{
		AOR: aor, Node: a.nodeID(), FromMesh: fromMesh, Result: plan.Result.String(),
		Bridge: plan.BridgeString(a.bridgeOptions()), DataAge: control.SecondsOf(age),
		Groups: [][]control.Target{}, Reasons: []control.Reason{},
	}
	for _, group := range plan.Targets {
		targets := make([]control.Target, 0, len(group))
		for _, t := range group {
			targets = append(targets, control.Target{
				Node: t.Node, Local: t.Local, Address: t.Mesh, Profile: t.Profile, Devices: t.Devices,
			})
		}
		reply.Groups = append(reply.Groups, targets)
	}
	for _, r := range plan.Reasons {
		reply.Reasons = append(reply.Reasons, control.Reason{Node: r.Node, Text: strings.TrimLeft(strings.TrimPrefix(r.String(), string(r.Node)), ": ")})
	}
	if len(plan.Reasons) == 0 {
		reply.Reasons = append(reply.Reasons, control.Reason{Text: "no node holds a registration of this address"})
	}
	return reply, nil
}

// forgetWait bounds how long a command waits until this daemon itself has forgotten, looking
// every forgetLook.
const (
	forgetWait = 2 * time.Second
	forgetLook = 100 * time.Millisecond
)

// Forget removes a node for good: its records, its lease and its place among the
// members; every switch shuts it out. A node whose daemon still gives signs of life
// is refused, because it would announce itself again.
func (a *App) Forget(ctx context.Context, node pbxmesh.NodeID) error {
	m, err := a.member(node)
	if err != nil {
		return err
	}
	if m.Local || m.LeaseHeld {
		return fmt.Errorf("%w: the daemon of %s is alive; stop it first, then ask another node", control.ErrRefused, node)
	}
	a.log.Info("node forgotten", "node", node)
	if err := a.backend.Forget(ctx, node); err != nil {
		return err
	}
	a.forgetNotes(ctx, node)
	if states, ok := a.exchange().(*native.Redis); ok {
		if err := states.Forget(ctx, node); err != nil {
			a.log.Debug("the states of its lamps are left, and end by themselves", "node", node, "error", err)
		}
	}
	// Who lists the nodes next does not find it any more.
	ctx, cancel := context.WithTimeout(ctx, min(2*a.cfg.Registry.LeaseRenew, forgetWait))
	defer cancel()
	_ = every(ctx, forgetLook, func() {
		if _, err := a.member(node); err != nil {
			cancel()
		}
	})
	return nil
}

// age returns how old the replica's view is. A view that was never read says
// nothing about who is registered, so it is an error and no empty answer.
func (a *App) age(now time.Time) (time.Duration, error) {
	age := a.replica.Age(now)
	if age == registry.NeverSynced {
		return 0, fmt.Errorf("%w: the registry was not read yet; see `pbxmesh nodes` and the daemon's log", pbxmesh.ErrUnavailable)
	}
	return age, nil
}

// directory gives the hooks what the replica holds.
type directory struct{ a *App }

// Lookup implements socket.Directory without ever waiting.
func (d directory) Lookup(_ context.Context, aor pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	regs := d.a.replica.Lookup(aor)
	for _, r := range regs {
		if _, known := d.a.tracker.Mesh().Node(r.Node); !known {
			d.a.carryMembers()
			break
		}
	}
	age := d.a.replica.Age(d.a.now())
	if age == registry.NeverSynced {
		if len(regs) == 0 {
			return nil, 0, fmt.Errorf("%w: the registry was not read yet", pbxmesh.ErrUnavailable)
		}
		age = 0 // local devices are known from the switch itself
	}
	return regs, age, nil
}

// ready says what is missing before this daemon does its work, or nil.
func (a *App) ready() error {
	var missing []error
	if a.replica.Age(a.now()) == registry.NeverSynced {
		missing = append(missing, errors.New("the registry was not read yet"))
	}
	if a.feed != nil {
		if s := a.feed.Status(); !s.Connected {
			missing = append(missing, fmt.Errorf("the event socket is not connected: %w", orUnknown(s.Err)))
		}
	}
	if a.writer != nil {
		if s := a.writer.Status(); s.Err != nil {
			missing = append(missing, fmt.Errorf("publishing fails: %w", s.Err))
		}
	}
	return errors.Join(missing...)
}

func orUnknown(err error) error {
	if err == nil {
		return errors.New("not tried yet")
	}
	return err
}
