package selection

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"pbxmesh"
)

// Decision is which nodes one client gets, on one snapshot. A, AAAA, SRV and NAPTR
// answers are all read from it.
type Decision struct {
	// Nodes are the nodes to use, best first. Empty only when no node has an
	// address for phones of the family that was asked for.
	Nodes []pbxmesh.NodeID

	// Panic says that fewer than half of the nodes that should take phones do, so
	// that Nodes ends with nodes which are draining or down, or holds no other. It is
	// more likely that they are watched wrongly than that they all died.
	Panic bool
}

// key says the same for equal decisions.
func (d *Decision) key() string {
	var b strings.Builder
	if d.Panic {
		b.WriteByte('!')
	}
	for _, id := range d.Nodes {
		b.WriteString(string(id))
		b.WriteByte(' ')
	}
	return b.String()
}

// Choices are the decisions for all clients on one snapshot. They are made when the
// snapshot changes and read by every query: A, AAAA, SRV and NAPTR answers of one
// client come from one Decision.
//
// A Choices is for concurrent use, and answers for one client are always the same.
type Choices struct {
	mesh *pbxmesh.Mesh
	plan *plan

	// byOrder holds the decisions of each order of the plan, for each family; a family that
	// all nodes have shares those of AnyFamily. It is filled as clients come, so that a
	// snapshot that lives for a second costs little.
	byOrder [families][]atomic.Pointer[variants]

	mu       sync.Mutex
	interned map[string]*Decision // by what they say
}

// variants are the decisions for one order and family: one for each set of nodes that refuse
// a client.
type variants struct {
	living []pbxmesh.NodeID // as the stage of states left them
	beyond []uint16         // of living
	panics bool
	spills bool // see spills

	// shedders are those of living that send a share of the clients elsewhere, best first.
	// Beyond maxShedders a node takes everybody: the ones before must all refuse before
	// it is asked, and every further one would double the number of decisions.
	shedders []shedder

	byRefusal []atomic.Pointer[spread] // bit i of the index: shedders[i] refuses
}

type shedder struct {
	at   int // index into living
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
	c := &Choices{mesh: mesh, plan: pl, interned: make(map[string]*Decision)}
	for f := range Family(families) {
		if f == AnyFamily || c.mixed(f) {
			c.byOrder[f] = make([]atomic.Pointer[variants], len(pl.orders))
		} else {
			c.byOrder[f] = c.byOrder[AnyFamily]
		}
	}
	return c
}

// mixed reports whether a node for phones has no address of the family.
func (c *Choices) mixed(f Family) bool {
	if c.mesh != nil {
		for id := range c.mesh.Nodes {
			if n := c.mesh.Nodes[id]; len(n.Addresses) > 0 && !f.has(n) {
				return true
			}
		}
	}
	return false
}

// Mesh returns the snapshot that the choices are made on; nil when nothing is known.
func (c *Choices) Mesh() *pbxmesh.Mesh { return c.mesh }

// For returns the decision for client, which asks for addresses of a family, and the set of
// clients around it that get the same one: its length is the scope of an ECS answer. A client
// that is not known (the zero Addr) stands in no block. Equal decisions are one pointer, and
// for one client it stays the same, so what is derived from a decision can be kept beside it.
// There are at most 64 for each order and family, and eight times as many while phones of a
// node that is down are spread (see spread).
//
// It does not block, and allocates only when a decision is made for the first time.
func (c *Choices) For(client netip.Addr, family Family) (*Decision, netip.Prefix) {
	client = client.Unmap().WithZone("")
	order, scope := c.plan.lookup(client)
	v, made, unit := c.made(order, family, client)
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
func (c *Choices) made(order int, family Family, client netip.Addr) (v *variants, made *spread, unit uint64) {
	if v = c.byOrder[family][order].Load(); v == nil {
		v = c.variants(order, family)
	}
	refusal := 0
	if len(v.shedders) > 0 || v.spills {
		unit = UnitOf(client)
		for i := range v.shedders {
			if refuses(v.shedders[i].hash, unit, v.shedders[i].shed) {
				refusal |= 1 << i
			}
		}
	}
	if made = v.byRefusal[refusal].Load(); made == nil {
		made = c.decide(v, refusal)
	}
	return v, made, unit
}

// variants runs the stages that are the same for all clients of an order.
func (c *Choices) variants(order int, family Family) *variants {
	ordered := inOrder(c.mesh, c.plan.orders[order], family)
	v := &variants{spills: spills(c.mesh, ordered)}
	v.living, v.panics = living(c.mesh, ordered)
	v.beyond = beyond(c.mesh, v.living)
	for i, by := range v.beyond {
		if by > 0 && by < pbxmesh.ShedAll && len(v.shedders) < maxShedders {
			v.shedders = append(v.shedders, shedder{i, nodeHash(v.living[i]), by})
		}
	}
	v.byRefusal = make([]atomic.Pointer[spread], 1<<len(v.shedders))
	if !c.byOrder[family][order].CompareAndSwap(nil, v) {
		return c.byOrder[family][order].Load()
	}
	return v
}

// decide runs the other stages, for the clients that the given shedders refuse.
func (c *Choices) decide(v *variants, refusal int) *spread {
	nodes := shed(c.mesh, v.living, v.beyond, func(at int) bool {
		if v.beyond[at] >= pbxmesh.ShedAll {
			return true
		}
		i := slices.IndexFunc(v.shedders, func(s shedder) bool { return s.at == at })
		return i >= 0 && refusal&(1<<i) != 0
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &spread{}
	if v.spills {
		for i, until := range shares(c.mesh, nodes) {
			s.until = append(s.until, until)
			s.decisions = append(s.decisions, c.intern(Decision{Nodes: leading(nodes, i), Panic: v.panics}))
		}
	}
	s.decisions = append(s.decisions, c.intern(Decision{Nodes: nodes, Panic: v.panics}))
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
