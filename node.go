package pbxmesh

import (
	"fmt"
	"net/netip"
	"time"
)

// NodeID names a node: a lower-case DNS label (RFC 1123), because the name is
// also a host name under the zone, a hash tag in Redis and a metrics label.
type NodeID string

// ParseNodeID returns s as a NodeID: 1 to 63 bytes of [a-z0-9-], no '-' at either
// end. Upper case is folded. Anything else is ErrInvalidNodeID.
func ParseNodeID(s string) (NodeID, error) {
	if s == "" || len(s) > maxLabelLen {
		return "", fmt.Errorf("%w: %s has %d bytes, 1 to %d are allowed", ErrInvalidNodeID, quote(s), len(s), maxLabelLen)
	}
	id := lowerASCII(s)
	for i := range len(id) {
		if c := id[i]; !isAlnum(c) && c != '-' {
			return "", fmt.Errorf("%w: %s has %s; letters, digits and '-' are allowed", ErrInvalidNodeID, quote(s), quote(id[i:i+1]))
		}
	}
	if id[0] == '-' || id[len(id)-1] == '-' {
		return "", fmt.Errorf("%w: %s starts or ends with '-'", ErrInvalidNodeID, quote(s))
	}
	return NodeID(id), nil
}

// Node is what a node announces about itself. Members keep the last announcement
// of every node, so that a name server can answer with the registry away.
type Node struct {
	ID NodeID `json:"id"`

	// Addresses are what phones connect to, IPv4 and IPv6, best first: the name
	// servers answer with them. Empty: the node takes calls but no phones.
	Addresses []netip.Addr `json:"addresses,omitempty"`

	// Ports are the SIP ports phones use, by transport.
	Ports SIPPorts `json:"ports"`

	// Mesh is where the other nodes' calls arrive (the mesh profile). IPv4 only:
	// an IPv6 literal cannot be told from a leg's variables in a bridge string.
	Mesh netip.AddrPort `json:"mesh"`

	// Site names what shares fate with the node: a data centre, a rack, an upstream.
	// Empty is a site of its own; see SiteName.
	Site string `json:"site,omitempty"`

	// Software is what runs there, for listings only: "FreeSWITCH 1.11.1".
	Software string `json:"software,omitempty"`

	// Location is where the node stands: how far it is from clients that nobody has
	// measured yet. The zero Location is not known.
	Location Location `json:"location,omitzero"`

	// Capacity is how many registrations the node is meant to hold at most; 0 is not
	// known. It bounds what a drain may send there and how many phones of a node that is
	// down go there while another node has room, and refuses nobody.
	Capacity int `json:"capacity,omitempty"`
}

// SiteName returns the site of n, which is its own name unless it names another.
func (n *Node) SiteName() string {
	if n.Site == "" {
		return string(n.ID)
	}
	return n.Site
}

// ValidSite reports whether s can name a site: the form of a node's name, see ParseNodeID.
func ValidSite(s string) bool {
	id, err := ParseNodeID(s)
	return err == nil && string(id) == s
}

// Location is a place on earth in degrees (WGS 84): latitude -90 to 90, north
// positive, longitude -180 to 180, east positive. The zero Location means "not known":
// nobody runs a switch in the Gulf of Guinea.
type Location struct {
	Latitude  float64 `json:"lat"`
	Longitude float64 `json:"lon"`
}

// Known reports whether l names a place.
func (l Location) Known() bool { return l != Location{} }

// Valid reports whether l is within the bounds of latitude and longitude.
func (l Location) Valid() bool {
	// A NaN fails every comparison.
	return l.Latitude >= -90 && l.Latitude <= 90 && l.Longitude >= -180 && l.Longitude <= 180
}

// SIPPorts are a node's ports for phones; 0 means that the transport is not
// offered and gets no SRV or NAPTR record.
type SIPPorts struct {
	UDP uint16 `json:"udp,omitempty"`
	TCP uint16 `json:"tcp,omitempty"`
	TLS uint16 `json:"tls,omitempty"`
	WS  uint16 `json:"ws,omitempty"`
	WSS uint16 `json:"wss,omitempty"`
}

// Observed is what probes, leases and the event socket say about a node.
type Observed uint8

// The observed states. Unknown is a node nobody has looked at yet; it routes like
// Suspect, because refusing calls to it would be a guess.
const (
	ObservedUnknown Observed = iota
	ObservedUp
	ObservedSuspect
	ObservedDown
)

// String returns the word that listings, metrics and logs use.
func (o Observed) String() string {
	switch o {
	case ObservedUp:
		return "up"
	case ObservedSuspect:
		return "suspect"
	case ObservedDown:
		return "down"
	default:
		return "unknown"
	}
}

