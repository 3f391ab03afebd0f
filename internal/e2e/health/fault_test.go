package health_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/internal/control"
)

// all returns what the daemon of h says of the nodes, the zero reply when it says nothing.
func (h *host) all() control.NodesReply {
	var r control.NodesReply
	if err := json.Unmarshal([]byte(h.get("/v1/nodes")), &r); err != nil {
		return control.NodesReply{}
	}
	return r
}

// sees returns what the daemon of h says of the node, the zero Node when it says nothing.
func (h *host) sees(node *host) control.Node {
	r := h.all()
	at := slices.IndexFunc(r.Nodes, func(n control.Node) bool { return n.ID == pbxmesh.NodeID(node.name) })
	if at < 0 {
		return control.Node{}
	}
	return r.Nodes[at]
}

// seen waits until every daemon and name server sees node as cond wants it.
func (l *lab) seen(what string, node *host, cond func(n *control.Node) bool) {
	l.t.Helper()
	for _, h := range append(slices.Clone(l.nodes), l.servers...) {
		l.eventually(fmt.Sprintf("%s sees %s %s", h.name, node.name, what), func() bool {
			n := h.sees(node)
			return cond(&n)
		})
	}
}

// get asks the daemon of h; it returns the error when that fails.
func (h *host) get(path string) string {
	client := http.Client{Timeout: soon, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
			err = within(h.ns, func() error {
				c, err = new(net.Dialer).DialContext(ctx, network, addr)
				return err
			})
			return c, err
		},
	}}
	reply, err := client.Get("http://" + h.api + path)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = reply.Body.Close() }()
	text, err := io.ReadAll(reply.Body)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestSwitchFaults has switches go wrong by halves, and at the end all of them die. Each state is that of the table in docs/failover.md.
func TestSwitchFaults(t *testing.T) {
	t.Parallel()
	l := newLab(t, pace{renew: 400 * time.Millisecond, probe: 500 * time.Millisecond, timeout: 300 * time.Millisecond}, false)
	london, buffalo := l.victim(), l.nodes[1]
	sw, ok := london.sw.(*childSwitch)
	if !ok {
		t.Skip("a real switch has no such faults")
	}
	other := buffalo.sw.(*childSwitch)
	well := func() {
		t.Helper()
		l.seen("up", london, func(n *control.Node) bool { return n.Effective == "up" && n.Shed == 0 })
		l.answers(london)
	}
	phones := func(observed string, shed int, why string) func(n *control.Node) bool {
		return func(n *control.Node) bool {
			return n.Observed == observed && n.Shed == shed && strings.Contains(n.ShedReason, why)
		}
	}

	// The event socket of buffalo hangs, which takes a while to show.
	must(t, other.fault(fault{Hang: true}))

	// Its processor, then its sessions. What is half full takes half of the phones.
	must(t, sw.fault(fault{Beat: true, Sessions: 10, Idle: 2}))
	l.seen("without a free processor", london, phones("up", pbxmesh.ShedAll, "processor is idle"))
	l.changed(london, time.Now())
	must(t, sw.fault(fault{Beat: true, Sessions: 10, Idle: 97}))
	well()
	must(t, sw.fault(fault{Beat: true, Sessions: 1990, Idle: 97}))
	l.seen("full", london, phones("up", pbxmesh.ShedAll, "sessions are in use"))
	l.changed(london, time.Now())
	must(t, sw.fault(fault{Beat: true, Sessions: 1750, Idle: 97}))
	l.seen("half full", london, phones("up", pbxmesh.ShedAll/2, "sessions are in use"))
	must(t, sw.fault(fault{Beat: true, Sessions: 10, Idle: 97}))
	well()

	// It says that it is overloaded.
	must(t, sw.fault(fault{Options: 503}))
	l.seen("overloaded", london, phones("suspect", pbxmesh.ShedAll, "503"))
	l.changed(london, time.Now())
	must(t, sw.fault(fault{}))
	well()

	// Buffalo is there by now: it takes calls, being suspect and not down, but no phones.
	l.seen("with a hung event socket", buffalo, phones("suspect", pbxmesh.ShedAll, "event socket does not answer"))

	// The reverse at london: SIP does not answer, the event socket does. Phones go to the
	// third node.
	must(t, sw.fault(fault{Options: -1}))
	l.seen("down", london, phones("down", pbxmesh.ShedAll, "it is down"))
	l.answers(l.nodes[2])
	if n := london.sees(london); n.SwitchConnected == nil || !*n.SwitchConnected {
		t.Error("the event socket was lost as well, which was to be another case")
	}
	must(t, sw.fault(fault{}))
	well()

	// Both well again.
	must(t, other.fault(fault{}))
	l.seen("up", buffalo, func(n *control.Node) bool { return n.Effective == "up" && n.Shed == 0 })

	// All of them die. Nobody gets an empty answer (ask fails the test otherwise).
	for _, h := range l.nodes {
		must(t, h.sw.Kill())
	}
	for _, h := range l.nodes {
		l.seen("down", h, func(n *control.Node) bool { return n.Observed == "down" })
	}
	for _, s := range l.servers {
		if _, ok := s.ask(); !ok {
			t.Errorf("%s does not answer any more", s.name)
		}
		if out := s.query("nodes"); !strings.Contains(out, "EVERY NODE IS DOWN") {
			t.Errorf("%s lists:\n%s", s.name, out)
		}
		if m := s.get("/metrics"); !strings.Contains(m, "pbxmesh_all_nodes_down 1\n") || strings.Contains(m, `pbxmesh_dns_events_total{event="panic-rule"} 0`) {
			t.Errorf("%s has metrics:\n%s", s.name, m)
		}
		if log := s.daemon.log.String(); !strings.Contains(log, "EVERY NODE IS DOWN") || !strings.Contains(log, "panic rule") {
			t.Errorf("%s does not say so:\n%s", s.name, log)
		}
	}
	for _, h := range l.nodes {
		must(t, h.sw.Start())
	}
	well()
	for _, s := range l.servers {
		if m := s.get("/metrics"); !strings.Contains(m, "pbxmesh_all_nodes_down 0\n") {
			t.Errorf("%s has metrics:\n%s", s.name, m)
		}
	}
}
