package health_test

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// ask asks a name server which node it answers with: the first address of zone. ok is
// false when there was no answer.
func (h *host) ask() (first netip.Addr, ok bool) {
	var conn net.Conn
	ns := ""
	if h.lab.netns != nil {
		ns = h.lab.netns.hub
	}
	err := within(ns, func() (err error) {
		conn, err = net.Dial("udp", h.dns.String())
		return err
	})
	if err != nil {
		return netip.Addr{}, false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(500 * time.Millisecond))
	c := &dns.Conn{Conn: conn}
	if err := c.WriteMsg(new(dns.Msg).SetQuestion(zone+".", dns.TypeA)); err != nil {
		return netip.Addr{}, false
	}
	reply, err := c.ReadMsg()
	if err != nil || reply.Rcode != dns.RcodeSuccess {
		return netip.Addr{}, false
	}
	for _, rr := range reply.Answer {
		if a, isA := rr.(*dns.A); isA {
			addr, _ := netip.AddrFromSlice(a.A.To4())
			return addr, true
		}
	}
	// The zone was emptied, which must never be.
	h.lab.t.Errorf("%s answers without any address: %v", h.name, reply)
	return netip.Addr{}, false
}

// answers waits until both name servers answer with h.
func (l *lab) answers(h *host) {
	l.t.Helper()
	for _, s := range l.servers {
		l.eventually(fmt.Sprintf("%s answers with %s", s.name, h.name), func() bool {
			first, ok := s.ask()
			return ok && first == h.addr
		})
	}
}

// changed returns how long it takes, from began on, until each name server answers with
// another node than h.
func (l *lab) changed(h *host, began time.Time) []time.Duration {
	l.t.Helper()
	took := make([]time.Duration, len(l.servers))
	for i, s := range l.servers {
		l.eventually(s.name+" does not answer with "+h.name+" any more", func() bool {
			for j := range l.servers { // what is late here was on time there
				if first, ok := l.servers[j].ask(); ok && first != h.addr && took[j] == 0 {
					took[j] = time.Since(began)
				}
			}
			return took[i] > 0
		})
	}
	return took
}
