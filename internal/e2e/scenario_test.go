package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/registry/registrytest"
)

// TestScenario plays every story with Redis between the daemons, on real switches
// when the environment names a binary.
func TestScenario(t *testing.T) {
	t.Parallel()
	play(t, registrytest.StartRedis(t).URL())
}

// TestScenarioMemory plays them with the registry in memory. On real switches
// once is enough.
func TestScenarioMemory(t *testing.T) {
	if realBinary() != "" {
		t.Skip("TestScenario plays the same on real switches")
	}
	t.Parallel()
	play(t, "")
}

// play plays every story on one mesh, in order: the last ones kill nodes.
func play(t *testing.T, redisURL string) {
	t.Helper()
	c := newCluster(t, redisURL)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"register", scenarioRegister},
		{"refresh", scenarioRefresh},
		{"new port", scenarioNewPort},
		{"new Call-IDs", scenarioNewCallIDs},
		{"unregister with another Call-ID", scenarioUnregisterOtherCallID},
		{"expire", scenarioExpire},
		{"local call", scenarioLocalCall},
		{"node to node call", scenarioMeshCall},
		{"callee refuses", scenarioRefused},
		{"devices on two nodes ring both", scenarioFork},
		{"callee unregistered goes on in the dialplan", scenarioUnregistered},
		{"hostile numbers go on in the dialplan", scenarioHostile},
		{"latency is shared", scenarioLatency},
		{"switch restarted", scenarioSwitchRestarted},
		{"callee's node killed", scenarioNodeKilled},
	} {
		if !t.Run(s.name, func(t *testing.T) {
			outer := c.t
			c.t = t
			defer func() { c.t = outer }()
			s.run(t, c)
		}) {
			break // the mesh is not what the next story expects
		}
	}
}

func scenarioRegister(t *testing.T, c *cluster) {
	p := c.phone("1001", "127.0.41.1", "buffalo")
	began := time.Now()
	if err := p.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1001", "buffalo")
	t.Logf("REGISTER to known on all three nodes: %s", time.Since(began).Round(100*time.Microsecond))
	reply, err := c.nodes["singapore"].app.Lookup(c.ctx(), mustAOR(t, "1001"))
	if err != nil {
		t.Fatal(err)
	}
	r := reply.Registrations[0]
	if r.Source != p.Addr() || r.Profile != "internal" || r.Transport != "udp" || !strings.Contains(r.Contact, p.Addr().String()) {
		t.Errorf("singapore knows %+v, the phone is at %s", r, p.Addr())
	}
}

func scenarioRefresh(t *testing.T, c *cluster) {
	p := c.registered("1002", "127.0.42.1", "london")
	// Elsewhere a refresh that moves nothing but the expiry is known when it matters.
	expires := func() time.Time {
		reply, err := c.nodes["london"].app.Lookup(c.ctx(), mustAOR(t, "1002"))
		if err != nil || len(reply.Registrations) != 1 {
			t.Fatalf("buffalo knows %+v, %v; one device expected", reply, err)
		}
		return reply.Registrations[0].Expires
	}
	before := expires()
	c.eventually("a refresh puts the expiry off by a second", func() bool {
		if err := p.Refresh(c.ctx()); err != nil {
			t.Fatal(err)
		}
		return expires().Sub(before) >= time.Second
	})
}

func scenarioNewPort(t *testing.T, c *cluster) {
	p := c.registered("1003", "127.0.43.1", "london")
	old := p.Addr()
	if err := p.Rebind(c.ctx(), phone.NewCallID); err != nil {
		t.Fatal(err)
	}
	c.eventually("the new port is known in singapore", func() bool {
		reply, err := c.nodes["singapore"].app.Lookup(c.ctx(), mustAOR(t, "1003"))
		if err != nil {
			return false
		}
		for _, r := range reply.Registrations {
			if r.Source == p.Addr() && r.Source != old {
				return true
			}
		}
		return false
	})
}

