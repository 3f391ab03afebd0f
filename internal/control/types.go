package control

import (
	"errors"
	"net/netip"
	"time"

	"pbxmesh"
)

// Seconds is a span of time on the wire: a number with fractions.
type Seconds float64

// SecondsOf converts d.
func SecondsOf(d time.Duration) Seconds { return Seconds(d.Seconds()) }

// Duration converts s back.
func (s Seconds) Duration() time.Duration { return time.Duration(float64(s) * float64(time.Second)) }

// LookupReply answers GET /v1/lookup?aor=user@domain. No registration is an
// empty list and code 200: the question was answered.
type LookupReply struct {
	AOR           pbxmesh.AOR    `json:"aor"`
	Registrations []Registration `json:"registrations"`

	// DataAge is how old the view of the registry may be.
	DataAge Seconds `json:"data_age_seconds"`

	// Source is where the answer came from: SourceReplica or SourceRegistry.
	Source string `json:"source"`
}

// Where an answer came from.
const (
	SourceReplica  = "replica"  // a daemon's copy of the registry
	SourceRegistry = "registry" // the registry itself, read without a daemon
)

// Registration is one device.
type Registration struct {
	Node      pbxmesh.NodeID `json:"node"`
	NodeState string         `json:"node_state"` // effective state: "up"
	Profile   string         `json:"profile"`
	Contact   string         `json:"contact"`
	Source    netip.AddrPort `json:"source"` // where the REGISTER came from; "" when unknown
	Transport string         `json:"transport,omitempty"`
	UserAgent string         `json:"user_agent,omitempty"`
	CallID    string         `json:"call_id"`
	Expires   time.Time      `json:"expires"`
	ExpiresIn Seconds        `json:"expires_in_seconds"` // at the time of the answer
}

// NewRegistration shows r as it stands at now.
func NewRegistration(r *pbxmesh.Registration, nodeState string, now time.Time) Registration {
	return Registration{
		Node: r.Node, NodeState: nodeState, Profile: r.Profile, Contact: r.Contact,
		Source: r.Source, Transport: r.Transport, UserAgent: r.UserAgent, CallID: r.CallID,
		Expires: r.Expires, ExpiresIn: SecondsOf(r.Expires.Sub(now)),
	}
}

// NodesReply answers GET /v1/nodes.
type NodesReply struct {
	Nodes    []Node  `json:"nodes"` // by id
	DataAge  Seconds `json:"data_age_seconds"`
	Observer string  `json:"observer"` // whose view this is

	// Observers counts the observers that are heard, this one included. CutOff says that
	// no other node answers this one, AllDown that every node is down, PanicRule that so
	// few nodes take phones that name servers answer with the others, too.
	Observers int  `json:"observers"`
	CutOff    bool `json:"cut_off"`
	AllDown   bool `json:"all_down"`
	PanicRule bool `json:"panic_rule"`
}

// Node is one member and its three states.
type Node struct {
	ID        pbxmesh.NodeID   `json:"id"`
	Local     bool             `json:"local"` // the node of the daemon that answers
	Addresses []netip.Addr     `json:"addresses"`
	Mesh      netip.AddrPort   `json:"mesh"`
	Ports     pbxmesh.SIPPorts `json:"ports"`
	Software  string           `json:"software,omitempty"`

	Observed  string    `json:"observed"`  // "up", "suspect", "down", "unknown"
	Wanted    string    `json:"wanted"`    // "in service", "draining", "out"
	Effective string    `json:"effective"` // what calls and DNS go by
	Since     time.Time `json:"since"`     // when Observed last changed
	Reason    string    `json:"reason,omitempty"`

	// Shed is the share of client networks, in per mille, whose phones name servers
	// send elsewhere while another node can take them, and ShedReason why.
	Shed       int    `json:"shed_per_mille"`
	ShedReason string `json:"shed_reason,omitempty"`

	Votes Votes `json:"votes"`

	// WantedSince, WantedBy and WantedReason are when, who and why; nil and empty
	// when no operator ever wanted anything.
	WantedSince  *time.Time `json:"wanted_since,omitempty"`
	WantedBy     string     `json:"wanted_by,omitempty"`
	WantedReason string     `json:"wanted_reason,omitempty"`

	// Drain is how far the node's drain is; nil when none goes on or its daemon says
	// nothing.
	Drain *Drain `json:"drain,omitempty"`

	// LeaseAge is the time since the node's last sign of life in the registry;
	// nil when it never gave one.
	LeaseAge *Seconds `json:"lease_age_seconds,omitempty"`

	// Sessions and MaxSessions are the switch's calls and their limit; nil when the
	// node's daemon has not told them.
	Sessions    *int `json:"sessions,omitempty"`
	MaxSessions *int `json:"max_sessions,omitempty"`

	// Registrations counts the live devices of the node in this view.
	Registrations int `json:"registrations"`

	// SwitchConnected says whether the node's daemon has its event socket; nil when
	// that is not known here.
	SwitchConnected *bool `json:"switch_connected,omitempty"`
}

