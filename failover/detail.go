package failover

import (
	"context"
	"maps"
	"slices"

	"pbxmesh"
)

// noContext goes with log lines that belong to no request.
var noContext = context.Background()

// numObserved is how many observed states there are.
const numObserved = int(pbxmesh.ObservedDown) + 1

// Detail is everything the tracker knows of one member, for listings.
type Detail struct {
	Node   pbxmesh.Node
	State  pbxmesh.NodeState
	Phones ProbeResult // the last probe of each path; zero At when never probed
	Mesh   ProbeResult
	Silent int // probes in a row without an answer on the deciding path
	Streak int // probes in a row with one
	Lease  LeaseReport

	ShedWhy      string // why State.Shed is not 0
	Word         Word   // of this observer
	Tally        Tally  // of all observers, this one included
	DaemonSilent bool   // no sign of life of its daemon for long enough

	// Transitions counts the changes into each observed state since the start.
	Transitions [numObserved]uint64
}

// Details returns the members in the order of their names, and whether this
// observer takes itself to be cut off.
func (t *Tracker) Details() (details []Detail, cutOff bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(t.nodes)) {
		n := t.nodes[id]
		details = append(details, Detail{
			Node:         n.info,
			State:        n.state,
			Phones:       n.paths[PathPhones].last,
			Mesh:         n.paths[PathMesh].last,
			Silent:       n.main().silent,
			Streak:       n.streak,
			Lease:        n.lease,
			ShedWhy:      n.shedWhy,
			Word:         n.word,
			Tally:        n.tally,
			DaemonSilent: n.daemon.silent,
			Transitions:  n.transitions,
		})
	}
	return details, t.cutOff
}

func equalNode(a, b pbxmesh.Node) bool {
	return a.ID == b.ID && slices.Equal(a.Addresses, b.Addresses) &&
		a.Ports == b.Ports && a.Mesh == b.Mesh && a.Site == b.Site && a.Software == b.Software &&
		a.Location == b.Location && a.Capacity == b.Capacity
}

func orDefault(v, def int) int {
	if v == 0 {
		return def
	}
	return v
}

// AllDown reports whether every node is down, and there is one.
func (t *Tracker) AllDown() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.allDown
}
