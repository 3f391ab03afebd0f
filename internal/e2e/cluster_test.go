package e2e_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/internal/fsconf"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/router/native"
)

const (
	domain = "pbx.test"

	// soon bounds everything that happens by itself. It is generous because these
	// tests share two cores with others; what is measured is printed, not asserted.
	soon = 30 * time.Second

	// lateMargin is how long the switches keep a registration past its expiry.
	lateMargin = 2 * time.Second
)

// names of the nodes, and the loopback address of each.
var hosts = map[string]string{"buffalo": "127.0.1.1", "london": "127.0.2.1", "singapore": "127.0.3.1"}

// cluster is a mesh of three switches with their daemons.
type cluster struct {
	t     *testing.T
	real  bool
	nodes map[string]*node
	store registry.Backend
	lamps native.Exchange // carries lamps and mailboxes with the memory registry
	url   string          // of a Redis; "" for store
}

type node struct {
	name   string
	sw     fixtures.Switch
	app    *app.App
	cfg    *config.Config
	socket netip.AddrPort // of the hook, chosen before the switch starts
	killed bool
}

// realBinary returns the freeswitch binary of this run, "" for simulated switches.
func realBinary() string { return os.Getenv(realswitch.EnvBinary) }

// newCluster boots the mesh and returns when every daemon sees every node up.
// redisURL is "" for the memory registry. With routes the dialplans have no socket
// hook: they dial as stock ones do, and only the native hook makes that reach the
// mesh.
func newCluster(t *testing.T, redisURL string, routes ...fixtures.Route) *cluster {
	t.Helper()
	c := &cluster{t: t, real: realBinary() != "", nodes: map[string]*node{}, url: redisURL}
	if redisURL == "" {
		c.store, c.lamps = memory.New(memory.Options{}), native.NewMemory()
		t.Cleanup(func() { _ = c.store.Close() })
	}
	var users []fixtures.User
	for i := range 100 {
		users = append(users, fixtures.User{Name: fmt.Sprint(1000 + i), Domain: domain, Password: password(fmt.Sprint(1000 + i))})
	}
	peers := func() []netip.Addr {
		var out []netip.Addr
		for _, h := range hosts {
			out = append(out, netip.MustParseAddr(h))
		}
		return out
	}
	var boot sync.WaitGroup
	for name, host := range hosts {
		addr := netip.MustParseAddr(host)
		n := &node{name: name}
		socket := freePort(t, addr)
		var err error
		fc := fixtures.Config{Name: name, Host: addr, Users: users, Peers: peers, Routes: routes}
		if routes == nil {
			fc.Socket = socket.String()
		}
		if c.real {
			n.sw, err = realswitch.New(fc, realBinary(), realswitch.WithLateMargin(lateMargin), realswitch.WithMesh(writtenByFSConf))
		} else {
			n.sw, err = simswitch.New(simswitch.Options{Config: fc, LateMargin: lateMargin})
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Cleanup(func() { n.close(t) })
		n.socket = socket
		c.nodes[name] = n
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
	for _, n := range c.nodes {
		n.cfg = c.config(n)
		c.startDaemon(n)
	}
	for _, n := range c.nodes {
		for other := range hosts {
			c.eventually(fmt.Sprintf("%s sees %s up", n.name, other), func() bool {
				return n.app.Mesh().State(pbxmesh.NodeID(other)).Observed == pbxmesh.ObservedUp
			})
		}
	}
	return c
}

func password(user string) string { return "secret-" + user }

func (c *cluster) config(n *node) *config.Config {
	c.t.Helper()
	cfg := config.Defaults()
	cfg.Name = n.name
	cfg.Node = &config.Node{
		ID: pbxmesh.NodeID(n.name), Addresses: []netip.Addr{n.sw.SIP().Addr()}, MeshAddress: n.sw.Mesh(),
		SIP: config.SIP{UDP: n.sw.SIP().Port()},
	}
	addr, secret := n.sw.EventSocket()
	file := filepath.Join(c.t.TempDir(), "event-socket-password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		c.t.Fatal(err)
	}
	cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(addr), PasswordFile: config.SecretFile(file)}
	cfg.FreeSWITCH.LateMargin = lateMargin
	cfg.FreeSWITCH.SnapshotInterval = 30 * time.Second
	if c.url != "" {
		cfg.Registry.URL = config.URL(c.url)
	}
	cfg.Registry.LeaseTTL, cfg.Registry.LeaseRenew = 4*time.Second, 800*time.Millisecond
	cfg.Router.Socket.Listen = n.socket
	// The bounds themselves are tested elsewhere; here a starved machine must not
	// make calls fail.
	cfg.Router.Socket.Deadline, cfg.Router.Socket.DecisionTimeout = 8*time.Second, 4*time.Second
	cfg.Router.DefaultDomain = domain
	cfg.Failover.Probe.Interval, cfg.Failover.Probe.Timeout = 400*time.Millisecond, 300*time.Millisecond
	cfg.API.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	return cfg
}

func (c *cluster) startDaemon(n *node) {
	c.t.Helper()
	level := slog.LevelWarn
	if os.Getenv("PBXMESH_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: level})).With("daemon", n.name)
	a, err := app.New(n.cfg, app.Options{Logger: log, Backend: c.store, Exchange: c.lamps})
	if err != nil {
		c.t.Fatalf("daemon of %s: %v", n.name, err)
	}
	if err := a.Start(); err != nil {
		c.t.Fatalf("daemon of %s: %v", n.name, err)
	}
	n.app = a
}

func (n *node) close(t *testing.T) {
	if n.app != nil {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		if err := n.app.Stop(ctx); err != nil {
			t.Errorf("stop daemon of %s: %v", n.name, err)
		}
	}
	if t.Failed() {
		if l, ok := n.sw.(interface{ Log() string }); ok {
			t.Logf("switch %s ends with:\n%s", n.name, l.Log())
		}
	}
	if err := n.sw.Close(); err != nil {
		t.Errorf("close switch %s: %v", n.name, err)
	}
}

// phone makes a phone of user in a town of its own, not yet registered.
func (c *cluster) phone(user, local, at string) *phone.Phone {
	c.t.Helper()
	p, err := phone.New(phone.Config{
		User: user, Domain: domain, Password: password(user), Display: "User " + user,
		Local: netip.MustParseAddr(local), Registrar: c.nodes[at].sw.SIP(),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	p.Start()
	c.t.Cleanup(func() { _ = p.Close() })
	return p
}

// registered is phone, registered and known on every living node.
func (c *cluster) registered(user, local, at string) *phone.Phone {
	c.t.Helper()
	p := c.phone(user, local, at)
	if err := p.Register(c.ctx()); err != nil {
		c.t.Fatalf("register %s at %s: %v", user, at, err)
	}
	c.everywhere(user, at)
	return p
}

// ctx bounds one step.
func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	c.t.Cleanup(cancel)
	return ctx
}

// eventually polls until cond holds and returns how long that took.
func (c *cluster) eventually(what string, cond func() bool) time.Duration {
	c.t.Helper()
	began := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > soon {
			c.t.Fatalf("not within %s: %s", soon, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

// atMost holds a real switch to limit. Simulated nodes with their daemons and phones share
// what other tests leave of two processors: they get ten times as long.
func (c *cluster) atMost(what string, took, limit time.Duration) {
	c.t.Helper()
	if !c.real {
		limit *= 10
	}
	if took > limit {
		c.t.Errorf("%s after %s, %s are promised", what, took.Round(time.Millisecond), limit)
	}
}

// where returns the nodes that the daemon of name knows user on, sorted, one
// entry a device.
func (c *cluster) where(name, user string) []string {
	c.t.Helper()
	aor, err := pbxmesh.NewAOR(user, domain)
	if err != nil {
		c.t.Fatal(err)
	}
	out := []string{}
	reply, err := c.nodes[name].app.Lookup(context.Background(), aor)
	if err != nil {
		return []string{"error: " + err.Error()}
	}
	for _, r := range reply.Registrations {
		out = append(out, string(r.Node))
	}
	slices.Sort(out)
	return out
}

// everywhere waits until every living daemon knows user on exactly these nodes.
func (c *cluster) everywhere(user string, at ...string) time.Duration {
	c.t.Helper()
	want := append([]string{}, at...)
	slices.Sort(want)
	var worst time.Duration
	for name, n := range c.nodes {
		if n.killed {
			continue
		}
		took := c.eventually(fmt.Sprintf("%s knows %s on %v", name, user, want), func() bool {
			return slices.Equal(c.where(name, user), want)
		})
		worst = max(worst, took)
	}
	return worst
}

// freePort keeps a port for this test: a listener of its own can take it.
func freePort(t *testing.T, host netip.Addr) netip.AddrPort {
	t.Helper()
	at, release, err := fixtures.ReserveTCP(netip.AddrPortFrom(host, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return at
}

// switchAPI runs an API command on a switch of either kind.
func switchAPI(sw fixtures.Switch, command string) (string, error) {
	switch sw := sw.(type) {
	case *simswitch.Switch:
		return sw.API(command)
	case *realswitch.Switch:
		return sw.API(context.Background(), command)
	default:
		return "", fmt.Errorf("no api on a %T", sw)
	}
}

// writtenByFSConf lets a real switch take calls between nodes with nothing but what
// pbxmesh fsconf writes for it.
func writtenByFSConf(mesh netip.AddrPort) realswitch.MeshConfig {
	settings := fsconf.Settings{Mesh: mesh, Profile: "mesh", Profiles: []string{"internal"}}
	for name, host := range hosts {
		settings.Peers = append(settings.Peers, fsconf.Peer{Name: pbxmesh.NodeID(name), Address: netip.MustParseAddr(host)})
	}
	// The dialplan file is an <include>; a switch with one file needs what is in it.
	_, context, _ := strings.Cut(string(settings.DialplanXML()), "<include>")
	context, _, _ = strings.Cut(context, "</include>")
	return realswitch.MeshConfig{Profile: string(settings.ProfileXML()), ACL: string(settings.ACLFragment()), Context: context}
}
