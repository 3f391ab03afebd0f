package failover

import (
	"time"

	"pbxmesh"
)

// Whether a node's daemon is silent is seen by its signs of life in the registry: its
// lease renewed, its vote posted again. A daemon that gives none is dead, hung, or cut off from
// the registry; its switch may well be alive, so calls to the phones there go on, but new
// phones would be found by nobody.
//
//	             SilentAfter without a sign, not all at once
//	 +---------+ ------------------------------------------> +--------+
//	 | telling |                                             | silent |
//	 +---------+ <------------------------------------------ +--------+
//	   |     ^                  a sign                         ^
//	   |     | a sign                                          |
//	   v     |          LeaveGrace without a sign              |
//	 +---------+ ----------------------------------------------+
//	 | stopped |
//	 +---------+   stopped in an orderly way: mostly it is about to start again
//
// Only time in which this observer could read the registry and write to it counts. When it could
// not for longer than half of SilentAfter, every daemon begins anew: a Redis that hung or took no
// writes, or an observer that was stopped itself, makes nobody silent, and after it each daemon
// has the time of its next renewals. Who has been read in vain for three times SilentAfter is
// silent in spite of it: a registry that is always slow, or hangs again and again.
//
// When more than half of the telling daemons, and two at least, fall silent within one
// observer's view at once, it is the registry or the way there: nothing changes until it
// has lasted for stallAfter, and when it is over each begins anew, because they do not all
// come back in the same moment.

// Defaults and bounds of the silence of daemons.
const (
	DefaultDaemonSilentAfter = 3 * time.Second // three renewals of lease and vote
	DefaultLeaveGrace        = 10 * time.Second

	stallAfter = 10 * time.Second
)

// daemon is what the tracker knows of a node's daemon.
type daemon struct {
	sign   time.Time     // the last sign of life; zero for none yet
	mute   time.Duration // time of good reading since then, or since this observer could not read
	vain   time.Duration // the same since then, at most half of SilentAfter between two reads
	left   bool
	silent bool
}

// hear takes in a sign of life at the given time; the zero time is none.
func (d *daemon) hear(at time.Time) {
	if at.After(d.sign) {
		d.sign, d.mute, d.vain, d.silent = at, 0, 0, false
	}
}

// overdue reports whether the daemon would be silent if it were alone.
func (d *daemon) overdue(o *Options) bool {
	after := o.DaemonSilentAfter
	if d.left {
		after = max(o.LeaveGrace, after)
	}
	return d.mute > after || d.vain > after+2*o.DaemonSilentAfter
}

func (d *daemon) why() string {
	if d.left {
		return "its daemon was stopped"
	}
	return "its daemon is silent"
}

// hearDaemons takes in that the registry was read at now, after the signs of life in
// it were heard.
func (t *Tracker) hearDaemons(now time.Time) {
	gap := now.Sub(t.readAt)
	if t.readAt.IsZero() || gap < 0 {
		gap = 0
	}
	t.readAt = now
	long := t.opts.DaemonSilentAfter / 2
	telling, overdue := 0, 0
	for id, n := range t.nodes {
		d := &n.daemon
		if id == t.opts.Self {
			*d = daemon{}
			continue
		}
		d.vain += min(gap, long)
		if d.mute += gap; gap > long {
			d.mute = 0
		}
		if !d.silent {
			telling++
			if d.overdue(&t.opts) && !d.left {
				overdue++
			}
		}
	}
	if overdue >= 2 && majority(overdue, telling) {
		if t.stalledSince.IsZero() {
			t.stalledSince = now
			t.log.Warn("most daemons fell silent at once; taken for trouble of the registry", "silent", overdue, "of", telling)
		}
		if now.Sub(t.stalledSince) < max(stallAfter, t.opts.DaemonSilentAfter) {
			return
		}
	} else if !t.stalledSince.IsZero() {
		t.stalledSince = time.Time{}
		for _, n := range t.nodes {
			n.daemon.mute, n.daemon.vain = 0, 0
		}
		return
	}
	for id, n := range t.nodes {
		if id != t.opts.Self && n.daemon.overdue(&t.opts) {
			n.daemon.silent = true
		}
	}
}

// hearVotes takes the votes of daemons for signs of life of their nodes.
func (t *Tracker) hearVotes(votes []SeenVote) {
	for i := range votes {
		if n := t.nodes[votes[i].Self]; n != nil && votes[i].Self != pbxmesh.NodeID("") {
			n.daemon.hear(votes[i].Seen)
		}
	}
}
