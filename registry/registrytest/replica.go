package registrytest

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
)

// StartReplica starts a redis-server that follows the one at primary (host:port), and returns
// when it holds what that one holds. args are further arguments of redis-server.
func StartReplica(t testing.TB, primary string, args ...string) *Redis {
	t.Helper()
	host, port, err := net.SplitHostPort(primary)
	if err != nil {
		t.Fatal(err)
	}
	r := StartRedis(t, slices.Concat([]string{"--replicaof", host, port}, args)...)
	WaitFor(t, "the replica to follow "+primary, r.Follows)
	return r
}

// Follows reports whether the server is a replica whose link to its primary works.
func (r *Redis) Follows() bool {
	c := redis.NewClient(&redis.Options{Addr: r.Addr(), MaxRetries: -1})
	defer func() { _ = c.Close() }()
	text, err := c.Info(context.Background(), "replication").Result()
	return err == nil && strings.Contains(text, "master_link_status:up")
}
