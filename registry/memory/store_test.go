package memory_test

import (
	"testing"

	"go.uber.org/goleak"

	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	t.Parallel()
	registrytest.TestBackend(t, func(testing.TB) registry.Backend { return memory.New(memory.Options{}) })
}
