package registry_test

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"pbxmesh/registry/registrytest"
)

// far is the round trip between every daemon and Redis in tests of faults:
// PBXMESH_REDIS_RTT=150ms measures what docs/registry.md says of a Redis far away.
var far, _ = time.ParseDuration(os.Getenv("PBXMESH_REDIS_RTT"))

// farAddr is a long wire to a server, or the server itself.
func farAddr(t testing.TB, addr string) string {
	t.Helper()
	if far <= 0 || addr == "" {
		return addr
	}
	wire := registrytest.StartProxy(t, addr)
	wire.SetDelay(far / 2)
	return wire.Addr()
}

func farURL(t testing.TB, url string) string {
	t.Helper()
	if url == "" {
		return url
	}
	return "redis://" + farAddr(t, strings.TrimPrefix(url, "redis://"))
}

// farCluster has the servers of a cluster name addresses that are far away.
func farCluster(t testing.TB, servers []string) []string {
	t.Helper()
	if far <= 0 {
		return servers
	}
	ctx := context.Background()
	wires := make([]string, len(servers))
	for i, addr := range servers {
		wires[i] = farAddr(t, addr)
		c := rawClient(t, "redis://"+addr)
		_, port, _ := net.SplitHostPort(wires[i])
		// The servers themselves talk as before.
		info, err := c.ClusterNodes(ctx).Result()
		if err != nil {
			t.Fatal(err)
		}
		_, bus, _ := strings.Cut(info[strings.Index(info, addr):], "@")
		bus = bus[:strings.IndexAny(bus, ", ")]
		for name, value := range map[string]string{"cluster-announce-port": port, "cluster-announce-bus-port": bus} {
			if err := c.ConfigSet(ctx, name, value).Err(); err != nil {
				t.Fatalf("%s %s: %v", name, value, err)
			}
		}
	}
	for _, addr := range servers {
		c := rawClient(t, "redis://"+addr)
		registrytest.WaitFor(t, "the cluster to name its far addresses", func() bool {
			slots, err := c.ClusterSlots(ctx).Result() //nolint:staticcheck // as the driver does
			named := map[string]bool{}
			for _, s := range slots {
				for _, n := range s.Nodes {
					named[n.Addr] = true
				}
			}
			return err == nil && named[wires[0]] && named[wires[1]]
		})
	}
	return wires
}
