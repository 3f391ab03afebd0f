package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover/drain"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/registrytest"
	"pbxmesh/router/native"
)

// drainSize is how large a drain is played.
type drainSize struct {
	phones, calls, pace int
	soon                time.Duration // bounds each step
}

// TestScenarioDrain empties a node while its phones talk, and takes that back half-way:
// on real switches when the environment names a binary.
func TestScenarioDrain(t *testing.T) {
	t.Parallel()
	size := drainSize{phones: 1000, calls: 50, pace: 400, soon: 90 * time.Second}
	if realBinary() != "" {
		size = drainSize{phones: 60, calls: 4, pace: 10, soon: time.Minute}
	}
	playDrain(t, size)
}

// stage is a mesh of three switches with a name server on each daemon, and phones that
// find them by DNS.
type stage struct {
	*cluster
	size   drainSize
	phones []*phone.Phone
}

func playDrain(t *testing.T, size drainSize) {
	s := newStage(t, size)
	s.allRegister()
	began := time.Now()
	caller := s.callsBegin()
	t.Logf("%d phones and %d calls on london", size.phones, size.calls)

	// Half-way.
	reply := s.want("buffalo", control.StateDraining)
	if !reply.Shared || reply.Was != "in service" {
		t.Errorf("drain answers %+v", reply)
	}
	s.eventually("half of the phones that do not talk have left", func() bool { return s.on("london") <= size.phones-(size.phones-2*size.calls)/2 })
	s.want("singapore", control.StateInService)
	s.eventually("everybody sees london in service", func() bool { return s.seen(pbxmesh.EffectiveUp) })
	// What was told before that has arrived when nobody is on the way any more.
	left := s.settled()
	if left == 0 || left >= size.phones {
		t.Errorf("undrained half-way, and %d phones of %d are on london", left, size.phones)
	}
	if n := s.progress("london"); n != nil {
		t.Errorf("undrained, and its daemon still shows %+v", n)
	}
	welcome := s.phone2("welcome")
	if err := s.toLondon(s.ctx(), welcome); err != nil {
		t.Errorf("a phone that looks london up after the undrain does not land there: %v", err)
	}

	// The rest.
	s.want("london", control.StateDraining)
	s.eventually("only phones that talk are left on london", func() bool { return s.on("london") == 2*size.calls })
	p := s.progress("buffalo")
	if p == nil || p.InCall != 2*size.calls || p.Calls != size.calls || p.Pace != size.pace {
		t.Errorf("another daemon shows %+v: %d calls expected", p, size.calls)
	}
	for i, c := range caller {
		if info := c.Info(); info.State != phone.Answered {
			t.Errorf("call %d was cut: %+v", i, info)
		}
	}
	s.reinvite(caller)
	for _, c := range caller {
		if err := c.Hangup(s.ctx()); err != nil {
			t.Errorf("hang up: %v", err)
		}
	}
	s.eventually("london is empty", func() bool {
		r, err := s.nodes["singapore"].app.Drain(s.ctx(), "london")
		return err == nil && r.Empty
	})
	if n := s.on("london"); n != 0 {
		t.Errorf("%d registrations on london, which is said to be empty", n)
	}
	for _, p := range s.phones {
		if r, ok := p.Registered(); !ok || r.Registrar == s.nodes["london"].sw.SIP() {
			t.Errorf("%s is registered %v at %v", p.User(), ok, r.Registrar)
		}
	}
	worst, all := s.fullestSecond(began, "buffalo", "singapore")
	t.Logf("the others received %d registrations, at most %d in any second; the pace is %d", all, worst, size.pace)
	if worst > size.pace {
		t.Errorf("%d registrations within one second at the other switches, the pace is %d", worst, size.pace)
	}
	if all < size.phones {
		t.Errorf("the others received %d registrations of %d phones", all, size.phones)
	}
}

