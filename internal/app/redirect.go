package app

import (
	"fmt"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
	"pbxmesh/router/redirect"
)

func (a *App) buildRedirect() error {
	r := &a.cfg.Router.Redirect
	if !r.On() {
		return nil
	}
	o := redirect.Options{
		Directory: directory{a}, Nodes: a.tracker, Ready: a.ready,
		UDP: r.UDP, TCP: r.TCP, TLS: r.TLS, CertFile: string(r.CertFile), KeyFile: string(r.KeyFile),
		Allow: r.Allow, Domain: a.cfg.Router.DefaultDomain, DefaultNode: pbxmesh.NodeID(r.DefaultNode),
		NumbersFile: string(r.DIDFile), Logger: a.log,
	}
	if r.Register {
		o.Chooser = chooser{a}
	}
	var err error
	if a.redirect, err = redirect.New(o); err != nil {
		return fmt.Errorf("router.redirect: %w", err)
	}
	a.teardowns.push("redirect server", a.redirect.Shutdown)
	return nil
}

func (a *App) startRedirect() {
	if a.redirect != nil {
		a.task("redirect server", a.redirect.Run)
	}
}

// RedirectAddrs returns where the redirect server listens for SIP over t; nil when
// it does not.
func (a *App) RedirectAddrs(t redirect.Transport) []netip.AddrPort {
	if a.redirect == nil {
		return nil
	}
	return a.redirect.Addrs(t)
}

// preferences are the order of nodes by client network. They count also where this
// daemon is no name server.
func (a *App) preferences() (*selection.Preferences, error) {
	z := &a.cfg.DNS
	networks := make([]selection.Network, 0, len(z.Preferences))
	for _, p := range z.Preferences {
		networks = append(networks, selection.Network{Prefix: p.Network, Nodes: p.Nodes})
	}
	preferences, err := selection.NewPreferences(networks, z.DefaultOrder)
	if err != nil {
		return nil, fmt.Errorf("dns.preferences: %w", err)
	}
	return preferences, nil
}

// chooser sends phones where the name servers would.
type chooser struct{ a *App }

// Choose implements redirect.Chooser.
func (c chooser) Choose(client netip.Addr) []pbxmesh.NodeID {
	d, _ := c.a.ranker.chooser.On(c.a.tracker.Mesh()).For(client, selection.FamilyOf(client))
	return d.Nodes
}

var (
	descRedirect = prometheus.NewDesc("pbxmesh_redirect_answers_total",
		"Answers of the redirect server by outcome.", []string{"outcome"}, nil)
	descRedirectSilent = prometheus.NewDesc("pbxmesh_redirect_silent_total",
		"Packets and connections that the redirect server did not answer, by reason.", []string{"reason"}, nil)
	descRedirectNumbers = prometheus.NewDesc("pbxmesh_redirect_numbers",
		"Entries of the table of numbers in force.", nil, nil)
	descRedirectNumbersBroken = prometheus.NewDesc("pbxmesh_redirect_numbers_broken",
		"1 while the file of the table of numbers cannot be read and an older one is in force.", nil, nil)
)

// redirectCollector is collector for the redirect server.
type redirectCollector struct{ a *App }

// Describe implements prometheus.Collector.
func (redirectCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRedirect, descRedirectSilent, descRedirectNumbers, descRedirectNumbersBroken} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c redirectCollector) Collect(ch chan<- prometheus.Metric) {
	if c.a.redirect == nil {
		return
	}
	s := c.a.redirect.Stats()
	for outcome, n := range map[string]uint64{
		"redirected": s.Redirected - s.DefaultNode, "default-node": s.DefaultNode, "register": s.Registers,
		"not-registered": s.NotFound, "unreachable": s.Unreachable, "unavailable": s.Unavailable,
		"options": s.Options, "malformed": s.Malformed, "method": s.Unknown, "other": s.OtherAnswer,
	} {
		ch <- prometheus.MustNewConstMetric(descRedirect, prometheus.CounterValue, float64(n), outcome)
	}
	for reason, n := range map[string]uint64{
		"ack": s.Acks, "stranger": s.Strangers, "noise": s.Dropped, "full": s.Refused,
	} {
		ch <- prometheus.MustNewConstMetric(descRedirectSilent, prometheus.CounterValue, float64(n), reason)
	}
	broken := 0.0
	if s.Numbers.Err != nil {
		broken = 1
	}
	ch <- prometheus.MustNewConstMetric(descRedirectNumbers, prometheus.GaugeValue, float64(s.Numbers.Entries))
	ch <- prometheus.MustNewConstMetric(descRedirectNumbersBroken, prometheus.GaugeValue, broken)
}
