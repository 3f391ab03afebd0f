package dnsserver

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"pbxmesh"
)

// Choices are the decisions for all clients on one snapshot. They are made when the
// snapshot changes and read by every query: A, AAAA, SRV and NAPTR answers of one
// client come from one Decision.
//
// A Choices is for concurrent use, and answers for one client are always the same.
type Choices struct {
	mesh *pbxmesh.Mesh
	plan *plan

	// byOrder holds the decisions of each order of the plan. It is filled as clients
	// come, so that a snapshot that lives for a second costs little.
	byOrder []atomic.Pointer[variants]

	mu       sync.Mutex
	interned map[string]*Decision // by what they say
}

// variants are the decisions for one order: one for each set of nodes that refuse a
// client.
type variants struct {
	// shedders are the nodes that send a share of the clients elsewhere, best first.
	// Beyond maxShedders a node takes everybody: the ones before must all refuse before
	// it is asked, and every further one would double the number of decisions.
	shedders []shedder

	spills    bool                     // see spills
	byRefusal []atomic.Pointer[spread] // bit i of the index: shedders[i] refuses
}

type shedder struct {
	id   pbxmesh.NodeID
	hash uint64
	shed uint16
}

const maxShedders = 6

// NewChoices returns the choices on one snapshot. mesh may be nil: nothing is known.
// Who chooses more than once keeps a Chooser, which compiles preferences once.
func NewChoices(mesh *pbxmesh.Mesh, preferences *Preferences) *Choices {
	return newChoices(mesh, newPlan(preferences, nil))
}

func newChoices(mesh *pbxmesh.Mesh, pl *plan) *Choices {
	return &Choices{mesh: mesh, plan: pl, byOrder: make([]atomic.Pointer[variants], len(pl.orders)), interned: make(map[string]*Decision)}
}

// Mesh returns the snapshot that the choices are made on; nil when nothing is known.
func (c *Choices) Mesh() *pbxmesh.Mesh { return c.mesh }

// For returns the decision for client, and the set of clients around it that get the
// same one: its length is the scope of an ECS answer. A client that is not known (the
// zero Addr) stands in no block. Equal decisions are one pointer, and for one client it
// stays the same, so what is derived from a decision can be kept beside it. There are
// at most 64 for each order of the nodes, and eight times as many while phones of a node that
// is down are spread (see spread).
//
// It does not block, and allocates only when a decision is made for the first time.
func (c *Choices) For(client netip.Addr) (*Decision, netip.Prefix) {
	client = client.Unmap().WithZone("")
	order, scope := c.plan.lookup(client)
	v, made, unit := c.made(order, client)
	if (len(v.shedders) > 0 || v.spills) && client.IsValid() {
		scope = max(scope, unitBits(client))
	}
	d := made.decisions[0]
	if v.spills {
		d = made.at(lineOf(unit))
	}
	block, err := client.Prefix(scope)
	if err != nil {
		return d, netip.Prefix{}
	}
	return d, block
}

// made returns what is decided for those who refuse client, and its unit, which is 0 where
// it does not count.
func (c *Choices) made(order int, client netip.Addr) (v *variants, made *spread, unit uint64) {
	if v = c.byOrder[order].Load(); v == nil {
		v = c.variants(order)
	}
	refusal := 0
	if len(v.shedders) > 0 || v.spills {
		unit = unitOf(client)
		for i := range v.shedders {
			if refuses(v.shedders[i].hash, unit, v.shedders[i].shed) {
				refusal |= 1 << i
			}
		}
	}
	if made = v.byRefusal[refusal].Load(); made == nil {
		made = c.decide(order, v, refusal)
	}
	return v, made, unit
}

// variants finds out who sheds a share of the clients of an order.
func (c *Choices) variants(order int) *variants {
	all := candidates(c.mesh, c.plan.orders[order])
	v := &variants{spills: spills(c.mesh, all)}
	for _, cand := range all {
		if cand.sheds > 0 && cand.sheds < pbxmesh.ShedAll && len(v.shedders) < maxShedders {
			v.shedders = append(v.shedders, shedder{cand.id, nodeHash(cand.id), cand.sheds})
		}
	}
	v.byRefusal = make([]atomic.Pointer[spread], 1<<len(v.shedders))
	if !c.byOrder[order].CompareAndSwap(nil, v) {
		return c.byOrder[order].Load()
	}
	return v
}

// decide makes the decisions for clients of an order that the given shedders refuse.
func (c *Choices) decide(order int, v *variants, refusal int) *spread {
	made := decide(c.mesh, c.plan.orders[order], func(id pbxmesh.NodeID, shed uint16) bool {
		if shed >= pbxmesh.ShedAll {
			return true
		}
		i := slices.IndexFunc(v.shedders, func(s shedder) bool { return s.id == id })
		return i >= 0 && refusal&(1<<i) != 0
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &spread{}
	if v.spills {
		for i, until := range shares(c.mesh, made.Nodes) {
			d := Decision{Nodes: slices.Clone(made.Nodes), Panic: made.Panic}
			d.Nodes = slices.Insert(slices.Delete(d.Nodes, i, i+1), 0, made.Nodes[i])
			s.until, s.decisions = append(s.until, until), append(s.decisions, c.intern(d))
		}
	}
	s.decisions = append(s.decisions, c.intern(made))
	v.byRefusal[refusal].Store(s) // two at once store the same
	return s
}

// intern returns the decision that says what d says. The caller holds c.mu.
func (c *Choices) intern(d Decision) *Decision {
	key := d.key()
	known := c.interned[key]
	if known == nil {
		known = &d
		c.interned[key] = known
	}
	return known
}
