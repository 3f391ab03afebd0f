package app

import (
	"fmt"
	"slices"
	"strings"

	"pbxmesh/dnsserver"
	"pbxmesh/internal/config"
)

func (a *App) buildDNS() error {
	z := a.cfg.DNS
	if !z.On() {
		return nil
	}
	zo := zoneOptions(&z, a.cfg.Name)
	zo.Chooser, zo.Source, zo.Logger = a.ranker.chooser, a.tracker, a.log
	zone, err := dnsserver.NewZone(zo)
	if err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	a.zone = zone
	if len(z.Listen) == 0 {
		return nil
	}
	o := dnsserver.Options{Zone: zone, Logger: a.log, RateLimit: rateLimit(&z.RateLimit), Amplification: z.Amplification}
	if z.Amplification == 0 {
		o.Amplification = -1
	}
	if o.Cookies, err = a.buildCookies(); err != nil {
		return fmt.Errorf("dns.cookie: %w", err)
	}
	for _, l := range z.Listen {
		o.Listen = append(o.Listen, l.String())
	}
	if a.ranker.resolvers != nil {
		o.Asked = a.ranker.resolvers.take
	}
	if a.dns, err = dnsserver.New(o); err != nil {
		return fmt.Errorf("dns.listen: %w", err)
	}
	a.teardowns.push("name server", a.dns.Shutdown)
	return nil
}

// zoneOptions carries the configuration into the words of the name server. The
// zone's own name is a service in any case.
func zoneOptions(z *config.DNS, name string) dnsserver.ZoneOptions {
	o := dnsserver.ZoneOptions{
		Origin: z.Zone, TenantZones: z.TenantZones, Transports: z.Transports, Hostmaster: z.Hostmaster, NSID: name,
		ZoneFile: string(z.ZoneFile), KeepHosts: z.KeepHosts, KeyDir: string(z.DNSSEC.KeyDir), GenerateKeys: z.DNSSEC.Generate,
		TTL: z.TTL.Answer, HostTTL: z.TTL.Node, NSTTL: z.TTL.NS, NegativeTTL: z.TTL.Negative,
	}
	for _, name := range slices.Concat(z.Services, z.Tenants) {
		if !strings.EqualFold(strings.TrimSuffix(name, "."), z.Zone) {
			o.Names = append(o.Names, name)
		}
	}
	for _, ns := range z.Nameservers {
		o.NameServers = append(o.NameServers, dnsserver.NameServer{Name: ns.Name, Addresses: ns.Addresses})
	}
	return o
}
