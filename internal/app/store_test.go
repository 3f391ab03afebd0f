package app

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/redis/go-redis/v9"

	"pbxmesh/internal/config"
	"pbxmesh/registry"
	"pbxmesh/registry/registrytest"
)

// fileLog is a log that counts what is said of files.
type fileLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *fileLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *fileLog) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// since returns how often files of key were told to be bad, and good again, since it was asked last.
func (l *fileLog) since(key string) (bad, good int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		if strings.Contains(line, " key="+key) && strings.Contains(line, "level=ERROR") {
			bad++
		} else if strings.Contains(line, " key="+key) {
			good++
		}
	}
	l.text.Reset()
	return bad, good
}

// rotation is one store in use, and who rules its servers.
type rotation struct {
	log     fileLog
	dir     string
	store   registry.Backend
	admins  []*redis.Client // of the servers and Sentinels that the store connects to
	servers []*redis.Client // those of them that hold records
}

func newRotation(t *testing.T, servers ...string) *rotation {
	t.Helper()
	r := &rotation{dir: t.TempDir()}
	for _, addr := range servers {
		r.servers = append(r.servers, r.rule(t, addr))
	}
	return r
}

// rule returns an administrator of the server at addr, who needs no password there.
func (r *rotation) rule(t *testing.T, addr string) *redis.Client {
	t.Helper()
	first := redis.NewClient(&redis.Options{Addr: addr, DisableIdentity: true})
	err := first.Do(t.Context(), "ACL", "SETUSER", "ruler", "on", "nopass", "+@all", "~*", "&*").Err()
	if err := errors.Join(err, first.Close()); err != nil {
		t.Fatal(err)
	}
	c := redis.NewClient(&redis.Options{Addr: addr, Username: "ruler", Password: "any", ClientName: "ruler"})
	t.Cleanup(func() { _ = c.Close() })
	r.admins = append(r.admins, c)
	return c
}

// file replaces a file in place and returns its path.
func (r *rotation) file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func (r *rotation) open(t *testing.T, cfg *config.Registry) {
	t.Helper()
	store, files, err := openStore(cfg, r.log.logger())
	if err != nil {
		t.Fatal(err)
	}
	if files == nil {
		t.Fatal("no files")
	}
	t.Cleanup(func() { _ = store.Close() })
	r.store = store
}

// user sets a user's passwords: ">new" adds one, "<old" takes one away.
func user(t *testing.T, admin *redis.Client, name string, rules ...any) {
	t.Helper()
	args := append([]any{"ACL", "SETUSER", name, "on", "+@all", "~*", "&*"}, rules...)
	if err := admin.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
}

func (r *rotation) ask(t *testing.T) error {
	_, _, err := r.store.Members(t.Context())
	return err
}

// connected returns the names by which the servers know the store's connections.
func (r *rotation) connected(t *testing.T) []string {
	t.Helper()
	var ids []string
	for _, admin := range r.servers {
		list, err := admin.ClientList(t.Context()).Result()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(list) {
			if strings.Contains(line, " name=pbxmesh ") {
				ids = append(ids, admin.Options().Addr+" "+strings.Fields(line)[0])
			}
		}
	}
	return ids
}

// goesOn: the connections that are open serve as before.
func (r *rotation) goesOn(t *testing.T, when string) {
	t.Helper()
	before := r.connected(t)
	for range 3 {
		if err := r.ask(t); err != nil {
			t.Errorf("%s, on an open connection: %v", when, err)
		}
	}
	after := r.connected(t)
	if len(before) == 0 || slices.ContainsFunc(before, func(id string) bool { return !slices.Contains(after, id) }) {
		t.Errorf("%s: connections %v became %v", when, before, after)
	}
}

