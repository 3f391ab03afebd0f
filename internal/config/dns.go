package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pbxmesh"
)

// normalize brings names into the one form that everything compares: lower case,
// no final dot.
func (c *Config) normalize() {
	z := &c.DNS
	z.Zone = foldName(z.Zone)
	for _, list := range [][]string{z.Services, z.Tenants, z.TenantZones} {
		for i := range list {
			list[i] = foldName(list[i])
		}
	}
	for i := range z.Nameservers {
		z.Nameservers[i].Name = foldName(z.Nameservers[i].Name)
	}
	c.Router.DefaultDomain = foldName(c.Router.DefaultDomain)
}

// foldName folds ASCII only; other letters are refused later.
func foldName(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			return r - 'A' + 'a'
		}
		return r
	}, strings.TrimSuffix(s, "."))
}

func (d *decoder) validateDNS(z *DNS) {
	on := z.On()
	for i, l := range z.Listen {
		path := fmt.Sprintf("dns.listen[%d]", i)
		if !l.IsValid() {
			d.check(path, "is empty: write an IP address and port such as 192.0.2.53:53, or remove the entry; an empty list turns the name server off")
		}
		if l.Port() != 0 && slices.Contains(z.Listen[:i], l) {
			d.check(path, "%s stands in the list twice: remove one", l)
		}
	}
	if z.Zone == "" {
		if on {
			d.check("dns.zone", "is missing: write the zone that is delegated to this name server, such as sip.example.com")
		}
	} else if err := checkName(z.Zone); err != nil {
		d.check("dns.zone", "%s", err)
	}
	if on && len(z.Nameservers) == 0 {
		d.check("dns.nameservers", "is missing: name the name servers of the zone, as its parent zone does")
	}
	d.validateNameservers(z, d.validateNames(z))
	d.validateTransports(z)
	d.validateHostmaster(z)
	d.validateTTL(&z.TTL)
	d.validateZone(z)
	d.validatePreferences(z)
	d.validateGuards(z)
}

// transports are what dns.transports may name.
var transports = []string{"udp", "tcp", "tls", "wss", "ws"}

func (d *decoder) validateTransports(z *DNS) {
	for i, name := range z.Transports {
		path := fmt.Sprintf("dns.transports[%d]", i)
		switch {
		case !slices.Contains(transports, name):
			d.check(path, "%s is no transport: write some of %s", show(name), strings.Join(transports, ", "))
		case slices.Index(z.Transports, name) < i:
			d.check(path, "%s stands there already: remove one", show(name))
		}
	}
}

// validateNames sees to it that each name is served once, from one zone.
func (d *decoder) validateNames(z *DNS) map[string]string {
	seen := map[string]string{}
	if z.Zone != "" {
		seen[z.Zone] = "dns.zone"
	}
	if len(z.TenantZones) > 0 && z.Zone == "" {
		d.check("dns.zone", "is missing: tenant zones stand beside the zone of the nodes")
	}
	for i, name := range z.TenantZones {
		path := fmt.Sprintf("dns.tenant_zones[%d]", i)
		err := checkName(name)
		first, dup := seen[name]
		switch {
		case err != nil:
			d.check(path, "%s", err)
		case dup:
			d.check(path, "%s stands in %s already: remove one", show(name), first)
		case z.Zone != "" && inside(name, z.Zone):
			d.check(path, "%s is inside the zone %s: write it into dns.tenants", show(name), z.Zone)
		}
		seen[name] = "dns.tenant_zones"
	}
	d.validateInside(z, seen, "dns.services", z.Services)
	d.validateInside(z, seen, "dns.tenants", z.Tenants)
	return seen
}

func (d *decoder) validateInside(z *DNS, seen map[string]string, list string, names []string) {
	for i, name := range names {
		path := fmt.Sprintf("%s[%d]", list, i)
		bare := name
		if list == "dns.tenants" {
			bare = strings.TrimPrefix(name, "*.")
		}
		if err := checkName(bare); err != nil {
			d.check(path, "%s", err)
			continue
		}
		ours := z.Zone == "" || d.isBad("dns.zone") || inside(bare, z.Zone)
		if list == "dns.tenants" {
			ours = ours || slices.ContainsFunc(z.TenantZones, func(t string) bool { return inside(bare, t) })
		}
		first, dup := seen[name]
		switch {
		case !ours:
			d.check(path, "%s is not inside the zone %s: write a name that ends in it; a name elsewhere can be a CNAME to it, or one of dns.tenant_zones", show(name), z.Zone)
		case dup && first == "dns.zone":
			d.check(path, "%s is the zone, which is a service name itself: remove it here", show(name))
		case dup:
			d.check(path, "%s stands in %s already: remove one", show(name), first)
		}
		seen[name] = list
	}
}

