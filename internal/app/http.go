package app

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/router/dialplan"
)

func (a *App) buildHTTP() error {
	h := a.cfg.Router.HTTP
	if a.cfg.Node == nil || !h.Listen.IsValid() {
		return nil
	}
	token, err := h.TokenFile.Read()
	if err != nil {
		return fmt.Errorf("router.http.token_file: %w", err)
	}
	a.web, err = dialplan.New(dialplan.Options{
		Directory: directory{a}, Nodes: a.tracker, Local: a.nodeID(), Bridge: a.bridgeOptions(),
		Contexts: h.Contexts, Domain: a.cfg.Router.DefaultDomain, Token: token,
		ACL: dialplan.ACL{List: h.ACLList, File: string(h.ACLFile)},
		Explain: func(ctx context.Context, aor pbxmesh.AOR, fromMesh bool) (any, error) {
			return a.Explain(ctx, aor, fromMesh)
		},
		Deadline: h.Deadline, MaxRequests: h.MaxRequests, LogCalls: true, Logger: a.log,
	})
	if err != nil {
		return fmt.Errorf("dialplan hook: %w", err)
	}
	a.webListener, err = a.listen("dialplan hook", "router.http.listen", h.Listen)
	return err
}

func (a *App) startHTTP() {
	if a.web == nil {
		return
	}
	a.task("dialplan hook", func(context.Context) error { return a.web.Serve(a.webListener) })
	a.teardowns.push("dialplan hook requests", a.web.Shutdown)
	if a.cfg.Router.HTTP.ACLList != "" {
		a.task("access list", a.watchPeers)
	}
}

// HTTPAddr returns where the dialplan hook listens; zero when it is off.
func (a *App) HTTPAddr() netip.AddrPort { return addrOf(a.webListener) }

const (
	peersEvery  = 2 * time.Second  // a new node waits this long for the switches to let it in
	peersRetry  = 10 * time.Second // after a switch that did not take the command
	peersBudget = 5 * time.Second  // for connection and command together
)

// watchPeers has the switch load its access lists again when the nodes of the mesh
// change, and once after each of its starts: it boots before we can tell it whom to
// let in. It asks us for acl.conf only then.
func (a *App) watchPeers(ctx context.Context) error {
	var told string
	var after time.Time
	return every(ctx, peersEvery, func() {
		s := a.feed.Status()
		peers := dialplan.Peers(a.tracker.Mesh())
		now := a.now()
		if !s.Connected || len(peers) == 0 || now.Before(after) {
			return
		}
		want := s.CoreUUID + fmt.Sprint(peers)
		if want == told {
			return
		}
		if err := a.reloadACL(ctx); err != nil {
			after = now.Add(peersRetry)
			a.log.Warn("the switch does not load its access lists again, it will be asked once more", "error", err)
			return
		}
		told = want
		a.log.Info("the switch loads its access lists again", "nodes", fmt.Sprint(peers))
	})
}

// reloadACL uses a connection of its own: the feed's is for events.
func (a *App) reloadACL(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, peersBudget)
	defer cancel()
	sw := a.cfg.FreeSWITCH.EventSocket
	password, err := sw.PasswordFile.Read()
	if err != nil {
		return err
	}
	conn, err := esl.Dial(ctx, esl.Config{Address: string(sw.Address), Password: password, Logger: a.log})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.API(ctx, "reloadacl")
	return err
}

var (
	descWeb = prometheus.NewDesc("pbxmesh_http_answers_total",
		"Answers of the HTTP hook by outcome; refused ones asked nothing (token, host, path, method, size).", []string{"outcome"}, nil)
	descWebActive = prometheus.NewDesc("pbxmesh_http_requests_active",
		"Requests that the HTTP hook serves now.", nil, nil)
)

// webCollector shows the counters of the HTTP hook, when there is one.
type webCollector struct{ a *App }

// Describe implements prometheus.Collector.
func (c webCollector) Describe(ch chan<- *prometheus.Desc) { ch <- descWeb; ch <- descWebActive }

// Collect implements prometheus.Collector.
func (c webCollector) Collect(ch chan<- prometheus.Metric) {
	if c.a.web == nil {
		return
	}
	s := c.a.web.Stats()
	ch <- prometheus.MustNewConstMetric(descWebActive, prometheus.GaugeValue, float64(s.Active))
	for outcome, n := range map[string]uint64{
		"routed": s.Routed, "not-registered": s.NotRegistered, "unreachable": s.Unreachable, "invalid": s.Invalid,
		"unavailable": s.Unavailable, "overloaded": s.Overloaded, "refused": s.Refused,
	} {
		ch <- prometheus.MustNewConstMetric(descWeb, prometheus.CounterValue, float64(n), outcome)
	}
}
