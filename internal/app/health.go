package app

import (
	"cmp"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
	"pbxmesh/failover"
	"pbxmesh/internal/control"
)

// health fills in what the observers say: the reply's own part now, a node's part
// whenever what it returns is called.
func (a *App) health(reply *control.NodesReply, now time.Time) func(*control.Node) {
	observers := a.tracker.Observers(now)
	slices.SortFunc(observers[1:], func(x, y failover.SeenVote) int { return cmp.Compare(x.Observer, y.Observer) })
	details, cutOff := a.tracker.Details()
	reply.Observers, reply.CutOff, reply.AllDown = len(observers), cutOff, a.tracker.AllDown()
	reply.PanicRule = selection.PanicRule(a.tracker.Mesh())
	return func(n *control.Node) {
		at := slices.IndexFunc(details, func(d failover.Detail) bool { return d.Node.ID == n.ID })
		if at < 0 {
			return
		}
		d := &details[at]
		n.ShedReason = d.ShedWhy
		n.Votes = control.Votes{
			Counted: d.Tally.Counted, Needed: d.Tally.Least, Answers: d.Tally.Answers, Doubted: d.Tally.Doubted,
			Overloaded: d.Tally.Overloaded, Silent: d.Tally.Silent, Observers: []control.Vote{},
		}
		for i := range observers {
			n.Votes.Observers = append(n.Votes.Observers, voteOn(n.ID, &observers[i], now))
		}
	}
}

func voteOn(id pbxmesh.NodeID, v *failover.SeenVote, now time.Time) control.Vote {
	o := v.Nodes[id]
	out := control.Vote{
		Observer: v.Observer, Site: v.SiteName(), Beside: v.Self, Phones: o.Phones.String(), For: control.SecondsOf(o.For),
		Age: control.SecondsOf(max(0, now.Sub(v.Seen))), CutOff: v.CutOff,
	}
	if o.Mesh != failover.WordNone {
		out.Mesh = o.Mesh.String()
	}
	if v.Self == id {
		out.Switch = v.Switch.String()
	}
	return out
}

// healthCollector makes metrics of states, votes and probes.
type healthCollector struct{ a *App }

var (
	descShed = prometheus.NewDesc("pbxmesh_node_shed_ratio",
		"Share of client networks whose phones name servers send elsewhere, 0 to 1.", []string{"node"}, nil)
	descVotes = prometheus.NewDesc("pbxmesh_node_votes",
		"Observers that count by what they say of a node.", []string{"node", "word"}, nil)
	descTransitions = prometheus.NewDesc("pbxmesh_node_transitions_total",
		"Changes of a node into an observed state since the start.", []string{"node", "observed"}, nil)
	descRTT = prometheus.NewDesc("pbxmesh_probe_rtt_seconds",
		"Round trip of the last probe that was answered at its end; absent otherwise.", []string{"node", "path"}, nil)
	descDaemonSilent = prometheus.NewDesc("pbxmesh_node_daemon_silent",
		"1 while a node's daemon gives no sign of life though the registry can be read.", []string{"node"}, nil)
	descObservers = prometheus.NewDesc("pbxmesh_observers",
		"Observers that are heard, this one included.", nil, nil)
	descCutOff = prometheus.NewDesc("pbxmesh_observer_cut_off",
		"1 while no other node answers this observer.", nil, nil)
	descAllDown = prometheus.NewDesc("pbxmesh_all_nodes_down",
		"1 while every node is down as this observer sees it.", nil, nil)
	descPanicRule = prometheus.NewDesc("pbxmesh_panic_rule",
		"1 while fewer than half of the nodes that are wanted in service take phones, so that name servers answer with the others, too.", nil, nil)
	descVoteErrors = prometheus.NewDesc("pbxmesh_vote_errors_total",
		"Votes that could not be posted or read, were invalid, or came from a second observer of this name.", []string{"what"}, nil)
)

// Describe implements prometheus.Collector.
func (c healthCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descShed, descVotes, descTransitions, descRTT, descDaemonSilent, descObservers, descCutOff, descAllDown, descPanicRule, descVoteErrors,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c healthCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	truth := func(d *prometheus.Desc, v bool, labels ...string) {
		if v {
			gauge(d, 1, labels...)
		} else {
			gauge(d, 0, labels...)
		}
	}
	details, cutOff := c.a.tracker.Details()
	for i := range details {
		d := &details[i]
		id := string(d.Node.ID)
		gauge(descShed, float64(d.State.Shed)/pbxmesh.ShedAll, id)
		for word, n := range map[failover.Word]int{
			failover.WordAnswers: d.Tally.Answers, failover.WordDoubted: d.Tally.Doubted,
			failover.WordOverloaded: d.Tally.Overloaded, failover.WordSilent: d.Tally.Silent,
		} {
			gauge(descVotes, float64(n), id, word.String())
		}
		for observed, n := range d.Transitions {
			counter(descTransitions, float64(n), id, pbxmesh.Observed(observed).String()) //nolint:gosec // 0 to 3
		}
		for path, p := range map[failover.Path]failover.ProbeResult{failover.PathPhones: d.Phones, failover.PathMesh: d.Mesh} {
			if p.RTT > 0 {
				gauge(descRTT, p.RTT.Seconds(), id, path.String())
			}
		}
		truth(descDaemonSilent, d.DaemonSilent, id)
	}
	gauge(descObservers, float64(len(c.a.tracker.Observers(c.a.now()))))
	truth(descCutOff, cutOff)
	truth(descAllDown, c.a.tracker.AllDown())
	truth(descPanicRule, selection.PanicRule(c.a.tracker.Mesh()))
	s := c.a.voter.Stats()
	counter(descVoteErrors, float64(s.PostErrors), "post")
	counter(descVoteErrors, float64(s.ReadErrors), "read")
	counter(descVoteErrors, float64(s.Bad), "invalid")
	counter(descVoteErrors, float64(s.Namesakes), "namesake")
}
