package router

import (
	"strings"
	"time"

	"pbxmesh"
)

// What says what a plan does with one registration.
type What uint8

// Rings is the first group, RingsNext a later one.
const (
	LeftOut What = iota
	Rings
	RingsNext
)

var whatWords = [...]string{"left-out", "rings", "rings-next"}

// String returns the word that listings and JSON use.
func (w What) String() string { return word(whatWords[:], uint8(w)) }

// MarshalText implements encoding.TextMarshaler with String's words.
func (w What) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error.
func (w *What) UnmarshalText(text []byte) error {
	return unword(whatWords[:], (*uint8)(w), "verdict", text)
}

// Why is the rule that led to a What.
type Why uint8

// The rules. Those up to WhyNodeUnknown and the last one ring, the others leave out.
const (
	WhyLocal        Why = iota // a device of this switch
	WhyNodeUp                  // the remote node is up
	WhyNodeDraining            // draining: it keeps the calls to its phones
	WhyNodeSuspect             // suspect: behind the healthy ones
	WhyNodeUnknown             // not looked at yet: behind the healthy ones
	WhyNodeDown                // observed down
	WhyNodeOut                 // taken out by the operator
	WhyNotMember               // a record of a node that never announced itself
	WhyNoMeshAddr              // no IPv4 address and port for mesh calls
	WhyExpired                 // the registration is over
	WhyMeshCall                // the call came over the mesh and must not go back into it
	WhyBadProfile              // a profile name that cannot stand in a bridge string
	WhyOtherAOR                // the record is of another address: a fault of who asked
	WhyTooMany                 // more than MaxTargets
	WhyMoved                   // the same phone has registered on another node since
	WhyMeshSilent              // the mesh address does not answer this node
	WhyMeshAnswers             // rings: down for phones, and its mesh address answers this node
)

var whyWords = [...]string{
	"local", "node-up", "node-draining", "node-suspect", "node-unknown", "node-down", "node-out",
	"not-a-member", "no-mesh-address", "expired", "mesh-call", "bad-profile", "other-address", "too-many",
	"moved", "mesh-silent", "mesh-answers",
}

// whyTexts are for people; the words above are for scripts.
var whyTexts = [...]string{
	"registered on this switch",
	"the node is up",
	"the node is draining and keeps the calls to its phones",
	"the node is suspect, so healthy ones ring first",
	"nobody has observed the node yet, so healthy ones ring first",
	"the node is down",
	"the operator took the node out",
	"the node has not announced itself",
	"the node has no usable mesh address (IPv4 and port)",
	"the registration has expired",
	"the call came over the mesh, it rings local devices only",
	"the profile name cannot stand in a bridge string",
	"the record is of another address",
	"the plan has its full number of targets",
	"the phone has registered on another node since",
	"the node's mesh address does not answer this node",
	"the node is down for phones, but its mesh address answers this node: healthy ones ring first",
}

// String returns the word that JSON and metrics use: "node-down".
func (w Why) String() string { return word(whyWords[:], uint8(w)) }

// Text returns the rule in words for an operator.
func (w Why) Text() string { return word(whyTexts[:], uint8(w)) }

// MarshalText implements encoding.TextMarshaler with String's words.
func (w Why) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error.
func (w *Why) UnmarshalText(text []byte) error {
	return unword(whyWords[:], (*uint8)(w), "reason", text)
}

// Reason says what the plan does with one registration, and why. It holds codes
// and borrowed strings only: the words are put together by String, which a call
// never runs.
type Reason struct {
	Node    pbxmesh.NodeID `json:"node"`
	Contact string         `json:"contact"`
	Profile string         `json:"profile,omitempty"`
	What    What           `json:"what"`
	Why     Why            `json:"why"`

	// Detail is what the failure detector says about the node, or where a phone has moved
	// to; "" when nothing.
	Detail string `json:"detail,omitempty"`

	// Until is when the registration ends, or ended.
	Until time.Time `json:"until"`
}

// String returns one line: "london sip:1001@192.0.2.7:5062: left out: the node
// is down (no answer to 3 OPTIONS); registered until 2026-11-22T15:04:05Z".
// Whatever a phone wrote into its contact, it stays one line of plain text.
func (r Reason) String() string {
	var b strings.Builder
	b.WriteString(string(r.Node))
	if r.Contact != "" {
		b.WriteByte(' ')
		b.WriteString(printable(r.Contact))
	}
	b.WriteString(": ")
	b.WriteString(strings.ReplaceAll(r.What.String(), "-", " "))
	b.WriteString(": ")
	b.WriteString(r.Why.Text())
	if r.Detail != "" {
		b.WriteString(" (")
		b.WriteString(printable(r.Detail))
		b.WriteByte(')')
	}
	b.WriteString("; registered until ")
	b.WriteString(r.Until.UTC().Format(time.RFC3339))
	return b.String()
}

// printable keeps a contact from moving the cursor of the operator's terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}
