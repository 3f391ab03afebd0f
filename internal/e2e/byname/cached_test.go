package byname_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/softphone"
)

// cache is a resolver between phones and a name server: it answers what it was answered,
// until the time to live is over.
type cache struct {
	at       netip.AddrPort
	upstream string

	mu   sync.Mutex
	kept map[dns.Question]kept
}

type kept struct {
	reply *dns.Msg
	since time.Time
	ttl   time.Duration
}

func newCache(m *mesh) *cache {
	m.t.Helper()
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 10, 1)})
	must(m.t, err)
	c := &cache{at: pc.LocalAddr().(*net.UDPAddr).AddrPort(), upstream: netip.AddrPortFrom(nameServers[0], 53).String(), kept: map[dns.Question]kept{}}
	server := &dns.Server{PacketConn: pc, Handler: c}
	served := make(chan error, 1)
	go func() { served <- server.ActivateAndServe() }()
	m.t.Cleanup(func() {
		_ = server.Shutdown()
		if err := <-served; err != nil {
			m.t.Error(err)
		}
	})
	return c
}

// ServeDNS implements dns.Handler.
func (c *cache) ServeDNS(w dns.ResponseWriter, asked *dns.Msg) {
	reply, err := c.answer(asked.Question[0])
	if err != nil {
		reply = new(dns.Msg).SetRcode(asked, dns.RcodeServerFailure)
	}
	reply.Id, reply.Question = asked.Id, asked.Question
	_ = w.WriteMsg(reply)
}

func (c *cache) answer(q dns.Question) (*dns.Msg, error) {
	q.Name = strings.ToLower(q.Name)
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.kept[q]
	if !ok || time.Since(k.since) >= k.ttl {
		client := dns.Client{Timeout: time.Second}
		reply, _, err := client.Exchange(new(dns.Msg).SetQuestion(q.Name, q.Qtype), c.upstream)
		if err != nil {
			return nil, err
		}
		k = kept{reply: reply, since: time.Now()}
		if len(reply.Answer) > 0 {
			k.ttl = time.Duration(reply.Answer[0].Header().Ttl) * time.Second
		}
		c.kept[q] = k
	}
	out := k.reply.Copy()
	for _, rr := range slices.Concat(out.Answer, out.Extra) {
		if h := rr.Header(); h.Rrtype != dns.TypeOPT {
			h.Ttl -= min(h.Ttl, uint32(time.Since(k.since)/time.Second))
		}
	}
	return out, nil
}

// warm asks everything that a phone may ask, so that all of it is from now, and returns for
// how long the answers are kept that name servers.
func (c *cache) warm(t *testing.T) time.Duration {
	t.Helper()
	c.mu.Lock()
	clear(c.kept)
	c.mu.Unlock()
	ask := func(name string, kind uint16) *dns.Msg {
		reply, err := c.answer(dns.Question{Name: name, Qtype: kind, Qclass: dns.ClassINET})
		must(t, err)
		return reply
	}
	ask(zone+".", dns.TypeNAPTR)
	ask(zone+".", dns.TypeA)
	var ttl time.Duration
	for _, service := range []string{"_sip._udp.", "_sip._tcp.", "_sips._tcp."} {
		reply := ask(service+zone+".", dns.TypeSRV)
		if len(reply.Answer) != len(order) {
			t.Fatalf("%s has %d targets, want %d", service, len(reply.Answer), len(order))
		}
		ttl = time.Duration(reply.Answer[0].Header().Ttl) * time.Second
		for _, rr := range reply.Answer {
			srv := rr.(*dns.SRV)
			target := ask(srv.Target, dns.TypeA)
			first := slices.MinFunc(reply.Answer, func(a, b dns.RR) int { return int(a.(*dns.SRV).Priority) - int(b.(*dns.SRV).Priority) })
			if rr == first && (len(target.Answer) != 1 || target.Answer[0].(*dns.A).A.String() != host(0).String()) {
				t.Fatalf("the first target of %s is %v, want %s", service, target.Answer, order[0])
			}
		}
	}
	return ttl
}

// TestScenarioFirstTargetKilled has phones look for a server while their resolver still names
// a first target whose switch was killed: its port refuses.
func TestScenarioFirstTargetKilled(t *testing.T) {
	for _, o := range firstTargetDead(newMesh(t), failures[0].do) {
		// Who connects knows at once, and goes on to the next target. A call that was dialled
		// before its phone noticed is given up after ten seconds; the next one gets through.
		if at := 15 * time.Second; o.transport != "udp" && (o.registers > at || o.calls > at) {
			t.Errorf("%v, want both within %s", o, at)
		}
	}
}

// TestScenarioFirstTargetSilent is the same where it swallows everything.
func TestScenarioFirstTargetSilent(t *testing.T) {
	firstTargetDead(newMesh(t), failures[1].do)
}

// afterwards is when a phone registered that was started after a failure, and when one was
// answered that had been registered and dialled.
type afterwards struct {
	kind             softphone.Kind
	transport        string
	registers, calls time.Duration // 0: not in time
}

func (a afterwards) String() string {
	return fmt.Sprintf("%s %s registers after %.1f s, can call after %.1f s", a.kind, a.transport, a.registers.Seconds(), a.calls.Seconds())
}

// firstTargetDead lets london fail just after the phones' resolver has learnt that it is the
// first target, and returns what becomes of phones of each kind. All must be back in time.
func firstTargetDead(m *mesh, fail func(*mesh, string)) []*afterwards {
	m.t.Helper()
	other := m.ours("1001", "singapore")
	other.SetBehaviour(phone.AutoAnswer(0))
	c := newCache(m)
	// None registers again meanwhile by itself. One that is started tries again after a minute
	// at the latest.
	const interval, retry = 10 * time.Minute, time.Minute
	var out []*afterwards
	var wanted []func() (*handset, error)
	var intervals []time.Duration
	for _, kind := range softphone.Kinds {
		if err := softphone.Missing(kind); err != nil {
			m.t.Skipf("SKIPPED, NOT TESTED: %v", err)
		}
		for _, transport := range []string{"udp", "tcp", "tls"} {
			out = append(out, &afterwards{kind: kind, transport: transport})
			wanted = append(wanted, func() (*handset, error) { return newSoftphone(kind, transport, interval, c.at) })
			intervals = append(intervals, time.Second)
		}
	}
	registered := m.start(wanted, intervals)
	kept := c.warm(m.t)
	began := time.Now()
	fail(m, "london")
	// 64 * T1 is how long a phone waits over UDP for a server that says nothing (RFC 3261
	// 17.1.1.2 and 17.1.2.2).
	const timeout = 32 * time.Second
	patience := kept + timeout + retry
	ctx, cancel := context.WithDeadline(context.Background(), began.Add(patience))
	defer cancel()
	var wait sync.WaitGroup
	for i, o := range out {
		wait.Go(func() {
			if h := registered[i]; h != nil {
				o.calls = m.awaitCalls(ctx, began, h, other)
				h.close()
			}
		})
		wait.Go(func() {
			h, err := wanted[i]()
			if err != nil {
				m.t.Error(err)
				return
			}
			defer h.close()
			if await(ctx, func() bool { return len(m.where(m.nodes["singapore"].app, h.user)) > 0 }) {
				o.registers = time.Since(began)
			} else {
				m.t.Logf("%v ends with:\n%s", h, h.tail())
			}
		})
	}
	wait.Wait()
	for _, o := range out {
		m.t.Logf("RESULT answers kept for %s: %v", kept, o)
		if o.registers == 0 || o.calls == 0 {
			m.t.Errorf("%v: not both within %s", o, patience)
		}
	}
	return out
}
