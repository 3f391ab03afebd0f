package failover

import (
	"log/slog"
	"maps"
	"time"

	"pbxmesh"
)

// speak makes up this observer's word about n.
func (t *Tracker) speak(n *node, v view, now time.Time) {
	p := n.main()
	word := WordAnswers
	switch {
	case !p.probed(), p.last.Outcome == OutcomeLate:
		word = WordNone
	case p.quiet && (v.own || v.witness):
		word = WordSilent
	case p.quiet, p.silent > 0 && v.cutOff && !v.own:
		word = WordNone // it may be our own fault
	case p.silent > 0:
		word = WordDoubted
	case p.overloaded >= t.opts.SuspectAfter:
		word = WordOverloaded
	}
	if word != n.word {
		n.word, n.wordSince = word, now
	}
}

// meshWord is the same for the mesh address of a node that has another for phones.
func (t *Tracker) meshWord(n *node) Word {
	p := &n.paths[PathMesh]
	switch {
	case n.decides() == PathMesh || !p.probed() || t.cutOff || p.last.Outcome == OutcomeLate:
		return WordNone
	case p.quiet && p.witnessed:
		return WordSilent
	case p.quiet:
		return WordNone
	case p.silent > 0:
		return WordDoubted
	}
	return WordAnswers
}

// meshReach is what calls from Self to n go by.
func (t *Tracker) meshReach(n *node) pbxmesh.MeshReach {
	p := &n.paths[PathMesh]
	switch {
	case t.opts.Self == "" || n.info.ID == t.opts.Self || !p.probed() || t.cutOff || p.last.Outcome == OutcomeLate:
		return pbxmesh.MeshUnknown
	case p.quiet && p.witnessed:
		return pbxmesh.MeshSilent
	case p.silent > 0:
		return pbxmesh.MeshUnknown
	}
	return pbxmesh.MeshAnswers
}

// Vote returns this observer's vote at now.
func (t *Tracker) Vote(now time.Time) Vote {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.vote(now)
}

func (t *Tracker) vote(now time.Time) Vote {
	v := Vote{
		Observer: t.opts.Observer, Instance: t.opts.Instance, Self: t.opts.Self, Switch: t.word, Site: t.opts.Site,
		Load: t.load, LoadWhy: t.loadWhy, CutOff: t.cutOff, Nodes: make(map[pbxmesh.NodeID]Opinion, len(t.nodes)),
	}
	for id, n := range t.nodes {
		o := Opinion{
			Phones: n.word, Mesh: t.meshWord(n), For: min(max(0, now.Sub(n.wordSince)), maxAge),
			Return: n.comeback.told(now, &t.opts.Return),
		}
		if o != (Opinion{For: o.For}) {
			v.Nodes[id] = o
		}
	}
	return v
}

// Votes takes in the other observers' votes that are fresh at now, in place of all
// earlier ones; exchanged says that the registry could be read just now and took this
// observer's own vote: who says nothing through such a registry is silent. The caller leaves
// out votes that were not posted again for their time to live, and this observer's own.
func (t *Tracker) Votes(now time.Time, votes []SeenVote, exchanged bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := make(map[string]*SeenVote, len(t.votes))
	for i := range t.votes {
		before[t.votes[i].Observer] = &t.votes[i]
	}
	for i := range votes {
		t.heedDoubts(before[votes[i].Observer], &votes[i].Vote)
	}
	t.votes = votes
	t.recount()
	t.hearVotes(votes)
	if exchanged {
		t.hearDaemons(now)
	}
	for id := range t.returning {
		t.nodes[id].comeback.adopt(middle(t.told(id, now)), now, &t.opts.Return)
	}
	t.settle(now, false)
}

