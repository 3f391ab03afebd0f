package byname_test

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

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/internal/fsconf"
	"pbxmesh/registry/memory"
	"pbxmesh/router/native"
)

const (
	zone = "pbx.test"

	// soon bounds everything that happens by itself. It is generous because a browser and
	// three switches share two cores; what is measured is printed.
	soon = 90 * time.Second

	// wssPort is the same on all nodes: a browser goes by the address record, which names
	// no port.
	wssPort = 7443
)

// order is what the name servers prefer for everybody: phones register on london first.
var order = []string{"london", "buffalo", "singapore"}

// mesh is three switches with their daemons, and two name servers on port 53.
type mesh struct {
	t       *testing.T
	store   *memory.Store
	lamps   native.Exchange
	nodes   map[string]*node
	servers []*app.App
}

type node struct {
	name string
	sw   *realswitch.Switch
	app  *app.App // nil while the node is dead
	cfg  *config.Config
}

// nameServers are the addresses of the name servers, on port 53: phones know no other.
var nameServers = []netip.Addr{netip.MustParseAddr("127.0.8.1"), netip.MustParseAddr("127.0.9.1")}

func host(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, byte(i + 1), 1}) }

func password(user string) string { return "secret-" + user }

// newMesh boots the mesh and returns when both name servers answer with london. All
// intervals are those of the default configuration. It skips without a real switch.
func newMesh(t *testing.T) *mesh {
	t.Helper()
	binary := os.Getenv(realswitch.EnvBinary)
	switch {
	case binary == "":
		t.Skipf("SKIPPED, NOT TESTED: name a freeswitch binary in %s", realswitch.EnvBinary)
	case os.Geteuid() != 0:
		t.Skip("SKIPPED, NOT TESTED: not root, and phones need name servers on port 53")
	}
	m := &mesh{t: t, store: memory.New(memory.Options{}), lamps: native.NewMemory(), nodes: map[string]*node{}}
	t.Cleanup(func() { _ = m.store.Close() })
	var users []fixtures.User
	for i := range 1000 {
		users = append(users, fixtures.User{Name: fmt.Sprint(1000 + i), Domain: zone, Password: password(fmt.Sprint(1000 + i))})
	}
	peers := func() (all []netip.Addr) {
		for i := range order {
			all = append(all, host(i))
		}
		return all
	}
	var boot sync.WaitGroup
	for i, name := range order {
		sw, err := realswitch.New(fixtures.Config{
			Name: name, Host: host(i), Users: users, Peers: peers,
			// As stock dialplans dial: the native hook has to make this reach the mesh.
			Routes: []fixtures.Route{{Bridge: "user/$1@" + zone}},
		}, binary, realswitch.WithWebSocket(wssPort), realswitch.WithTLS(), realswitch.WithMesh(writtenByFSConf))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n := &node{name: name, sw: sw}
		m.nodes[name] = n
		t.Cleanup(func() { m.close(n) })
		boot.Go(func() {
			if err := sw.Start(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	boot.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for _, n := range m.nodes {
		n.cfg = m.nodeConfig(n)
		n.app = m.startDaemon(n.cfg)
	}
	for i := range nameServers {
		m.servers = append(m.servers, m.startDaemon(m.serverConfig(i)))
	}
	for _, a := range m.daemons() {
		for _, n := range order {
			m.eventually("everybody sees "+n+" up", func() bool {
				return a.Mesh().State(pbxmesh.NodeID(n)).Observed == pbxmesh.ObservedUp
			})
		}
	}
	m.answers("london")
	return m
}

// writtenByFSConf lets a switch take calls between nodes with nothing but what pbxmesh
// fsconf writes for it.
func writtenByFSConf(at netip.AddrPort) realswitch.MeshConfig {
	settings := fsconf.Settings{Mesh: at, Profile: "mesh", Profiles: []string{"internal"}}
	for i, name := range order {
		settings.Peers = append(settings.Peers, fsconf.Peer{Name: pbxmesh.NodeID(name), Address: host(i)})
	}
	_, mesh, _ := strings.Cut(string(settings.DialplanXML()), "<include>")
	mesh, _, _ = strings.Cut(mesh, "</include>")
	return realswitch.MeshConfig{Profile: string(settings.ProfileXML()), ACL: string(settings.ACLFragment()), Context: mesh}
}

func (m *mesh) nodeConfig(n *node) *config.Config {
	m.t.Helper()
	cfg := config.Defaults()
	cfg.Name = n.name
	ws, wss := n.sw.WebSocket()
	cfg.Node = &config.Node{
		ID: pbxmesh.NodeID(n.name), Addresses: []netip.Addr{n.sw.SIP().Addr()}, MeshAddress: n.sw.Mesh(),
		SIP: config.SIP{UDP: n.sw.SIP().Port(), TCP: n.sw.SIP().Port(), TLS: n.sw.TLS().Port(), WS: ws.Port(), WSS: wss.Port()},
	}
	address, secret := n.sw.EventSocket()
	file := filepath.Join(m.t.TempDir(), "event-socket-password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(address), PasswordFile: config.SecretFile(file)}
	cfg.Router.Socket.Listen = netip.AddrPort{}
	cfg.Router.DefaultDomain = zone
	m.shared(cfg)
	return cfg
}

func (m *mesh) serverConfig(i int) *config.Config {
	cfg := config.Defaults()
	cfg.Name = fmt.Sprintf("ns%d", i+1)
	cfg.DNS.Listen = []netip.AddrPort{netip.AddrPortFrom(nameServers[i], 53)}
	cfg.DNS.Zone = zone
	for j, a := range nameServers {
		cfg.DNS.Nameservers = append(cfg.DNS.Nameservers, config.Nameserver{Name: fmt.Sprintf("ns%d.%s", j+1, zone), Addresses: []netip.Addr{a}})
	}
	for _, n := range order {
		cfg.DNS.DefaultOrder = append(cfg.DNS.DefaultOrder, pbxmesh.NodeID(n))
	}
	cfg.Router.Socket.Listen = netip.AddrPort{}
	m.shared(cfg)
	return cfg
}

// shared is what all daemons have in common. A node that comes back is answered with at
// once, so that rounds can follow one another, and nobody is sent to another node to see how
// far that is; nothing else differs from the defaults.
func (m *mesh) shared(cfg *config.Config) {
	cfg.API.Listen = netip.AddrPort{}
	cfg.Failover.Latency.Enabled = false
	cfg.Failover.Return = config.Return{MaxHold: time.Minute}
}

func (m *mesh) startDaemon(cfg *config.Config) *app.App {
	m.t.Helper()
	level := slog.LevelWarn
	if os.Getenv("PBXMESH_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(m.t.Output(), &slog.HandlerOptions{Level: level})).With("daemon", cfg.Name)
	a, err := app.New(cfg, app.Options{Logger: log, Backend: m.store, Exchange: m.lamps})
	if err == nil {
		err = a.Start()
	}
	if err != nil {
		m.t.Fatalf("daemon of %s: %v", cfg.Name, err)
	}
	m.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		if err := a.Stop(ctx); err != nil {
			m.t.Errorf("stop daemon of %s: %v", cfg.Name, err)
		}
	})
	return a
}

func (m *mesh) close(n *node) {
	if m.t.Failed() {
		m.t.Logf("switch %s ends with:\n%s", n.name, n.sw.Log())
	}
	if err := n.sw.Close(); err != nil {
		m.t.Errorf("close switch %s: %v", n.name, err)
	}
}

// daemons are those of the living nodes and of the name servers.
func (m *mesh) daemons() []*app.App {
	all := slices.Clone(m.servers)
	for _, n := range m.nodes {
		if n.app != nil {
			all = append(all, n.app)
		}
	}
	return all
}

// kill ends a node as kill -9 does: switch and daemon at once.
func (m *mesh) kill(name string) {
	m.t.Helper()
	n := m.nodes[name]
	n.app.Kill()
	n.app = nil
	if err := n.sw.Kill(); err != nil {
		m.t.Fatal(err)
	}
}

// stop hangs a node: its daemon is killed and its switch stopped, so that nothing refuses
// a packet and nothing answers one.
func (m *mesh) stop(name string) {
	m.t.Helper()
	n := m.nodes[name]
	n.app.Kill()
	n.app = nil
	if err := n.sw.Pause(); err != nil {
		m.t.Fatal(err)
	}
}

// revive brings a node back with an empty switch, and returns when both name servers
// answer with the first node of all.
func (m *mesh) revive(name string) {
	m.t.Helper()
	n := m.nodes[name]
	if err := n.sw.Kill(); err != nil {
		m.t.Fatal(err)
	}
	if err := n.sw.Start(); err != nil {
		m.t.Fatal(err)
	}
	n.app = m.startDaemon(n.cfg)
	m.answers(order[0])
}

// must fails the test at once when err is not nil.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ctx bounds one step.
func (m *mesh) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	m.t.Cleanup(cancel)
	return ctx
}

// eventually polls until cond holds and returns how long that took.
func (m *mesh) eventually(what string, cond func() bool) time.Duration {
	m.t.Helper()
	began := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > soon {
			m.t.Fatalf("not within %s: %s", soon, what)
		}
		<-tick.C
	}
	return time.Since(began)
}

// answers waits until both name servers answer with a node, and returns how long it took.
func (m *mesh) answers(name string) time.Duration {
	m.t.Helper()
	want := m.nodes[name].sw.SIP().Addr().String()
	return m.eventually("both name servers answer with "+name, func() bool {
		for _, server := range nameServers {
			c := dns.Client{Timeout: 500 * time.Millisecond}
			reply, _, err := c.Exchange(new(dns.Msg).SetQuestion(zone+".", dns.TypeA), server.String()+":53")
			if err != nil || len(reply.Answer) != 1 || !strings.HasSuffix(reply.Answer[0].String(), "\t"+want) {
				return false
			}
		}
		return true
	})
}

// bindings returns where a daemon knows a user.
func (m *mesh) bindings(a *app.App, user string) []control.Registration {
	m.t.Helper()
	aor, err := pbxmesh.NewAOR(user, zone)
	if err != nil {
		m.t.Fatal(err)
	}
	reply, err := a.Lookup(context.Background(), aor)
	if err != nil {
		return nil
	}
	return reply.Registrations
}

// where is bindings as names of nodes, sorted, one entry a binding.
func (m *mesh) where(a *app.App, user string) []string {
	out := []string{}
	for _, r := range m.bindings(a, user) {
		out = append(out, string(r.Node))
	}
	slices.Sort(out)
	return out
}

// everywhere waits until all living daemons know a user on exactly these nodes, and all
// living switches find it, or nobody: they write a row that they are told of some 200 ms later.
func (m *mesh) everywhere(user string, at ...string) time.Duration {
	m.t.Helper()
	want := append([]string{}, at...)
	slices.Sort(want)
	var got []string
	return m.eventually(fmt.Sprintf("everybody knows %s on %v", user, want), func() bool {
		for _, a := range m.daemons() {
			if got = m.where(a, user); !slices.Equal(got, want) {
				return false
			}
		}
		for _, n := range m.nodes {
			if n.app == nil || n.sw.PID() == 0 {
				continue
			}
			contact, err := n.sw.API(context.Background(), "sofia_contact */"+user+"@"+zone)
			if err != nil || strings.Contains(contact, "error/") != (len(at) == 0) {
				return false
			}
		}
		return true
	})
}

// bridged waits until every channel of the living switches is in a call with another one.
func (m *mesh) bridged() {
	m.t.Helper()
	alone := ""
	defer func() {
		if m.t.Failed() {
			m.t.Log("channels without another one:", alone)
		}
	}()
	m.eventually("all channels are bridged", func() bool {
		for name, n := range m.nodes {
			if n.app == nil || n.sw.PID() == 0 {
				continue
			}
			got, err := realswitch.Unbridged(func(command string) (string, error) { return n.sw.API(context.Background(), command) })
			if alone = name + " " + got; err != nil || got != "" {
				return false
			}
		}
		return true
	})
}

// ours is a phone of the fixtures, registered on a node and known everywhere; without codecs
// it speaks PCMU.
func (m *mesh) ours(user, at string, codecs ...phone.Codec) *phone.Phone {
	m.t.Helper()
	p, err := phone.New(phone.Config{
		User: user, Domain: zone, Password: password(user), Codecs: codecs,
		Local: netip.MustParseAddr("127.0.91.1"), Registrar: m.nodes[at].sw.SIP(),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	p.Start()
	m.t.Cleanup(func() { _ = p.Close() })
	if err := p.Register(m.ctx()); err != nil {
		m.t.Fatalf("register %s at %s: %v", user, at, err)
	}
	m.everywhere(user, at)
	return p
}
