package failover

import "time"

// settleGap is how long nothing comes in when this observer was stopped itself: leases are
// carried in ten times a second. Shorter ones leave half of Patience, at least.
const settleGap = Patience / 2

// stood takes in that this observer stood still for gap: nobody's silence began then.
func (t *Tracker) stood(gap time.Duration) {
	for _, n := range t.nodes {
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
// whether other sites than self are among them.
func missed(spoke map[string]time.Time, words []siteWords, except, self string, now time.Time) (others bool) {
	for _, s := range words {
		if s.site != except {
			spoke[s.site] = now
		}
	}
	for site, at := range spoke {
		if now.Sub(at) > Patience {
			delete(spoke, site)
			continue
		}
		others = others || site != self
	}
	return others
}

// tallyUp counts what all say of n, this observer included.
func (t *Tracker) tallyUp(n *node, self voter, now time.Time) {
	b := ballot{site: n.info.SiteName()}
	if others := t.others[n.info.ID]; others != nil {
		b = others.clone()
	}
	voices := len(b.phones) + len(b.near)
	b.add(n.info.ID, Opinion{Phones: n.word, Mesh: t.meshWord(n)}, self)
	if n.view.own && t.word != SwitchUnknown {
		b.tell(t.word)
	}
	// Who had a word lately and has none now is cut off, stalled, or gone.
	others := missed(n.spoke, b.phones, b.site, self.site, now)
	othersMesh := missed(n.spokeMesh, b.mesh, "", self.site, now)
	n.tally = b.tally(len(n.spoke) > 0)
	n.tally.Least = least(max(len(n.spoke), min(1, n.tally.Counted)))
	n.tally.Few = others && n.tally.Counted < n.tally.Least
	n.tally.MeshFew = othersMesh && n.tally.MeshCounted < least(len(n.spokeMesh))
	n.view.voted = voices > 0 && n.tally.Counted > 0
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
