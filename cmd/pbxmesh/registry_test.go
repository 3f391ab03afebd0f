package main

import (
	"context"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pbxmesh"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// The transcripts in testdata/registry run against a real Redis at $REDIS, with
// an empty one beside it.
func TestRegistryScripts(t *testing.T) {
	t.Parallel()
	server, empty := registrytest.StartRedis(t), registrytest.StartRedis(t)
	aor := func(s string) pbxmesh.AOR {
		a, err := pbxmesh.ParseAOR(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	device := func(node pbxmesh.NodeID, user, from string, expires time.Duration) pbxmesh.Registration {
		return pbxmesh.Registration{
			AOR: aor(user + "@pbx.test"), Node: node, CallID: user + "-" + from, Contact: "sip:" + user + "@" + from, Profile: "internal",
			Source: netip.MustParseAddrPort(from), Transport: "udp", UserAgent: "Phone", Expires: time.Now().Add(expires),
		}
	}
	publish(t, server.URL(), "buffalo", false,
		device("buffalo", "1002", "198.51.100.7:5062", time.Hour), device("buffalo", "10021", "198.51.100.8:5062", time.Hour),
		device("buffalo", "gone", "198.51.100.9:5062", time.Nanosecond))
	publish(t, server.URL(), "london", true, device("london", "1002", "203.0.113.9:5062", time.Hour))
	open := httptest.NewServer(control.NewHandler(fakeDaemon(), ""))
	t.Cleanup(open.Close)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/registry",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
		Setup: func(env *testscript.Env) error {
			endAtOnce(env)
			env.Setenv("REDIS", server.URL())
			env.Setenv("EMPTY_REDIS", empty.URL())
			env.Setenv("DEAD_REDIS", "redis://"+deadAddress(t))
			env.Setenv("API", open.Listener.Addr().String())
			env.Setenv("DEAD_API", deadAddress(t))
			return os.WriteFile(filepath.Join(env.WorkDir, "pbxmesh.yaml"), []byte("registry:\n  url: "+server.URL()+"\n"), 0o600)
		},
	})
}

// publish fills the store as a daemon does, whose lease lasts for the test unless
// it ended.
func publish(t *testing.T, url string, node pbxmesh.NodeID, ended bool, regs ...pbxmesh.Registration) {
	t.Helper()
	store, err := redisstore.New(redisstore.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	w, err := registry.NewWriter(registry.WriterOptions{
		Node: pbxmesh.Node{ID: node}, Replica: registry.NewReplica(registry.ReplicaOptions{Local: node}), Backend: store,
		LeaseTTL: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.Run(context.Background()) }()
	stop := func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = store.Close()
	}
	w.Reset("core-"+string(node), regs)
	registrytest.WaitFor(t, "the publication", func() bool { s := w.Status(); return s.Publications == 1 && s.Err == nil })
	registrytest.WaitFor(t, "the lease", func() bool {
		leases, _, err := store.Leases(context.Background(), []pbxmesh.NodeID{node})
		return err == nil && leases[node].Term > 0
	})
	if ended {
		stop()
		return
	}
	t.Cleanup(stop)
}
