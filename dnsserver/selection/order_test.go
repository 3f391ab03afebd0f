package selection

import (
	"net/netip"
	"slices"
	"testing"

	"pbxmesh"
	"pbxmesh/fixtures"
)

const (
	buffalo   = pbxmesh.NodeID("buffalo")
	london    = pbxmesh.NodeID("london")
	singapore = pbxmesh.NodeID("singapore")
)

var defaultClient = netip.MustParseAddr("100.64.0.9")

func testPreferences(t testing.TB) *Preferences {
	t.Helper()
	p, err := NewPreferences([]Network{
		{netip.MustParsePrefix("198.51.100.0/24"), []pbxmesh.NodeID{london, buffalo}},
		{netip.MustParsePrefix("203.0.113.0/24"), []pbxmesh.NodeID{singapore}},
		{netip.MustParsePrefix("203.0.113.128/25"), []pbxmesh.NodeID{london}},
		{netip.MustParsePrefix("2001:db8:100::/40"), []pbxmesh.NodeID{singapore, london}},
	}, []pbxmesh.NodeID{buffalo, london})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func choose(mesh *pbxmesh.Mesh, client netip.Addr, p *Preferences) []pbxmesh.NodeID {
	d, _ := NewChoices(mesh, p).For(client, AnyFamily)
	return d.Nodes
}

func TestOrder(t *testing.T) {
	t.Parallel()
	mesh := fixtures.ThreeTowns(nil)
	for client, want := range map[string][]pbxmesh.NodeID{
		"203.0.113.1":     {singapore, buffalo, london}, // its own, then the default order
		"203.0.113.128":   {london, buffalo, singapore},
		"2001:db8:100::1": {singapore, london, buffalo},
		"100.64.0.1":      {buffalo, london, singapore},
	} {
		if got := choose(mesh, netip.MustParseAddr(client), testPreferences(t)); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", client, got, want)
		}
	}
	if got := choose(mesh, netip.Addr{}, testPreferences(t)); !slices.Equal(got, []pbxmesh.NodeID{buffalo, london, singapore}) {
		t.Errorf("unknown client: %v", got)
	}
	if got := choose(mesh, defaultClient, nil); !slices.Equal(got, []pbxmesh.NodeID{buffalo, london, singapore}) {
		t.Errorf("no preferences: %v", got)
	}
	if got := choose(nil, defaultClient, nil); len(got) != 0 {
		t.Errorf("no mesh: %v", got)
	}
}