// drop ends all connections of the store, so that the next question dials.
func (r *rotation) drop(t *testing.T) {
	t.Helper()
	for _, admin := range r.admins {
		for _, kind := range []string{"normal", "pubsub"} {
			if err := admin.Do(t.Context(), "CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes").Err(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// takes: new connections are made.
func (r *rotation) takes(t *testing.T, when string) {
	t.Helper()
	r.drop(t)
	var err error
	for range 5 { // a question may meet what was just cut
		if err = r.ask(t); err == nil {
			return
		}
	}
	t.Errorf("%s: %v", when, err)
}

// refused: no connection is made, and the reason that is told has the words of why; "" where
// it is the server that refuses, and may be gone before it said so.
func (r *rotation) refused(t *testing.T, when, why string) {
	t.Helper()
	r.drop(t)
	var err error
	for range 5 {
		if err = r.ask(t); err == nil {
			t.Errorf("%s: a connection is made", when)
			return
		}
		if why != "" && strings.Contains(err.Error(), why) {
			return
		}
	}
	if why != "" {
		t.Errorf("%s: %v, want %s", when, err, why)
	}
}

// tells counts what was logged of a file since the last look.
func (r *rotation) tells(t *testing.T, when, key string, bad, good int) {
	t.Helper()
	if b, g := r.log.since(key); b != bad || g != good {
		t.Errorf("%s: %s told to be bad %d times and good %d times, want %d and %d", when, key, b, g, bad, good)
	}
}

// A password that is replaced at Redis and in its file is taken by the next connection, in all forms of a
// store; what is connected goes on, and a file that will not do costs nothing.
func TestStorePasswordRotated(t *testing.T) {
	t.Parallel()
	for form, start := range map[string]func(t *testing.T, cfg *config.Registry) *rotation{
		"one server": func(t *testing.T, cfg *config.Registry) *rotation {
			server := registrytest.StartRedis(t)
			cfg.URL = config.URL(server.URL())
			return newRotation(t, server.Addr())
		},
		"cluster": func(t *testing.T, cfg *config.Registry) *rotation {
			servers := registrytest.StartCluster(t)
			cfg.Addresses = []config.HostPort{config.HostPort(servers[0])}
			return newRotation(t, servers...)
		},
		"sentinel": func(t *testing.T, cfg *config.Registry) *rotation {
			server := registrytest.StartRedis(t)
			r := newRotation(t, server.Addr())
			sentinel := startSentinel(t, r, server.Addr())
			cfg.Sentinel.Master, cfg.Sentinel.Addresses = "mesh", []config.HostPort{config.HostPort(sentinel)}
			r.rule(t, sentinel)
			return r
		},
	} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			cfg := config.Defaults().Registry
			r := start(t, &cfg)
			all := func(rules ...any) {
				for _, server := range r.servers {
					user(t, server, "mesh", rules...)
				}
			}
			all(">old")
			cfg.Username, cfg.PasswordFile = "mesh", config.SecretFile(r.file(t, "password", "old\n"))
			r.open(t, &cfg)
			r.takes(t, "at first")
			all(">new")
			r.file(t, "password", "new\n")
			all("<old")
			r.goesOn(t, "after the rotation")
			r.takes(t, "after the rotation")
			r.tells(t, "after the rotation", "registry.password_file", 0, 1)

			all("resetpass", ">third") // Redis first, the file later
			r.refused(t, "with the old password", "WRONGPASS")
			path := r.file(t, "password", "third\n")
			r.takes(t, "after WRONGPASS")
			r.tells(t, "after WRONGPASS", "registry.password_file", 0, 1)

			for what, harm := range map[string]func() error{
				"without the file": func() error { return os.Remove(path) },
				"an empty file":    func() error { return os.Truncate(path, 0) },
				"an open file":     func() error { return os.Chmod(path, 0o644) },
			} {
				if err := harm(); err != nil {
					t.Fatal(err)
				}
				for range 3 {
					r.takes(t, what)
				}
				r.tells(t, what, "registry.password_file", 1, 0)
				r.file(t, "password", "third\n")
				r.takes(t, "with the file again")
				r.tells(t, "with the file again", "registry.password_file", 0, 1)
			}
		})
	}
}

// startSentinel starts a Sentinel that watches the server at addr as "mesh".
func startSentinel(t *testing.T, r *rotation, addr string, lines ...string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	lines = append(lines, "sentinel monitor mesh "+host+" "+port+" 1", "")
	return registrytest.StartSentinel(t, r.file(t, "sentinel.conf", strings.Join(lines, "\n"))).Addr()
}

// The Sentinels' own password is replaced like the other one, whether it is the default user's or not.
func TestStoreSentinelPasswordRotated(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"default", "watcher"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := registrytest.StartRedis(t)
			r := newRotation(t, server.Addr())
			address := startSentinel(t, r, server.Addr())
			sentinel := r.rule(t, address)
			user(t, r.servers[0], "mesh", ">records")
			user(t, r.servers[0], "default", "off") // the Sentinels' password is no key to it
			user(t, sentinel, name, "resetpass", ">old")
			cfg := config.Defaults().Registry
			cfg.Sentinel.Master, cfg.Sentinel.Addresses = "mesh", []config.HostPort{config.HostPort(address)}
			cfg.Sentinel.PasswordFile = config.SecretFile(r.file(t, "sentinel", "old\n"))
			if name != "default" {
				cfg.Sentinel.Username = name
				user(t, sentinel, "default", "off")
			}
			cfg.Username, cfg.PasswordFile = "mesh", config.SecretFile(r.file(t, "password", "records\n"))
			r.open(t, &cfg)
			const key = "registry.sentinel.password_file"
			r.takes(t, "at first")
			user(t, sentinel, name, ">new")
			r.file(t, "sentinel", "new\n")
			user(t, sentinel, name, "<old")
			r.goesOn(t, "after the rotation")
			r.takes(t, "after the rotation")
			r.tells(t, "after the rotation", key, 0, 1)

			user(t, sentinel, name, "resetpass", ">third")
			r.refused(t, "with the old password", "WRONGPASS")
			path := r.file(t, "sentinel", "third\n")
			r.takes(t, "after WRONGPASS")
			r.tells(t, "after WRONGPASS", key, 0, 1)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			r.takes(t, "without the file")
			r.takes(t, "without the file")
			r.tells(t, "without the file", key, 1, 0)
		})
	}
}

// A daemon tells what it thinks of a file that was replaced without being asked to connect.
func TestDaemonLooksAtStoreFiles(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.Defaults()
	cfg.Name, cfg.API.Listen = "losangeles", netip.AddrPort{}
	cfg.Registry.URL, cfg.Registry.PasswordFile = "redis://127.0.0.1:1", config.SecretFile(file) // nobody is there
	var log fileLog
	a, err := New(cfg, Options{Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 0); err != nil {
		t.Fatal(err)
	}
	if err := a.files.watch(ended()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if bad, good := log.since("registry.password_file"); bad != 1 || good != 0 {
		t.Errorf("told to be bad %d times and good %d times", bad, good)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	defer a.Kill()
	a.teardowns.mu.Lock()
	items := slices.Clone(a.teardowns.items)
	a.teardowns.mu.Unlock()
	if !slices.ContainsFunc(items, func(d teardown) bool { return d.name == "files of the registry" }) {
		t.Error("the daemon does not look")
	}
}

// ended is a context that is over.
func ended() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
