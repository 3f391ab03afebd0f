package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"pbxmesh"
)

// validate checks ranges and everything that takes more than one key. Keys that
// were already reported are left alone: one mistake gives one message.
func (d *decoder) validate(c *Config) {
	if c.Name != "" && !validName(c.Name) {
		d.check("name", "%s is no name: 1 to 63 letters, digits, '.', '-' and '_' are allowed", show(c.Name))
	}
	if c.Site = strings.ToLower(c.Site); c.Site != "" && !pbxmesh.ValidSite(c.Site) {
		d.check("site", "%s is no site: 1 to 63 letters, digits and '-' are allowed", show(c.Site))
	}
	d.validateNode(c)
	d.validateFreeSWITCH(c)
	d.validateRegistry(&c.Registry)
	d.validateRouter(&c.Router)
	d.validateFailover(&c.Failover)
	d.validateDrain(&c.Failover.Drain)
	d.validateDNS(&c.DNS)
	if c.Router.HTTP.Listen.IsValid() && c.Node == nil && !d.isBad("node") {
		d.check("router.http.listen", "is set, but there is no node section: add one, or remove this")
	}
	if l := c.API.Listen; l.IsValid() && !l.Addr().IsLoopback() && c.API.TokenFile == "" {
		d.check("api.listen", "%s can be reached from other machines: name a token_file, or listen on 127.0.0.1", l)
	}
}

// check reports like report, unless path or something in it is bad already.
func (d *decoder) check(path, format string, args ...any) {
	if !d.isBad(path) {
		d.report(path, format, args...)
	}
}

func inRange[T cmp.Ordered](d *decoder, path string, v, lowest, highest T) {
	if v < lowest || v > highest {
		d.check(path, "%v is out of range: %v to %v are allowed", v, lowest, highest)
	}
}

func (d *decoder) validateNode(c *Config) {
	n := c.Node
	if n == nil {
		return
	}
	if n.ID == "" {
		d.check("node.id", "is missing: name this node with 1 to 63 letters, digits and '-', such as buffalo")
	}
	for i, a := range n.Addresses {
		path := fmt.Sprintf("node.addresses[%d]", i)
		if a.IsValid() && (a.IsUnspecified() || a.IsMulticast()) {
			d.check(path, "%s is no address that phones can connect to: write the node's own", a)
		}
		if slices.Contains(n.Addresses[:i], a) {
			d.check(path, "%s stands in the list twice: remove one", a)
		}
	}
	d.validateLocation("node.location", n.Location)
	switch m := n.MeshAddress; {
	case !m.IsValid():
		d.check("node.mesh_address", "is missing: write the IPv4 address and port of the mesh profile, such as 192.0.2.10:5090")
	case !m.Addr().Is4():
		d.check("node.mesh_address", "%s is no IPv4 address: calls between nodes use IPv4", m)
	case m.Port() == 0 || m.Addr().IsUnspecified() || m.Addr().IsMulticast():
		d.check("node.mesh_address", "%s is nothing other nodes can call: write the address and port of the mesh profile, such as 192.0.2.10:5090", m)
	}
	inRange(d, "node.capacity", n.Capacity, 0, 10_000_000)
	if n.SIP == (SIP{}) && len(n.Addresses) > 0 {
		d.check("node.sip", "offers no transport, but node.addresses invites phones: set the port of at least one of udp, tcp, tls, ws, wss")
	}
}

func (d *decoder) validateFreeSWITCH(c *Config) {
	f := &c.FreeSWITCH
	if f.EventSocket.PasswordFile == "" && c.Node != nil {
		d.check("freeswitch.event_socket.password_file", "is missing: name a file that holds the event socket's password")
	}
	if f.EventSocket.PasswordFile != "" && c.Node == nil && !d.isBad("node") {
		d.check("freeswitch.event_socket.password_file", "is set, but there is no node section: add one, or remove this")
	}
	if len(f.Profiles) == 0 {
		d.check("freeswitch.profiles", "is empty: name the sofia profiles that phones register to, such as internal")
	}
	for i, p := range f.Profiles {
		path := fmt.Sprintf("freeswitch.profiles[%d]", i)
		if !validName(p) || len(p) > pbxmesh.MaxProfileLen {
			d.check(path, "%s is no sofia profile: 1 to 63 letters, digits, '.', '-' and '_' are allowed", show(p))
		}
		if p == f.MeshProfile {
			d.check(path, "%s is the mesh profile: its registrations are other nodes' and never published", show(p))
		}
		if slices.Contains(f.Profiles[:i], p) {
			d.check(path, "%s stands in the list twice: remove one", show(p))
		}
	}
	if !validName(f.MeshProfile) {
		d.check("freeswitch.mesh_profile", "%s is no sofia profile: 1 to 63 letters, digits, '.', '-' and '_' are allowed", show(f.MeshProfile))
	}
	inRange(d, "freeswitch.snapshot_interval", f.SnapshotInterval, time.Second, 24*time.Hour)
	inRange(d, "freeswitch.late_margin", f.LateMargin, 0, time.Hour)
}

