package app

import (
	"cmp"
	"net/netip"
	"sync"

	"pbxmesh"
)

// ownDomain says once that phones register with an address for a domain, as FreeSWITCH's
// sample configuration has it: another one on every node, so that nobody finds them.
type ownDomain struct{ once sync.Once }

func (o *ownDomain) note(a *App, r *pbxmesh.Registration) {
	if r == nil || a.cfg.Node == nil || r.Node != a.nodeID() {
		return
	}
	if _, err := netip.ParseAddr(r.AOR.Domain()); err != nil {
		return
	}
	o.once.Do(func() {
		a.log.Warn("phones of this switch register with an address for a domain, which is another one on every node: no node finds those of another; give all nodes one domain (pbxmesh fsconf --domain, or domain= in vars.xml)",
			"aor", r.AOR, "domain", cmp.Or(a.cfg.Router.DefaultDomain, "sip.example.com"))
	})
}
