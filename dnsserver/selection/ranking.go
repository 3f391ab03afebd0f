package selection

import (
	"net/netip"

	"pbxmesh"
)

// Ranking says in which order the nodes serve client networks best, as somebody
// measured or worked it out from places. A Ranking is immutable; nil ranks nobody.
type Ranking struct {
	networks []Network
	locator  Locator
}

// Locator ranks the nodes for clients that stand in no network of a Ranking.
// Locate must not block, must not allocate, and must always answer the same.
type Locator interface {
	// Orders are all orders there are.
	Orders() [][]pbxmesh.NodeID

	// Locate returns which of Orders client gets, and the network around it that
	// gets the same; ok is false when nothing is known of where client is.
	Locate(client netip.Addr) (order int, network netip.Prefix, ok bool)
}

// NewRanking returns the Ranking of networks, of which the longest prefix wins, and of
// locator for everybody else; locator may be nil. It keeps the lists of nodes, which
// nobody may change afterwards; networks that share one list cost less. Errors are
// those of NewPreferences.
func NewRanking(networks []Network, locator Locator) (*Ranking, error) {
	r := &Ranking{networks: make([]Network, 0, len(networks)), locator: locator}
	err := eachNetwork(networks, func(prefix netip.Prefix, i int) {
		r.networks = append(r.networks, Network{prefix, networks[i].Nodes})
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}
