package redisstore_test

import (
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// What does not seem to change is read now and then all the same: a clock that was set, and
// members that a daemon of an older version announced.
func TestReadAnyhow(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	writer, reader := open(t, redisstore.Options{URL: server.URL()}), open(t, redisstore.Options{URL: server.URL()})
	raw := client(t, server.Addr())
	nodes := []pbxmesh.NodeID{"buffalo", "london"}
	beat, jump, still := uint64(0), time.Duration(0), false
	// look has every daemon renew its lease, asks as a reader does, and returns how many members
	// there are, which clocks were read, and by how many commands.
	look := func() (members, clocks, reads int) {
		t.Helper()
		if !still {
			beat++
		}
		for _, id := range nodes {
			if still {
				break
			}
			l := registry.Lease{Node: id, Instance: "i", TTL: time.Minute, Beat: beat, Clock: time.Now().Add(jump).UnixMilli()}
			if err := writer.Renew(t.Context(), l); err != nil {
				t.Fatal(err)
			}
		}
		before, looks := called(t, raw, "mget"), called(t, raw, "hgetall")
		known, bad, err := reader.Members(t.Context())
		if err != nil || bad != 0 {
			t.Fatalf("members: %d bad, %v", bad, err)
		}
		leases, bad, err := reader.Leases(t.Context(), nodes)
		if err != nil || bad != 0 || len(leases) != len(nodes) {
			t.Fatalf("leases %v, %d bad, %v", leases, bad, err)
		}
		for _, l := range leases {
			if l.Beat != beat {
				t.Errorf("beat %d of %s, want %d", l.Beat, l.Node, beat)
			}
			if l.Clock != 0 {
				clocks++
			}
		}
		if n := called(t, raw, "hgetall") - looks; n != 1 {
			t.Errorf("looked %d times, want once for both", n)
		}
		return len(known), clocks, called(t, raw, "mget") - before
	}
	for _, id := range nodes {
		if err := writer.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: id}}); err != nil {
			t.Fatal(err)
		}
	}
	for n := range 12 {
		if _, clocks, reads := look(); n < 7 && (clocks != 2 || reads != 1) || n > 8 && (clocks != 0 || reads != 0) {
			t.Errorf("look %d at two instances: %d clocks, %d reads", n+1, clocks, reads)
		}
	}
	reader.Ages(2*time.Minute-5*time.Second, nodes...)
	if _, clocks, reads := look(); clocks != 0 || reads != 0 {
		t.Errorf("before two minutes: %d clocks, %d reads", clocks, reads)
	}
	// One is due, and the other one goes with it.
	reader.Ages(5*time.Second, "buffalo")
	if _, clocks, reads := look(); clocks != 2 || reads != 1 {
		t.Errorf("after two minutes: %d clocks, %d reads, want both by one", clocks, reads)
	}
	if _, clocks, reads := look(); clocks != 0 || reads != 0 {
		t.Errorf("a moment later: %d clocks, %d reads", clocks, reads)
	}
	// A clock that was set is looked at more closely.
	jump = time.Minute
	if _, clocks, _ := look(); clocks != 0 {
		t.Errorf("%d clocks, want what is known", clocks)
	}
	reader.Ages(2*time.Minute, nodes...)
	for n := range 8 {
		if _, clocks, _ := look(); clocks != 2 {
			t.Errorf("look %d after two clocks were set: %d clocks", n+1, clocks)
		}
	}
	if _, clocks, _ := look(); clocks != 0 {
		t.Errorf("%d clocks are read for ever", clocks)
	}
	// A lease that is newer than the look says more.
	reader.Ages(-time.Minute, "london")
	if _, clocks, reads := look(); clocks != 1 || reads != 1 {
		t.Errorf("read after the look: %d clocks, %d reads", clocks, reads)
	}
	reader.Ages(time.Minute, "london")
	look()
	// One whose beat stands still is read from the second look on: it may have ended. When it goes
	// on, no clock was set.
	still = true
	for n := range 4 {
		if _, _, reads := look(); reads != min(n, 1) {
			t.Errorf("look %d at leases that nobody renews: %d reads", n+1, reads)
		}
		reader.Ages(2*time.Second, nodes...)
	}
	still = false
	look()
	for n := range 3 {
		if _, clocks, _ := look(); clocks != 0 {
			t.Errorf("look %d after they went on: %d clocks", n+1, clocks)
		}
	}
	// A daemon of an older version tells nobody that it joins.
	text, err := registry.EncodeAnnouncement(&registry.Announcement{Node: pbxmesh.Node{ID: "paris"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.HSet(t.Context(), "pbxmesh:members", "paris", text).Err(); err != nil {
		t.Fatal(err)
	}
	reader.Ages(4 * time.Minute)
	if members, _, _ := look(); members != 2 {
		t.Errorf("before five minutes: %d members, want 2", members)
	}
	reader.Ages(time.Minute)
	if members, _, _ := look(); members != 3 {
		t.Errorf("after five minutes: %d members, want 3", members)
	}
}

// A daemon of an older version that stops says so among the members without a new revision: they
// are read when its lease ends, or it would seem to have died.
func TestMembersAreReadWhenALeaseEnds(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	writer, reader := open(t, redisstore.Options{URL: server.URL()}), open(t, redisstore.Options{URL: server.URL()})
	raw, node := client(t, server.Addr()), []pbxmesh.NodeID{"london"}
	left := func(held bool) bool {
		t.Helper()
		members, _, err := reader.Members(t.Context())
		if err != nil || len(members) != 1 {
			t.Fatal(members, err)
		}
		if leases, _, err := reader.Leases(t.Context(), node); err != nil || len(leases) == 1 != held {
			t.Fatal(leases, err)
		}
		return members[0].Left
	}
	if err := writer.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: "london"}}); err != nil {
		t.Fatal(err)
	}
	if err := writer.Renew(t.Context(), registry.Lease{Node: "london", Instance: "i", TTL: time.Minute, Beat: 1, Clock: time.Now().UnixMilli()}); err != nil {
		t.Fatal(err)
	}
	left(true)
	text, err := registry.EncodeAnnouncement(&registry.Announcement{Node: pbxmesh.Node{ID: "london"}, Left: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.HSet(t.Context(), "pbxmesh:members", "london", text).Err(); err != nil {
		t.Fatal(err)
	}
	if err := raw.Del(t.Context(), "pbxmesh:{london}:lease").Err(); err != nil {
		t.Fatal(err)
	}
	left(false)
	if !left(false) {
		t.Error("its announcement is not read")
	}
}
