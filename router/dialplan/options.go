package dialplan

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
// microseconds; ctx ends with the request's deadline, and an implementation that
// blocks longer costs the caller no more than that deadline. Nobody there is an
// empty slice or pbxmesh.ErrNotRegistered; any other error means that nothing is
// known.
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
	DefaultDeadline    = 500 * time.Millisecond
	DefaultMaxRequests = 256
)

// AnyContext in Options.Contexts stands for every context.
const AnyContext = "*"

// Options configure a Server. Directory, Nodes and Local are required.
type Options struct {
	Directory Directory
	Nodes     Nodes

	// Local is the node whose switch asks us.
	Local pbxmesh.NodeID

	// Bridge names the sofia profiles. A call that arrived on the mesh profile
	// rings local devices only.
	Bridge router.BridgeOptions

	// Contexts are the dialplan contexts that POST /xml answers for; nil is
	// "default" alone. Callers from outside arrive in others ("public"), and an
	// answer there would let them dial extensions that the operator never offered.
	// Calls on the mesh profile are answered in any context.
	Contexts []string

	// Domain completes a number when the call names no domain; "" makes such a
	// call invalid. Only POST /xml uses it.
	Domain string

	// ACL makes POST /xml answer for acl.conf.
	ACL ACL

	// Explain answers GET /route with a value that is written as JSON; its errors
	// are those of Directory. nil answers 501.
	Explain func(ctx context.Context, aor pbxmesh.AOR, fromMesh bool) (any, error)

	// Token is asked of every request when it is not "": as a bearer token or as
	// the password of Basic authentication, which is all that FreeSWITCH can send.
	// Without one, only requests that name the server by address are served.
	Token string

	// Deadline is the most that a request takes, look-up included.
	Deadline time.Duration

	// MaxRequests bounds the requests that are served at once, and the connections
	// at twice as many; one more request gets 503.
	MaxRequests int

	// Observe is called once for every decision. It must not block. nil is none.
	Observe func(Record)

	// LogCalls writes one line for every decision that rings somebody, at level info.
	LogCalls bool

	// Now is the clock that expiry is judged by; nil is time.Now.
	Now func() time.Time

	// Logger may be nil.
	Logger *slog.Logger
}

// domainVariables is where a call's domain is looked for, as the socket hook does:
// domain_name comes from the directory entry that the caller authenticated as, the
// others are what the caller wrote and must not move a call into another tenant.
var domainVariables = [...]string{"variable_domain_name", "variable_sip_req_host", "variable_sip_to_host"}

func (o Options) withDefaults() (Options, error) {
	switch {
	case o.Directory == nil || o.Nodes == nil:
		return o, errors.New("dialplan hook: a Directory and Nodes are needed")
	case o.Deadline < 0 || o.MaxRequests < 0:
		return o, errors.New("dialplan hook: a negative bound; leave it 0 for the default")
	}
	if id, err := pbxmesh.ParseNodeID(string(o.Local)); err != nil || id != o.Local {
		return o, fmt.Errorf("dialplan hook: the local node's name: %w: %.40q", pbxmesh.ErrInvalidNodeID, o.Local)
	}
	if err := o.Bridge.Validate(); err != nil {
		return o, fmt.Errorf("dialplan hook: %w", err)
	}
	if o.Domain != "" {
		if _, err := pbxmesh.NewAOR("1", o.Domain); err != nil {
			return o, fmt.Errorf("dialplan hook: the default domain: %w", err)
		}
	}
	if o.Bridge.MeshProfile == "" {
		o.Bridge.MeshProfile = router.DefaultMeshProfile
	}
	if o.Contexts == nil {
		o.Contexts = []string{"default"}
	}
	for _, c := range o.Contexts {
		if c != AnyContext && !validName(c) {
			return o, fmt.Errorf("dialplan hook: the context %.40q: 1 to %d letters, digits, '.', '-' and '_' are allowed", c, maxName)
		}
	}
	if err := o.ACL.validate(); err != nil {
		return o, err
	}
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if o.MaxRequests == 0 {
		o.MaxRequests = DefaultMaxRequests
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// maxName bounds the names of contexts and lists; a tenant's domain may be one.
const maxName = pbxmesh.MaxDomainLen

// validName is the alphabet of context and list names: what a transfer, an XML
// document or a dial string could misread is not in it.
func validName(s string) bool {
	if s == "" || len(s) > maxName {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}