// Wanted is what the operator asked of a node. A probe never changes it.
type Wanted uint8

// The wanted states. Draining keeps calls going to the phones that are still
// there but sends no new phones; Out takes the node away from both.
const (
	WantedInService Wanted = iota
	WantedDraining
	WantedOut
)

// String returns the word that listings, metrics and logs use.
func (w Wanted) String() string {
	switch w {
	case WantedDraining:
		return "draining"
	case WantedOut:
		return "out"
	default:
		return "in service"
	}
}

// Effective is what routing and DNS act on, computed from Observed and Wanted.
type Effective uint8

// The effective states, best first.
const (
	EffectiveUp Effective = iota
	EffectiveSuspect
	EffectiveDraining
	EffectiveDown
	EffectiveOut
)

// String returns the word that listings, metrics and logs use.
func (e Effective) String() string {
	switch e {
	case EffectiveUp:
		return "up"
	case EffectiveSuspect:
		return "suspect"
	case EffectiveDraining:
		return "draining"
	case EffectiveDown:
		return "down"
	default:
		return "out"
	}
}

// TakesCalls reports whether calls to phones on such a node are tried.
func (e Effective) TakesCalls() bool { return e <= EffectiveDraining }

// TakesPhones reports whether DNS may send phones to such a node.
func (e Effective) TakesPhones() bool { return e <= EffectiveSuspect }

// MeshReach is what this node's own probes say of another node's mesh address. Calls between
// two nodes are a matter of those two: what others reach does not count.
type MeshReach uint8

// The states of a mesh address. Unknown is one that this observer does not probe: a name
// server, the node itself, or a daemon that is cut off.
const (
	MeshUnknown MeshReach = iota
	MeshAnswers
	MeshSilent
)

// String returns the word that listings use.
func (r MeshReach) String() string {
	switch r {
	case MeshAnswers:
		return "answers"
	case MeshSilent:
		return "silent"
	default:
		return "unknown"
	}
}

// NodeState is one node's state as one observer sees it.
type NodeState struct {
	Observed Observed
	Wanted   Wanted

	// Mesh is whether calls from here get there.
	Mesh MeshReach

	// Since is when Observed last changed.
	Since time.Time

	// Reason is why, in words for an operator: "no answer to 3 OPTIONS".
	Reason string

	// Shed is the share of client networks, in per mille, that DNS sends elsewhere
	// while another node can take them: 0 (the usual) takes everybody, ShedAll nobody.
	// It is about new phones: calls to those that are there go on. A node that is
	// loaded, that has just returned, or whose daemon is silent sheds.
	Shed uint16

	// Full is the share, in per mille, of the phones of the nodes that are down for which
	// this node has no room (Node.Capacity): 0 takes them all, ShedAll none. It was
	// computed when the last of those nodes went down, and stays while they are.
	Full uint16
}

// ShedAll is the NodeState.Shed of a node that gets no new phones while any other
// node can take them.
const ShedAll = 1000

// Effective joins what is observed with what is wanted: Out wins over everything,
// Down over Draining (a dead node cannot drain), Draining over Up and Suspect.
func (s NodeState) Effective() Effective {
	switch {
	case s.Wanted == WantedOut:
		return EffectiveOut
	case s.Observed == ObservedDown:
		return EffectiveDown
	case s.Wanted == WantedDraining:
		return EffectiveDraining
	case s.Observed == ObservedUp:
		return EffectiveUp
	default:
		return EffectiveSuspect
	}
}

// TakesCalls reports whether calls to phones on the node are tried. Where this node's own
// probes know of the mesh address they decide: a node whose address for phones is shut takes
// calls as long as its mesh address answers, and nobody waits for one that does not.
func (s NodeState) TakesCalls() bool {
	switch {
	case s.Wanted == WantedOut, s.Mesh == MeshSilent:
		return false
	case s.Mesh == MeshAnswers:
		return true
	}
	return s.Effective().TakesCalls()
}

// Mesh is one immutable picture of all nodes, taken at once: a call, a DNS query
// and a listing each read exactly one. Nobody writes to a published Mesh.
type Mesh struct {
	Nodes  map[NodeID]Node
	States map[NodeID]NodeState

	// At is when the picture was taken.
	At time.Time
}

// State returns the state of id; the zero state (unknown, in service) when id is
// not a member or m is nil.
func (m *Mesh) State(id NodeID) NodeState {
	if m == nil {
		return NodeState{}
	}
	return m.States[id]
}

// Node returns the member id; ok is false when it is none or m is nil.
func (m *Mesh) Node(id NodeID) (n Node, ok bool) {
	if m == nil {
		return Node{}, false
	}
	n, ok = m.Nodes[id]
	return n, ok
}
