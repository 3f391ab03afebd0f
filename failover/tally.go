package failover

import "time"

// settleGap is how long nothing comes in when this observer was stopped itself: leases are
// carried in ten times a second. Shorter ones leave half of Patience, at least.
const settleGap = Patience / 2

// counted is what a tally was counted from. Between two reads of the votes it mostly stays the
// same, and every probe of every node comes by here.
type counted struct {
	others *ballot
	own    Opinion
	self   voter
	sw     SwitchWord

	at    time.Time // when it was so last
	voted bool      // others had words, and some word counts
	// steady says that all sites in spoke and spokeMesh had a word at that time, so that no
	// time runs out. What stands in them may be older than at.
	steady bool
}

// same reports whether a tally would be counted from the same.
func (c *counted) same(d *counted) bool {
	return c.others == d.others && c.own == d.own && c.self == d.self && c.sw == d.sw
}

// stood takes in that this observer stood still for gap: nobody's silence began then.
func (t *Tracker) stood(gap time.Duration) {
	for _, n := range t.nodes {
		n.counted.at = n.counted.at.Add(gap)
		for _, spoke := range [...]map[string]time.Time{n.spoke, n.spokeMesh} {
			for site := range spoke {
				spoke[site] = spoke[site].Add(gap)
			}
		}
		if !n.alive.IsZero() {
			n.alive = n.alive.Add(gap)
		}
	}
}

// missed keeps in spoke when the sites of words had one last, for Patience, and reports
// whether other sites than self are among them, and whether some have no word now.
func missed(spoke map[string]time.Time, words []siteWords, except, self string, now time.Time) (others, mute bool) {
	speak := 0
	for _, s := range words {
		if s.site != except {
			spoke[s.site] = now
			speak++
		}
	}
	for site, at := range spoke {
		if now.Sub(at) > Patience {
			delete(spoke, site)
			continue
		}
		others = others || site != self
	}
	return others, len(spoke) > speak
}

// tallyUp counts what all say of n, this observer included.
func (t *Tracker) tallyUp(n *node, self voter, now time.Time) {
	c := counted{others: t.others[n.info.ID], own: Opinion{Phones: n.word, Mesh: t.meshWord(n)}, self: self}
	if n.view.own {
		c.sw = t.word
	}
	if n.counted.steady && n.counted.same(&c) {
		n.counted.at = now
	} else {
		n.count(c, now)
	}
	n.view.voted = n.counted.voted
	if !n.tally.Few && n.tally.Alive() {
		n.alive = now
	}
	n.view.lately = !n.alive.IsZero() && now.Sub(n.alive) <= Patience
	switch {
	case n.tally.Few: // as it was
	case n.view.voted:
		n.busy = n.tally.Busy()
		if !n.tally.MeshFew {
			n.meshDown = n.tally.MeshDown()
		}
	default:
		n.busy, n.meshDown = n.main().overloaded >= t.opts.SuspectAfter, n.meshSilent(n.view, &t.opts)
	}
}

// count makes the tally of n from c.
func (n *node) count(c counted, now time.Time) {
	b := ballot{site: n.info.SiteName()}
	if c.others != nil {
		b = c.others.clone()
	}
	voices := len(b.phones) + len(b.near)
	b.add(n.info.ID, c.own, c.self)
	if c.sw != SwitchUnknown {
		b.tell(c.sw)
	}
	if n.counted.steady {
		for _, spoke := range [...]map[string]time.Time{n.spoke, n.spokeMesh} {
			for site := range spoke {
				spoke[site] = n.counted.at
			}
		}
	}
	// Who had a word lately and has none now is cut off, stalled, or gone.
	others, mute := missed(n.spoke, b.phones, b.site, c.self.site, now)
	othersMesh, muteMesh := missed(n.spokeMesh, b.mesh, "", c.self.site, now)
	n.tally = b.tally(len(n.spoke) > 0)
	n.tally.Least = least(max(len(n.spoke), min(1, n.tally.Counted)))
	n.tally.Few = others && n.tally.Counted < n.tally.Least
	n.tally.MeshFew = othersMesh && n.tally.MeshCounted < least(len(n.spokeMesh))
	c.at, c.voted, c.steady = now, voices > 0 && n.tally.Counted > 0, !mute && !muteMesh
	n.counted = c
}
