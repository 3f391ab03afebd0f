package redisstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"pbxmesh"
	"pbxmesh/registry"
)

const (
	findParallel = 4    // nodes searched at once
	findCount    = 5000 // fields looked at per HSCAN; only those that fit travel
	findTries    = 3
)

// Find reads the registrations of one AOR from the store itself, without a
// replica, for whoever asks once and has no daemon. Expired ones may be among
// them. alive names the nodes that hold their lease.
//
// Redis looks at every record of every node, and sends those of the AOR only. The
// error is registry.ErrNoMesh when the store answers and knows no node at all:
// then it is empty, or another one. Any other error means that the answer is
// incomplete, and none is given.
func (s *Store) Find(ctx context.Context, aor pbxmesh.AOR) (found []pbxmesh.Registration, alive map[pbxmesh.NodeID]bool, err error) {
	members, _, err := s.Members(ctx)
	if err != nil {
		return nil, nil, err
	}
	var nodes []pbxmesh.NodeID
	for i := range members {
		if !members[i].Gone {
			nodes = append(nodes, members[i].Node.ID)
		}
	}
	if len(nodes) == 0 {
		return nil, nil, fmt.Errorf("%w: redis: nothing stands under %s", registry.ErrNoMesh, s.membersKey())
	}
	leases, _, err := s.Leases(ctx, nodes)
	if err != nil {
		return nil, nil, err
	}
	alive = make(map[pbxmesh.NodeID]bool, len(leases))
	for id := range leases {
		alive[id] = true
	}

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu     sync.Mutex // guards found and failed
		failed error
		tasks  sync.WaitGroup
		tokens = make(chan struct{}, findParallel)
	)
	for _, id := range nodes {
		tokens <- struct{}{}
		tasks.Go(func() {
			defer func() { <-tokens }()
			regs, err := s.findOn(ctx, id, aor)
			mu.Lock()
			defer mu.Unlock()
			found = append(found, regs...)
			if err != nil && failed == nil {
				failed = err
				cancel() // an incomplete answer is none
			}
		})
	}
	tasks.Wait()
	if failed != nil {
		return nil, nil, failed
	}
	slices.SortFunc(found, func(a, b pbxmesh.Registration) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.CallID, b.CallID))
	})
	return found, alive, nil
}

// findOn reads one node, again when it published anew meanwhile.
func (s *Store) findOn(ctx context.Context, node pbxmesh.NodeID, aor pbxmesh.AOR) ([]pbxmesh.Registration, error) {
	match := escapeGlob(string(registry.KindRegistration)+"|"+aor.String()+"|") + "*"
	from := s.source(node)
	for range findTries {
		at, err := s.place(ctx, from, node)
		if errors.Is(err, registry.ErrNoNode) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		newest := map[string]registry.Record{} // a scan may return a field twice
		err = s.scanMatch(ctx, from, s.recordsKey(node, at.Term), match, findCount, func(field, value string) error {
			rec, err := parseStored(field, value)
			if err == nil && rec.Kind == registry.KindRegistration && rec.Seq >= newest[field].Seq {
				newest[field] = rec
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		after, err := s.place(ctx, from, node)
		if err != nil && !errors.Is(err, registry.ErrNoNode) {
			return nil, err
		}
		if after.Term != at.Term {
			continue
		}
		var regs []pbxmesh.Registration
		for _, rec := range newest {
			// Whatever a stranger wrote is not shown.
			if reg, err := registry.DecodeRegistration(node, rec); err == nil && reg.AOR == aor {
				regs = append(regs, reg)
			}
		}
		return regs, nil
	}
	return nil, fmt.Errorf("%w: redis: %s", registry.ErrChanged, node)
}

// escapeGlob makes Redis take every character of text for itself.
func escapeGlob(text string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`, `^`, `\^`).Replace(text)
}
