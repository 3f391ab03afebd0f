package config

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// validateZone checks what the zones hold beside the answers that the nodes give.
func (d *decoder) validateZone(z *DNS) {
	inRange(d, "dns.keep_hosts", z.KeepHosts, time.Second, 7*24*time.Hour)
	d.validatePDNS(&z.PDNS)
	if z.ZoneFile != "" && z.Zone == "" && !d.isBad("dns.zone") {
		d.check("dns.zone_file", "is set, but dns.zone is not: name the zone that the records stand in")
	}
	if z.DNSSEC.Generate && z.DNSSEC.KeyDir == "" {
		d.check("dns.dnssec.generate", "is true, but dns.dnssec.key_dir is not set: name the folder for the keys")
	}
}

// DNSSEC is how the zones are signed; they are not while KeyDir is empty.
type DNSSEC struct {
	// KeyDir is the folder with the keys of all zones, the same on every name server.
	KeyDir File `yaml:"key_dir"`

	// Generate makes a key for a zone that has none, when the daemon starts.
	Generate bool `yaml:"generate"`
}

// PDNS is the listener for a PowerDNS that answers in place of our own name server.
type PDNS struct {
	// Listen is the zero AddrPort when it is off.
	Listen netip.AddrPort `yaml:"listen"`

	// Allow are the networks that are answered; empty is this machine.
	Allow []netip.Prefix `yaml:"allow"`
}

func (d *decoder) validatePDNS(p *PDNS) {
	if l := p.Listen; l.IsValid() && !l.Addr().IsLoopback() && len(p.Allow) == 0 {
		d.check("dns.pdns.listen", "%s can be reached from other machines: name the networks that are answered in dns.pdns.allow, or listen on 127.0.0.1", l)
	}
	for i, n := range p.Allow {
		if slices.Contains(p.Allow[:i], n) {
			d.check(fmt.Sprintf("dns.pdns.allow[%d]", i), "%s stands in the list twice: remove one", n)
		}
	}
}

// On reports whether the zones are served at all, by this daemon or by a PowerDNS that
// asks it.
func (z *DNS) On() bool { return len(z.Listen) > 0 || z.PDNS.Listen.IsValid() }
