package phones_test

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
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/fixtures/softphone"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/internal/fsconf"
	"pbxmesh/registry/memory"
	"pbxmesh/router/native"
)

const (
	zone = "pbx.test"

	// soon bounds everything that happens by itself. It is generous because phones and
	// switches share two cores with other tests.
	soon = 40 * time.Second
)

var towns = []string{"buffalo", "london", "singapore"}

// mesh is switches with their daemons. Each daemon is a name server too, which prefers
// its own node: a phone that asks it registers there.
type mesh struct {
	t     *testing.T
	real  bool
	net   byte     // of the addresses 127.net.0.0
	hook  bool     // the dialplan asks the daemon; otherwise it dials as stock ones do
	plan  string   // of a real switch, instead of the usual context "default"
	naptr []string // dns.transports
	tls   bool     // the switches take phones over TLS as well
	store *memory.Store
	lamps native.Exchange
	nodes map[string]*node
	users []fixtures.User

	mu   sync.Mutex
	last int // address and user number of the newest phone
}

type node struct {
	name   string
	sw     fixtures.Switch
	app    *app.App
	socket netip.AddrPort
}

// listens is where a switch takes phones over a transport: UDP and TCP share a port.
func (n *node) listens(transport string) netip.AddrPort {
	if sw, ok := n.sw.(*realswitch.Switch); ok && transport == "tls" {
		return sw.TLS()
	}
	return n.sw.SIP()
}

func password(user string) string { return "secret-" + user }

// realBinary returns the freeswitch binary of this run, "" for simulated switches.
func realBinary() string { return os.Getenv(realswitch.EnvBinary) }

// options of a mesh.
type options struct {
	net   byte
	nodes int
	hook  bool
	plan  string
	naptr []string
	tls   bool
}

// newMesh boots the nodes and returns when every daemon sees every node up. It skips
// without the phones.
func newMesh(t *testing.T, o options) *mesh {
	t.Helper()
	for _, kind := range softphone.Kinds {
		if err := softphone.Missing(kind); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("%v, and CI forbids to skip", err)
			}
			t.Skipf("SKIPPED, NOT TESTED: %v", err)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("SKIPPED, NOT TESTED: only root can give Linphone a name server")
	}
	m := &mesh{
		t: t, real: realBinary() != "", net: o.net, hook: o.hook, plan: o.plan, naptr: o.naptr, tls: o.tls, store: memory.New(memory.Options{}), lamps: native.NewMemory(),
		nodes: map[string]*node{},
	}
	t.Cleanup(func() { _ = m.store.Close() })
	for i := range 400 {
		u := fmt.Sprint(1001 + i)
		m.users = append(m.users, fixtures.User{Name: u, Domain: zone, Password: password(u)})
	}
	var boot sync.WaitGroup
	for i, name := range towns[:o.nodes] {
		n := m.newNode(i, name)
		m.nodes[name] = n
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
	for i, name := range towns[:o.nodes] {
		m.startDaemon(i, m.nodes[name])
	}
	for _, seer := range m.nodes {
		for name := range m.nodes {
			m.eventually(fmt.Sprintf("%s sees %s up", seer.name, name), func() bool {
				return seer.app.Mesh().State(pbxmesh.NodeID(name)).Observed == pbxmesh.ObservedUp
			})
		}
	}
	return m
}

func (m *mesh) host(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, m.net, byte(i + 1), 1}) }