// newStage boots three switches and their daemons, each with a name server that prefers
// london.
func newStage(t *testing.T, size drainSize) *stage {
	t.Helper()
	s := &stage{cluster: &cluster{t: t, real: realBinary() != "", nodes: map[string]*node{}}, size: size}
	if s.real {
		s.url = registrytest.StartRedis(t).URL()
	} else {
		s.store, s.lamps = memory.New(memory.Options{}), native.NewMemory()
		t.Cleanup(func() { _ = s.store.Close() })
	}
	users := []fixtures.User{{Name: "welcome", Domain: domain, Password: password("welcome")}}
	for i := range size.phones {
		users = append(users, fixtures.User{Name: drainUser(i), Domain: domain, Password: password(drainUser(i))})
	}
	var boot sync.WaitGroup
	for i, name := range []string{"buffalo", "london", "singapore"} {
		host := netip.AddrFrom4([4]byte{127, 0, byte(71 + i), 1})
		n := &node{name: name, socket: freePort(t, host)}
		fc := fixtures.Config{Name: name, Host: host, Users: users, Routes: stockRoutes}
		var err error
		if s.real {
			n.sw, err = realswitch.New(fc, realBinary())
		} else {
			n.sw, err = simswitch.New(simswitch.Options{Config: fc, Tick: -1, History: 100 * size.phones})
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.close(t) })
		s.nodes[name] = n
		boot.Go(func() {
			if err := n.sw.Start(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	boot.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, n := range s.nodes {
		n.cfg = s.config(n)
		n.cfg.Node.Capacity = 2 * size.phones
		n.cfg.Failover.Latency.Enabled = false                                           // the order of names counts
		n.cfg.Router.Native.Enabled = false                                              // nobody calls between the nodes here
		n.cfg.Registry.LeaseTTL, n.cfg.Registry.LeaseRenew = 10*time.Second, time.Second // a starved machine must not look dead
		n.cfg.Failover.Probe.DownAfter = 50
		n.cfg.Failover.Drain = config.Drain{Method: string(drain.MethodCheckSync), Pace: size.pace, After: 1500 * time.Millisecond, Grace: 10 * time.Minute, Again: 5 * time.Second}
		n.cfg.DNS.Listen = []netip.AddrPort{netip.AddrPortFrom(n.sw.SIP().Addr(), 0)}
		n.cfg.DNS.Zone = domain
		n.cfg.DNS.Hostmaster = "hostmaster@" + domain
		n.cfg.DNS.DefaultOrder = []pbxmesh.NodeID{"london", "buffalo", "singapore"}
		n.cfg.DNS.Nameservers = []config.Nameserver{{Name: "ns." + domain, Addresses: []netip.Addr{n.sw.SIP().Addr()}}}
		s.startDaemon(n)
	}
	s.eventually("everybody sees everybody up", func() bool { return s.seen(pbxmesh.EffectiveUp) })
	return s
}

func drainUser(i int) string { return fmt.Sprint(20000 + i) }

// seen reports whether every daemon sees london so, and the others up.
func (s *stage) seen(london pbxmesh.Effective) bool {
	for _, n := range s.nodes {
		m := n.app.Mesh()
		for other := range s.nodes {
			want := pbxmesh.EffectiveUp
			if other == "london" {
				want = london
			}
			if _, ok := m.Node(pbxmesh.NodeID(other)); !ok || m.State(pbxmesh.NodeID(other)).Effective() != want {
				return false
			}
		}
	}
	return true
}

// phone2 is a phone that finds its switch by DNS and registers anew when it is told to.
func (s *stage) phone2(user string) *phone.Phone {
	s.t.Helper()
	var servers []netip.AddrPort
	for _, n := range s.nodes {
		servers = append(servers, n.app.DNSAddrs()...)
	}
	local := netip.MustParseAddr("127.0.75.1")
	p, err := phone.New(phone.Config{
		User: user, Domain: domain, Password: password(user), Local: local, CheckSync: phone.CheckSyncRegisters,
		Resolver: &phone.Resolver{Servers: servers, Local: local, Timeout: 5 * time.Second, NoCache: true},
		Expires:  time.Hour, AttemptTimeout: 20 * time.Second, T1X64: 30 * time.Second,
	})
	if err != nil {
		s.t.Fatal(err)
	}
	p.Start()
	s.t.Cleanup(func() { _ = p.Close() })
	return p
}

// allRegister registers every phone through DNS, which prefers london.
func (s *stage) allRegister() {
	s.t.Helper()
	todo := make(chan *phone.Phone, s.size.phones)
	for i := range s.size.phones {
		p := s.phone2(drainUser(i))
		s.phones = append(s.phones, p)
		todo <- p
	}
	close(todo)
	ctx, cancel := context.WithTimeout(context.Background(), s.size.soon)
	defer cancel()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for p := range todo {
				if err := s.toLondon(ctx, p); err != nil {
					s.t.Errorf("register: %v", err)
				}
			}
		})
	}
	wg.Wait()
	s.eventually("every daemon knows every phone on london", func() bool {
		for _, n := range s.nodes {
			if r, err := n.app.Drain(ctx, "london"); err != nil || r.Registrations != s.size.phones {
				return false
			}
		}
		return !s.t.Failed()
	})
}

