package app

import (
	"maps"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/registrytest"
)

// TestCountPhones: of a node that is not up, only those phones count that no other node has.
func TestCountPhones(t *testing.T) {
	t.Parallel()
	store := memory.New(memory.Options{})
	joins(t, store, "london", 0, 3)
	joins(t, store, "buffalo", 0, 2)
	o := observe(t, store, "losangeles", "")
	o.knows(2, 5)
	registrytest.WaitFor(t, "the count of nodes that are not up", func() bool {
		o.countStrandedNow()
		return maps.Equal(*o.stranded.Load(), map[pbxmesh.NodeID]int{"london": 3, "buffalo": 2})
	})
	o.stranded.Store(&map[pbxmesh.NodeID]int{"london": 1, "buffalo": 1}) // the others have come elsewhere
	mesh := &pbxmesh.Mesh{States: map[pbxmesh.NodeID]pbxmesh.NodeState{
		"london": {Observed: pbxmesh.ObservedDown}, "buffalo": {Observed: pbxmesh.ObservedUp},
	}, At: time.Now()}
	if got := o.countPhones(o.replica.Members(), mesh); !maps.Equal(got, map[pbxmesh.NodeID]int{"london": 1, "buffalo": 2}) {
		t.Errorf("london is down and has one phone left, buffalo is up with two: %v", got)
	}
}
