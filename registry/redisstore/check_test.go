package redisstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// A check writes, tells the time, and leaves nothing behind; a store that is away is
// unavailable.
func TestCheck(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	url := "redis://" + server.Addr() + "/0"
	store, err := redisstore.New(redisstore.Options{URL: url, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	at, write, read, err := store.Check(t.Context())
	if err != nil || write <= 0 || read <= 0 || time.Since(at).Abs() > 10*time.Second {
		t.Errorf("%v, %v, %v, %v", at, write, read, err)
	}
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	t.Cleanup(func() { _ = client.Close() })
	if keys, err := client.Keys(t.Context(), "*").Result(); err != nil || len(keys) != 0 {
		t.Errorf("it left %v, %v", keys, err)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := store.Check(t.Context()); !errors.Is(err, pbxmesh.ErrUnavailable) {
		t.Errorf("a store that is away: %v", err)
	}
}
