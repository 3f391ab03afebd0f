package failover

import "pbxmesh"

// Tally counts the votes on one node. It is made by Count.
type Tally struct {
	// Counted is how many observers' words count: those that have one, but
	//   - an observer that no remote node answers is not counted when it says "silent":
	//     it is more likely cut off itself than the last one alive;
	//   - the node's own daemon is not counted when it says "answers": no network lies
	//     between, so it knows nothing about what others reach. Its "silent" counts.
	Counted int

	// Answers, Doubted, Overloaded and Silent are their words; Counted is the sum.
	Answers, Doubted, Overloaded, Silent int

	// MeshCounted and MeshSilent are the same for the mesh address, which only other
	// nodes' daemons are asked about.
	MeshCounted, MeshSilent int

	// Told says that the node's own daemon votes, and Switch what it says of its
	// switch.
	Told   bool
	Switch SwitchWord
}

// majority reports whether n is more than half of all. Half is not enough: where
// observers disagree one to one, nothing changes.
func majority(n, all int) bool { return 2*n > all }

// Down reports whether most observers get no answer from the node.
func (t *Tally) Down() bool { return majority(t.Silent, t.Counted) }

// Shaken reports whether most observers lost at least their last probe.
func (t *Tally) Shaken() bool { return majority(t.Silent+t.Doubted, t.Counted) }

// Busy reports whether the node answers 503 to most observers.
func (t *Tally) Busy() bool { return majority(t.Overloaded, t.Counted) }

// Alive reports whether most observers got an answer to their last probe.
func (t *Tally) Alive() bool { return majority(t.Answers+t.Overloaded, t.Counted) }

// MeshDown reports whether most of the other nodes' daemons get no answer from the
// mesh address.
func (t *Tally) MeshDown() bool { return majority(t.MeshSilent, t.MeshCounted) }

// Count counts the votes on each of nodes. It is a pure function, and the order of the
// votes does not matter: observers that see the same votes come to the same tallies.
// The votes must be fresh, one of each observer, the caller's own among them.
func Count(nodes []pbxmesh.NodeID, votes []*Vote) map[pbxmesh.NodeID]Tally {
	tallies := make(map[pbxmesh.NodeID]Tally, len(nodes))
	for _, id := range nodes {
		tallies[id] = Tally{}
	}
	for _, v := range votes {
		reaches := v.reach() > 0
		for id, o := range v.Nodes {
			t, ok := tallies[id]
			if !ok {
				continue
			}
			t.add(o, id == v.Self, reaches, v.Self != "")
			tallies[id] = t
		}
		if t, ok := tallies[v.Self]; ok {
			// Of two daemons that call themselves beside one node, the dead word wins.
			t.Told, t.Switch = true, max(t.Switch, v.Switch)
			tallies[v.Self] = t
		}
	}
	return tallies
}

// add counts one opinion: own is that of the node's own daemon, reaches says that
// another node answers the observer, and daemon that it stands beside a node.
func (t *Tally) add(o Opinion, own, reaches, daemon bool) {
	switch o.Phones {
	case WordSilent:
		if own || reaches {
			t.Counted++
			t.Silent++
		}
	case WordAnswers, WordDoubted, WordOverloaded:
		if own {
			break
		}
		t.Counted++
		switch o.Phones {
		case WordDoubted:
			t.Doubted++
		case WordOverloaded:
			t.Overloaded++
		default:
			t.Answers++
		}
	}
	if own || !daemon {
		return
	}
	switch o.Mesh {
	case WordSilent:
		if reaches {
			t.MeshCounted++
			t.MeshSilent++
		}
	case WordAnswers, WordDoubted, WordOverloaded:
		t.MeshCounted++
	}
}
