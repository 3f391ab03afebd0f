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
// When more than half of the telling daemons, or of those of one site, and two at least, fall
// silent within one observer's view at once, it is the registry or the way there: nothing
// changes until it has lasted for stallAfter, and when it is over each begins anew, because
// they do not all come back in the same moment.

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
	var telling, overdue siteCount
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
			telling.add(n)
			if d.overdue(&t.opts) && !d.left {
				overdue.add(n)
			}
		}
	}
	if t.stall("", overdue.all, telling.all, now) {
		return
	}
	stalled := make(map[string]bool, len(telling.of))
	for site, tell := range telling.of {
		stalled[site] = t.stall(site, overdue.of[site], tell, now)
	}
	for id, n := range t.nodes {
		if id != t.opts.Self && n.daemon.overdue(&t.opts) && !stalled[n.info.SiteName()] {
			n.daemon.silent = true
		}
	}
}

// siteCount counts nodes by site.
type siteCount struct {
	all int
	of  map[string]int
}

func (c *siteCount) add(n *node) {
	if c.of == nil {
		c.of = make(map[string]int)
	}
	c.all++
	c.of[n.info.SiteName()]++
}

// stall reports whether the silence of so many of the telling daemons of a site ("" for all)
// says nothing yet. When it is over each of them begins anew.
func (t *Tracker) stall(site string, overdue, telling int, now time.Time) bool {
	since, was := t.stalled[site]
	where := "everywhere"
	if site != "" {
		where = site
	}
	switch {
	case overdue >= 2 && majority(overdue, telling):
		if !was {
			since = now
			t.stalled[site] = now
			t.log.Warn("most daemons fell silent at once; taken for trouble of the registry or the way there", "site", where, "silent", overdue, "of", telling)
		}
		return now.Sub(since) < max(stallAfter, t.opts.DaemonSilentAfter)
	case was:
		delete(t.stalled, site)
		for _, n := range t.nodes {
			if site == "" || n.info.SiteName() == site {
				n.daemon.mute, n.daemon.vain = 0, 0
			}
		}
		return true
	}
	return false
}

// hearVotes takes the votes of daemons for signs of life of their nodes.
func (t *Tracker) hearVotes(votes []SeenVote) {
	for i := range votes {
		if n := t.nodes[votes[i].Self]; n != nil && votes[i].Self != pbxmesh.NodeID("") {
			n.daemon.hear(votes[i].Seen)
		}
	}
}
