package app

import "github.com/prometheus/client_golang/prometheus"

var (
	descLatencySamples = prometheus.NewDesc("pbxmesh_latency_samples_total",
		"Round trips to clients that were seen, by what showed them.", []string{"from"}, nil)
	descLatencyNetworks = prometheus.NewDesc("pbxmesh_latency_networks",
		"Client networks: own, those that this node's clients stand in; ranked, those with an order of nodes.", []string{"kind"}, nil)
	descLatencyBad = prometheus.NewDesc("pbxmesh_latency_bad_total",
		"What was not taken, by what it was: samples out of bounds, networks that had to make room, notes that are not valid.", []string{"what"}, nil)
	descLatencyPosts = prometheus.NewDesc("pbxmesh_latency_posts_total",
		"Notes with estimates that were posted, by result.", []string{"result"}, nil)
	descLatencyView = prometheus.NewDesc("pbxmesh_latency_view_seconds",
		"How long the latest ranking of all networks took.", nil, nil)
	descLatencyResolvers = prometheus.NewDesc("pbxmesh_latency_resolvers",
		"Networks of resolvers that sent no client subnet: asked, those that asked this name server; learnt, those whose phones' networks it knows.", []string{"kind"}, nil)
	descLatencyQueries = prometheus.NewDesc("pbxmesh_latency_queries_total",
		"Queries of such resolvers by what became of them: joined with the registrations around them; unpaired, where those were not known or came or went too fast; lost, too many at once.", []string{"result"}, nil)
)

// latencyCollector reads the ranker when Prometheus asks.
type latencyCollector struct{ a *App }

// Describe implements prometheus.Collector.
func (c latencyCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descLatencySamples, descLatencyNetworks, descLatencyBad, descLatencyPosts, descLatencyView, descLatencyResolvers, descLatencyQueries} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c latencyCollector) Collect(ch chan<- prometheus.Metric) {
	r := c.a.ranker
	if r.atlas == nil {
		return
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	r.stats.mu.Lock()
	bad, posts, failures, networks, took := r.stats.bad, r.stats.posts, r.stats.failures, r.stats.networks, r.stats.took
	r.stats.mu.Unlock()
	gauge(descLatencyNetworks, float64(networks), "ranked")
	gauge(descLatencyView, took.Seconds())
	counter(descLatencyBad, bad, "notes")
	if r.resolvers.followers != nil {
		r.resolvers.mu.Lock()
		s, lost := r.resolvers.stats, r.resolvers.lost
		r.resolvers.mu.Unlock()
		gauge(descLatencyResolvers, float64(s.Resolvers), "asked")
		gauge(descLatencyResolvers, float64(s.Learnt), "learnt")
		counter(descLatencyQueries, s.Queries, "joined")
		counter(descLatencyQueries, s.Unpaired, "unpaired")
		counter(descLatencyQueries, lost, "lost")
	}
	if r.watch == nil {
		return
	}
	w, e := r.watch.Stats(), r.estimates.Stats()
	counter(descLatencySamples, w.Challenges, "challenge")
	counter(descLatencySamples, w.KeepAlives, "keepalive")
	gauge(descLatencyNetworks, float64(e.Networks), "own")
	counter(descLatencyBad, e.Refused, "samples")
	counter(descLatencyBad, e.Evicted, "networks")
	counter(descLatencyPosts, posts-failures, "ok")
	counter(descLatencyPosts, failures, "failed")
}
