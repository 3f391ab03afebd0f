package drain

import (
	"fmt"
	"strings"

	"pbxmesh"
)

// Load is how full one node is, as the daemon that is asked knows it.
type Load struct {
	Node pbxmesh.NodeID

	// TakesPhones says that name servers send phones there now.
	TakesPhones bool

	// Leaving says that the node is drained: what it still holds goes to the same
	// others.
	Leaving bool

	Registrations int
	Capacity      int // registrations; 0 is not known

	Sessions, MaxSessions int // channels; MaxSessions 0 is not known
}

// Verdict is whether the rest of the mesh can do without a node.
type Verdict struct {
	Refused  []string // why not, in words for an operator; empty: it can
	Warnings []string // what is not known, or what else happens
}

// Check says whether the other nodes can take what target holds. It is a pure function
// of loads, one for every member.
//
// The sum of the room counts, not the room of the node that a given phone is sent to,
// less what comes from nodes that are being drained already. A node that already takes no phones can always be taken away: nothing changes for
// phones.
func Check(target pbxmesh.NodeID, loads []Load) Verdict {
	var v Verdict
	var own Load
	room, channels, rest := 0, 0, 0
	phonesToCome, callsToCome := 0, 0
	var unknown, noSessions, leaving []string
	for _, l := range loads {
		if l.Node == target {
			own = l
			continue
		}
		if l.Leaving && l.Registrations+l.Sessions > 0 {
			phonesToCome += l.Registrations
			callsToCome += l.Sessions
			leaving = append(leaving, string(l.Node))
		}
		if !l.TakesPhones {
			continue
		}
		rest++
		if l.Capacity > 0 {
			room += max(0, l.Capacity-l.Registrations)
		} else {
			unknown = append(unknown, string(l.Node))
		}
		if l.MaxSessions > 0 {
			channels += max(0, l.MaxSessions-l.Sessions)
		} else {
			noSessions = append(noSessions, string(l.Node))
		}
	}
	if !own.TakesPhones {
		return v
	}
	if rest == 0 {
		v.Refused = append(v.Refused, "no other node would take phones")
		return v
	}
	switch {
	case len(unknown) > 0:
		v.Warnings = append(v.Warnings, "how many registrations "+list(unknown)+
			" can hold is not known: set node.capacity there")
	case room < own.Registrations+phonesToCome:
		v.Refused = append(v.Refused, fmt.Sprintf("%s holds %d registrations%s, and the others have room for %d (node.capacity)",
			target, own.Registrations, also(phonesToCome, leaving), room))
	}
	switch {
	case own.MaxSessions == 0 || len(noSessions) > 0:
		if own.MaxSessions == 0 {
			noSessions = append(noSessions, string(target))
		}
		v.Warnings = append(v.Warnings, "how many calls "+list(noSessions)+" can carry is not known: no heartbeat of the switch yet")
	case channels < own.Sessions+callsToCome:
		v.Refused = append(v.Refused, fmt.Sprintf("%s carries %d channels%s, and the others have room for %d (max-sessions)",
			target, own.Sessions, also(callsToCome, leaving), channels))
	}
	return v
}

// also says what else is on its way to the others.
func also(n int, leaving []string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" and %s, being drained, %d more", list(leaving), n)
}

// list joins at most a few names.
func list(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// Bounds of the pace that is computed when the operator names none, in registrations
// per second.
const (
	leastPace   = 5
	mostPace    = 100
	unknownPace = 10   // for each node whose capacity is not known
	fillSeconds = 300  // a node takes its whole capacity in five minutes
	MaxPace     = 1000 // what may be configured
)

// Pace returns how many registrations per second the others may receive: configured
// when it is positive, else a three-hundredth of their capacity, 10 for a node whose
// capacity is not known, 5 to 100 in all. It is 0 when nobody can take a phone, or
// nobody has room for one and force is not set; why says so.
func Pace(target pbxmesh.NodeID, loads []Load, configured int, force bool) (pace int, why string) {
	sum, room, rest, known := 0, 0, 0, true
	for _, l := range loads {
		if l.Node == target || !l.TakesPhones {
			continue
		}
		rest++
		if l.Capacity > 0 {
			sum += l.Capacity / fillSeconds
			room += max(0, l.Capacity-l.Registrations)
		} else {
			sum += unknownPace
			known = false
		}
	}
	switch {
	case rest == 0:
		return 0, "no other node takes phones"
	case known && room == 0 && !force:
		return 0, "no other node has room (node.capacity)"
	case configured > 0:
		return configured, ""
	}
	return min(max(sum, leastPace), mostPace), ""
}
