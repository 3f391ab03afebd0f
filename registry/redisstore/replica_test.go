package redisstore_test

import (
	"context"
	"errors"
	"testing"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// What is written goes to the primary, and what is read comes from the replica.
func TestReadsFromReplica(t *testing.T) {
	t.Parallel()
	primary := registrytest.StartRedis(t)
	near := registrytest.StartReplica(t, primary.Addr())
	s := open(t, redisstore.Options{URL: primary.URL() + "/2", Read: near.URL()})
	ctx := context.Background()
	if err := s.Announce(ctx, registry.Announcement{Node: pbxmesh.Node{ID: "london"}}); err != nil {
		t.Fatal(err)
	}
	registrytest.WaitFor(t, "the member at the replica", func() bool {
		members, _, err := s.Members(ctx)
		return err == nil && len(members) == 1
	})
	if n := called(t, client(t, primary.Addr()), "hgetall"); n != 0 {
		t.Errorf("the primary was read %d times", n)
	}
}

// Where a replica cannot be read, or is asked for another mesh, there is no store.
func TestReadRefused(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]redisstore.Options{
		"cluster":  {Addresses: []string{"127.0.0.1:1"}, Read: "redis://127.0.0.1:2"},
		"no URL":   {URL: "redis://127.0.0.1:1", Read: "127.0.0.1"},
		"database": {URL: "redis://127.0.0.1:1/2", Read: "redis://127.0.0.1:2/3"},
	} {
		if s, err := redisstore.New(o); err == nil {
			t.Errorf("%s: %v", name, errors.Join(err, s.Close()))
		}
	}
}
