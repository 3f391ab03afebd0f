package failover

import (
	"fmt"
	"time"

	"pbxmesh"
)

// The state chart of one node. Where other observers' votes count, it goes by them, and
// is a function of the votes alone, so that all name servers answer the same:
//
//	 +---------+   votes    +----+  most sites lost a probe, or get 503,      +---------+
//	 | unknown | ---------> | up | -----------------------------------------> | suspect |
//	 +---------+            +----+  lease run out, mesh address silent,       +---------+
//	                        ^ |  ^  or event socket dead while SIP answers        |  |
//	  most do not say any   | |  |                                                |  |
//	  more that it is silent| |  +------------------ not any more ----------------+  |
//	                        | v  most sites say: silent,                             |
//	                  +------------+  or its daemon says: switch dead,               |
//	                  |    down    |  and most sites have no answer to the           |
//	                  +------------+  last probe to show against it  <---------------+
//
// Fewer words than a verdict needs (see Patience): the state stays what it was. Alone (the
// registry is away, or nobody else counts) for longer, an observer goes by its own probes. N1 = SuspectAfter, N2 = DownAfter, M = UpAfter, "no answer" = timeout, refused
// or error.
//
//	               first answer
//	 +---------+ ----------------------------------> +---------+
//	 | unknown |                                     |   up    | <-----------------+
//	 +---------+ --+                       +-------> +---------+                   |
//	      |        | N1 x no answer,       | answer,      | N1 x no answer,        |
//	      |        | or lease run out      | lease well   | N1 x 503,              |
//	      |        v                       |              | lease run out,         |
//	      |   +---------------------------------+         | mesh address silent or |
//	      |   |             suspect             | <-------+ event socket dead      |
//	      |   +---------------------------------+                                  |
//	      |                  |                               |                     |
//	      |                  | N2 x no answer, and a witness | daemon says dead,   |
//	      |                  v                               | last probe lost     |
//	      |   +------------------------------------------------+  M x answer in    |
//	      +-> |                      down                      | -- a row ---------+
//	          +------------------------------------------------+  (to suspect while its
//	                                                               event socket is dead)
//
// A witness is whatever shows that the silence is the node's and not ours:
//
//   - the registry, over a good link, says that its lease has run out;
//   - another node answered us after this one fell silent, and still does;
//   - the silent switch is our own, and no network lies between;
//   - the node is the only one there is: nothing is lost by believing it.
//
// An observer that two or more remote nodes do not answer, and none does, is
// cut off itself until one answers again. Meanwhile silence changes no state: what
// had become suspect in the moment of the cut goes back to what it was before, and
// what was down stays down. Counting begins anew when the first node answers.
// What the registry says over a good link counts even then, the votes of others among it.

// node is what the tracker knows of one member. Only the tracker's lock holder
// touches it.
type node struct {
	info  pbxmesh.Node
	state pbxmesh.NodeState
	old   pbxmesh.NodeState // before the present judgement
	// reason is why Observed is what it is; state.Reason adds why it sheds.
	reason string
	paths  [numPaths]path
	lease  LeaseReport

	// streak counts answers in a row on the deciding path, for the way back from
	// down. It starts again when the daemon declares its switch dead.
	streak int

	// firm is what Observed was when the words of the sites last showed it without doubt.
	firm pbxmesh.Observed

	// before is what Observed was when the present silence began; cut-off
	// observers return to it.
	before pbxmesh.Observed

	daemon   daemon
	comeback comeback
	agreed   agreed
	tally    Tally // at the last judgement
	view     view  // the same
	busy     bool  // it answered 503, see tallyUp
	meshDown bool  // its mesh address is silent

	// spoke is when a site last had a word that counts about the address for phones,
	// spokeMesh about the mesh address, and alive when most sites last had an answer.
	spoke, spokeMesh map[string]time.Time
	alive            time.Time
	counted          counted

	// word is what this observer says of the node, and since when.
	word      Word
	wordSince time.Time
	told      Opinion // what was told last, ages aside

	trouble     string              // what keeps all new phones away, "" for nothing
	shedWhy     string              // "" when the node takes everybody
	transitions [numObserved]uint64 // into each observed state
}

// path is the history of one probed address.
type path struct {
	last        ProbeResult // zero At: never probed
	silent      int         // results in a row without any answer
	overloaded  int         // 503s in a row
	streak      int         // answers in a row
	answered    bool        // by the last probe that was not late
	silentSince time.Time   // the first of silent

	// witnessed says that somebody else has answered since quiet began, so that it is not
	// ours, and stays so when we are cut off afterwards.
	witnessed bool

	// quiet is the verdict with both thresholds: it begins after DownAfter silences
	// and ends after UpAfter answers.
	quiet bool
}

func (p *path) probed() bool   { return !p.last.At.IsZero() }
func (p *path) answers() bool  { return p.probed() && p.last.Outcome.answered() }
func (n *node) main() *path    { return &n.paths[n.decides()] }
func (n *node) leaseOut() bool { return n.lease.LinkOK && n.lease.Status == LeaseExpired }

// decides returns the path whose silence can take the node down.
func (n *node) decides() Path {
	if len(n.info.Addresses) == 0 {
		return PathMesh
	}
	// A node without a UDP port for phones cannot be probed on it.
	if n.info.Ports.UDP == 0 {
		return PathMesh
	}
	return PathPhones
}

// saysDead reports the daemon's present word that its switch is dead: that of its vote,
// which is the quicker one, or that of its lease.
func (n *node) saysDead() bool {
	if n.tally.Told {
		return n.tally.Switch == SwitchDead
	}
	return n.leaseDead()
}

