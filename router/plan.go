package router

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
)

// Result is the outcome of a decision. The zero value is ResultInvalid, so that
// a plan nobody decided on can never ring anything.
type Result uint8

// The results. NotRegistered says that the registry was read and nobody is
// there; Unreachable says that somebody is, on nodes that take no calls.
const (
	ResultInvalid Result = iota
	ResultRouted
	ResultNotRegistered
	ResultUnreachable
)

var resultWords = [...]string{"invalid", "routed", "not-registered", "unreachable"}

// String returns the word that the dialplan sees in pbxmesh_result, and that
// listings, metrics and logs use.
func (r Result) String() string { return word(resultWords[:], uint8(r)) }

// MarshalText implements encoding.TextMarshaler with String's words.
func (r Result) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error.
func (r *Result) UnmarshalText(text []byte) error {
	return unword(resultWords[:], (*uint8)(r), "result", text)
}

// Target is one leg of a plan: a sofia profile of the local switch, which rings
// all devices that it holds for the AOR, or a remote node, which does the same.
type Target struct {
	Node  pbxmesh.NodeID `json:"node"`
	Local bool           `json:"local"`

	// Profile is the local sofia profile that holds the devices; "" for a remote
	// node, and for a local device whose profile nobody told us.
	Profile string `json:"profile,omitempty"`

	// Mesh is where a remote node takes mesh calls (IPv4); zero for a local target.
	Mesh netip.AddrPort `json:"mesh,omitzero"`

	// Devices is how many live registrations stand behind the target, at least 1.
	Devices int `json:"devices"`
}

// String returns "buffalo (internal, 2 devices)" or "london (192.0.2.2:5090, 1 device)".
func (t Target) String() string {
	where := t.Profile
	if !t.Local {
		where = t.Mesh.String()
	} else if where == "" {
		where = "local"
	}
	unit := " devices)"
	if t.Devices == 1 {
		unit = " device)"
	}
	return string(t.Node) + " (" + where + ", " + strconv.Itoa(t.Devices) + unit
}

// Plan is what Decide returns: the targets in the order in which they are tried,
// and why. It is immutable; its slices share one backing array.
type Plan struct {
	AOR      pbxmesh.AOR
	Result   Result
	FromMesh bool

	// Targets are groups: the targets of one group ring together, the groups are
	// tried in turn. Empty unless Result is ResultRouted; no group is empty.
	Targets [][]Target

	// Reasons has one entry for every registration that was looked at, those that
	// do not ring included, in the order in which they were given.
	Reasons []Reason

	// DataAge is how old the view of the registry was.
	DataAge time.Duration
}

// Nodes calls yield with every node that rings, in the order of the plan. A
// local node with two profiles comes twice.
func (p Plan) Nodes(yield func(pbxmesh.NodeID) bool) {
	for _, g := range p.Targets {
		for _, t := range g {
			if !yield(t.Node) {
				return
			}
		}
	}
}

// String returns the plan in one line: "1001@pbx.test: routed: a (...) + b (...), then c (...)".
func (p Plan) String() string {
	var b strings.Builder
	if p.AOR.IsZero() {
		b.WriteString("no address")
	} else {
		b.WriteString(p.AOR.String())
	}
	b.WriteString(": ")
	b.WriteString(p.Result.String())
	for i, g := range p.Targets {
		b.WriteString([...]string{": ", ", then "}[min(i, 1)])
		for j, t := range g {
			if j > 0 {
				b.WriteString(" + ")
			}
			b.WriteString(t.String())
		}
	}
	return b.String()
}

// word and unword turn the small enumerations of this package into words and back.
func word(words []string, v uint8) string {
	if int(v) < len(words) {
		return words[v]
	}
	return "unknown"
}

func unword(words []string, v *uint8, what string, text []byte) error {
	for i, w := range words {
		if w == string(text) {
			*v = uint8(i)
			return nil
		}
	}
	return fmt.Errorf("unknown %s %.40q; known are %s", what, text, strings.Join(words, ", "))
}
