package native

import (
	"net/netip"
	"time"
)

// Drift counts how the switch's rows differed from what we believed.
type Drift struct {
	Missing uint64 `json:"missing"` // should have been there: lost event, restarted profile
	Surplus uint64 `json:"surplus"` // should not have been there
	Wrong   uint64 `json:"wrong"`   // another contact, about to expire, or twice there
}

// Total returns the sum.
func (d Drift) Total() uint64 { return d.Missing + d.Surplus + d.Wrong }

func (d *Drift) add(o Drift) {
	d.Missing += o.Missing
	d.Surplus += o.Surplus
	d.Wrong += o.Wrong
}

// compare brings what the table believes in line with what the switch showed, and
// leaves the differences as changes to send. asked is when the list was asked for:
// what we sent within youngTime before that may or may not be in it, because the
// switch writes rows behind a queue, so those rows are left for the next time.
type compare struct {
	t     *table
	host  string // the switch's own name; "" takes every host for it
	asked time.Time
	first bool // of a session: what is not there is missing, whatever we believed
	seen  map[*row]int
	alien map[string]bool
	drift Drift
	found int // rows of ours in the list
}

func (t *table) compare(host string, asked time.Time, first bool) *compare {
	return &compare{t: t, host: host, asked: asked, first: first, seen: make(map[*row]int, len(t.byID)), alien: make(map[string]bool)}
}

// add takes one registration of the list.
func (c *compare) add(s switchRow) {
	// Another host's row lies in a shared database and belongs to that host's daemon.
	if s.agent != agent || c.host != "" && s.host != c.host {
		return
	}
	c.found++
	r := c.t.byID[s.callID]
	if r == nil {
		if !c.alien[s.callID] {
			c.alien[s.callID] = true
			c.drift.Surplus++
			c.t.alien = append(c.t.alien, op{remove: true, callID: s.callID, aor: s.user})
		}
		return
	}
	c.seen[r]++
	if c.young(r) || c.seen[r] > 1 {
		return
	}
	// The call-id is ours and names the user; where the contact leads is to be seen.
	was := r.have
	switch {
	case r.want.IsValid() && s.contact == r.key.contact(r.want):
		c.t.setHave(r, r.want)
	case was.IsValid() && s.contact == r.key.contact(was):
	default:
		c.t.setHave(r, foreign)
	}
	if r.have != was {
		if was.IsValid() && r.have == foreign {
			c.drift.Wrong++
		}
		r.expires = c.asked.Add(s.left)
		r.refresh = r.expires.Add(-halfLife(c.t.ttl)) // as if written a half life ago, or so
	}
	if r.have == r.want && s.left < c.t.ttl/10 && r.refresh.After(c.asked.Add(s.left)) {
		c.drift.Wrong++ // our clock says it has time, the switch's says it has none
		r.refresh = c.asked
	}
	if !r.want.IsValid() && !was.IsValid() {
		c.drift.Surplus++
	}
}

// finish plans what the list showed to be wrong and returns how much that was.
func (c *compare) finish(now time.Time) Drift {
	for _, u := range c.t.users {
		for _, r := range u.rows {
			switch n := c.seen[r]; {
			case c.young(r):
			case n == 0 && (r.have.IsValid() || c.first):
				if r.want.IsValid() {
					c.drift.Missing++
				}
				c.t.setHave(r, netip.AddrPort{})
			case n > 1:
				// Two events for one row overtook each other in the switch: writing
				// it again deletes by Call-ID first and leaves one.
				c.drift.Wrong++
				c.t.setHave(r, foreign)
			}
		}
		c.t.plan(u, now)
	}
	return c.drift
}

func (c *compare) young(r *row) bool {
	return !r.touched.IsZero() && r.touched.Add(youngTime).After(c.asked)
}

// foreign stands for a contact that is not the one we want: valid, and equal to no
// address that a row can have.
var foreign = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