func inside(name, zone string) bool { return name == zone || strings.HasSuffix(name, "."+zone) }

func (d *decoder) validateNameservers(z *DNS, services map[string]string) {
	seen := make(map[string]bool)
	for i, ns := range z.Nameservers {
		path := fmt.Sprintf("dns.nameservers[%d]", i)
		if ns.Name == "" {
			d.check(path+".name", "is missing: write the name server's host name, such as ns1.sip.example.com")
			continue
		}
		if err := checkName(ns.Name); err != nil {
			d.check(path+".name", "%s", err)
			continue
		}
		if seen[ns.Name] {
			d.check(path+".name", "%s stands in the list twice: remove one", show(ns.Name))
		}
		seen[ns.Name] = true
		// One name cannot lead phones to the best node and resolvers to this server.
		if list, taken := services[ns.Name]; taken {
			d.check(path+".name", "%s stands in %s too: give the name server a name of its own", show(ns.Name), list)
		}
		if z.Zone != "" && inside(ns.Name, z.Zone) && len(ns.Addresses) == 0 {
			d.check(path+".addresses", "is missing: %s is inside the zone, so nobody else knows its address", ns.Name)
		}
		for j, a := range ns.Addresses {
			if a.IsValid() && (a.IsUnspecified() || a.IsMulticast()) {
				d.check(fmt.Sprintf("%s.addresses[%d]", path, j), "%s is no address to ask: write the name server's own", a)
			}
		}
	}
}

func (d *decoder) validateHostmaster(z *DNS) {
	if z.Hostmaster == "" {
		return
	}
	user, domain, ok := strings.Cut(z.Hostmaster, "@")
	_, err := pbxmesh.NewAOR(user, foldName(domain)) // the same alphabet serves a mail address
	if !ok || err != nil {
		d.check("dns.hostmaster", "%s is no mail address: write one such as hostmaster@example.com", show(z.Hostmaster))
	}
}

func (d *decoder) validateTTL(t *TTL) {
	for _, f := range []struct {
		path            string
		v, lowest, most time.Duration
	}{
		// Longer than five minutes, an answer outlives any failover it should help.
		{"dns.ttl.answer", t.Answer, time.Second, 5 * time.Minute},
		{"dns.ttl.node", t.Node, time.Second, 24 * time.Hour},
		{"dns.ttl.ns", t.NS, time.Second, 7 * 24 * time.Hour},
		{"dns.ttl.negative", t.Negative, time.Second, time.Hour},
	} {
		inRange(d, f.path, f.v, f.lowest, f.most)
		if f.v%time.Second != 0 {
			d.check(f.path, "%v is no whole number of seconds, which is all that DNS can say", f.v)
		}
	}
}

func (d *decoder) validatePreferences(z *DNS) {
	seen := make(map[netip.Prefix]bool)
	for i, p := range z.Preferences {
		path := fmt.Sprintf("dns.preferences[%d]", i)
		switch {
		case !p.Network.IsValid():
			d.check(path+".network", "is missing: write the clients' network, such as 192.0.2.0/24")
		case seen[p.Network]:
			d.check(path+".network", "%s stands in the list twice: remove one", p.Network)
		}
		seen[p.Network] = true
		if len(p.Nodes) == 0 {
			d.check(path+".nodes", "is missing: name the nodes for this network, best first")
		}
		d.distinct(path+".nodes", p.Nodes)
	}
	d.distinct("dns.default_order", z.DefaultOrder)
}

func (d *decoder) distinct(path string, ids []pbxmesh.NodeID) {
	for i, id := range ids {
		if id != "" && slices.Contains(ids[:i], id) {
			d.check(fmt.Sprintf("%s[%d]", path, i), "%s stands in the list twice: remove one", show(string(id)))
		}
	}
}

// checkName takes a host name (RFC 1123 section 2.1). No underscore: SRV records
// stand below these names, and one that looked like them would be ambiguous.
func checkName(s string) error {
	if _, err := pbxmesh.NewAOR("x", s); err != nil || strings.Contains(s, "_") {
		return fmt.Errorf("%s is no host name: write labels of letters, digits and '-', joined by dots", show(s))
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return fmt.Errorf("%s is an address: write a host name", show(s))
	}
	return nil
}
