package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
)

// checkTTL is how long the key of a check outlives a checker that dies.
const checkTTL = 10 * time.Second

// Check tries all commands that are needed (Rights), writes a key of its own, removes it, and
// asks the server for its time. It returns that time and how long one write and one question
// took; the errors are those of the other methods. Nobody reads the keys.
func (s *Store) Check(ctx context.Context) (serverTime time.Time, write, read time.Duration, err error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	key := s.base + ":check:" + rand.Text()
	// The first question connects; it is not what a daemon waits for later.
	if err := s.client.Ping(ctx).Err(); err != nil {
		return time.Time{}, 0, 0, wrap("ask", err)
	}
	if err := s.checkRights(ctx); err != nil {
		return time.Time{}, 0, 0, err
	}
	start := time.Now()
	if err := s.client.Set(ctx, key, "1", checkTTL).Err(); err != nil {
		return time.Time{}, 0, 0, wrap("write", err)
	}
	write = time.Since(start)
	if err := s.client.Del(ctx, key).Err(); err != nil {
		return time.Time{}, 0, 0, wrap("remove what was written", err)
	}
	start = time.Now()
	serverTime, err = s.client.Time(ctx).Result()
	if err != nil {
		return time.Time{}, 0, 0, wrap("ask for the time", err)
	}
	return serverTime, write, time.Since(start), nil
}

// CheckReplica tries all commands that are needed at Options.Read (ReadRights), writes a key to
// the primary and returns how long it takes until the replica shows it. pbxmesh.ErrUnavailable
// when it does not before ctx ends. Nothing is done without Options.Read.
func (s *Store) CheckReplica(ctx context.Context) (behind time.Duration, err error) {
	if s.near == nil {
		return 0, nil
	}
	c := s.near.client
	if err := c.Ping(ctx).Err(); err != nil {
		return 0, wrap("ask the replica", err)
	}
	if err := s.checkReadRights(ctx, c); err != nil {
		return 0, fmt.Errorf("at the replica: %w", err)
	}
	key := s.base + ":check:" + rand.Text()
	began := time.Now()
	if err := s.client.Set(ctx, key, "1", checkTTL).Err(); err != nil {
		return 0, wrap("write", err)
	}
	for {
		text, err := c.Get(ctx, key).Result()
		switch {
		case text == "1":
			return time.Since(began), nil
		case err != nil && !errors.Is(err, redis.Nil) && ctx.Err() == nil:
			return 0, wrap("ask the replica", err)
		case !pause(ctx, 10*time.Millisecond):
			return 0, fmt.Errorf("%w: redis: the replica: %w within %s", pbxmesh.ErrUnavailable, errForeign, time.Since(began).Round(time.Millisecond))
		}
	}
}