// scenarioNewCallIDs has a phone REGISTER with a new Call-ID every time: no other node is
// without it for a moment.
func scenarioNewCallIDs(t *testing.T, c *cluster) {
	p := c.registered("1008", "127.0.48.1", "london")
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	looks := make(map[string]int)
	var mu sync.Mutex
	for _, at := range []string{"buffalo", "singapore"} {
		wg.Go(func() {
			for ctx.Err() == nil {
				reply, err := c.nodes[at].app.Lookup(t.Context(), mustAOR(t, "1008"))
				mu.Lock()
				looks[at]++
				mu.Unlock()
				if err != nil || len(reply.Registrations) == 0 {
					t.Errorf("%s finds nobody: %v", at, err)
					return
				}
				select {
				case <-ctx.Done():
				case <-time.After(2 * time.Millisecond):
				}
			}
		})
	}
	for range 20 {
		if err := p.MoveTo(c.ctx(), c.nodes["london"].sw.SIP(), phone.NewCallID); err != nil {
			t.Error(err)
			break
		}
		select {
		case <-t.Context().Done():
		case <-time.After(100 * time.Millisecond): // the old row is removed meanwhile
		}
	}
	stop()
	wg.Wait()
	t.Logf("looked %v times during 20 registrations", looks)
}

func scenarioUnregisterOtherCallID(t *testing.T, c *cluster) {
	p := c.registered("1004", "127.0.44.1", "london")
	if err := p.Unregister(c.ctx(), phone.NewCallID); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1004")
}