// toLondon registers p where the name servers send it, until that is london: on a starved
// machine london may look silent for a moment.
func (s *stage) toLondon(ctx context.Context, p *phone.Phone) error {
	for {
		d, err := p.RegisterByDNS(ctx)
		if err != nil {
			return err
		}
		if d.Attempts[len(d.Attempts)-1].Candidate.Addr == s.nodes["london"].sw.SIP() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// callsBegin lets the last phones talk in pairs, and returns the callers' side.
func (s *stage) callsBegin() []*phone.Call {
	s.t.Helper()
	var out []*phone.Call
	talkers := s.phones[len(s.phones)-2*s.size.calls:]
	for i := 0; i < len(talkers); i += 2 {
		c, err := talkers[i].Call(s.ctx(), "u"+talkers[i+1].User())
		if err != nil {
			s.t.Fatal(err)
		}
		if info, err := c.WaitAnswered(s.ctx()); err != nil {
			s.t.Fatalf("no answer: %+v, %v", info, err)
		}
		out = append(out, c)
	}
	return out
}

func (s *stage) reinvite(calls []*phone.Call) {
	s.t.Helper()
	for i, c := range calls {
		if err := c.Reinvite(s.ctx()); err != nil {
			s.t.Errorf("call %d does not live: %v", i, err)
		}
	}
}

func (s *stage) want(at, state string) *control.WantedReply {
	s.t.Helper()
	reply, err := s.nodes[at].app.Want(s.ctx(), control.WantedRequest{Node: "london", State: state, By: "test", Reason: "kernel"})
	if err != nil {
		s.t.Fatal(err)
	}
	return reply
}

// on counts the registrations that the daemon of a node has of it.
func (s *stage) on(name string) int {
	s.t.Helper()
	r, err := s.nodes[name].app.Drain(s.ctx(), pbxmesh.NodeID(name))
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Registrations
}

func (s *stage) progress(at string) *control.Drain {
	s.t.Helper()
	r, err := s.nodes[at].app.Drain(s.ctx(), "london")
	if err != nil {
		s.t.Fatal(err)
	}
	return r.Drain
}

// settled waits until london's number of registrations has stood still for a while.
func (s *stage) settled() int {
	s.t.Helper()
	n, since := -1, time.Now()
	s.eventually("london's phones stand still", func() bool {
		if now := s.on("london"); now != n {
			n, since = now, time.Now()
		}
		return time.Since(since) > time.Second
	})
	return n
}

// fullestSecond counts the registrations at the given switches since then: how many in the
// fullest second, and in all. The phone's clock is the switch's: both are this process, or
// this machine.
func (s *stage) fullestSecond(since time.Time, names ...string) (worst, all int) {
	s.t.Helper()
	at := s.times(since, names...)
	first := 0
	for i := range at {
		for at[i].Sub(at[first]) >= time.Second {
			first++
		}
		worst = max(worst, i-first+1)
	}
	return worst, len(at)
}

// times are the moments of these, in order.
func (s *stage) times(since time.Time, names ...string) []time.Time {
	s.t.Helper()
	var at []time.Time
	for _, name := range names {
		for _, rec := range s.received(name) {
			if rec.At.After(since) {
				at = append(at, rec.At)
			}
		}
	}
	slices.SortFunc(at, time.Time.Compare)
	return at
}

// received returns the 200s of a simulated switch to REGISTER. A real one may be slow to
// answer for a second (its SQLite is busy) and then answers many at once, so that the phones'
// first REGISTER of each attempt that it granted stands there.
func (s *stage) received(name string) []sipwire.Record {
	var out []sipwire.Record
	if sw, ok := s.nodes[name].sw.(*simswitch.Switch); ok {
		for _, rec := range sw.InternalHistory() {
			if rec.Out && rec.Msg != nil && rec.Msg.Status == 200 && strings.HasSuffix(rec.Msg.Get("CSeq"), " REGISTER") {
				out = append(out, rec)
			}
		}
		return out
	}
	for _, p := range s.phones {
		var first *sipwire.Record
		for _, rec := range p.Endpoint().History() {
			switch {
			case rec.Peer != s.nodes[name].sw.SIP() || rec.Msg == nil || !strings.HasSuffix(rec.Msg.Get("CSeq"), " REGISTER"):
			case rec.Out && first == nil:
				first = &rec
			case !rec.Out && first != nil && rec.Msg.Status == 200:
				out, first = append(out, *first), nil
			}
		}
	}
	return out
}

// ctx bounds one step.
func (s *stage) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), s.size.soon)
	s.t.Cleanup(cancel)
	return ctx
}

// eventually is that of cluster, with more patience.
func (s *stage) eventually(what string, cond func() bool) {
	s.t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > s.size.soon {
			s.t.Fatalf("not within %s: %s; london holds %d, its drain is %+v", s.size.soon, what, s.on("london"), s.progress("london"))
		}
		<-tick.C
	}
	s.t.Logf("%s: after %s", what, time.Since(began).Round(10*time.Millisecond))
}
