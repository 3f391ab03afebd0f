package redisstore_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a store of its own on r.
func open(t testing.TB, o redisstore.Options) *redisstore.Store {
	t.Helper()
	s, err := redisstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func TestContract(t *testing.T) {
	t.Parallel()
	r := registrytest.StartRedis(t)
	var n atomic.Int64
	registrytest.TestBackend(t, func(t testing.TB) registry.Backend {
		return open(t, redisstore.Options{URL: r.URL(), Prefix: fmt.Sprintf("test%d", n.Add(1))})
	})
}
