package redisstore_test

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// A check writes, tells the time, and leaves nothing behind; a store that is away is
// unavailable.
func TestCheck(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	url := "redis://" + server.Addr() + "/0"
	store, err := redisstore.New(redisstore.Options{URL: url, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	at, write, read, err := store.Check(t.Context())
	if err != nil || write <= 0 || read <= 0 || time.Since(at).Abs() > 10*time.Second {
		t.Errorf("%v, %v, %v, %v", at, write, read, err)
	}
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	if keys, err := client.Keys(t.Context(), "*").Result(); err != nil || len(keys) != 0 {
		t.Errorf("it left %v, %v", keys, err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := store.Check(t.Context()); !errors.Is(err, pbxmesh.ErrUnavailable) {
		t.Errorf("a store that is away: %v", err)
	}
}

// TestRights takes each right away in turn: the check names what is missing. With all of them it
// finds nothing, and they do not let anybody empty the server or read what is not ours.
func TestRights(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	admin := client(t, server.Addr())
	check := func(acl string) error {
		setUser(t, admin, "mesh", acl)
		s := open(t, redisstore.Options{URL: "redis://" + server.Addr() + "/1", Username: "mesh", Password: "secret"})
		_, _, _, err := s.Check(t.Context())
		return err
	}
	all := redisstore.ACL("pbxmesh", false)
	if err := check(all); err != nil {
		t.Fatalf("with all rights: %v", err)
	}
	for _, right := range redisstore.Rights {
		err := check(all + " -" + right)
		switch {
		case right == "unsubscribe": // only ever beside subscribe; closing the connection does as well
		case err == nil || !strings.Contains(err.Error(), "NOPERM") || !strings.Contains(err.Error(), right):
			t.Errorf("without %s: %v", right, err)
		}
	}
	for what, acl := range map[string]string{"other keys": all + " resetkeys ~other:*", "no channel": all + " resetchannels"} {
		if err := check(acl); err == nil || !strings.Contains(err.Error(), "on keys and channels of pbxmesh:*") {
			t.Errorf("%s: %v", what, err)
		}
	}
	setUser(t, admin, "mesh", all)
	mesh := redis.NewClient(&redis.Options{Addr: server.Addr(), Username: "mesh", Password: "secret"})
	t.Cleanup(func() { _ = mesh.Close() })
	for _, args := range [][]any{{"flushall"}, {"flushdb"}, {"keys", "*"}, {"config", "get", "*"}, {"get", "other"}, {"acl", "list"}, {"eval", "return redis.call('FLUSHALL')", 0}} {
		if err := mesh.Do(t.Context(), args...).Err(); err == nil || !strings.Contains(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "permission") && !strings.Contains(err.Error(), "can't run") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// TestReadRights is TestRights for the user at a replica, who is another one there: rights do not
// follow. A daemon with no more than these reads there.
func TestReadRights(t *testing.T) {
	t.Parallel()
	primary := registrytest.StartRedis(t)
	near := registrytest.StartReplica(t, primary.Addr())
	setUser(t, client(t, primary.Addr()), "mesh", redisstore.ACL("pbxmesh", false))
	admin := client(t, near.Addr())
	o := redisstore.Options{URL: primary.URL() + "/1", Read: near.URL(), Username: "mesh", Password: "secret"}
	check := func(acl string) error {
		setUser(t, admin, "mesh", acl)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		behind, err := open(t, o).CheckReplica(ctx)
		if err == nil && behind <= 0 {
			t.Errorf("behind %s", behind)
		}
		return err
	}
	all := redisstore.ReadACL("pbxmesh")
	if err := check(all); err != nil {
		t.Fatalf("with all rights: %v", err)
	}
	for _, right := range redisstore.ReadRights {
		err := check(all + " -" + right)
		switch {
		case right == "unsubscribe": // as above
		case err == nil || !strings.Contains(err.Error(), "NOPERM") || !strings.Contains(err.Error(), right):
			t.Errorf("without %s: %v", right, err)
		}
	}
	setUser(t, admin, "mesh", all)
	s := open(t, o)
	if err := s.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: "london"}}); err != nil {
		t.Fatal(err)
	}
	term, err := s.Publish(t.Context(), registry.Publication{Node: "paris", Owner: "h", Instance: "p", Term: 1, Digests: registry.Digests{}})
	if err != nil {
		t.Fatal(err)
	}
	reader := open(t, o)
	registrytest.WaitFor(t, "everything at the replica", func() bool {
		members, _, err1 := reader.Members(t.Context())
		_, _, err2 := reader.Leases(t.Context(), []pbxmesh.NodeID{"london"})
		at, err3 := reader.Snapshot(t.Context(), "paris", func(registry.Record) {})
		_, err4 := reader.Changes(t.Context(), []registry.Cursor{{Node: "paris", Term: term}})
		_, _, _, err5 := reader.Notes(t.Context(), registry.NoteVotes, 1)
		if err := errors.Join(err1, err2, err4, err5); err != nil {
			t.Fatal(err)
		}
		st, _ := reader.Replica()
		if !st.Used || st.Err != nil {
			t.Fatalf("%+v", st)
		}
		return err3 == nil && at.Term == term && len(members) == 1
	})
}

// A replica of another primary is told from a slow one by nothing but time.
func TestCheckStrangeReplica(t *testing.T) {
	t.Parallel()
	primary, other := registrytest.StartRedis(t), registrytest.StartRedis(t)
	s := open(t, redisstore.Options{URL: primary.URL(), Read: other.URL()})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := s.CheckReplica(ctx); !errors.Is(err, pbxmesh.ErrUnavailable) || !strings.Contains(err.Error(), "does not show what was written") {
		t.Errorf("%v", err)
	}
}

// TestDocumentedRights holds docs/registry.md to the line that the tests use.
func TestDocumentedRights(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/registry.md")
	if err != nil {
		t.Fatal(err)
	}
	if want := redisstore.ACL("pbxmesh", false); !strings.Contains(strings.Join(strings.Fields(string(doc)), " "), want) {
		t.Errorf("docs/registry.md lacks\n%s", want)
	}
	if want := redisstore.ReadACL("pbxmesh"); !strings.Contains(strings.Join(strings.Fields(string(doc)), " "), want) {
		t.Errorf("docs/registry.md lacks\n%s", want)
	}
	if want := "+cluster|slots +cluster|shards +readonly"; !strings.Contains(string(doc), want) {
		t.Errorf("docs/registry.md lacks %s", want)
	}
}
