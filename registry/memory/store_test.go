package memory_test

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	t.Parallel()
	registrytest.TestBackend(t, func(testing.TB) registry.Backend { return memory.New(memory.Options{}) })
}

// A replica that is not behind is a store like every other one.
func TestReplicaContract(t *testing.T) {
	t.Parallel()
	registrytest.TestBackend(t, func(testing.TB) registry.Backend { return memory.New(memory.Options{}).Replica() })
}

// One that is behind answers from the past, and says by how much.
func TestReplicaIsBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		past := store.Replica()
		members := func() int {
			known, _, err := past.Members(t.Context())
			if err != nil {
				t.Error(err)
			}
			return len(known)
		}
		announce := func(id pbxmesh.NodeID) {
			if err := past.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: id}}); err != nil {
				t.Error(err)
			}
		}
		past.SetBehind(2 * time.Second)
		announce("buffalo")
		time.Sleep(time.Second)
		if n, lag := members(), past.Lag(); n != 0 || lag != time.Second {
			t.Errorf("after 1 s: %d members, %s behind", n, lag)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n, lag := members(), past.Lag(); n != 1 || lag != 0 {
			t.Errorf("after 2 s: %d members, %s behind", n, lag)
		}
		past.Halt(true)
		announce("london")
		time.Sleep(time.Minute)
		if n, lag := members(), past.Lag(); n != 1 || lag != time.Minute {
			t.Errorf("halted: %d members, %s behind", n, lag)
		}
		past.Halt(false)
		if n, lag := members(), past.Lag(); n != 2 || lag != 0 {
			t.Errorf("going on: %d members, %s behind", n, lag)
		}
	})
}
