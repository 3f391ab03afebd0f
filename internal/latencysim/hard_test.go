package latencysim

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"pbxmesh"
)

// lie is what a phone does to its samples.
type lie uint8

const (
	honest  lie = iota
	delays      // every answer, by delayMS
	hurries     // answers a challenge before it has it, always at the node of its choice
)

const (
	delayMS   = 400.0
	hurriedMS = 0.25
	liesOften = 20 // times as many registrations as an honest phone
)

// resolver is one that sends no client subnet.
type resolver struct {
	kind  resolverKind
	addr  netip.Addr
	where pbxmesh.Location
}

// resolverKind says whose phones a resolver serves, and where it stands.
type resolverKind uint8

const (
	sends    resolverKind = iota // the client subnet
	provided                     // those of a provider, in its network
	regional                     // those of many cities, in the hub that is nearest to them
	far                          // the same, in another hub
	resolverKinds
)

// spoil hides the subnets of a share of the networks behind resolvers, a third of each kind,
// and lets a share of the phones lie, one half each way.
func (w *world) spoil(seed uint64, hidden, liars float64) {
	r, deceit := rand.New(rand.NewPCG(seed, 5)), rand.New(rand.NewPCG(seed, 6))
	for _, c := range w.clients {
		if r.Float64() < hidden {
			near := 0
			for i := range hubs {
				if distance(hubs[i], c.group.city.location()) < distance(hubs[near], c.group.city.location()) {
					near = i
				}
			}
			switch 1 + resolverKind(r.Float64()*3) {
			case provided:
				a := c.prefix.Addr().As4()
				c.resolver = resolver{provided, netip.AddrFrom4([4]byte{a[0], a[1], 250, 53}), c.group.city.location()}
			case regional:
				c.resolver = resolver{regional, netip.AddrFrom4([4]byte{203, 0, byte(near), 53}), hubs[near]}
			default:
				c.resolver = resolver{far, netip.AddrFrom4([4]byte{203, 1, byte(near), 53}), hubs[(near+3)%len(hubs)]}
			}
		}
		for i := range c.phones {
			if p := &c.phones[i]; deceit.Float64() < liars {
				p.lie, p.haunt = delays, deceit.IntN(len(w.nodes))
				if deceit.Float64() < 0.5 {
					p.lie = hurries
				}
			}
		}
	}
}

// liars reports whether one of the phones lies.
func (c *client) liars() bool {
	return slices.ContainsFunc(c.phones, func(p phone) bool { return p.lie != honest })
}

// asks is the address that the name server sees for a network, and the network that an
// answer is cached for.
func (c *client) asks() (addr netip.Addr, cache netip.Prefix) {
	if c.resolver.kind == sends {
		return c.phones[0].addr, c.prefix
	}
	network, _ := c.resolver.addr.Prefix(24)
	return c.resolver.addr, network
}

// seen is the place that a database has for what the name server sees.
func (c *client) seen() pbxmesh.Location {
	if c.resolver.kind != sends {
		return c.resolver.where
	}
	return c.where
}

// hard is a mesh with few phones in a network, resolvers that hide some, and liars.
var hard = func() settings {
	s := usual
	s.phones, s.hidden, s.liars, s.follow = 3, 0.3, 0.05, true
	return s
}()

// TestLiarsAndResolvers is the claim of docs/latency.md for few phones: what the liars
// change is less than what they are.
func TestLiarsAndResolvers(t *testing.T) {
	if raceDetector {
		t.Skip("one goroutine does it all: there is no race to find, and it would take a minute")
	}
	t.Parallel()
	after := func(liars float64) moment {
		lean := hard
		lean.networks, lean.liars, lean.rebuild, lean.publish = 400, liars, leanPace, leanPace
		s := newSim(t, 1, lean)
		s.run(t, 5*s.interval+shared)
		m := s.moment()
		t.Log(m)
		return m
	}
	without, with := after(0), after(hard.liars)
	if with.shown < wantShown || with.excess >= wantExcessHardMS || with.best <= with.distance+0.1 {
		t.Errorf("five liars of a hundred phones: %v", with)
	}
	if lost := without.shown - with.shown; lost > hard.liars || with.lied < wantLied {
		t.Errorf("the liars change %.1f %% of the answers; where they are, %.1f %% are right", 100*lost, 100*with.lied)
	}
}
