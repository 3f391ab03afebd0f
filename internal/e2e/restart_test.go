package e2e_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// A daemon that was killed by SIGKILL is followed by its next life at once: that holds
// the lock of the node, and so it knows that whoever wrote the lease is gone. A second
// daemon with the same configuration is refused.
func TestDaemonProcessRestarts(t *testing.T) {
	t.Parallel()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	redis := registrytest.StartRedis(t)
	store, err := redisstore.New(redisstore.Options{URL: redis.URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	c := &cluster{t: t, nodes: map[string]*node{}}
	addr := netip.MustParseAddr("127.0.23.1")
	n := &node{name: "buffalo", socket: freePort(t, addr)}
	n.sw, err = simswitch.New(simswitch.Options{Config: fixtures.Config{Name: "buffalo", Host: addr, Socket: n.socket.String()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.sw.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.sw.Close() })
	d := &process{t: t, path: path, api: freePort(t, netip.MustParseAddr("127.0.0.1"))}
	d.file = writeConfig(t, n, d.api, redis.URL())
	lease := func() registry.Lease {
		leases, _, err := store.Leases(t.Context(), []pbxmesh.NodeID{"buffalo"})
		if err != nil {
			t.Fatal(err)
		}
		return leases["buffalo"]
	}
	published := func(what, former string) {
		t.Helper()
		took := c.eventually(what+" publishes", func() bool { l := lease(); return l.Term > 0 && l.Instance != former })
		t.Logf("%s publishes %.2f s after its start", what, took.Seconds())
	}
	t.Cleanup(func() {
		if d.kill(); t.Failed() {
			t.Logf("the last daemon:\n%s", d.log)
		}
	})
	d.start()
	published("a first daemon", "")

	former := lease().Instance
	d.kill()
	d.start()
	published("one that was killed", former)
	if want := "taking its lease over"; !strings.Contains(d.log.String(), want) {
		t.Errorf("the log does not say %q:\n%s", want, d.log)
	}

	// A second one beside it is refused, and told whom by; one that starts while the first
	// one shuts down waits for that.
	second := &process{t: t, path: path, file: d.file}
	second.start()
	err = second.cmd.Wait()
	if err == nil || !strings.Contains(second.log.String(), fmt.Sprintf("process %d on", d.cmd.Process.Pid)) || !strings.Contains(second.log.String(), "waiting for another daemon") {
		t.Errorf("a second daemon ends with %v:\n%s", err, second.log)
	}
	third := &process{t: t, path: path, file: d.file}
	third.start()
	t.Cleanup(func() {
		if third.kill(); t.Failed() {
			t.Logf("the third daemon:\n%s", third.log)
		}
	})
	former = lease().Instance
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("an interrupted daemon ends with %v:\n%s", err, d.log)
	}
	published("one whose former daemon shuts down", former)
}
