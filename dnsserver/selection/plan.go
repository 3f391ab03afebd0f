package selection

import (
	"cmp"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"sort"

	"pbxmesh"
)

// plan is the order of nodes for every client, before any node's state is looked at:
// preferences and ranking, compiled. It is immutable and outlives many snapshots.
//
// The networks, which may lie within one another, are laid out as spans of addresses
// that do not overlap, and neighbours with the same order are joined. The largest
// network around a client within its span is then what the scope of an ECS answer has
// to say (RFC 7871 section 7.2.1): a scope that covered a smaller network with another
// answer would give a resolver's clients there the wrong one. A table of prefixes
// would need up to 128 more entries for the gaps around every network.
type plan struct {
	preferences *Preferences
	ranking     *Ranking

	orders  [][]pbxmesh.NodeID
	located int // orders from here on are the locator's
	v4, v6  []span
}

// span is the addresses from first up to the first of the next span.
type span struct {
	first key
	order int32
}

// The orders that every plan has.
const orderDefault = 0

// unknown marks a span whose clients the locator is asked about.
const unknown = -1

// key is an address: an IPv4 address stands in lo.
type key struct{ hi, lo uint64 }

func keyOf(a netip.Addr) key {
	if a.Is4() {
		b := a.As4()
		return key{0, uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return key{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

func (k key) less(o key) bool { return k.hi < o.hi || k.hi == o.hi && k.lo < o.lo }

// next returns the address after k.
func (k key) next() key {
	if k.lo++; k.lo == 0 {
		k.hi++
	}
	return k
}

// lastOf returns the last address of p.
func lastOf(p netip.Prefix) key {
	k := keyOf(p.Addr())
	host := p.Addr().BitLen() - p.Bits()
	if host >= 64 {
		k.hi |= 1<<(host-64) - 1
		k.lo = ^uint64(0)
	} else {
		k.lo |= 1<<host - 1
	}
	return k
}

// common returns how many leading bits of width a and b share.
func common(a, b key, width int) int {
	if x := a.hi ^ b.hi; x != 0 {
		return bits.LeadingZeros64(x)
	}
	return min(64+bits.LeadingZeros64(a.lo^b.lo)-(128-width), width)
}

func newPlan(p *Preferences, r *Ranking) *plan {
	pl := &plan{preferences: p, ranking: r, orders: [][]pbxmesh.NodeID{joined(p.order())}}
	var ranked []Network
	var locator Locator
	if r != nil {
		ranked, locator = r.networks, r.locator
	}
	c := compiler{plan: pl, preferred: p.prefer(), ranked: ranked, elsewhere: orderDefault, known: make(map[lists]int32)}
	if locator != nil {
		c.elsewhere = unknown
	}
	pl.v4, pl.v6 = c.spans(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), c.spans(netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	pl.located = len(pl.orders)
	if locator != nil {
		for _, nodes := range locator.Orders() {
			pl.orders = append(pl.orders, joined(nodes, p.order()))
		}
	}
	return pl
}

// compiler makes the spans of a plan.
type compiler struct {
	plan              *plan
	preferred, ranked []Network
	elsewhere         int32 // the order of who stands in no network
	known             map[lists]int32
}

// lists are where an order comes from: the list of a preference and the list of a
// ranking, each nil for none. Lists are compared by identity: a ranking shares them.
type lists struct{ preferred, ranked *pbxmesh.NodeID }

// within is the innermost network of each kind around a span.
type within struct{ preferred, ranked *Network }

func (c *compiler) spans(all netip.Prefix) []span {
	type entry struct {
		first, last key
		bits        int
		preferred   bool
		network     *Network
	}
	entries := make([]entry, 0, len(c.ranked)+len(c.preferred))
	for k, list := range [][]Network{c.ranked, c.preferred} {
		for i := range list {
			if p := list[i].Prefix; p.Addr().Is4() == all.Addr().Is4() {
				entries = append(entries, entry{keyOf(p.Addr()), lastOf(p), p.Bits(), k == 1, &list[i]})
			}
		}
	}
	slices.SortFunc(entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.first.hi, b.first.hi), cmp.Compare(a.first.lo, b.first.lo), cmp.Compare(a.bits, b.bits))
	})
	type level struct {
		last key
		in   within
	}
	stack := []level{{lastOf(all), within{}}}
	out := []span{{keyOf(all.Addr()), c.elsewhere}}
	add := func(at key, in within) {
		order := c.order(in)
		if n := len(out); out[n-1].first == at {
			if n > 1 && out[n-2].order == order {
				out = out[:n-1]
			} else {
				out[n-1].order = order
			}
		} else if out[n-1].order != order {
			out = append(out, span{at, order})
		}
	}
	closeBefore := func(first key) {
		for len(stack) > 1 && stack[len(stack)-1].last.less(first) {
			last := stack[len(stack)-1].last
			stack = stack[:len(stack)-1]
			add(last.next(), stack[len(stack)-1].in)
		}
	}
	for i := range entries {
		e := &entries[i]
		closeBefore(e.first)
		in := stack[len(stack)-1].in
		if e.preferred {
			in.preferred = e.network
		} else {
			in.ranked = e.network
		}
		add(e.first, in)
		stack = append(stack, level{e.last, in})
	}
	for end := lastOf(all); len(stack) > 1; {
		last := stack[len(stack)-1].last
		stack = stack[:len(stack)-1]
		if last != end {
			add(last.next(), stack[len(stack)-1].in)
		}
	}
	return out
}

// order returns the index of the order in a span, the same one for the same lists.
func (c *compiler) order(in within) int32 {
	if in.preferred == nil && in.ranked == nil {
		return c.elsewhere
	}
	var s lists
	var preferred, ranked []pbxmesh.NodeID
	if in.preferred != nil {
		preferred, s.preferred = in.preferred.Nodes, identity(in.preferred.Nodes)
	}
	if in.ranked != nil {
		ranked, s.ranked = in.ranked.Nodes, identity(in.ranked.Nodes)
	}
	i, ok := c.known[s]
	if !ok {
		nodes := joined(preferred, ranked, c.plan.preferences.order())
		// Few orders come from preferences, and a ranking's are shared: comparing all
		// of them is cheap where it matters, and not done where there are many.
		if i = -1; len(c.plan.orders) <= maxCompared {
			i = int32(slices.IndexFunc(c.plan.orders, func(o []pbxmesh.NodeID) bool { return slices.Equal(o, nodes) })) //nolint:gosec // at most MaxNetworks
		}
		if i < 0 {
			i = int32(len(c.plan.orders)) //nolint:gosec // at most 2*MaxNetworks
			c.plan.orders = append(c.plan.orders, nodes)
		}
		c.known[s] = i
	}
	return i
}

const maxCompared = 256

func identity(nodes []pbxmesh.NodeID) *pbxmesh.NodeID {
	if len(nodes) == 0 {
		return nil
	}
	return &nodes[0]
}

// lookup returns the order of client and how many bits of its address decide it. A
// client that is not known (the zero Addr) gets the default order.
func (pl *plan) lookup(client netip.Addr) (order, scope int) {
	if !client.IsValid() {
		return orderDefault, 0
	}
	spans := pl.v6
	if client.Is4() {
		spans = pl.v4
	}
	k, width := keyOf(client), client.BitLen()
	i := sort.Search(len(spans)-1, func(i int) bool { return k.less(spans[i+1].first) })
	// The span's neighbours are outside: the scope has to tell client from both.
	if first := spans[i].first; i > 0 {
		before := first
		if before.lo--; first.lo == 0 {
			before.hi--
		}
		scope = common(k, before, width) + 1
	}
	if i+1 < len(spans) {
		scope = max(scope, common(k, spans[i+1].first, width)+1)
	}
	order = int(spans[i].order)
	if order == unknown {
		n, network, ok := pl.ranking.locator.Locate(client)
		if network.IsValid() {
			scope = max(scope, network.Bits())
		}
		order = orderDefault
		if ok && n >= 0 && n < len(pl.orders)-pl.located {
			order = pl.located + n
		}
	}
	return order, scope
}
