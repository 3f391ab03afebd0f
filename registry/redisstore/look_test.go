package redisstore_test

import (
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// called returns how often Redis was asked to do a command.
func called(t *testing.T, c *redis.Client, command string) int {
	t.Helper()
	text, err := c.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "cmdstat_"+command+":calls="); ok {
			calls, _, _ := strings.Cut(rest, ",")
			n, err := strconv.Atoi(calls)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	return 0
}

// What did not change is not sent again: neither announcements nor leases, whose beats are
// known all the same. What did change is.
func TestUnchangedIsNotReadAgain(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	writer, reader := open(t, redisstore.Options{URL: server.URL()}), open(t, redisstore.Options{URL: server.URL()})
	raw := client(t, server.Addr())
	ctx := context.Background()
	nodes := []pbxmesh.NodeID{"buffalo", "london", "paris"}
	leases := map[pbxmesh.NodeID]*registry.Lease{}
	renew := func(ids ...pbxmesh.NodeID) {
		t.Helper()
		for _, id := range ids {
			l := leases[id]
			l.Beat++
			l.Clock = time.Now().UnixMilli()
			if err := writer.Renew(ctx, *l); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, id := range nodes {
		leases[id] = &registry.Lease{Node: id, Owner: "h", Instance: "i-" + string(id), TTL: time.Minute, Beat: 95}
		if err := writer.Announce(ctx, registry.Announcement{Node: pbxmesh.Node{ID: id, Software: "1"}}); err != nil {
			t.Fatal(err)
		}
	}
	var strangers []pbxmesh.NodeID
	early := true
	// look asks as a daemon does, and holds the answer to what was written.
	look := func(want ...pbxmesh.NodeID) []registry.Announcement {
		t.Helper()
		members, bad, err := reader.Members(ctx)
		if err != nil || bad != 0 {
			t.Fatalf("members: %d bad, %v", bad, err)
		}
		got, bad, err := reader.Leases(ctx, append(nodes, strangers...))
		if err != nil || bad != 0 || len(got) != len(want) {
			t.Fatalf("leases %v, %d bad, %v; want those of %v", got, bad, err, want)
		}
		for _, id := range want {
			l := *leases[id]
			if g := got[id]; g.Beat != l.Beat || g.Instance != l.Instance || g.Switch != l.Switch || g.Clock != l.Clock && (early || g.Clock != 0) {
				t.Fatalf("lease %+v, want %+v", g, l)
			}
		}
		return members
	}
	for range 7 { // the clocks of new instances are read at first
		renew(nodes...)
		look(nodes...)
	}
	early = false
	for range 3 {
		renew(nodes...)
		look(nodes...)
	}
	read, sent := called(t, raw, "mget"), called(t, raw, "hstrlen")
	const rounds = 250 // the beats that are told turn over
	for range rounds {
		renew(nodes...)
		look(nodes...)
	}
	if n := called(t, raw, "mget") - read; n != 0 {
		t.Errorf("leases were read %d times in %d rounds", n, rounds)
	}
	if n := called(t, raw, "hstrlen") - sent; n != 0 {
		t.Errorf("the members were read again: %d", n)
	}
	strangers = []pbxmesh.NodeID{"nobody"} // asked for, and no member
	// Something changes in one lease.
	leases["london"].Switch = registry.SwitchState{Known: true, Alive: true, Sessions: 3}
	renew("london")
	look(nodes...)
	// One ends, and is there again under another instance.
	if err := writer.Leave(ctx, *leases["paris"]); err != nil {
		t.Fatal(err)
	}
	look("buffalo", "london")
	leases["paris"].Instance = "j"
	renew("paris")
	look(nodes...)
	// A node joins, and one says something else of itself: both are seen at once.
	nodes = append(nodes, "aachen")
	leases["aachen"] = &registry.Lease{Node: "aachen", Owner: "h", Instance: "a", TTL: time.Minute}
	for _, id := range []pbxmesh.NodeID{"aachen", "london"} {
		if err := writer.Announce(ctx, registry.Announcement{Node: pbxmesh.Node{ID: id, Software: "2"}}); err != nil {
			t.Fatal(err)
		}
	}
	renew(nodes...)
	if members := look(nodes...); len(members) != 4 {
		t.Errorf("members %v", members)
	}
	// A stranger among the members disturbs nobody's lease.
	if err := raw.HDel(ctx, "pbxmesh:members", "paris").Err(); err != nil { // as many as before, in another order
		t.Fatal(err)
	}
	for _, name := range []string{"aa", "x}y", "", "zz\n-", strings.Repeat("n", 100)} {
		if err := raw.HSet(ctx, "pbxmesh:members", name, "{}").Err(); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			renew(nodes...)
			got, _, err := reader.Leases(ctx, nodes)
			if err != nil || len(got) != len(nodes) {
				t.Fatalf("beside the member %q: leases %v, %v", name, got, err)
			}
			for _, id := range nodes {
				if got[id].Beat != leases[id].Beat || got[id].Instance != leases[id].Instance {
					t.Errorf("beside the member %q: lease %+v, want %+v", name, got[id], leases[id])
				}
			}
		}
	}
	// A store that lost everything, and gets it back.
	if err := raw.FlushAll(ctx).Err(); err != nil {
		t.Fatal(err)
	}
	if members, _, err := reader.Members(ctx); err != nil || len(members) != 0 {
		t.Errorf("members of an empty store: %v, %v", members, err)
	}
	if got, _, err := reader.Leases(ctx, nodes); err != nil || len(got) != 0 {
		t.Errorf("leases of an empty store: %v, %v", got, err)
	}
	if err := writer.Announce(ctx, registry.Announcement{Node: pbxmesh.Node{ID: "london", Software: "2"}}); err != nil {
		t.Fatal(err)
	}
	renew("london")
	if members := look("london"); len(members) != 1 {
		t.Errorf("members %v", members)
	}
}
