package socket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"pbxmesh"
	"pbxmesh/router"
)

// Directory says who is registered. Lookup returns all records of an address,
// expired ones included, and how old that view may be. It should return within
// microseconds; ctx ends with the decision's deadline, and an implementation that
// blocks longer costs the caller no more than that deadline. Nobody there is an
// empty slice or pbxmesh.ErrNotRegistered; any other error means that nothing is
// known, and the call is given back as unavailable.
type Directory interface {
	Lookup(ctx context.Context, aor pbxmesh.AOR) (regs []*pbxmesh.Registration, age time.Duration, err error)
}

// Nodes says which nodes there are and how they do: an immutable picture. It must
// not block.
type Nodes interface {
	Mesh() *pbxmesh.Mesh
}

// Defaults of Options.
const (
	DefaultBudget          = time.Second
	DefaultDecisionTimeout = 300 * time.Millisecond
	DefaultMaxCalls        = 4096
	DefaultCallLimit       = 24 * time.Hour
)

// Options configure a Hook. Directory, Nodes and Local are required.
type Options struct {
	Directory Directory
	Nodes     Nodes

	// Local is the node whose switch calls us.
	Local pbxmesh.NodeID

	// Bridge names the sofia profiles. A call that arrived on the mesh profile
	// rings local devices only.
	Bridge router.BridgeOptions

	// DomainVariables are channel variables, by name without "variable_", of which
	// the first that is not empty is the domain of the dialled number; nil is
	// DefaultDomainVariables.
	DomainVariables []string

	// Domain is used when none of the variables is set; "" makes such a call
	// invalid.
	Domain string

	// Budget is the most that passes from the connection to the bridge command or
	// the give-back. ConnectTimeout (for the channel data) is a part of it, two fifths
	// by default and at most three quarters; DecisionTimeout (for the look-up) is cut to
	// what is left.
	Budget, ConnectTimeout, DecisionTimeout time.Duration

	// MaxCalls bounds the calls that are held at once, talking ones included: each
	// costs a connection and some 30 kB. One more is given back as overloaded.
	MaxCalls int

	// CallLimit is when the hook lets go of a call that is still on. The call
	// itself goes on. It bounds what a lost switch can leave behind.
	CallLimit time.Duration

	// Observe is called once for every call, when the bridge command was accepted
	// or the call was given back. It must not block. nil is none.
	Observe func(Record)

	// LogCalls writes one line for every call, at level info.
	LogCalls bool

	// Now is the clock that expiry is judged by; nil is time.Now.
	Now func() time.Time

	// Logger may be nil.
	Logger *slog.Logger
}

// DefaultDomainVariables is where a call's domain is looked for. domain_name comes
// first: FreeSWITCH sets it from the directory entry that the caller
// authenticated as, while the others are what the caller wrote into the request,
// and must not move a call into another tenant.
func DefaultDomainVariables() []string {
	return []string{"domain_name", "sip_req_host", "sip_to_host"}
}

func (o Options) withDefaults() (Options, error) {
	switch {
	case o.Directory == nil || o.Nodes == nil:
		return o, errors.New("socket hook: a Directory and Nodes are needed")
	case o.Budget < 0 || o.ConnectTimeout < 0 || o.DecisionTimeout < 0 || o.CallLimit < 0 || o.MaxCalls < 0:
		return o, errors.New("socket hook: a negative bound; leave it 0 for the default")
	}
	if id, err := pbxmesh.ParseNodeID(string(o.Local)); err != nil || id != o.Local {
		return o, fmt.Errorf("socket hook: the local node's name: %w: %.40q", pbxmesh.ErrInvalidNodeID, o.Local)
	}
	if err := o.Bridge.Validate(); err != nil {
		return o, fmt.Errorf("socket hook: %w", err)
	}
	if o.Domain != "" {
		if _, err := pbxmesh.NewAOR("1", o.Domain); err != nil {
			return o, fmt.Errorf("socket hook: the default domain: %w", err)
		}
	}
	if o.Bridge.MeshProfile == "" {
		o.Bridge.MeshProfile = router.DefaultMeshProfile
	}
	if o.DomainVariables == nil {
		o.DomainVariables = DefaultDomainVariables()
	}
	o.Budget = orDefault(o.Budget, DefaultBudget)
	o.ConnectTimeout = min(orDefault(o.ConnectTimeout, o.Budget*2/5), o.Budget*3/4)
	o.DecisionTimeout = orDefault(o.DecisionTimeout, DefaultDecisionTimeout)
	o.CallLimit = orDefault(o.CallLimit, DefaultCallLimit)
	if o.MaxCalls == 0 {
		o.MaxCalls = DefaultMaxCalls
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
