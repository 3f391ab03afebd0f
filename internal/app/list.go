package app

import (
	"context"

	"pbxmesh"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
)

// List answers one page of registrations, from the replica alone. A node that is none
// is control.ErrRefused.
func (a *App) List(_ context.Context, q control.ListQuery) (*control.ListReply, error) {
	f, err := registry.NewFilter(string(q.Node), q.Domain, q.User)
	if err != nil {
		return nil, err
	}
	now := a.now()
	age, err := a.age(now)
	if err != nil {
		return nil, err
	}
	if err := a.listed(q.Node); err != nil {
		return nil, err
	}
	mesh := a.tracker.Mesh()
	reply := &control.ListReply{DataAge: control.SecondsOf(age), Source: control.SourceReplica}
	regs, next := a.replica.List(f, q.Cursor, min(q.Limit, control.MaxList))
	reply.Next = next
	for _, r := range regs {
		if r.Live(now) {
			reply.Registrations = append(reply.Registrations, control.Listed{
				AOR: r.AOR, Registration: control.NewRegistration(r, mesh.State(r.Node).Effective().String(), now),
			})
		}
	}
	return reply, nil
}

// listed refuses a node that is none: an empty list would look like an empty node.
func (a *App) listed(node pbxmesh.NodeID) error {
	if node == "" {
		return nil
	}
	_, err := a.member(node)
	return err
}

// ListAll calls each for every live registration that q selects. It holds the
// registrations of a 256th of all extensions at a time, or pointers to one node's.
func (a *App) ListAll(ctx context.Context, q control.ListQuery, each func(*control.Listed) error) (*control.ListEnd, error) {
	f, err := registry.NewFilter(string(q.Node), q.Domain, q.User)
	if err != nil {
		return nil, err
	}
	age, err := a.age(a.now())
	if err != nil {
		return nil, err
	}
	if err := a.listed(q.Node); err != nil {
		return nil, err
	}
	end := &control.ListEnd{DataAge: control.SecondsOf(age), Source: control.SourceReplica}
	mesh := a.tracker.Mesh()
	var failed error
	yield := func(r *pbxmesh.Registration) bool {
		now := a.now()
		if !f.Match(r) || !r.Live(now) {
			return true
		}
		end.Count++
		if failed = ctx.Err(); failed == nil {
			failed = each(&control.Listed{
				AOR: r.AOR, Registration: control.NewRegistration(r, mesh.State(r.Node).Effective().String(), now),
			})
		}
		return failed == nil
	}
	if f.Node != "" {
		a.replica.WalkNode(f.Node, yield)
	} else {
		a.replica.Walk(yield)
	}
	return end, failed
}
