package doctor

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// nameServers asks the name servers of the zone: this daemon's own, and the others
// that the zone names.
func (p *patient) nameServers(ctx context.Context) {
	d := p.cfg.DNS
	if len(d.Listen) == 0 {
		return
	}
	start := time.Now()
	servers := p.serversOfZone()
	// Asked at the same time, told in order.
	results := make([]Result, len(servers))
	var wg sync.WaitGroup
	for i, s := range servers {
		wg.Go(func() {
			results[i] = answers(ctx, s.at, d.Zone)
			if !s.own && results[i].Status == Fail { // another machine's daemon
				results[i].Status = Warn
			}
		})
	}
	wg.Wait()
	for i, s := range servers {
		p.say("name server", fmt.Sprintf("name server %s", s.name), start, results[i])
	}
}

// nameServer is one that answers for the zone.
type nameServer struct {
	name string
	at   netip.AddrPort
	own  bool
}

// serversOfZone are this daemon's listeners, and the others that the zone names.
func (p *patient) serversOfZone() []nameServer {
	var servers []nameServer
	seen := map[netip.AddrPort]bool{}
	for _, l := range p.cfg.DNS.Listen {
		at := loopback(l)
		seen[at] = true
		servers = append(servers, nameServer{"here", at, true})
	}
	for _, n := range p.cfg.DNS.Nameservers {
		for _, a := range n.Addresses {
			if at := netip.AddrPortFrom(a, p.o.DNSPort); !seen[at] {
				seen[at] = true
				servers = append(servers, nameServer{n.Name, at, false})
			}
		}
	}
	return servers
}

// answers asks one name server for the zone, over UDP and TCP.
func answers(ctx context.Context, at netip.AddrPort, zone string) Result {
	start := time.Now()
	for _, network := range []string{"udp", "tcp"} {
		for _, kind := range []uint16{dns.TypeSOA, dns.TypeA} {
			q := new(dns.Msg)
			q.SetQuestion(dns.Fqdn(zone), kind)
			q.RecursionDesired = false
			reply, _, err := (&dns.Client{Net: network}).ExchangeContext(ctx, q, at.String())
			what := fmt.Sprintf("%s, %s %s over %s", at, zone, dns.TypeToString[kind], network)
			switch {
			case err != nil:
				return fail(what+": "+plain(err), fmt.Sprintf("is the daemon running there, dns.listen its address, and port %d let through for UDP and TCP?", at.Port()))
			case reply.Rcode != dns.RcodeSuccess:
				return fail(what+" gives "+dns.RcodeToString[reply.Rcode], "is dns.zone the same there? SERVFAIL: it knows no node yet")
			case !reply.Authoritative:
				return fail(what+" is answered without authority", "another name server, a resolver, listens there")
			case len(reply.Answer) == 0:
				return warn(what+" has no answer", "no node takes phones: pbxmesh nodes")
			}
		}
	}
	return ok("%s answers for %s over UDP and TCP, %s in all", at, zone, ms(time.Since(start)))
}
