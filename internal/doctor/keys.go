package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// zoneKeys asks all name servers for the keys of the signed zones: they must be the
// same everywhere, or validators refuse the answers of some.
func (p *patient) zoneKeys(ctx context.Context) {
	d := p.cfg.DNS
	if len(d.Listen) == 0 || d.DNSSEC.KeyDir == "" {
		return
	}
	servers := p.serversOfZone()
	for _, zone := range slices.Concat([]string{d.Zone}, d.TenantZones) {
		start := time.Now()
		keys := make([][]string, len(servers))
		errs := make([]error, len(servers))
		var wg sync.WaitGroup
		for i, s := range servers {
			wg.Go(func() { keys[i], errs[i] = askKeys(ctx, s, zone) })
		}
		wg.Wait()
		p.say("zone keys", "zone keys "+zone, start, judgeKeys(servers, keys, errs))
	}
}

// judgeKeys compares what name servers said with what the first of our own did.
func judgeKeys(servers []nameServer, keys [][]string, errs []error) Result {
	asked := 0
	for i, s := range servers {
		switch {
		case errs[i] != nil && s.own:
			return fail(errs[i].Error(), "does the daemon's log complain about keys? pbxmesh dns ds prints those of the configuration")
		case errs[i] != nil:
			return warn(errs[i].Error(), "is dns.dnssec.key_dir set there too, and the daemon running?")
		case !slices.Equal(keys[i], keys[0]):
			return fail(fmt.Sprintf("%s %s has the keys %s, here are %s", s.name, s.at, strings.Join(keys[i], ", "), strings.Join(keys[0], ", ")),
				"copy the key files, so that all name servers have the same")
		}
		asked++
	}
	return ok("%d name servers have the same keys (%s), and the signatures are good", asked, strings.Join(keys[0], ", "))
}

// askKeys returns the tags of a zone's keys, with their kind, in order, after checking
// that one of the keys signed them.
func askKeys(ctx context.Context, s nameServer, zone string) ([]string, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(zone), dns.TypeDNSKEY)
	q.SetEdns0(1232, true)
	q.RecursionDesired = false
	reply, _, err := (&dns.Client{Net: "tcp"}).ExchangeContext(ctx, q, s.at.String())
	if err != nil {
		return nil, fmt.Errorf("%s %s: %s", s.name, s.at, plain(err))
	}
	var keys []*dns.DNSKEY
	var set []dns.RR
	var tags []string
	for _, rr := range reply.Answer {
		if k, is := rr.(*dns.DNSKEY); is {
			keys, set = append(keys, k), append(set, k)
			tags = append(tags, fmt.Sprintf("%d/%d", k.KeyTag(), k.Flags))
		}
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s %s: %s is not signed there", s.name, s.at, zone)
	}
	for _, rr := range reply.Answer {
		sig, is := rr.(*dns.RRSIG)
		if !is || !sig.ValidityPeriod(time.Now()) {
			continue
		}
		for _, k := range keys {
			if k.KeyTag() == sig.KeyTag && sig.Verify(k, set) == nil {
				slices.Sort(tags)
				return tags, nil
			}
		}
	}
	return nil, fmt.Errorf("%s %s: no valid signature of the keys of %s; is the clock right there?", s.name, s.at, zone)
}