// Votes is what the observers say of one node. Counted is how many sites have a word, the
// sum of the next four, and Needed how many must have one for the state to change.
type Votes struct {
	Counted    int    `json:"counted"`
	Needed     int    `json:"needed"`
	Answers    int    `json:"answers"`
	Doubted    int    `json:"doubted"`
	Overloaded int    `json:"overloaded"`
	Silent     int    `json:"silent"`
	Observers  []Vote `json:"observers"` // by name, this one first
}

// Vote is what one observer says of one node.
type Vote struct {
	Observer string         `json:"observer"`
	Site     string         `json:"site"`
	Beside   pbxmesh.NodeID `json:"beside,omitempty"` // the observer's own node
	Phones   string         `json:"phones"`           // "answers", "doubted", "overloaded", "silent", "none"
	Mesh     string         `json:"mesh,omitempty"`
	For      Seconds        `json:"for_seconds"` // since when it says so
	Age      Seconds        `json:"age_seconds"` // since the vote was last heard
	CutOff   bool           `json:"cut_off"`     // no other node answers the observer

	// Switch is what the event socket shows to the node's own daemon: "alive", "dead",
	// "unknown"; "" from everybody else.
	Switch string `json:"switch,omitempty"`
}

// ExplainReply answers GET /v1/explain?aor=user@domain[&from=mesh]: what would
// happen to a call to AOR that arrives at Node now, and why.
type ExplainReply struct {
	AOR      pbxmesh.AOR    `json:"aor"`
	Node     pbxmesh.NodeID `json:"node"`      // whose decision this is
	FromMesh bool           `json:"from_mesh"` // asked as if the call came from another node
	Result   string         `json:"result"`    // what pbxmesh_result would hold
	Bridge   string         `json:"bridge"`    // the bridge application's argument; "" when nothing is bridged
	Groups   [][]Target     `json:"groups"`    // each rings together; groups are tried in turn
	Reasons  []Reason       `json:"reasons"`   // in the order of the decision
	DataAge  Seconds        `json:"data_age_seconds"`
}

// Target is one leg of the plan.
type Target struct {
	Node    pbxmesh.NodeID `json:"node"`
	Local   bool           `json:"local"`
	Profile string         `json:"profile,omitempty"` // sofia profile of a local leg
	Address netip.AddrPort `json:"address"`           // mesh address; "" for a local leg
	Devices int            `json:"devices"`           // live registrations behind the leg
}

// Reason is one step of the decision. Node is empty when it is about no node.
type Reason struct {
	Node pbxmesh.NodeID `json:"node,omitempty"`
	Text string         `json:"text"`
}

// ErrRefused says that the daemon will not do what it was asked to, and why.
var ErrRefused = errors.New("refused")

// ErrInvalid says what is wrong with a request.
var ErrInvalid = errors.New("invalid request")

// ForgetReply answers POST /v1/forget?node=london.
type ForgetReply struct {
	Node pbxmesh.NodeID `json:"node"`
}

// VersionReply answers GET /v1/version.
type VersionReply struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`
	Go       string `json:"go"`
	Observer string `json:"observer,omitempty"`
}

// ErrorReply is the body of every answer that is no 2xx.
type ErrorReply struct {
	Message string `json:"error"`
	Hint    string `json:"hint,omitempty"`
}