func (n *node) leaseDead() bool {
	return n.lease.LinkOK && n.lease.Status == LeaseFresh && n.lease.Switch == SwitchDead
}

// view is what the rest of the mesh shows, for the judgement of one node.
type view struct {
	voted   bool // the word of at least one other observer counts
	cutOff  bool // two or more remote nodes are probed and none answers
	witness bool // another remote node answered since this one fell silent
	own     bool // the node is the observer's own
	only    bool // there is no other member
	lately  bool // most sites had an answer a moment ago, not longer than Patience
}

// contradicted reports whether SIP shows a switch alive that its daemon calls dead. While too
// few have a word, because they are late or cut off, what was said before goes on.
func contradicted(n *node, v view) bool {
	switch {
	case v.own && n.main().answered:
		return true // our own switch's answers count for nobody else, but for us
	case n.tally.Few || n.tally.Counted == 0:
		return v.lately
	}
	return n.tally.Alive()
}

// judge returns the observed state that n ought to be in and why. It is a pure
// function of the node's counters and the view.
func judge(n *node, v view, o *Options) (pbxmesh.Observed, string) {
	if n.saysDead() && !contradicted(n, v) {
		return pbxmesh.ObservedDown, "its own daemon says that the switch is dead"
	}
	switch {
	case n.tally.Few && n.firm != pbxmesh.ObservedUnknown:
		return n.firm, fmt.Sprintf("kept: %d of the sites that watch it can tell, %d are needed", n.tally.Counted, n.tally.Least)
	case v.voted:
		return judgeVotes(n, o)
	}
	return judgeAlone(n, v, o)
}

// judgeVotes goes by what most observers say.
func judgeVotes(n *node, o *Options) (pbxmesh.Observed, string) {
	t := &n.tally
	switch {
	case t.Down():
		return pbxmesh.ObservedDown, fmt.Sprintf("it does not answer %d of %d sites", t.Silent, t.Counted)
	case t.Busy():
		return pbxmesh.ObservedSuspect, "overloaded: it answers 503"
	case n.saysDead():
		return pbxmesh.ObservedSuspect, deadSocket
	case t.Shaken():
		return pbxmesh.ObservedSuspect, "the last OPTIONS of most sites got no answer"
	case n.leaseOut():
		return pbxmesh.ObservedSuspect, "its lease has run out, its switch answers"
	case n.meshDown:
		return pbxmesh.ObservedSuspect, silentMesh(o)
	case t.Silent > 0:
		return pbxmesh.ObservedUp, fmt.Sprintf("it answers %d of %d sites", t.Counted-t.Silent, t.Counted)
	}
	return pbxmesh.ObservedUp, "answers OPTIONS"
}

const deadSocket = "its event socket does not answer, SIP does"

func silentMesh(o *Options) string {
	return fmt.Sprintf("no answer to %d OPTIONS on its mesh address: calls between nodes fail", o.DownAfter)
}

// judgeAlone goes by this observer's own probes.
func judgeAlone(n *node, v view, o *Options) (pbxmesh.Observed, string) {
	now := n.state.Observed
	p := n.main()
	if now == pbxmesh.ObservedDown {
		switch {
		case p.overloaded >= o.UpAfter:
			return pbxmesh.ObservedSuspect, "overloaded: it answers 503"
		case n.streak < o.UpAfter:
			return now, n.reason
		case n.saysDead():
			return pbxmesh.ObservedSuspect, deadSocket
		}
		return pbxmesh.ObservedUp, fmt.Sprintf("%d OPTIONS in a row answered", o.UpAfter)
	}
	if p.silent >= o.DownAfter {
		silence := fmt.Sprintf("no answer to %d OPTIONS (%s)", o.DownAfter, p.last.Outcome)
		switch {
		case n.leaseOut():
			return pbxmesh.ObservedDown, silence + " and its lease has run out"
		case v.own:
			return pbxmesh.ObservedDown, silence + " from the switch of this node"
		case v.witness:
			return pbxmesh.ObservedDown, silence + " while other nodes answer"
		case v.only:
			return pbxmesh.ObservedDown, silence + " from the only node"
		}
	}
	if p.silent >= o.SuspectAfter {
		if v.cutOff && !v.own {
			return n.before, "kept: no node answers this observer, it is probably cut off itself"
		}
		if p.silent >= o.DownAfter {
			return pbxmesh.ObservedSuspect, fmt.Sprintf("no answer to %d OPTIONS, and nothing shows whether it or this observer is cut off", o.DownAfter)
		}
		return pbxmesh.ObservedSuspect, fmt.Sprintf("no answer to %d OPTIONS (%s)", o.SuspectAfter, p.last.Outcome)
	}
	if p.silent > 0 {
		return now, n.reason
	}
	switch {
	case p.overloaded >= o.SuspectAfter:
		return pbxmesh.ObservedSuspect, "overloaded: it answers 503"
	case p.overloaded > 0:
		return now, n.reason
	case n.saysDead():
		return pbxmesh.ObservedSuspect, deadSocket
	case n.leaseOut() && p.answers():
		return pbxmesh.ObservedSuspect, "its lease has run out, its switch answers"
	case n.leaseOut():
		return pbxmesh.ObservedSuspect, "its lease has run out"
	case !p.answers():
		return now, n.reason
	case n.meshSilent(v, o):
		return pbxmesh.ObservedSuspect, silentMesh(o)
	}
	return pbxmesh.ObservedUp, "answers OPTIONS"
}

// meshSilent reports what this observer's own probes say of the mesh address.
func (n *node) meshSilent(v view, o *Options) bool {
	p := &n.paths[PathMesh]
	return n.decides() == PathPhones && p.silent >= o.DownAfter && p.witnessed && !v.cutOff
}
