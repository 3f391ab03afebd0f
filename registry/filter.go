package registry

import (
	"strings"

	"pbxmesh"
)

// Filter selects registrations; the zero Filter selects all.
type Filter struct {
	Node   pbxmesh.NodeID // "" for every node
	Domain string         // lower case, "" for every domain
	User   string         // lower case, "" for every user
	Prefix bool           // User is only how the user begins
}

// NewFilter reads a filter as people write it: a node, a domain, and a user or, with a
// '*' at its end, how it begins; "" selects everything. pbxmesh.ErrInvalidAOR or
// pbxmesh.ErrInvalidNodeID says what cannot be selected.
func NewFilter(node, domain, user string) (Filter, error) {
	var f Filter
	var err error
	if node != "" {
		if f.Node, err = pbxmesh.ParseNodeID(node); err != nil {
			return Filter{}, err
		}
	}
	f.User, f.Prefix = strings.CutSuffix(user, "*")
	// Whatever is not asked for is replaced by what every AOR may hold.
	aor, err := pbxmesh.NewAOR(orElse(f.User, "x"), orElse(domain, "x"))
	if err != nil {
		return Filter{}, err
	}
	if f.User != "" {
		f.User = aor.User()
	}
	if domain != "" {
		f.Domain = aor.Domain()
	}
	return f, nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// MatchAOR reports whether registrations of aor may be selected, whatever their node.
func (f *Filter) MatchAOR(aor pbxmesh.AOR) bool {
	if f.Domain != "" && aor.Domain() != f.Domain {
		return false
	}
	if f.Prefix {
		return strings.HasPrefix(aor.User(), f.User)
	}
	return f.User == "" || aor.User() == f.User
}

// Match reports whether reg is selected.
func (f *Filter) Match(reg *pbxmesh.Registration) bool {
	return (f.Node == "" || reg.Node == f.Node) && f.MatchAOR(reg.AOR)
}

// All reports whether f selects everything.
func (f *Filter) All() bool { return f.Node == "" && f.Domain == "" && f.User == "" }
