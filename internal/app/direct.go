package app

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pbxmesh"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
)

// Direct answers from the registry itself, for a command that finds no daemon. The state
// of a node is "alive" when its daemon renews its lease, else "silent".
type Direct struct{ store directStore }

// directStore is a store that can be read without a replica.
type directStore interface {
	registry.Backend
	Find(ctx context.Context, aor pbxmesh.AOR) ([]pbxmesh.Registration, map[pbxmesh.NodeID]bool, error)
	Stream(ctx context.Context, f registry.Filter, each func(reg *pbxmesh.Registration, alive bool) error) error
}

// OpenDirect returns the registry that cfg names. It connects to nothing. The caller
// closes it.
func OpenDirect(cfg *config.Registry) (*Direct, error) {
	backend, err := OpenStore(cfg)
	if err != nil {
		return nil, err
	}
	s, ok := backend.(directStore)
	if !ok {
		return nil, errors.Join(errors.New("this kind of registry cannot be read without a daemon"), backend.Close())
	}
	return &Direct{store: s}, nil
}

// Close frees connections.
func (d *Direct) Close() error { return d.store.Close() }

// Lookup answers who is registered where.
func (d *Direct) Lookup(ctx context.Context, aor pbxmesh.AOR) (*control.LookupReply, error) {
	found, alive, err := d.store.Find(ctx, aor)
	if err != nil {
		return nil, remedy(err)
	}
	reply := &control.LookupReply{AOR: aor, Registrations: []control.Registration{}, Source: control.SourceRegistry}
	now := time.Now()
	for i := range found {
		if found[i].Live(now) {
			reply.Registrations = append(reply.Registrations, control.NewRegistration(&found[i], lifeSign(alive[found[i].Node]), now))
		}
	}
	return reply, nil
}

// ListAll calls each for every live registration that q selects, node by node.
func (d *Direct) ListAll(ctx context.Context, q control.ListQuery, each func(*control.Listed) error) (*control.ListEnd, error) {
	f, err := registry.NewFilter(string(q.Node), q.Domain, q.User)
	if err != nil {
		return nil, err
	}
	end := &control.ListEnd{Source: control.SourceRegistry}
	err = d.store.Stream(ctx, f, func(reg *pbxmesh.Registration, alive bool) error {
		now := time.Now()
		if !reg.Live(now) {
			return nil
		}
		end.Count++
		return each(&control.Listed{AOR: reg.AOR, Registration: control.NewRegistration(reg, lifeSign(alive), now)})
	})
	return end, remedy(err)
}

// remedy says what to do where no mesh was found.
func remedy(err error) error {
	if !errors.Is(err, registry.ErrNoMesh) {
		return err
	}
	return fmt.Errorf("%w; is it the mesh's Redis, database and registry.key_prefix? The daemon's configuration file tells: --registry pbxmesh.yaml", err)
}

func lifeSign(alive bool) string {
	if alive {
		return "alive"
	}
	return "silent"
}

// CheckListQuery says what of q cannot be selected: pbxmesh.ErrInvalidAOR or
// pbxmesh.ErrInvalidNodeID.
func CheckListQuery(q control.ListQuery) error {
	_, err := registry.NewFilter(string(q.Node), q.Domain, q.User)
	return err
}
