package failover

import (
	"cmp"
	"slices"
	"time"

	"pbxmesh"
)

// Tally counts the votes on one node, by site: what shares fate has one voice. It is made
// by Count.
type Tally struct {
	// Counted is how many sites' words count, see Count. Answers, Doubted, Overloaded and
	// Silent are those words; Counted is the sum.
	Counted int

	Answers, Doubted, Overloaded, Silent int

	// Least is how many words a verdict needs; with fewer, Few is set and the state stays.
	// Count does not know it, a Tracker does.
	Least int
	Few   bool

	// MeshCounted and MeshSilent are the sites whose daemons are heard about the mesh
	// address, and those of them that get no answer from it; MeshFew is Few for these.
	MeshCounted, MeshSilent int
	MeshFew                 bool

	// Told says that the node's own daemon votes, and Switch what it says of its
	// switch.
	Told   bool
	Switch SwitchWord
}

// Patience is how long a site that has had a word goes on being missed, when it has none any
// more: until then a verdict needs more than half of those sites, and without them the
// state of a node stays what it was.
const Patience = 10 * time.Second

// majority reports whether n is more than half of all. Half is not enough: where
// sites disagree one to one, nothing changes.
func majority(n, all int) bool { return 2*n > all }

// Down reports whether most sites get no answer from the node.
func (t *Tally) Down() bool { return majority(t.Silent, t.Counted) }

// Shaken reports whether most sites lost at least their last probe.
func (t *Tally) Shaken() bool { return majority(t.Silent+t.Doubted, t.Counted) }

// Busy reports whether the node answers 503 to most sites.
func (t *Tally) Busy() bool { return majority(t.Overloaded, t.Counted) }

// Alive reports whether most sites got an answer to their last probe.
func (t *Tally) Alive() bool { return majority(t.Answers+t.Overloaded, t.Counted) }

// MeshDown reports whether most sites get no answer from the mesh address.
func (t *Tally) MeshDown() bool { return majority(t.MeshSilent, t.MeshCounted) }

// least returns how many of n sites that have spoken lately must speak for a verdict.
func least(n int) int { return min(n, n/2+1) }

// Count counts the votes on each of nodes. It is a pure function, and the order of the
// votes does not matter: observers that see the same votes come to the same tallies.
// The votes must be fresh, one of each observer, the caller's own among them.
//
// The observers of a site have one word together, that of most of them. Not heard is
//   - about the address for phones, who stands at the node's own site: no world lies
//     between. But its own daemon is heard when it says "silent"; and where nobody stands
//     elsewhere, the neighbours are heard, each for itself;
//   - about the mesh address, the node's own daemon, and name servers, which the switch
//     does not let in;
//   - "silent" from an observer that no node of another site answers without doubt: it is
//     more likely cut off itself than the last one alive. A neighbour proves nothing.
func Count(nodes []pbxmesh.Node, votes []*Vote) map[pbxmesh.NodeID]Tally {
	tallies := make(map[pbxmesh.NodeID]Tally, len(nodes))
	for id, b := range count(nodes, votes) {
		tallies[id] = b.tally(false)
	}
	return tallies
}

// count is Count before the words become numbers.
func count(nodes []pbxmesh.Node, votes []*Vote) map[pbxmesh.NodeID]*ballot {
	ballots := make(map[pbxmesh.NodeID]*ballot, len(nodes))
	for i := range nodes {
		ballots[nodes[i].ID] = &ballot{site: nodes[i].SiteName()}
	}
	for _, v := range votes {
		who := v.voter(nodes)
		for id, o := range v.Nodes {
			if b := ballots[id]; b != nil {
				b.add(id, o, who)
			}
		}
		if b := ballots[v.Self]; b != nil {
			b.tell(v.Switch)
		}
	}
	return ballots
}

// voter is what counts of an observer.
type voter struct {
	observer string
	site     string
	self     pbxmesh.NodeID // "" for one that stands beside no node
	reaches  bool           // a node that is outside for it answers it
}

