package native

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry/redisstore"
)

// TestExchange is the contract that every Exchange keeps.
func TestExchange(t *testing.T) {
	t.Parallel()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		checkExchange(t, NewMemory())
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		client := startRedis(t)
		checkExchange(t, NewRedis(RedisOptions{
			Client: client, Prefix: "t:", Listen: listener(t, "", "", client),
			Nodes: func() []pbxmesh.NodeID { return []pbxmesh.NodeID{"london", "buffalo"} },
		}))
	})
	t.Run("redis, with the rights that a user needs", func(t *testing.T) {
		t.Parallel()
		admin := startRedis(t)
		args := []any{"ACL", "SETUSER", "mesh", "on", ">secret"}
		for f := range strings.FieldsSeq(redisstore.ACL("t", false)) {
			args = append(args, f)
		}
		if err := admin.Do(t.Context(), args...).Err(); err != nil {
			t.Fatal(err)
		}
		o := *admin.Options()
		o.Username, o.Password = "mesh", "secret"
		client := redis.NewClient(&o)
		t.Cleanup(func() { _ = client.Close() })
		checkExchange(t, NewRedis(RedisOptions{
			Client: client, Prefix: "t:", Listen: listener(t, "mesh", "secret", client),
			Nodes: func() []pbxmesh.NodeID { return []pbxmesh.NodeID{"london", "buffalo"} },
		}))
	})
}

// listener listens to the channels of the prefix "t" at the client's server.
func listener(t *testing.T, user, password string, c *redis.Client) func(context.Context, string, func(string, bool)) error {
	t.Helper()
	store, err := redisstore.New(redisstore.Options{URL: "unix://" + c.Options().Addr, Username: user, Password: password, Prefix: "t"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store.Listen
}

// follower records what it is told.
type follower struct {
	mu    sync.Mutex
	ready bool
	seen  []string
}

func (f *follower) hear(st State) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if st.Key == "probe" {
		f.ready = true
		return
	}
	f.seen = append(f.seen, fmt.Sprintf("%s/%s %d %v %s", st.Node, st.Key, st.Seq, st.Ended, st.Fields["status"]))
}

func (f *follower) expect(t *testing.T, want ...string) {
	t.Helper()
	eventually(t, 5*time.Second, func() string {
		f.mu.Lock()
		defer f.mu.Unlock()
		if !slices.Equal(f.seen, want) {
			return fmt.Sprintf("%q, want %q", f.seen, want)
		}
		return ""
	})
}

func checkExchange(t *testing.T, x Exchange) {
	publish := func(kind string, node pbxmesh.NodeID, key string, seq uint64, ended bool) {
		t.Helper()
		err := x.Publish(t.Context(), State{
			Kind: kind, Node: node, Key: key, AOR: annaA, Epoch: "e", Run: "r", Seq: seq, TTL: time.Minute, Ended: ended,
			Fields: map[string]string{"status": "täst"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	early, late := &follower{}, &follower{}
	start(t, func(ctx context.Context) error { return x.Follow(ctx, KindCall, early.hear) })
	eventually(t, 5*time.Second, func() string { // until it follows
		publish(KindCall, "london", "probe", 1, true)
		early.mu.Lock()
		defer early.mu.Unlock()
		if !early.ready {
			return "not followed"
		}
		return ""
	})
	publish(KindCall, "london", "a", 1, false)
	publish(KindMailbox, "london", "box", 1, false)
	publish(KindCall, "london", "a", 2, false)
	publish(KindCall, "buffalo", "b", 1, false)
	publish(KindCall, "buffalo", "b", 2, true)
	early.expect(t, "london/a 1 false täst", "london/a 2 false täst", "buffalo/b 1 false täst", "buffalo/b 2 true täst")
	start(t, func(ctx context.Context) error { return x.Follow(ctx, KindCall, late.hear) })
	late.expect(t, "london/a 2 false täst") // what holds, and not what ended
	publish(KindCall, "london", "a", 3, true)
	late.expect(t, "london/a 2 false täst", "london/a 3 true täst")
}

// startRedis runs a redis-server on a unix socket, or skips without one.
func startRedis(t *testing.T) *redis.Client {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skip("SKIPPED LOUDLY: no redis-server in PATH")
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	if len(socket) > 100 { // a unix socket's path is short
		t.Skip("temporary folder has too long a name for a socket")
	}
	cmd := exec.Command(binary, "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no", "--dir", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(&redis.Options{Network: "unix", Addr: socket, MaxRetries: -1})
	t.Cleanup(func() {
		_ = client.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, 10*time.Second, func() string {
		c, err := net.Dial("unix", socket)
		if err != nil {
			return err.Error()
		}
		_ = c.Close()
		return ""
	})
	return client
}

func TestDecodeStateRefuses(t *testing.T) {
	t.Parallel()
	good := `{"kind":"presence","node":"london","key":"k","aor":"anna@a.test","ttl":1}`
	if _, ok := decodeState(good, KindCall); !ok {
		t.Fatal("a good state was refused")
	}
	for name, text := range map[string]string{
		"other kind":  strings.Replace(good, "presence", "mwi", 1),
		"node":        strings.Replace(good, "london", "Lon don", 1),
		"no key":      strings.Replace(good, `"k"`, `""`, 1),
		"hostile aor": strings.Replace(good, "anna@a.test", `a|b@a.test`, 1),
		"no aor":      strings.Replace(good, `"aor":"anna@a.test",`, "", 1),
		"cut off":     good[:40],
		"too long":    strings.Replace(good, `"k"`, `"`+strings.Repeat("k", maxStateSize)+`"`, 1),
	} {
		if st, ok := decodeState(text, KindCall); ok {
			t.Errorf("%s: taken as %+v", name, st)
		}
	}
}

// TestForgetStates: of a node that was removed for good nothing stays in Redis.
func TestForgetStates(t *testing.T) {
	t.Parallel()
	client := startRedis(t)
	x := NewRedis(RedisOptions{Client: client, Prefix: "t:", Nodes: func() []pbxmesh.NodeID { return nil }})
	for _, kind := range []string{KindCall, KindStatus, KindMailbox, KindCache} {
		for _, node := range []pbxmesh.NodeID{"london", "buffalo"} {
			if err := x.Publish(t.Context(), State{Kind: kind, Node: node, Key: "k", AOR: annaA, Epoch: "e", Run: "r", Seq: 1, TTL: time.Minute}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := x.Forget(t.Context(), "london"); err != nil {
		t.Fatal(err)
	}
	left, err := client.Keys(t.Context(), "*").Result()
	if err != nil || len(left) != 4 || slices.ContainsFunc(left, func(key string) bool { return !strings.Contains(key, "{buffalo}") }) {
		t.Errorf("left are %q, %v; want the four of buffalo", left, err)
	}
}
