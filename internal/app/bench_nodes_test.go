package app_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
)

// TestBenchNodes is no test: it is the three nodes that scripts/bench-dns.sh wants, until
// it is interrupted. They announce themselves and renew their leases in the Redis that
// PBXMESH_DNS_BENCH_NODES names, and have a SIP port that accepts connections, which
// gdnsd and PowerDNS probe.
func TestBenchNodes(t *testing.T) {
	url := os.Getenv("PBXMESH_DNS_BENCH_NODES")
	if url == "" {
		t.Skip("run by make bench-dns")
	}
	store, err := redisstore.New(redisstore.Options{URL: url, Prefix: "pbxmesh"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt)
	defer stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var leases []registry.Lease
	for i, id := range []pbxmesh.NodeID{"buffalo", "london", "singapore"} {
		at := netip.AddrFrom4([4]byte{127, 0, 0, byte(11 + i)})
		n := pbxmesh.Node{ID: id, Addresses: []netip.Addr{at}, Ports: pbxmesh.SIPPorts{UDP: 5060, TCP: 5060}, Mesh: netip.AddrPortFrom(at, 5090)}
		if err := store.Announce(ctx, registry.Announcement{Node: n}); err != nil {
			t.Fatal(err)
		}
		leases = append(leases, registry.Lease{
			Node: id, Owner: "bench", Instance: "bench-" + string(id), TTL: 5 * time.Second,
			Switch: registry.SwitchState{Known: true, Alive: true, MaxSessions: 1000, IdleCPU: 100},
		})
		accept(ctx, t, netip.AddrPortFrom(at, 5060))
	}
	for {
		for i := range leases {
			leases[i].Beat++
			leases[i].Clock = time.Now().UnixMilli()
			if err := store.Renew(ctx, leases[i]); err != nil && ctx.Err() == nil {
				t.Fatal(err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// accept takes connections at a port and closes them, until ctx ends.
func accept(ctx context.Context, t *testing.T, at netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				_ = c.Close()
			}
		}
	}()
}