func scenarioExpire(t *testing.T, c *cluster) {
	p, err := phone.New(phone.Config{
		User: "1005", Domain: domain, Password: password("1005"), Local: netip.MustParseAddr("127.0.45.1"),
		Registrar: c.nodes["singapore"].sw.SIP(), Expires: 3 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.Start()
	defer func() { _ = p.Close() }()
	if err := p.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1005", "singapore")
	p.PowerOff()
	c.everywhere("1005")
}

// call places a call and returns both ends, answered.
func (c *cluster) call(from, to *phone.Phone) (out, in *phone.Call) {
	c.t.Helper()
	return c.callAs(from, to, to.User())
}

// callAs is call with another number than the callee's user.
func (c *cluster) callAs(from, to *phone.Phone, number string) (out, in *phone.Call) {
	c.t.Helper()
	began := time.Now()
	seen := len(to.Incoming())
	out, err := from.Call(c.ctx(), number, sipwire.Header{Name: "X-Story", Value: "pbxmesh"})
	if err != nil {
		c.t.Fatal(err)
	}
	info, err := out.WaitAnswered(c.ctx())
	if err != nil {
		c.t.Fatalf("%s calls %s: %v", from.User(), number, err)
	}
	for _, h := range info.Final.Headers {
		if strings.EqualFold(h.Name, "X-Pbxmesh-Result") {
			c.t.Fatalf("%s calls %s: the dialplan answered, pbxmesh_result %q", from.User(), number, h.Value)
		}
	}
	in, err = to.WaitIncoming(c.ctx(), seen+1)
	if err != nil {
		c.t.Fatalf("%s was answered, but not by %s: %v", from.User(), to.User(), err)
	}
	if got := in.From().URI; got.User != from.User() || got.Host != domain {
		c.t.Errorf("%s is shown %s@%s as the caller, want %s@%s", to.User(), got.User, got.Host, from.User(), domain)
	}
	c.t.Logf("%s calls %s: answered after %s", from.User(), number, time.Since(began).Round(100*time.Microsecond))
	return out, in
}

// hangup ends a call at one end and waits for the other.
func (c *cluster) hangup(near, far *phone.Call) {
	c.t.Helper()
	if err := near.Hangup(c.ctx()); err != nil {
		c.t.Fatalf("hang up: %v", err)
	}
	if _, err := far.WaitEnded(c.ctx()); err != nil {
		c.t.Fatalf("the far end never heard of the hang-up: %v", err)
	}
}

func scenarioLocalCall(t *testing.T, c *cluster) {
	a, b := c.registered("1011", "127.0.51.1", "buffalo"), c.registered("1012", "127.0.52.1", "buffalo")
	out, in := c.call(a, b)
	if in.Source() != c.nodes["buffalo"].sw.SIP() {
		t.Errorf("the INVITE came from %s, want buffalo's %s", in.Source(), c.nodes["buffalo"].sw.SIP())
	}
	c.hangup(out, in)
}

func scenarioMeshCall(t *testing.T, c *cluster) {
	a, b := c.registered("1013", "127.0.53.1", "buffalo"), c.registered("1014", "127.0.54.1", "singapore")
	out, in := c.call(a, b)
	if in.Source() != c.nodes["singapore"].sw.SIP() {
		t.Errorf("the INVITE came from %s, want singapore's %s", in.Source(), c.nodes["singapore"].sw.SIP())
	}
	if user := in.From().URI.User; user != "1013" {
		t.Errorf("caller id %q, want 1013", user)
	}
	story := ""
	for _, h := range in.Custom() {
		if strings.EqualFold(h.Name, "X-Story") {
			story = h.Value
		}
	}
	if story != "pbxmesh" {
		t.Errorf("the X-Story header arrived as %q: %+v", story, in.Custom())
	}
	c.hangup(in, out) // the callee hangs up; both nodes' channels must go

	out, in = c.call(b, a) // and back
	if in.Source() != c.nodes["buffalo"].sw.SIP() {
		t.Errorf("the INVITE came from %s, want buffalo's %s", in.Source(), c.nodes["buffalo"].sw.SIP())
	}
	c.hangup(out, in)
}

// dialplan calls number and expects the dialplan's own answer, which carries
// pbxmesh_result and pbxmesh_cause.
func (c *cluster) dialplan(from *phone.Phone, number string) (result, cause string, took time.Duration) {
	c.t.Helper()
	result, cause, took, err := c.tryDialplan(from, number)
	if err != nil {
		c.t.Fatal(err)
	}
	return result, cause, took
}

func (c *cluster) tryDialplan(from *phone.Phone, number string) (result, cause string, took time.Duration, err error) {
	began := time.Now()
	out, err := from.Call(c.ctx(), number)
	if err != nil {
		return "", "", 0, err
	}
	info, err := out.WaitAnswered(c.ctx())
	took = time.Since(began)
	if err != nil {
		return "", "", took, fmt.Errorf("%s calls %.60q: the dialplan did not go on: %w", from.User(), number, err)
	}
	if err := out.Hangup(c.ctx()); err != nil {
		return "", "", took, fmt.Errorf("hang up: %w", err)
	}
	return info.Header("X-Pbxmesh-Result"), info.Header("X-Pbxmesh-Cause"), took, nil
}

func scenarioRefused(t *testing.T, c *cluster) {
	a, b := c.registered("1015", "127.0.55.1", "london"), c.registered("1016", "127.0.56.1", "singapore")
	b.SetBehaviour(phone.Refuse(486))
	if result, cause, _ := c.dialplan(a, "1016"); result != "failed" || cause != "USER_BUSY" {
		t.Errorf("a busy callee gives pbxmesh_result %q, pbxmesh_cause %q", result, cause)
	}
}

func scenarioFork(t *testing.T, c *cluster) {
	a := c.registered("1017", "127.0.57.1", "buffalo")
	near := c.registered("1018", "127.0.58.1", "buffalo")
	near.SetBehaviour(phone.RingForever())
	far := c.phone("1018", "127.0.58.2", "singapore")
	if err := far.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1018", "buffalo", "singapore")
	far.SetBehaviour(phone.AutoAnswer(300 * time.Millisecond))
	out, in := c.call(a, far)
	loser, err := near.WaitIncoming(c.ctx(), 1)
	if err != nil {
		t.Fatalf("the near device did not ring: %v", err)
	}
	info, err := loser.WaitEnded(c.ctx())
	if err != nil || info.Cancel == nil {
		t.Errorf("the near device got no CANCEL: %+v, %v", info, err)
	}
	if n := len(near.Incoming()) + len(far.Incoming()); n != 2 {
		t.Errorf("%d INVITEs at two devices: one of them rang twice", n)
	}
	c.hangup(out, in)
}

func scenarioUnregistered(t *testing.T, c *cluster) {
	a := c.registered("1019", "127.0.59.1", "london")
	result, cause, took := c.dialplan(a, "1099")
	if result != "not-registered" || cause != "USER_NOT_REGISTERED" {
		t.Errorf("pbxmesh_result %q, pbxmesh_cause %q", result, cause)
	}
	t.Logf("the dialplan answered after %s", took.Round(100*time.Microsecond))
	b := c.registered("1020", "127.0.60.1", "singapore")
	if err := b.Unregister(c.ctx(), phone.KeepCallID); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1020")
	if result, _, _ := c.dialplan(a, "1020"); result != "not-registered" {
		t.Errorf("pbxmesh_result %q after the callee unregistered", result)
	}
}

func scenarioHostile(t *testing.T, c *cluster) {
	a := c.registered("1021", "127.0.61.1", "buffalo")
	victim := c.registered("1022", "127.0.62.1", "london")
	for _, number := range []string{
		"1022,sofia%2Fgateway%2Fx", "1022%7Cy", "%24%7Bsystem(id)%7D", "%5Ba=b%5D1022", "%7Bx%7D1022", "%5E%5E%3A1022",
		"1022%0D%0AX-Injected:%201", "%EF%BC%91%EF%BC%90%EF%BC%92%EF%BC%92", strings.Repeat("1", 4096),
	} {
		if c.real && len(number) > 1000 {
			continue // a real switch refuses the request line itself
		}
		if result, cause, _ := c.dialplan(a, number); result != "invalid" {
			t.Errorf("%.40q: pbxmesh_result %q, pbxmesh_cause %q", number, result, cause)
		}
	}
	if n := len(victim.Incoming()); n != 0 {
		t.Errorf("the victim's phone rang %d times", n)
	}
}

func scenarioSwitchRestarted(t *testing.T, c *cluster) {
	a := c.registered("1031", "127.0.71.1", "buffalo")
	b := c.registered("1032", "127.0.72.1", "london")
	london := c.nodes["london"]
	if err := london.sw.Kill(); err != nil {
		t.Fatal(err)
	}
	c.eventually("buffalo sees london down", func() bool {
		return c.nodes["buffalo"].app.Mesh().State("london").Effective() == pbxmesh.EffectiveDown
	})
	if err := london.sw.Start(); err != nil {
		t.Fatal(err)
	}
	took := c.eventually("buffalo sees london up again", func() bool {
		return c.nodes["buffalo"].app.Mesh().State("london").Effective() == pbxmesh.EffectiveUp
	})
	t.Logf("london was up again %s after its switch was ready", took.Round(time.Millisecond))
	if err := b.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1032", "london")
	out, in := c.call(a, b)
	c.hangup(out, in)
}

func scenarioNodeKilled(t *testing.T, c *cluster) {
	a := c.registered("1033", "127.0.73.1", "buffalo")
	_ = c.registered("1034", "127.0.74.1", "singapore")
	c.kill("singapore")

	// At once, before anybody could notice: the call must come back all the same.
	result, cause, took := c.dialplan(a, "1034")
	if result != "failed" && result != "unreachable" {
		t.Errorf("pbxmesh_result %q, pbxmesh_cause %q", result, cause)
	}
	t.Logf("right after the kill the dialplan went on after %s: %s %s", took.Round(time.Millisecond), result, cause)

	detected := c.eventually("buffalo sees singapore down", func() bool {
		return c.nodes["buffalo"].app.Mesh().State("singapore").Effective() == pbxmesh.EffectiveDown
	})
	t.Logf("singapore was down %s later", detected.Round(time.Millisecond))
	result, cause, took = c.dialplan(a, "1034")
	if result != "unreachable" || cause != "DESTINATION_OUT_OF_ORDER" {
		t.Errorf("pbxmesh_result %q, pbxmesh_cause %q", result, cause)
	}
	t.Logf("once known, the dialplan went on after %s", took.Round(time.Millisecond))

	// The phone moves to london, as DNS would have it, and is reached there.
	moved := c.phone("1034", "127.0.74.1", "london")
	if err := moved.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.eventually("buffalo knows 1034 on london", func() bool {
		for _, at := range c.where("buffalo", "1034") {
			if at == "london" {
				return true
			}
		}
		return false
	})
	out, in := c.call(a, moved)
	c.hangup(out, in)
}

// kill ends a node as kill -9 does: switch and daemon at once.
func (c *cluster) kill(name string) {
	c.t.Helper()
	n := c.nodes[name]
	n.killed = true
	n.app.Kill()
	if err := n.sw.Kill(); err != nil {
		c.t.Fatal(err)
	}
}

func mustAOR(t *testing.T, user string) pbxmesh.AOR {
	t.Helper()
	aor, err := pbxmesh.NewAOR(user, domain)
	if err != nil {
		t.Fatal(err)
	}
	return aor
}