func (d *decoder) validateRouter(r *Router) {
	inRange(d, "router.native.row_ttl", r.Native.RowTTL, 20*time.Second, time.Hour)
	inRange(d, "router.native.repair_interval", r.Native.RepairInterval, 5*time.Second, time.Hour)
	s := &r.Socket
	if s.Listen.IsValid() && !s.Listen.Addr().IsLoopback() {
		// Whoever reaches this port can answer calls; it has neither password nor ACL.
		d.check("router.socket.listen", "%s can be reached from other machines: only loopback addresses are allowed, such as 127.0.0.1:8084", s.Listen)
	}
	inRange(d, "router.socket.deadline", s.Deadline, 10*time.Millisecond, 10*time.Second)
	inRange(d, "router.socket.decision_timeout", s.DecisionTimeout, time.Millisecond, 10*time.Second)
	if s.DecisionTimeout >= s.Deadline && !d.isBad("router.socket.deadline") {
		d.check("router.socket.decision_timeout", "%v must be below router.socket.deadline, which is %v", s.DecisionTimeout, s.Deadline)
	}
	inRange(d, "router.socket.max_calls", s.MaxCalls, 1, 100_000)
	d.validateHTTP(&r.HTTP)
	d.validateRedirect(&r.Redirect)
	if r.DefaultDomain != "" {
		if _, err := pbxmesh.NewAOR("x", r.DefaultDomain); err != nil {
			d.check("router.default_domain", "%s is no domain: write one such as pbx.example.com", show(r.DefaultDomain))
		}
	}
}

func (d *decoder) validateHTTP(h *HTTP) {
	if l := h.Listen; l.IsValid() && !l.Addr().IsLoopback() && h.TokenFile == "" {
		d.check("router.http.listen", "%s can be reached from other machines: name a token_file, or listen on 127.0.0.1", l)
	}
	inRange(d, "router.http.deadline", h.Deadline, 10*time.Millisecond, 10*time.Second)
	inRange(d, "router.http.max_requests", h.MaxRequests, 1, 10_000)
	for i, c := range h.Contexts {
		// A tenant's domain may be its context, so this is the alphabet of domains.
		if _, err := pbxmesh.NewAOR("x", c); err != nil && c != "*" && !validName(c) {
			d.check(fmt.Sprintf("router.http.contexts[%d]", i), "%s is no dialplan context: letters, digits, '.', '-' and '_' are allowed, or \"*\" for all", show(c))
		}
	}
	if h.ACLList != "" && !validName(h.ACLList) {
		d.check("router.http.acl_list", "%s is no name: 1 to 63 letters, digits, '.', '-' and '_' are allowed", show(h.ACLList))
	}
	switch {
	case h.ACLList != "" && h.ACLFile == "":
		d.check("router.http.acl_list", "is set, but acl_file is not: name the switch's own acl.conf.xml, or its other lists would be lost")
	case h.ACLList == "" && h.ACLFile != "":
		d.check("router.http.acl_file", "is set, but acl_list is not: name the list of the mesh profile, such as mesh")
	}
}

func (d *decoder) validateProbe(p *Probe) {
	inRange(d, "failover.probe.interval", p.Interval, 100*time.Millisecond, time.Minute)
	inRange(d, "failover.probe.timeout", p.Timeout, 10*time.Millisecond, time.Minute)
	// A probe must be over before the next one starts, or a slow node has several
	// in flight and its failures are counted late. The interval is jittered by a tenth.
	if most := p.Interval / 10 * 9; p.Timeout > most && !d.isBad("failover.probe.interval") {
		d.check("failover.probe.timeout", "%v must be below failover.probe.interval, which is %v: at most %v are allowed", p.Timeout, p.Interval, most)
	}
	inRange(d, "failover.probe.suspect_after", p.SuspectAfter, 1, 100)
	inRange(d, "failover.probe.down_after", p.DownAfter, 2, 100)
	inRange(d, "failover.probe.up_after", p.UpAfter, 1, 100)
	if p.SuspectAfter >= p.DownAfter && !d.isBad("failover.probe.down_after") {
		d.check("failover.probe.suspect_after", "%d must be below failover.probe.down_after, which is %d", p.SuspectAfter, p.DownAfter)
	}
}

// checkFiles reads the files that the configuration names, so that a missing one
// is told before anything starts.
func (d *decoder) checkFiles(c *Config) {
	for path, secret := range map[string]SecretFile{
		"freeswitch.event_socket.password_file": c.FreeSWITCH.EventSocket.PasswordFile,
		"registry.password_file":                c.Registry.PasswordFile,
		"registry.sentinel.password_file":       c.Registry.Sentinel.PasswordFile,
		"router.http.token_file":                c.Router.HTTP.TokenFile,
		"api.token_file":                        c.API.TokenFile,
	} {
		if _, err := secret.Read(); err != nil {
			d.check(path, "%s", err)
		}
	}
	d.checkCookieSecrets(&c.DNS.Cookie)
	for path, file := range map[string]File{
		"registry.tls.ca_file":   c.Registry.TLS.CAFile,
		"registry.tls.cert_file": c.Registry.TLS.CertFile,
		"registry.tls.key_file":  c.Registry.TLS.KeyFile,

		"router.redirect.cert_file": c.Router.Redirect.CertFile,
		"router.redirect.key_file":  c.Router.Redirect.KeyFile,
		"router.redirect.did_file":  c.Router.Redirect.DIDFile,
		"dns.zone_file":             c.DNS.ZoneFile,
		"dns.dnssec.key_dir":        c.DNS.DNSSEC.KeyDir,
		"freeswitch.acl_file":       c.FreeSWITCH.ACLFile,
		"router.http.acl_file":      c.Router.HTTP.ACLFile,
		"failover.latency.geo_file": c.Failover.Latency.GeoFile,
	} {
		if err := file.check(); err != nil {
			d.check(path, "%s", err)
		}
	}
}

// isLocal reports whether a "host:port" stays on this machine.
func (h HostPort) isLocal() bool {
	ap, err := netip.ParseAddrPort(string(h))
	return err == nil && ap.Addr().IsLoopback()
}

// validName is the alphabet of profile, observer and key names: nothing in it can
// be misread by an event socket command, a Redis key or a metrics label.
func validName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}
