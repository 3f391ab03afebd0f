package app

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"pbxmesh/registry"
)

// collector turns the counters that the parts keep anyway into metrics, at the
// moment they are asked for: nothing is counted twice.
type collector struct{ a *App }

var (
	descNode = prometheus.NewDesc("pbxmesh_node_state",
		"1 for the effective state of a node as this observer sees it.", []string{"node", "effective"}, nil)
	descAge = prometheus.NewDesc("pbxmesh_registry_age_seconds",
		"Age of this daemon's view of the other nodes; absent until the registry was read once.", nil, nil)
	descRegistrations = prometheus.NewDesc("pbxmesh_registrations",
		"Registrations held in memory, expired ones included.", nil, nil)
	descDrift = prometheus.NewDesc("pbxmesh_registry_drift_total",
		"Views of a node that did not match its digest twice and were read again.", nil, nil)
	descBad = prometheus.NewDesc("pbxmesh_registry_bad_records_total",
		"Records, leases and announcements that were refused as invalid.", nil, nil)
	descUnread = prometheus.NewDesc("pbxmesh_registry_unread",
		"Registrations of other nodes that this version cannot read.", nil, nil)
	descUnpublished = prometheus.NewDesc("pbxmesh_registry_unpublished",
		"Registrations of this node that no record can say: they ring here only.", nil, nil)
	descSwitch = prometheus.NewDesc("pbxmesh_switch_connected",
		"1 while the event socket of the local switch answers.", nil, nil)
	descSessions = prometheus.NewDesc("pbxmesh_switch_sessions",
		"Channels of the local switch at its last heartbeat.", nil, nil)
	descCalls = prometheus.NewDesc("pbxmesh_hook_calls_total",
		"Calls of the socket hook by outcome; one that was routed counts again when it ends.", []string{"outcome"}, nil)
	descActive = prometheus.NewDesc("pbxmesh_hook_calls_active",
		"Calls that the socket hook holds now.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descNode, descAge, descRegistrations, descDrift, descBad, descUnread, descUnpublished, descSwitch, descSessions, descCalls, descActive,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	mesh := c.a.tracker.Mesh()
	for id := range mesh.Nodes {
		gauge(descNode, 1, string(id), mesh.State(id).Effective().String())
	}
	if age := c.a.replica.Age(c.a.now()); age != registry.NeverSynced {
		gauge(descAge, age.Seconds())
	}
	r := c.a.replica.Stats()
	gauge(descRegistrations, float64(r.Registrations))
	counter(descDrift, float64(r.Drift))
	counter(descBad, float64(r.Bad))
	unread := 0
	for _, m := range c.a.replica.Members() {
		unread += m.Unread
	}
	gauge(descUnread, float64(unread))
	if c.a.writer != nil {
		gauge(descUnpublished, float64(c.a.writer.Status().Unpublished))
	}
	if c.a.feed != nil {
		s := c.a.feed.Status()
		connected := 0.0
		if s.Connected {
			connected = 1
		}
		gauge(descSwitch, connected)
		gauge(descSessions, float64(s.Sessions))
	}
	if c.a.hook != nil {
		s := c.a.hook.Stats()
		gauge(descActive, float64(s.Active))
		for outcome, n := range map[string]uint64{
			"routed": s.Routed, "answered": s.Answered, "failed": s.Failed, "abandoned": s.Abandoned,
			"not-registered": s.NotRegistered, "unreachable": s.Unreachable, "invalid": s.Invalid,
			"unavailable": s.Unavailable, "overloaded": s.Overloaded, "lost": s.Lost, "unnamed": s.Unnamed,
		} {
			counter(descCalls, float64(n), outcome)
		}
	}
}

// metrics returns the handler of /metrics, with a registry of the App's own: two
// daemons in one process must not meet in the global one.
func (a *App) metrics() http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collector{a}, replicaCollector{a}, healthCollector{a}, redirectCollector{a}, dnsCollector{a}, webCollector{a}, latencyCollector{a}, drainCollector{a}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4})
}
