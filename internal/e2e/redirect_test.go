package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/router/redirect"
)

// outside is the loopback address of a PBX that is no node of the mesh, and its domain.
const (
	outside       = "127.0.4.1"
	outsideDomain = "outside.test"
)

// TestScenarioRedirect has a FreeSWITCH outside of the mesh call through a gateway
// that is our redirect server, which runs beside no switch.
func TestScenarioRedirect(t *testing.T) {
	if realBinary() == "" {
		t.Skip("SKIPPED, NOT TESTED: a gateway needs a real switch, name it in " + realswitch.EnvBinary)
	}
	t.Parallel()
	c := newCluster(t, "")
	d := c.redirector()
	for name, n := range c.nodes {
		c.eventually("the door sees "+name+" up", func() bool {
			return d.Mesh().State(pbxmesh.NodeID(name)).Observed == pbxmesh.ObservedUp
		})
		// Who is redirected calls the nodes itself, so their access lists know it.
		reconfigure(t, n.sw.(*realswitch.Switch), "reloadacl",
			`<list name="mesh" default="deny">`, `<list name="mesh" default="deny"><node type="allow" cidr="`+outside+`/32"/>`)
	}
	caller := c.outsidePBX(d.RedirectAddrs(redirect.UDP)[0])

	// One node holds the callee.
	callee := c.registered("1002", "127.0.42.1", "london")
	callee.SetBehaviour(phone.AutoAnswer(0))
	for _, number := range []string{"8", "9"} { // both ways of the outside switch to follow
		began := time.Now()
		out, err := caller.Call(c.ctx(), number+"1002")
		if err != nil {
			t.Fatal(err)
		}
		in := answered(t, c, out, callee)
		t.Logf("way %s: answered through the redirect after %s, the INVITE came from %s", number, time.Since(began).Round(time.Millisecond), in.Source())
		if in.Source() != c.nodes["london"].sw.SIP() {
			t.Errorf("the callee was called by %s and not by london", in.Source())
		}
		c.hangup(out, in)
	}

	// Why the contact has the domain for its host and the node in maddr: with the node
	// for its host it would not reach the phone.
	direct, err := caller.Call(c.ctx(), "71002")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := direct.WaitEnded(c.ctx()); err != nil || info.Status != 480 {
		t.Errorf("sip:1002@node ends with %d, %v; want 480", info.Status, err)
	}

	// Nobody there, and a number that is no address.
	for number, want := range map[string]int{"1099": 404, "10*2": 404} {
		out, err := caller.Call(c.ctx(), "9"+number)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := out.WaitEnded(c.ctx()); err != nil || info.Status != want {
			t.Errorf("%s ends with %d, %v; want %d", number, info.Status, err, want)
		}
	}

	// Two nodes hold the callee, and the first does not answer any more. The door
	// has not noticed yet.
	first := c.registered("1003", "127.0.43.1", "buffalo")
	first.SetBehaviour(phone.AutoAnswer(0))
	second := c.phone("1003", "127.0.44.1", "singapore")
	if err := second.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1003", "buffalo", "singapore")
	c.eventually("the door knows both", func() bool {
		reply, err := d.Lookup(context.Background(), mustAOR(t, "1003"))
		return err == nil && len(reply.Registrations) == 2
	})
	second.SetBehaviour(phone.AutoAnswer(0))
	if err := c.nodes["buffalo"].sw.Pause(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := caller.Call(c.ctx(), "91003")
	if err != nil {
		t.Fatal(err)
	}
	in := answered(t, c, out, second)
	took := time.Since(began)
	t.Logf("first node silent: answered by the second contact after %s", took.Round(time.Millisecond))
	if in.Source() != c.nodes["singapore"].sw.SIP() {
		t.Errorf("the callee was called by %s and not by singapore", in.Source())
	}
	if took < 2*time.Second {
		t.Errorf("after %s the first contact cannot have been tried", took)
	}
	c.hangup(out, in)
	if err := c.nodes["buffalo"].sw.Resume(); err != nil {
		t.Fatal(err)
	}

	// The first node is dead and its daemon says so: the answer leaves it out, and
	// also a switch that follows the first contact only gets through.
	if err := c.nodes["buffalo"].sw.Kill(); err != nil {
		t.Fatal(err)
	}
	c.eventually("the door sees buffalo down", func() bool {
		return !d.Mesh().State("buffalo").Effective().TakesCalls()
	})
	began = time.Now()
	if out, err = caller.Call(c.ctx(), "81003"); err != nil {
		t.Fatal(err)
	}
	in2, err := second.WaitIncoming(c.ctx(), 2)
	if err != nil {
		t.Fatalf("the call to the living node does not arrive: %v", err)
	}
	if _, err := out.WaitAnswered(c.ctx()); err != nil {
		t.Fatal(err)
	}
	t.Logf("first node known dead: answered after %s", time.Since(began).Round(time.Millisecond))
	c.hangup(out, in2)
}

// TestRedirectDaemon asks a daemon's redirect server beside simulated switches.
func TestRedirectDaemon(t *testing.T) {
	if realBinary() != "" {
		t.Skip("TestScenarioRedirect does more on real switches")
	}
	t.Parallel()
	c := newCluster(t, "")
	d := c.redirector()
	c.registered("1002", "127.0.42.1", "london")
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(outside)}, net.UDPAddrFromAddrPort(d.RedirectAddrs(redirect.UDP)[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	asked := 0
	ask := func(method, user string) string {
		t.Helper()
		asked++
		request := fmt.Sprintf("%[1]s sip:%[2]s@pbx.test SIP/2.0\r\nVia: SIP/2.0/UDP %[3]s;rport;branch=z9hG4bK%[4]d\r\nFrom: <sip:x@%[5]s>;tag=x\r\n"+
			"To: <sip:%[2]s@pbx.test>\r\nCall-ID: %[4]d\r\nCSeq: 1 %[1]s\r\nContent-Length: 0\r\n\r\n", method, user, conn.LocalAddr(), asked, outsideDomain)
		if _, err := conn.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(soon))
		buf := make([]byte, 2000)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	mesh := c.nodes["london"].sw.Mesh()
	contact := fmt.Sprintf("Contact: <sip:1002@pbx.test:%d;maddr=%s>;q=", mesh.Port(), mesh.Addr())
	c.eventually("the answer names london", func() bool {
		answer := ask("INVITE", "1002")
		return strings.HasPrefix(answer, "SIP/2.0 302 ") && strings.Contains(answer, contact)
	})
	for _, q := range []struct{ method, user, want string }{{"INVITE", "1003", "404"}, {"OPTIONS", "x", "200"}, {"MESSAGE", "1002", "405"}} {
		if answer := ask(q.method, q.user); !strings.HasPrefix(answer, "SIP/2.0 "+q.want+" ") {
			t.Errorf("%s %s: %s", q.method, q.user, answer)
		}
	}
	phones := c.nodes["london"].sw.SIP()
	c.eventually("a phone is sent to a node that is best for it", func() bool {
		answer := ask("REGISTER", "1002")
		return strings.HasPrefix(answer, "SIP/2.0 302 ") && strings.Contains(answer, "Contact: <sip:"+phones.String()+";transport=udp>;q=1.0")
	})
	if err := c.nodes["london"].sw.Kill(); err != nil {
		t.Fatal(err)
	}
	c.nodes["london"].killed = true
	c.eventually("with london dead the answer is 480", func() bool {
		return strings.HasPrefix(ask("INVITE", "1002"), "SIP/2.0 480 ")
	})
}

// answered waits until out is answered and returns the call as the callee has it.
func answered(t *testing.T, c *cluster, out *phone.Call, callee *phone.Phone) *phone.Call {
	t.Helper()
	if _, err := out.WaitAnswered(c.ctx()); err != nil {
		t.Fatalf("the call is not answered: %v (%+v)", err, out.Info())
	}
	calls := callee.Incoming()
	if len(calls) == 0 {
		t.Fatal("somebody else answered")
	}
	return calls[len(calls)-1]
}

// redirector runs a daemon without a node whose redirect server answers the PBX
// outside.
func (c *cluster) redirector() *app.App {
	c.t.Helper()
	cfg := config.Defaults()
	cfg.Name = "door"
	cfg.Router.DefaultDomain = domain
	cfg.Router.Redirect.UDP = []netip.AddrPort{netip.MustParseAddrPort("127.0.5.1:0")}
	cfg.Router.Redirect.Register = true
	cfg.DNS.DefaultOrder = []pbxmesh.NodeID{"london", "buffalo"}
	cfg.Router.Redirect.Allow = []netip.Prefix{netip.MustParsePrefix(outside + "/32")}
	cfg.Registry.LeaseTTL, cfg.Registry.LeaseRenew = 4*time.Second, 800*time.Millisecond
	// It sees a node up at once, and takes 20 s to see that it does not answer any more.
	cfg.Failover.Probe.Interval, cfg.Failover.Probe.Timeout = 400*time.Millisecond, 300*time.Millisecond
	cfg.Failover.Probe.SuspectAfter, cfg.Failover.Probe.DownAfter = 50, 100
	cfg.API.Listen = netip.AddrPort{}
	log := slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("daemon", "door")
	a, err := app.New(cfg, app.Options{Logger: log, Backend: c.store})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		if err := a.Stop(ctx); err != nil {
			c.t.Errorf("stop the door: %v", err)
		}
	})
	if err := a.Start(); err != nil {
		c.t.Fatal(err)
	}
	return a
}

