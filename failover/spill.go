package failover

import (
	"maps"

	"pbxmesh"
)

// spill is what became of the phones of nodes that are down: how many they had, and how
// much room the others had for them, both when the last of them went down. It stays while
// they are down: as phones arrive, rooms shrink with the number that is still to come.
type spill struct {
	lost map[pbxmesh.NodeID]int    // nodes that are down, and their registrations
	full map[pbxmesh.NodeID]uint16 // see pbxmesh.NodeState
}

// SetRegistrations takes in how many registrations each node has now. It changes no state.
func (t *Tracker) SetRegistrations(counts map[pbxmesh.NodeID]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts = counts
}

// spillOver brings t.spill up to date with who is down.
func (t *Tracker) spillOver() {
	lost := make(map[pbxmesh.NodeID]int)
	for id, n := range t.nodes {
		if n.state.Observed == pbxmesh.ObservedDown && len(n.info.Addresses) > 0 {
			lost[id] = t.counts[id]
			if known, ok := t.spill.lost[id]; ok {
				lost[id] = known
			}
		}
	}
	if maps.Equal(lost, t.spill.lost) {
		return
	}
	t.spill = spill{lost: lost, full: t.fullness(lost)}
}

// fullness computes how much of the lost phones each other node has no room for. It is a
// function of counts, capacities and states alone. A twentieth of each room stays free while
// the rooms suffice: networks are not equally large, and their phones come as they like.
func (t *Tracker) fullness(lost map[pbxmesh.NodeID]int) map[pbxmesh.NodeID]uint16 {
	total, room := 0, make(map[pbxmesh.NodeID]int)
	for _, n := range lost {
		total += n
	}
	all, unbounded := 0, false
	for id, n := range t.nodes {
		if _, gone := lost[id]; gone || len(n.info.Addresses) == 0 {
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