// recount counts the votes of the others on the present members.
func (t *Tracker) recount() {
	all := make([]*Vote, len(t.votes))
	for i := range t.votes {
		all[i] = &t.votes[i].Vote
	}
	t.recounts++
	t.others = count(t.members, all)
	t.loads = make(map[pbxmesh.NodeID]loadWord)
	t.returning = make(map[pbxmesh.NodeID]bool)
	for i := range t.votes {
		v := &t.votes[i]
		if v.Load > t.loads[v.Self].load {
			t.loads[v.Self] = loadWord{v.Load, v.LoadWhy}
		}
		for id, o := range v.Nodes {
			if o.Return.Hold > 0 && t.nodes[id] != nil {
				t.returning[id] = true
			}
		}
	}
}

type loadWord struct {
	load uint16
	why  string
}

// spoken is the part of a vote that is about no node.
type spoken struct {
	word    SwitchWord
	load    uint16
	loadWhy string
	cutOff  bool
}

// news reports whether the vote differs from that of the last call by more than ages:
// the others must be told at once.
func (t *Tracker) news(now time.Time) bool {
	spoke := spoken{t.word, t.load, t.loadWhy, t.cutOff}
	differs := spoke != t.spoke
	t.spoke = spoke
	for _, n := range t.nodes {
		o := Opinion{Phones: n.word, Mesh: t.meshWord(n), Return: Return{Hold: n.comeback.told(now, &t.opts.Return).Hold}}
		if o != n.told {
			n.told, differs = o, true
		}
	}
	return differs
}

// heedDoubts has nodes probed at once that another observer has just lost, so that the
// first one to notice sets the pace for all.
func (t *Tracker) heedDoubts(old *SeenVote, v *Vote) {
	lost := func(w Word) bool { return w == WordDoubted || w == WordSilent }
	for id, o := range v.Nodes {
		if !lost(o.Phones) || old != nil && lost(old.Nodes[id].Phones) {
			continue
		}
		if n := t.nodes[id]; n != nil && n.word == WordAnswers {
			t.doubt(id)
		}
	}
	if v.Switch == SwitchDead && (old == nil || old.Switch != SwitchDead) && t.nodes[v.Self] != nil {
		t.nodes[v.Self].streak = 0
		t.doubt(v.Self)
	}
}

func (t *Tracker) doubt(id pbxmesh.NodeID) {
	if t.opts.OnDoubt != nil {
		t.opts.OnDoubt(id)
	}
}

// SetSwitch records what the event socket of Self shows, and what its switch asks for
// because of its load (see Load).
func (t *Tracker) SetSwitch(now time.Time, word SwitchWord, load uint16, why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.word == word && t.load == load && t.loadWhy == why {
		return
	}
	if word == SwitchDead && t.word != SwitchDead {
		t.doubt(t.opts.Self)
	}
	t.word, t.load, t.loadWhy = word, min(load, pbxmesh.ShedAll), why
	t.settle(now, false)
}

// loadOf returns what the daemon of id asks for.
func (t *Tracker) loadOf(id pbxmesh.NodeID) (load uint16, why string) {
	if id == t.opts.Self {
		return t.load, t.loadWhy
	}
	return t.loads[id].load, t.loads[id].why
}

// logShed writes one line when a node begins or ceases to send phones away, and when
// the reason changes; the steps of a return are not worth one.
func (t *Tracker) logShed(n *node, before uint16) {
	level := slog.LevelDebug
	if before == 0 || n.state.Shed == 0 || n.state.Shed == pbxmesh.ShedAll {
		level = slog.LevelInfo
	}
	t.log.Log(noContext, level, "new phones", "node", n.info.ID, "sent_elsewhere_per_mille", n.state.Shed,
		"before", before, "reason", n.shedWhy)
}

// Observers returns the votes that count at now, this observer's own first.
func (t *Tracker) Observers(now time.Time) []SeenVote {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := append([]SeenVote{{Vote: t.vote(now), Seen: now}}, t.votes...)
	for i := range out {
		out[i].Nodes = maps.Clone(out[i].Nodes)
	}
	return out
}
