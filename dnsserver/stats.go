package dnsserver

import (
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
)

// Stats are counts since the start. Maps hold no zero counts.
type Stats struct {
	Queries   map[string]uint64 // by type: "A", "SRV"; "other" for the rest
	Responses map[string]uint64 // by response code: "NOERROR", "NXDOMAIN"

	Dropped    uint64 // packets not answered: too short, or responses
	Truncated  uint64 // answers cut for UDP
	PanicRule  uint64 // answers by the panic rule: fewer than half of the nodes took phones
	Crashes    uint64 // queries whose handling panicked; always a bug
	UDP, TCP   uint64 // packets by transport
	TCPRefused uint64 // connections above the limit

	CacheHits, CacheMisses uint64 // usual queries over UDP, by where the answer came from

	RateSlips uint64 // responses above the rate limit that were cut to nothing
	RateDrops uint64 // responses above the rate limit that were not sent

	CookiesNew   uint64 // queries with a client cookie alone
	CookiesBad   uint64 // with a server cookie that is not ours, or too old
	CookiesValid uint64

	// Files that were changed and could not be used: readings that failed, and whether
	// what was read before is in force in place of what stands there now.
	ZoneFileErrors, KeyErrors uint64
	ZoneFileStale, KeysStale  bool
}

// countedTypes are counted by name. The set is closed, or a client could make a
// metrics label for each of 65,536 types.
var countedTypes = [...]uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeNAPTR, dns.TypeSOA, dns.TypeNS, dns.TypeANY, dns.TypeTXT, dns.TypeAXFR}

type counters struct {
	queries    [len(countedTypes) + 1]atomic.Uint64
	responses  [24]atomic.Uint64 // by code; the registry ends at 23
	dropped    atomic.Uint64
	truncated  atomic.Uint64
	panicRule  atomic.Uint64
	crashes    atomic.Uint64
	udp, tcp   atomic.Uint64
	tcpRefused atomic.Uint64

	cacheHits, cacheMisses atomic.Uint64
	rateSlips, rateDrops   atomic.Uint64
	cookies                [cookieValid + 1]atomic.Uint64

	zoneFileErrors, keyErrors atomic.Uint64
	keysStale                 atomic.Bool
}

// count counts an answer; req is nil when it could not be parsed.
func (c *counters) count(req *dns.Msg, rcode int) {
	if rcode >= 0 && rcode < len(c.responses) {
		c.responses[rcode].Add(1)
	}
	if req == nil || len(req.Question) == 0 {
		return
	}
	c.queries[countedAs(req.Question[0].Qtype)].Add(1)
}

func countedAs(qtype uint16) int {
	for i, t := range countedTypes {
		if t == qtype {
			return i
		}
	}
	return len(countedTypes)
}

// Stats returns the counts.
func (z *Zone) Stats() Stats {
	c := &z.stats
	s := Stats{
		Queries:    make(map[string]uint64),
		Responses:  make(map[string]uint64),
		Dropped:    c.dropped.Load(),
		Truncated:  c.truncated.Load(),
		PanicRule:  c.panicRule.Load(),
		Crashes:    c.crashes.Load(),
		UDP:        c.udp.Load(),
		TCP:        c.tcp.Load(),
		TCPRefused: c.tcpRefused.Load(),
		CacheHits:  c.cacheHits.Load(), CacheMisses: c.cacheMisses.Load(),
		RateSlips: c.rateSlips.Load(), RateDrops: c.rateDrops.Load(),
		ZoneFileErrors: c.zoneFileErrors.Load(), ZoneFileStale: z.static.Load().err != nil,
		KeyErrors: c.keyErrors.Load(), KeysStale: c.keysStale.Load(),
		CookiesNew: c.cookies[cookieNew].Load(), CookiesBad: c.cookies[cookieBad].Load(), CookiesValid: c.cookies[cookieValid].Load(),
	}
	for i := range c.queries {
		if n := c.queries[i].Load(); n > 0 {
			name := "other"
			if i < len(countedTypes) {
				name = dns.TypeToString[countedTypes[i]]
			}
			s.Queries[name] = n
		}
	}
	for code := range c.responses {
		if n := c.responses[code].Load(); n > 0 {
			name := dns.RcodeToString[code]
			if code == dns.RcodeBadVers {
				name = "BADVERS" // 16 is also BADSIG, which cannot happen here
			}
			s.Responses[name] = n
		}
	}
	return s
}

// limiter lets one event through per period.
type limiter struct {
	every time.Duration
	next  atomic.Int64 // Unix nanoseconds
}

func (l *limiter) allow(now time.Time) bool {
	next := l.next.Load()
	return now.UnixNano() >= next && l.next.CompareAndSwap(next, now.Add(l.every).UnixNano())
}

// warnPanic says loudly, but not per query, that the panic rule answers.
func (z *Zone) warnPanic(mesh *pbxmesh.Mesh) {
	z.stats.panicRule.Add(1)
	if z.panics.allow(time.Now()) {
		z.log.Error("fewer than half of the nodes take phones: answering with draining and down nodes too (panic rule); bring nodes back, or take their drain back",
			"nodes", len(mesh.Nodes), "answers", z.stats.panicRule.Load())
	}
}