// outsidePBX boots a switch with two gateways to the door, and returns a phone of
// it. 7 in front of a number calls the mesh profile of london by address. 8 takes the profile that follows a redirect by itself: it
// knows the first contact only. 9 takes the one with manual-redirect, whose dialplan
// gets all contacts.
func (c *cluster) outsidePBX(door netip.AddrPort) *phone.Phone {
	c.t.Helper()
	host := netip.MustParseAddr(outside)
	sw, err := realswitch.New(fixtures.Config{
		Name: "outside", Host: host, Users: []fixtures.User{{Name: "2001", Domain: outsideDomain, Password: password("2001")}},
	}, realBinary())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		if c.t.Failed() {
			c.t.Logf("the switch outside ends with:\n%s", sw.Log())
		}
		if err := sw.Close(); err != nil {
			c.t.Error(err)
		}
	})
	if err := sw.Start(); err != nil {
		c.t.Fatal(err)
	}
	profile := func(name, manual string) string {
		return fmt.Sprintf(`<profile name="%s"><gateways><gateway name="%s-door"><param name="proxy" value="%s"/><param name="register" value="false"/>
			<param name="username" value="x"/><param name="password" value="x"/></gateway></gateways><settings>
			<param name="sip-ip" value="%s"/><param name="rtp-ip" value="%s"/><param name="sip-port" value="%d"/><param name="context" value="none"/>
			<param name="inbound-codec-prefs" value="PCMU"/><param name="outbound-codec-prefs" value="PCMU"/><param name="rtp-timer-name" value="soft"/>
			<param name="timer-T1X64" value="4000"/><param name="manual-redirect" value="%s"/></settings></profile>`,
			name, name, door, outside, outside, freePort(c.t, host).Port(), manual)
	}
	bridge := func(field, data string) string {
		return fmt.Sprintf(`<extension name="x"><condition field="destination_number" expression="%s">
			<action application="set" data="hangup_after_bridge=true"/><action application="bridge" data="%s"/></condition></extension>`, field, data)
	}
	reconfigure(c.t, sw, "",
		`<profile name="internal">`, profile("plain", "false")+profile("manual", "true")+`<profile name="internal">`,
		`<context name="default">`, `<context name="redirected">`+bridge("^.*$", "${sip_redirect_dialstring}")+`</context><context name="default">`+
			bridge("^7(.*)$", "sofia/plain/sip:$1@"+c.nodes["london"].sw.Mesh().String())+bridge("^8(.*)$", "sofia/gateway/plain-door/$1")+bridge("^9(.*)$", "sofia/gateway/manual-door/$1"))
	for _, name := range []string{"plain", "manual"} {
		c.eventually("the profile "+name+" of the switch outside runs", func() bool {
			_, _ = sw.API(c.ctx(), "sofia profile "+name+" start")
			reply, err := sw.API(c.ctx(), "sofia status profile "+name)
			return err == nil && strings.Contains(reply, "CALLS-IN")
		})
	}
	p, err := phone.New(phone.Config{
		User: "2001", Domain: outsideDomain, Password: password("2001"), Local: netip.MustParseAddr("127.0.45.1"), Registrar: sw.SIP(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	p.Start()
	c.t.Cleanup(func() { _ = p.Close() })
	if err := p.Register(c.ctx()); err != nil {
		c.t.Fatal(err)
	}
	return p
}

// reconfigure changes the configuration of a running switch: pairs of old and new
// text. The switch reads it again, then runs command.
func reconfigure(t *testing.T, sw *realswitch.Switch, command string, pairs ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	dir, err := sw.API(ctx, "global_getvar conf_dir")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(strings.TrimSpace(dir), "freeswitch.xml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.NewReplacer(pairs...).Replace(string(text))
	if changed == string(text) {
		t.Fatalf("%s: nothing to change", file)
	}
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range []string{"reloadxml", command} {
		if cmd == "" {
			continue
		}
		if reply, err := sw.API(ctx, cmd); err != nil || !strings.Contains(reply, "+OK") {
			t.Fatalf("%s: %q, %v", cmd, reply, err)
		}
	}
}