// voter returns what counts of the observer among nodes.
func (v *Vote) voter(nodes []pbxmesh.Node) voter {
	w := voter{observer: v.Observer, site: v.SiteName(), self: v.Self}
	alone := !anyOutside(nodes, w.site)
	for i := range nodes {
		if !outside(&nodes[i], w.site, w.self, alone) {
			continue
		}
		if o := v.Nodes[nodes[i].ID]; o.Phones == WordAnswers || o.Phones == WordOverloaded {
			w.reaches = true
			break
		}
	}
	return w
}

// anyOutside reports whether a node stands at another site.
func anyOutside(nodes []pbxmesh.Node, site string) bool {
	return slices.ContainsFunc(nodes, func(n pbxmesh.Node) bool { return n.SiteName() != site })
}

// outside reports whether n's answer proves something of the network to an observer of a
// site: it stands at another one or, where all stand at one, it is not the observer's own.
func outside(n *pbxmesh.Node, site string, self pbxmesh.NodeID, alone bool) bool {
	if alone {
		return n.ID != self
	}
	return n.SiteName() != site
}

// ballot is what is said of one node.
type ballot struct {
	site   string // of the node
	phones []siteWords
	near   []siteWords // of the neighbours, each for itself
	mesh   []siteWords
	told   bool
	sw     SwitchWord
}

// siteWords are the words of the observers of one site.
type siteWords struct {
	site  string
	words [WordSilent + 1]int
}

// add counts one opinion on the node id.
func (b *ballot) add(id pbxmesh.NodeID, o Opinion, who voter) {
	own, inside := id == who.self, who.site == b.site
	if known(o.Phones) && (o.Phones != WordSilent || own || who.reaches) {
		switch {
		case !inside, own && o.Phones == WordSilent:
			b.phones = say(b.phones, who.site, o.Phones)
		case !own:
			b.near = say(b.near, who.observer, o.Phones)
		}
	}
	if !own && who.self != "" && known(o.Mesh) && (o.Mesh != WordSilent || who.reaches) {
		b.mesh = say(b.mesh, who.site, o.Mesh)
	}
}

func known(w Word) bool { return w > WordNone && w <= WordSilent }

// say adds a word of a site to the sorted list.
func say(list []siteWords, site string, w Word) []siteWords {
	at, found := slices.BinarySearchFunc(list, site, func(s siteWords, site string) int { return cmp.Compare(s.site, site) })
	if !found {
		list = slices.Insert(list, at, siteWords{site: site})
	}
	list[at].words[w]++
	return list
}

// tell takes in what a daemon beside the node says of its switch. Of two that call
// themselves so, the dead word wins.
func (b *ballot) tell(sw SwitchWord) { b.told, b.sw = true, max(b.sw, sw) }

// clone returns a copy that can be added to.
func (b *ballot) clone() ballot {
	c := *b
	c.phones, c.near, c.mesh = slices.Clone(b.phones), slices.Clone(b.near), slices.Clone(b.mesh)
	return c
}

// tally makes numbers of the words. elsewhere says that somebody outside of the node's
// site has a word, though not now: then the neighbours have none.
func (b *ballot) tally(elsewhere bool) Tally {
	t := Tally{Told: b.told, Switch: b.sw}
	for _, s := range b.heard(elsewhere) {
		t.Counted++
		switch s.word() {
		case WordDoubted:
			t.Doubted++
		case WordOverloaded:
			t.Overloaded++
		case WordSilent:
			t.Silent++
		default:
			t.Answers++
		}
	}
	for _, s := range b.mesh {
		t.MeshCounted++
		if s.word() == WordSilent {
			t.MeshSilent++
		}
	}
	return t
}

// heard returns those whose words count about the address for phones.
func (b *ballot) heard(elsewhere bool) []siteWords {
	if elsewhere || slices.ContainsFunc(b.phones, func(s siteWords) bool { return s.site != b.site }) {
		return b.phones
	}
	return append(slices.Clone(b.near), b.phones...)
}

// word is that of most of the site's observers.
func (s *siteWords) word() Word {
	all := 0
	for _, n := range s.words {
		all += n
	}
	switch {
	case majority(s.words[WordSilent], all):
		return WordSilent
	case majority(s.words[WordOverloaded], all):
		return WordOverloaded
	case majority(s.words[WordSilent]+s.words[WordDoubted], all):
		return WordDoubted
	}
	return WordAnswers
}
