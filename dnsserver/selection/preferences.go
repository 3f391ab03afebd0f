package selection

import (
	"fmt"
	"net/netip"
	"slices"

	"pbxmesh"
)

// Network is a client network and the nodes it should get, best first.
type Network struct {
	Prefix netip.Prefix
	Nodes  []pbxmesh.NodeID
}

// Preferences say which nodes a client network prefers: the operator's word, which
// wins over measured latency. A Preferences is immutable; nil prefers nobody.
type Preferences struct {
	networks []Network // valid, masked, without duplicates
	fallback []pbxmesh.NodeID
}

// MaxNetworks bounds a Preferences and a Ranking.
const MaxNetworks = 1 << 17

// NewPreferences returns the Preferences of networks; fallback is the order of
// everybody else, and of the nodes that a network does not list. The longest
// prefix wins. Duplicate and invalid prefixes are
// errors, as are prefixes with host bits.
func NewPreferences(networks []Network, fallback []pbxmesh.NodeID) (*Preferences, error) {
	p := &Preferences{networks: make([]Network, 0, len(networks)), fallback: slices.Clone(fallback)}
	err := eachNetwork(networks, func(prefix netip.Prefix, i int) {
		p.networks = append(p.networks, Network{prefix, slices.Clone(networks[i].Nodes)})
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// eachNetwork calls f with every prefix in its own family, or says what is wrong.
func eachNetwork(networks []Network, f func(prefix netip.Prefix, i int)) error {
	if len(networks) > MaxNetworks {
		return fmt.Errorf("selection: %d client networks, at most %d are allowed", len(networks), MaxNetworks)
	}
	given := make(map[netip.Prefix]bool, len(networks))
	for i, n := range networks {
		prefix := n.Prefix
		if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		if !prefix.IsValid() || prefix != prefix.Masked() {
			return fmt.Errorf("selection: client network %v is not valid or has bits beyond its length; write %v", n.Prefix, prefix.Masked())
		}
		if given[prefix] {
			return fmt.Errorf("selection: client network %v is listed twice", prefix)
		}
		given[prefix] = true
		f(prefix, i)
	}
	return nil
}

// order returns the default order; nil when nobody is preferred.
func (p *Preferences) order() []pbxmesh.NodeID {
	if p == nil {
		return nil
	}
	return p.fallback
}

// prefer returns the networks of the preferences.
func (p *Preferences) prefer() []Network {
	if p == nil {
		return nil
	}
	return p.networks
}

// joined returns the nodes of all lists, each once, where it stands first.
func joined(lists ...[]pbxmesh.NodeID) []pbxmesh.NodeID {
	var out []pbxmesh.NodeID
	for _, list := range lists {
		for _, id := range list {
			if !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	return out
}
