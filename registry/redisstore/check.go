package redisstore

import (
	"context"
	"crypto/rand"
	"time"
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
