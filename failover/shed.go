package failover

import (
	"time"

	"pbxmesh"
)

// trouble returns what keeps all new phones away from n, "" for nothing.
func trouble(n *node) string {
	switch {
	case n.state.Observed == pbxmesh.ObservedDown:
		return "it is down"
	case n.saysDead():
		return deadSocket
	case n.daemon.silent:
		return n.daemon.why()
	case n.busy:
		return "it answers 503"
	case n.meshDown:
		return "its mesh address is silent"
	}
	return ""
}

// settleShed computes how much of the new phones n gets, and reports whether that
// changed. all says that every node is in trouble, or not wanted in service.
func (t *Tracker) settleShed(n *node, all bool, now time.Time) bool {
	o := &t.opts.Return
	why := n.trouble
	load, loadWhy := t.loadOf(n.info.ID)
	n.comeback.step(why != "", all || n.state.Wanted != pbxmesh.WantedInService, now, o)
	var shed uint16
	if why != "" {
		shed = pbxmesh.ShedAll
	} else if r := t.returnOf(n, now); r.shed(o) > 0 {
		shed, why = r.shed(o), r.why()
	}
	if load > shed {
		shed, why = load, loadWhy
	}
	if shed == n.state.Shed && why == n.shedWhy {
		return false
	}
	n.state.Shed, n.shedWhy = shed, why
	return true
}

// returnGap is how long what the observers agree on about a return is taken for true, as long
// as nobody says anything new: its steps last seconds, and every probe comes by here.
const returnGap = 100 * time.Millisecond

// agreed is what the observers agreed on about the return of a node, and of what.
type agreed struct {
	is    Return
	at    time.Time
	votes uint64   // recounts by then
	own   comeback // as this observer saw it
}

// returnOf returns how far n is on its way back, as the observers agree.
func (t *Tracker) returnOf(n *node, now time.Time) Return {
	own := n.comeback.told(now, &t.opts.Return)
	if own.Hold == 0 && !t.returning[n.info.ID] {
		return Return{} // the usual, and there are many votes
	}
	if a := &n.agreed; a.votes != t.recounts || a.own != n.comeback || now.Sub(a.at) >= returnGap {
		*a = agreed{is: middle(append(t.told(n.info.ID, now), own)), at: now, votes: t.recounts, own: n.comeback}
	}
	return n.agreed.is
}

// told returns what the other observers say of the return of id. The daemon of id
// itself is not asked: it may have been away as well.
func (t *Tracker) told(id pbxmesh.NodeID, now time.Time) []Return {
	var returns []Return
	for i := range t.votes {
		v := &t.votes[i]
		if o, ok := v.Nodes[id]; ok && v.Self != id {
			o.Return.Age = min(o.Return.Age+max(0, now.Sub(v.Seen)), maxAge)
			returns = append(returns, o.Return)
		}
	}
	return returns
}
