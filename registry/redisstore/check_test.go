package redisstore_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
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
	if want := "+cluster|slots +cluster|shards +readonly"; !strings.Contains(string(doc), want) {
		t.Errorf("docs/registry.md lacks %s", want)
	}
}
