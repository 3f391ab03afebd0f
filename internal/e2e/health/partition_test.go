package health_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// fromNode is the rule that loses what arrives of SIP from an address, a share of it or
// all of it: on the machine of an observer the answers to its probes.
func fromNode(addr netip.Addr) string { return fmt.Sprintf("ip saddr %s udp sport 5060", addr) }

// steady fails the test when one of the name servers' answers changes from h to another
// node within d, or is empty.
func (l *lab) steady(what string, h *host, d time.Duration) {
	l.t.Helper()
	asked := 0
	for end := time.Now().Add(d); time.Now().Before(end); {
		for _, s := range l.servers {
			if first, ok := s.ask(); ok {
				asked++
				if first != h.addr {
					l.t.Fatalf("%s: %s answers with %s, want %s still\n%s", what, s.name, first, h.name, s.query("nodes", h.name))
				}
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	if asked < 10 {
		l.t.Fatalf("%s: %d answers in %v prove nothing", what, asked, d)
	}
}

// TestPartitions cuts the network between real processes in namespaces of their own.
func TestPartitions(t *testing.T) {
	t.Parallel()
	needNamespaces(t)
	l := newLab(t, pace{renew: 300 * time.Millisecond, probe: 300 * time.Millisecond, timeout: 200 * time.Millisecond}, true)
	london, buffalo, singapore := l.nodes[0], l.nodes[1], l.nodes[2]
	la, ja := l.servers[0], l.servers[1]
	// noticed waits until the vote of observer on london says word.
	noticed := func(observer *host, word string) {
		t.Helper()
		l.eventually(observer.name+" says "+word+" of london", func() bool {
			for _, v := range la.sees(london).Votes.Observers {
				if v.Observer == observer.name {
					return v.Phones == word
				}
			}
			return false
		})
	}
	settled := func() {
		t.Helper()
		for _, h := range []*host{london, buffalo, singapore, la, ja} {
			l.netns.filter(t, h.ns)
		}
		l.eventually("all is well again", func() bool {
			return la.sees(london).Votes.Answers == 4 && ja.sees(london).Votes.Answers == 4
		})
		l.answers(london)
	}

	// A name server alone cannot reach a node while others can.
	l.netns.filter(t, la.ns, fromNode(london.addr))
	noticed(la, "silent")
	l.steady("losangeles alone does not reach london", london, time.Second)
	settled()

	// A sees B, C does not: half of those who count.
	l.netns.filter(t, la.ns, fromNode(london.addr))
	l.netns.filter(t, buffalo.ns, fromNode(london.addr))
	noticed(la, "silent")
	noticed(buffalo, "silent")
	l.steady("losangeles and buffalo do not reach london, the others do", london, time.Second)

	// One more is most of them.
	l.netns.filter(t, singapore.ns, fromNode(london.addr))
	began := time.Now()
	l.changed(london, began)
	t.Logf("cut off from three of four observers: %v", time.Since(began).Round(10*time.Millisecond))
	settled()

	// A name server that no SIP reaches goes by the others.
	l.netns.filter(t, ja.ns, "udp sport { 5060, 5090 }")
	noticed(ja, "none")
	l.steady("no node answers jacksonville", london, time.Second)
	must(t, london.sw.Pause())
	l.changed(london, time.Now())
	must(t, london.sw.Resume())
	settled()

	// A name server that is cut off from everything, the registry included: it answers as
	// before, and does not empty the zone.
	l.netns.filter(t, ja.ns, "udp sport { 5060, 5090 }", "tcp sport 6379")
	l.eventually("jacksonville hears nobody", func() bool {
		r := ja.all()
		return r.CutOff && r.Observers == 1
	})
	l.steady("jacksonville is cut off from everything", london, time.Second)
	settled()
}

// TestLossyNode loses 30 % of what a node receives and of what it sends: it stays in.
func TestLossyNode(t *testing.T) {
	t.Parallel()
	needNamespaces(t)
	l := newLab(t, pace{}, true)
	london := l.victim()
	l.netns.filter(t, london.ns, "udp dport 5060 numgen random mod 100 < 30")
	for _, h := range append(l.nodes[1:], l.servers...) {
		l.netns.filter(t, h.ns, fromNode(london.addr)+" numgen random mod 100 < 30")
	}
	l.steady("30 % lost there and back", london, lossyFor(t))
}
