package failover

import (
	"maps"

	"pbxmesh"
)

// spill is what became of the phones of nodes that are down: how much room the others had for
// them when the last of them went down. It stays while they are down: as phones arrive, rooms
// shrink with the number that is still to come. When another one goes down, or one of them
// comes back, nobody becomes less full than he was: who was sent past him stays where he is.
type spill struct {
	lost map[pbxmesh.NodeID]bool   // nodes that are down
	full map[pbxmesh.NodeID]uint16 // see pbxmesh.NodeState
}

// SetRegistrations takes in how many registrations each node has now: of a node that is not up,
// of those phones that have not come to another one. It changes no state.
func (t *Tracker) SetRegistrations(counts map[pbxmesh.NodeID]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts = counts
}

// spillOver brings t.spill up to date with who is down.
func (t *Tracker) spillOver() {
	lost, again := make(map[pbxmesh.NodeID]bool), false
	for id, n := range t.nodes {
		if n.state.Observed == pbxmesh.ObservedDown && len(n.info.Addresses) > 0 {
			lost[id] = true
			again = again || t.spill.lost[id]
		}
	}
	if maps.Equal(lost, t.spill.lost) {
		return
	}
	full := t.fullness(lost)
	if again {
		for id, before := range t.spill.full {
			if !lost[id] {
				full[id] = max(full[id], before)
			}
		}
	}
	t.spill = spill{lost: lost, full: full}
}

// fullness computes how much of the lost phones each other node has no room for. It is a
// function of counts, capacities and states alone. A twentieth of each room stays free while
// the rooms suffice: networks are not equally large, and their phones come as they like.
func (t *Tracker) fullness(lost map[pbxmesh.NodeID]bool) map[pbxmesh.NodeID]uint16 {
	total, room := 0, make(map[pbxmesh.NodeID]int)
	for id := range lost {
		total += t.counts[id]
	}
	all, unbounded := 0, false
	for id, n := range t.nodes {
		if lost[id] || len(n.info.Addresses) == 0 {
			continue
		}
		if n.info.Capacity == 0 {
			unbounded = true
			continue
		}
		room[id] = max(0, n.info.Capacity-t.counts[id])
		all += room[id]
	}
	full := make(map[pbxmesh.NodeID]uint16)
	for id, n := range room {
		if unbounded || all-all/20 >= total {
			n -= n / 20
		}
		if n < total {
			full[id] = uint16(pbxmesh.ShedAll - int64(n)*pbxmesh.ShedAll/int64(total)) //nolint:gosec // 1 to ShedAll
		}
	}
	return full
}