func (m *mesh) newNode(i int, name string) *node {
	m.t.Helper()
	socket, release, err := fixtures.ReserveTCP(netip.AddrPortFrom(m.host(i), 0))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(release)
	n := &node{name: name, socket: socket}
	cfg := fixtures.Config{Name: name, Host: m.host(i), Users: m.users, Peers: func() (all []netip.Addr) {
		for i := range towns {
			all = append(all, m.host(i))
		}
		return all
	}}
	if m.hook {
		cfg.Socket = socket.String()
	} else {
		cfg.Routes = []fixtures.Route{{Prefix: "1", Bridge: "user/1$1@" + zone}}
	}
	if m.real {
		opts := []realswitch.Option{realswitch.WithMesh(m.writtenByFSConf)}
		if m.plan != "" {
			opts = append(opts, realswitch.WithDialplan(m.plan+m.writtenByFSConf(netip.AddrPort{}).Context))
		}
		if m.tls {
			opts = append(opts, realswitch.WithTLS())
		}
		n.sw, err = realswitch.New(cfg, realBinary(), opts...)
	} else {
		n.sw, err = simswitch.New(simswitch.Options{Config: cfg})
	}
	if err != nil {
		m.t.Fatalf("%s: %v", name, err)
	}
	m.t.Cleanup(func() {
		if l, ok := n.sw.(interface{ Log() string }); ok && m.t.Failed() {
			m.t.Logf("switch %s ends with:\n%s", n.name, l.Log())
		}
		if err := n.sw.Close(); err != nil {
			m.t.Errorf("close switch %s: %v", n.name, err)
		}
	})
	return n
}

// writtenByFSConf lets a real switch take calls between nodes with nothing but what
// pbxmesh fsconf writes for it.
func (m *mesh) writtenByFSConf(at netip.AddrPort) realswitch.MeshConfig {
	settings := fsconf.Settings{Mesh: at, Profile: "mesh", Profiles: []string{"internal"}}
	for i, name := range towns {
		settings.Peers = append(settings.Peers, fsconf.Peer{Name: pbxmesh.NodeID(name), Address: m.host(i)})
	}
	// The dialplan file is an <include>; a switch with one file needs what is in it.
	_, dialplan, _ := strings.Cut(string(settings.DialplanXML()), "<include>")
	dialplan, _, _ = strings.Cut(dialplan, "</include>")
	return realswitch.MeshConfig{Profile: string(settings.ProfileXML()), ACL: string(settings.ACLFragment()), Context: dialplan}
}

func (m *mesh) startDaemon(i int, n *node) {
	m.t.Helper()
	cfg := config.Defaults()
	cfg.Name = n.name
	cfg.Node = &config.Node{
		ID: pbxmesh.NodeID(n.name), Addresses: []netip.Addr{n.sw.SIP().Addr()}, MeshAddress: n.sw.Mesh(),
		SIP: config.SIP{UDP: n.sw.SIP().Port()},
	}
	if m.naptr != nil {
		cfg.Node.SIP.TCP = n.sw.SIP().Port()
	}
	addr, secret := n.sw.EventSocket()
	file := filepath.Join(m.t.TempDir(), "event-socket-password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(addr), PasswordFile: config.SecretFile(file)}
	cfg.Registry.LeaseTTL, cfg.Registry.LeaseRenew = 15*time.Second, 3*time.Second
	cfg.Router.Socket.Listen = netip.AddrPort{}
	if m.hook {
		cfg.Router.Socket.Listen = n.socket
		cfg.Router.Socket.Deadline, cfg.Router.Socket.DecisionTimeout = 8*time.Second, 4*time.Second
	}
	cfg.Router.DefaultDomain = zone
	// A machine that is busy for a moment must not send a phone to another node: it would
	// stay there. That a switch was killed is known by its event socket.
	cfg.Failover.Probe.Interval, cfg.Failover.Probe.Timeout = 5*time.Second, 4500*time.Millisecond
	cfg.API.Listen = netip.AddrPort{}
	cfg.DNS.Listen = []netip.AddrPort{netip.AddrPortFrom(m.host(i), 0)}
	cfg.DNS.Zone, cfg.DNS.Transports = zone, m.naptr
	cfg.DNS.Nameservers = []config.Nameserver{{Name: "ns." + zone, Addresses: []netip.Addr{m.host(i)}}}
	// From its own node on, around.
	for j := range towns {
		cfg.DNS.DefaultOrder = append(cfg.DNS.DefaultOrder, pbxmesh.NodeID(towns[(i+j)%len(towns)]))
	}
	level := slog.LevelWarn
	if os.Getenv("PBXMESH_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(m.t.Output(), &slog.HandlerOptions{Level: level})).With("daemon", n.name)
	a, err := app.New(cfg, app.Options{Logger: log, Backend: m.store, Exchange: m.lamps})
	if err == nil {
		err = a.Start()
	}
	if err != nil {
		m.t.Fatalf("daemon of %s: %v", n.name, err)
	}
	n.app = a
	m.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		if err := a.Stop(ctx); err != nil {
			m.t.Errorf("stop daemon of %s: %v", n.name, err)
		}
	})
}

