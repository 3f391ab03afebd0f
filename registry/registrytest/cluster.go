package registrytest

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// StartCluster starts a Redis Cluster of two primaries that share the slots, and
// returns host:port of both.
func StartCluster(t testing.TB) []string {
	t.Helper()
	one, two := StartRedis(t, "--cluster-enabled", "yes"), StartRedis(t, "--cluster-enabled", "yes")
	a, b := redis.NewClient(&redis.Options{Addr: one.Addr()}), redis.NewClient(&redis.Options{Addr: two.Addr()})
	defer func() { _, _ = a.Close(), b.Close() }()
	host, port, err := net.SplitHostPort(two.Addr())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := errors.Join(
		a.ClusterAddSlotsRange(ctx, 0, 8191).Err(), b.ClusterAddSlotsRange(ctx, 8192, 16383).Err(),
		// Two primaries that both begin at epoch 0 would have to vote first.
		a.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", "1").Err(), b.Do(ctx, "CLUSTER", "SET-CONFIG-EPOCH", "2").Err(),
		a.ClusterMeet(ctx, host, port).Err()); err != nil {
		t.Fatalf("make a cluster: %v", err)
	}
	for _, c := range []*redis.Client{a, b} {
		WaitFor(t, "the cluster", func() bool {
			info, err1 := c.ClusterInfo(ctx).Result()
			nodes, err2 := c.ClusterNodes(ctx).Result()
			return err1 == nil && err2 == nil && strings.Contains(info, "cluster_state:ok") && strings.Count(nodes, "\n") == 2
		})
	}
	return []string{one.Addr(), two.Addr()}
}
