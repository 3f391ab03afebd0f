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
	// Nothing is sent before the primary has heard that everything arrived.
	_, own, _ := net.SplitHostPort(r.Addr())
	WaitFor(t, "the primary to send changes", func() bool {
		for line := range strings.Lines(replication(primary)) {
			if strings.Contains(line, "port="+own+",") && strings.Contains(line, "state=online") && !strings.Contains(line, "offset=0,") {
				return true
			}
		}
		return false
	})
	return r
}

// Follows reports whether the server is a replica whose link to its primary works.
func (r *Redis) Follows() bool {
	return strings.Contains(replication(r.Addr()), "master_link_status:up")
}

// replication is what a server says of it, "" when it does not answer.
func replication(addr string) string {
	c := redis.NewClient(&redis.Options{Addr: addr, MaxRetries: -1})
	defer func() { _ = c.Close() }()
	text, _ := c.Info(context.Background(), "replication").Result()
	return text
}