// phone starts a phone with a user and an address of its own, which finds its node by
// the name server of a town, unless it has a registrar.
func (m *mesh) phone(t *testing.T, at string, cfg softphone.Config) *softphone.Phone {
	t.Helper()
	m.mu.Lock()
	i := m.last
	m.last++
	m.mu.Unlock()
	cfg.User, cfg.Domain = m.users[i].Name, zone
	cfg.Password, cfg.Dir = password(cfg.User), t.TempDir()
	cfg.Local = netip.AddrFrom4([4]byte{127, m.net, byte(16 + i/200), byte(1 + i%200)})
	if !cfg.Registrar.IsValid() {
		cfg.DNS = m.nodes[at].app.DNSAddrs()[0]
	}
	p, err := softphone.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s said:\n%s", p, tail(p.Log(), 300))
		}
		_ = p.Close()
	})
	return p
}

// tail returns the last n lines.
func tail(text string, n int) string {
	lines := strings.Split(text, "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// registered is phone, registered at the town's node and known to all daemons and
// switches.
func (m *mesh) registered(t *testing.T, at string, cfg softphone.Config) *softphone.Phone {
	t.Helper()
	p := m.phone(t, at, cfg)
	m.isAt(t, p, at)
	return p
}

// isAt waits until a phone is registered at a node and nowhere else, and every other
// switch would find it.
func (m *mesh) isAt(t *testing.T, p *softphone.Phone, at string) {
	t.Helper()
	must(t, p.Wait(bounded(t), "a registration at "+at, func(tr softphone.Trace) bool {
		return tr.Registrar().IsValid() && tr.Registrar().Addr() == m.nodes[at].sw.SIP().Addr()
	}))
	for _, n := range m.nodes {
		if pid, ok := n.sw.(interface{ PID() int }); ok && pid.PID() == 0 {
			continue
		}
		m.eventually(fmt.Sprintf("%s knows %s at %s", n.name, p, at), func() bool { return slices.Equal(m.where(n, p.User()), []string{at}) })
		if n.name != at && !m.hook {
			m.eventually(fmt.Sprintf("%s's switch finds %s", n.name, p), func() bool {
				reply, err := api(n.sw, "sofia_contact */"+p.User()+"@"+zone)
				return err == nil && !strings.Contains(reply, "error/")
			})
		}
	}
}

func api(sw fixtures.Switch, command string) (string, error) {
	switch sw := sw.(type) {
	case *simswitch.Switch:
		return sw.API(command)
	case *realswitch.Switch:
		return sw.API(context.Background(), command)
	default:
		return "", fmt.Errorf("no api on a %T", sw)
	}
}

// where returns the nodes on which a daemon knows a user, sorted, one entry a binding.
func (m *mesh) where(n *node, user string) []string {
	aor, err := pbxmesh.NewAOR(user, zone)
	if err != nil {
		m.t.Fatal(err)
	}
	out := []string{}
	reply, err := n.app.Lookup(context.Background(), aor)
	if err != nil {
		return []string{"error: " + err.Error()}
	}
	for _, r := range reply.Registrations {
		out = append(out, string(r.Node))
	}
	slices.Sort(out)
	return out
}

// logs are the ends of all switches' logs.
func (m *mesh) logs() string {
	var out strings.Builder
	for name, n := range m.nodes {
		if sw, ok := n.sw.(*realswitch.Switch); ok {
			fmt.Fprintf(&out, "switch %s ends with:\n%s\n", name, sw.Log())
		}
	}
	return out.String()
}

// eventually polls until cond holds.
func (m *mesh) eventually(what string, cond func() bool) {
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
}

// bounded is a context of one step.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	t.Cleanup(cancel)
	return ctx
}

// must fails the test at once when err is not nil.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
