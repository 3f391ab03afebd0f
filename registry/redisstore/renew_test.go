package redisstore_test

import (
	"errors"
	"testing"
	"time"

	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// A renewal that says nothing new asks little, and one of five finds that the store has lost
// what the node published.
func TestRenewalsFindWhatIsLost(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	s, raw := open(t, redisstore.Options{URL: server.URL()}), client(t, server.Addr())
	term, err := s.Publish(t.Context(), registry.Publication{Node: "london", Instance: "i", Term: 1, Digests: registry.Digests{}})
	if err != nil {
		t.Fatal(err)
	}
	l := registry.Lease{Node: "london", Instance: "i", TTL: time.Minute, Term: term, Seq: 1, Beat: 1}
	renew := func() error {
		l.Beat++
		return s.Renew(t.Context(), l)
	}
	before := called(t, raw, "hmget")
	for range 10 {
		if err := renew(); err != nil {
			t.Fatal(err)
		}
	}
	if n := called(t, raw, "hmget") - before; n != 2 {
		t.Errorf("10 renewals asked %d times for everything, want 2", n)
	}
	if err := raw.Del(t.Context(), "pbxmesh:{london}:meta").Err(); err != nil {
		t.Fatal(err)
	}
	for n := 1; ; n++ {
		if err = renew(); err != nil || n == 5 {
			break
		}
	}
	if !errors.Is(err, registry.ErrLost) {
		t.Errorf("after five renewals: err %v, want %v", err, registry.ErrLost)
	}
}
