package redisstore

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
)

// Rights are the commands that a user of the server needs for everything that daemons and
// commands of ours do there, on the keys and channels of Prefix:* ({Prefix}:* in a Cluster). A Cluster asks for
// clusterRights as well.
var Rights = []string{
	"client|setname", "del", "eval", "evalsha", "get", "hdel", "hexists", "hget", "hgetall", "hkeys", "hlen", "hmget", "hscan", "hset", "hstrlen", "mget", "pexpire", "ping", "pttl",
	"publish", "select", "set", "subscribe", "time", "type", "unlink", "unsubscribe", "xadd", "xread", "zadd", "zcard", "zrange", "zrangebyscore", "zrem", "zscore",
}

// ReadRights are those of Rights that the user needs at a replica (Options.Read).
var ReadRights = []string{
	"client|setname", "eval", "evalsha", "get", "hget", "hgetall", "hkeys", "hlen", "hmget", "hscan", "hstrlen", "mget",
	"ping", "select", "subscribe", "time", "type", "unsubscribe", "xread", "zrangebyscore", "zscore",
}

var clusterRights = []string{"cluster|slots", "cluster|shards", "readonly"}

// ACL returns what follows the name and the password of a user in ACL SETUSER.
func ACL(prefix string, cluster bool) string {
	rights := Rights
	if cluster {
		rights = slices.Concat(rights, clusterRights)
	}
	return acl(base(prefix, cluster), rights)
}

// ReadACL is ACL for a replica.
func ReadACL(prefix string) string { return acl(prefix, ReadRights) }

func acl(base string, rights []string) string {
	return fmt.Sprintf("resetkeys ~%[1]s:* resetchannels &%[1]s:* -@all +%[2]s", base, strings.Join(rights, " +"))
}

// checkRights tries every command of Rights on keys that nobody reads, but for those by which
// each connection begins: without them there is none. The error names those that are not
// allowed.
func (s *Store) checkRights(ctx context.Context) error {
	key := s.base + ":check:" + rand.Text()
	hash, text, stream, set := key+":h", key+":t", key+":x", key+":z"
	ms := checkTTL.Milliseconds()
	tries := [][]any{
		{"hset", hash, "f", "1"}, {"pexpire", hash, ms}, {"hget", hash, "f"}, {"hmget", hash, "f"}, {"hgetall", hash}, {"hkeys", hash},
		{"hlen", hash}, {"hexists", hash, "f"}, {"hstrlen", hash, "f"}, {"hscan", hash, "0"}, {"hdel", hash, "f"},
		{"set", text, "1", "px", ms}, {"get", text}, {"mget", text}, {"pttl", text}, {"type", text},
		{"xadd", stream, "*", "f", "1"}, {"pexpire", stream, ms}, {"xread", "count", 1, "streams", stream, "0"},
		{"zadd", set, 1, "m"}, {"pexpire", set, ms}, {"zcard", set}, {"zrange", set, 0, -1}, {"zrangebyscore", set, 0, 1}, {"zscore", set, "m"}, {"zrem", set, "m"},
		{"eval", "return 1", 1, text}, {"evalsha", strings.Repeat("0", 40), 1, text}, {"time"}, {"ping"}, {"publish", key, ""},
		{"unlink", hash}, {"del", text}, {"del", stream}, {"del", set},
	}
	return s.tryRights(ctx, s.client, key, tries)
}

// checkReadRights is checkRights for ReadRights at a replica.
func (s *Store) checkReadRights(ctx context.Context, c redis.UniversalClient) error {
	key := s.base + ":check:" + rand.Text()
	return s.tryRights(ctx, c, key, [][]any{
		{"eval", "return 1", 1, key}, {"evalsha", strings.Repeat("0", 40), 1, key}, {"get", key}, {"hget", key, "f"}, {"hgetall", key}, {"hkeys", key},
		{"hlen", key}, {"hmget", key, "f"}, {"hscan", key, "0"}, {"hstrlen", key, "f"}, {"mget", key}, {"ping"}, {"time"}, {"type", key},
		{"xread", "count", 1, "streams", key, "0"}, {"zrangebyscore", key, 0, 1}, {"zscore", key, "m"},
	})
}

// tryRights names those of the commands that are not allowed. key is a channel, too.
func (s *Store) tryRights(ctx context.Context, c redis.UniversalClient, key string, tries [][]any) error {
	pipe := c.Pipeline()
	replies := make([]*redis.Cmd, 0, len(tries))
	for _, args := range tries {
		replies = append(replies, pipe.Do(ctx, args...))
	}
	_, _ = pipe.Exec(ctx) // each reply has its own error
	var missing []string
	for i, r := range replies {
		name := tries[i][0].(string)
		if err := r.Err(); err != nil && strings.Contains(err.Error(), "NOPERM") && !slices.Contains(missing, name) {
			missing = append(missing, name)
		}
	}
	sub := c.Subscribe(ctx, key)
	defer sub.Close()
	if _, err := sub.ReceiveTimeout(ctx, s.o.Timeout); err != nil && strings.Contains(err.Error(), "NOPERM") {
		missing = append(missing, "subscribe")
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: redis: NOPERM: the user may not run %s on keys and channels of %s:*", pbxmesh.ErrUnavailable, strings.Join(missing, ", "), s.base)
	}
	return nil
}
