package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"pbxmesh"
	"pbxmesh/registry"
)

// Stream calls each for every registration that f selects, from the store itself,
// node by node, for whoever asks once and has no daemon. Expired ones may be among
// them. alive says that the node holds its lease. An error of each ends it.
//
// It holds one page of Redis and one number per selected registration of one node.
// Redis looks at every record of the selected nodes, and sends those that fit. Errors
// are those of Find, and registry.ErrNoNode for a node that is none; what was given before stands.
func (s *Store) Stream(ctx context.Context, f registry.Filter, each func(reg *pbxmesh.Registration, alive bool) error) error {
	members, _, err := s.Members(ctx)
	if err != nil {
		return err
	}
	var nodes []pbxmesh.NodeID
	for i := range members {
		if !members[i].Gone {
			nodes = append(nodes, members[i].Node.ID)
		}
	}
	if len(nodes) == 0 {
		return fmt.Errorf("%w: redis: nothing stands under %s", registry.ErrNoMesh, s.membersKey())
	}
	if f.Node != "" && !slices.Contains(nodes, f.Node) {
		return fmt.Errorf("%w: redis: no node is called %s", registry.ErrNoNode, f.Node)
	}
	slices.Sort(nodes)
	leases, _, err := s.Leases(ctx, nodes)
	if err != nil {
		return err
	}
	for _, id := range nodes {
		if f.Node != "" && f.Node != id {
			continue
		}
		_, alive := leases[id]
		if err := s.streamOne(ctx, id, f, func(reg *pbxmesh.Registration) error { return each(reg, alive) }); err != nil {
			return err
		}
	}
	return nil
}

// streamOne reads one node, again when it published anew meanwhile: what was given
// already is known by its key.
func (s *Store) streamOne(ctx context.Context, node pbxmesh.NodeID, f registry.Filter, each func(*pbxmesh.Registration) error) error {
	given := map[uint64]struct{}{}
	from := s.source(node)
	for range findTries {
		at, err := s.place(ctx, from, node)
		if errors.Is(err, registry.ErrNoNode) {
			return nil
		}
		if err != nil {
			return err
		}
		err = s.scanMatch(ctx, from, s.recordsKey(node, at.Term), filterGlob(f), scanCount, func(field, value string) error {
			if err := ctx.Err(); err != nil {
				return fmt.Errorf("%w: redis: %w", pbxmesh.ErrUnavailable, err)
			}
			reg, ok := parseRegistration(node, field, value)
			if !ok || !f.Match(&reg) {
				return nil
			}
			key := xxhash.Sum64String(field)
			if _, twice := given[key]; twice {
				return nil
			}
			given[key] = struct{}{}
			return each(&reg)
		})
		if err != nil {
			return err
		}
		after, err := s.place(ctx, from, node)
		if err != nil && !errors.Is(err, registry.ErrNoNode) {
			return err
		}
		if after.Term == at.Term {
			return nil
		}
	}
	return fmt.Errorf("%w: redis: %s", registry.ErrChanged, node)
}

// parseRegistration reads a field and value of a records hash; whatever a stranger wrote
// is not shown.
func parseRegistration(node pbxmesh.NodeID, field, value string) (pbxmesh.Registration, bool) {
	rec, err := parseStored(field, value)
	if err != nil {
		return pbxmesh.Registration{}, false
	}
	reg, err := registry.DecodeRegistration(node, rec)
	return reg, err == nil
}

// filterGlob is the pattern of the hash fields of what f selects, whatever its node.
func filterGlob(f registry.Filter) string {
	user, domain := escapeGlob(f.User), escapeGlob(f.Domain)
	if f.Prefix || f.User == "" {
		user += "*"
	}
	if domain == "" {
		domain = "*"
	}
	return escapeGlob(string(registry.KindRegistration)+"|") + user + "@" + domain + "|*"
}
