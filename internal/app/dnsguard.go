package app

import (
	"context"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pbxmesh/dnsserver"
	"pbxmesh/internal/config"
	"pbxmesh/internal/reload"
)

// rateLimit carries the limits into the words of the name server, where 0 stands for
// its default.
func rateLimit(c *config.RateLimit) *dnsserver.RateLimit {
	off := func(n int) int {
		if n == 0 {
			return -1
		}
		return n
	}
	return &dnsserver.RateLimit{Answers: off(c.Answers), NXDomain: off(c.NXDomain), Errors: off(c.Errors), Slip: off(c.Slip), Exempt: c.Exempt}
}

// pollSecrets is how often passwords, secrets and certificates are read again: an operator
// replaces them on all machines by and by, without a restart.
const pollSecrets = 10 * time.Second

// cookieSecrets is the maker of cookies with the secrets that it was given last.
type cookieSecrets struct {
	cookies *dnsserver.Cookies
	files   *reload.Value[[2]dnsserver.CookieSecret, [2]dnsserver.CookieSecret]
}

// buildCookies returns the maker of cookies; nil leaves a random secret to the name
// server.
func (a *App) buildCookies() (*dnsserver.Cookies, error) {
	c := a.cfg.DNS.Cookie
	if c.SecretFile == "" {
		return nil, nil //nolint:nilnil // no secret is no failure
	}
	files, err := reload.New(reload.Options[[2]dnsserver.CookieSecret, [2]dnsserver.CookieSecret]{
		Name: "dns.cookie.secret_file", Logger: a.log, Make: reload.As[[2]dnsserver.CookieSecret],
		Read: func() (secrets [2]dnsserver.CookieSecret, err error) {
			current, err := config.ReadCookieSecret(c.SecretFile)
			accepted := current
			if err == nil && c.AcceptFile != "" {
				accepted, err = config.ReadCookieSecret(c.AcceptFile)
			}
			return [2]dnsserver.CookieSecret{current, accepted}, err
		},
	})
	if err != nil {
		return nil, err
	}
	a.cookies = &cookieSecrets{new(dnsserver.Cookies), files}
	a.cookies.set(files.Last())
	return a.cookies.cookies, nil
}

func (c *cookieSecrets) set(secrets [2]dnsserver.CookieSecret) {
	some := slices.Compact(secrets[:])
	c.cookies.Set(some[0], some[1:]...)
}

// followCookieSecrets reads the secrets again now and then, until ctx ends. While a
// file is wrong the older secrets stay in force.
func (a *App) followCookieSecrets(ctx context.Context) error {
	return every(ctx, pollSecrets, func() { a.cookies.set(a.cookies.files.Now()) })
}

var (
	descDNSQueries = prometheus.NewDesc("pbxmesh_dns_queries_total",
		"Queries answered, by type.", []string{"type"}, nil)
	descDNSResponses = prometheus.NewDesc("pbxmesh_dns_responses_total",
		"Responses, by code.", []string{"rcode"}, nil)
	descDNSPackets = prometheus.NewDesc("pbxmesh_dns_packets_total",
		"Queries received, by transport.", []string{"transport"}, nil)
	descDNSCache = prometheus.NewDesc("pbxmesh_dns_cache_total",
		"Usual queries over UDP: answered from packed answers (hit), or anew (miss).", []string{"result"}, nil)
	descDNSRate = prometheus.NewDesc("pbxmesh_dns_rate_limited_total",
		"Responses above the rate limit: cut to nothing (slip) or not sent (drop).", []string{"action"}, nil)
	descDNSCookies = prometheus.NewDesc("pbxmesh_dns_cookies_total",
		"Queries with a cookie: new (of the client alone), bad, valid.", []string{"state"}, nil)
	descDNSFileErrors = prometheus.NewDesc("pbxmesh_dns_file_errors_total",
		"Readings of a changed zone file, or of changed keys, that failed.", []string{"file"}, nil)
	descDNSFileStale = prometheus.NewDesc("pbxmesh_dns_file_stale",
		"1 while the zone file or the keys as they are now cannot be used, and those read before are in force.", []string{"file"}, nil)
	descDNSOther = prometheus.NewDesc("pbxmesh_dns_events_total",
		"Truncated answers, packets without answer, refused connections, answers by the panic rule, and crashes, which are bugs.", []string{"event"}, nil)
)

// dnsCollector is collector for the name server.
type dnsCollector struct{ a *App }

// Describe implements prometheus.Collector.
func (dnsCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descDNSQueries, descDNSResponses, descDNSPackets, descDNSCache, descDNSRate, descDNSCookies, descDNSOther, descDNSFileErrors, descDNSFileStale} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c dnsCollector) Collect(ch chan<- prometheus.Metric) {
	if c.a.zone == nil {
		return
	}
	s := c.a.zone.Stats()
	file := func(label string, errors uint64, stale bool) {
		ch <- prometheus.MustNewConstMetric(descDNSFileErrors, prometheus.CounterValue, float64(errors), label)
		n := 0.0
		if stale {
			n = 1
		}
		ch <- prometheus.MustNewConstMetric(descDNSFileStale, prometheus.GaugeValue, n, label)
	}
	if c.a.cfg.DNS.ZoneFile != "" {
		file("zone", s.ZoneFileErrors, s.ZoneFileStale)
	}
	if c.a.cfg.DNS.DNSSEC.KeyDir != "" {
		file("keys", s.KeyErrors, s.KeysStale)
	}
	if c.a.dns == nil {
		return
	}
	for _, m := range []struct {
		desc   *prometheus.Desc
		counts map[string]uint64
	}{
		{descDNSQueries, s.Queries},
		{descDNSResponses, s.Responses},
		{descDNSPackets, map[string]uint64{"udp": s.UDP, "tcp": s.TCP}},
		{descDNSCache, map[string]uint64{"hit": s.CacheHits, "miss": s.CacheMisses}},
		{descDNSRate, map[string]uint64{"slip": s.RateSlips, "drop": s.RateDrops}},
		{descDNSCookies, map[string]uint64{"new": s.CookiesNew, "bad": s.CookiesBad, "valid": s.CookiesValid}},
		{descDNSOther, map[string]uint64{"truncated": s.Truncated, "unanswered": s.Dropped, "tcp-refused": s.TCPRefused, "panic-rule": s.PanicRule, "crash": s.Crashes}},
	} {
		for label, n := range m.counts {
			ch <- prometheus.MustNewConstMetric(m.desc, prometheus.CounterValue, float64(n), label)
		}
	}
}
