package traffic_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
)

const zone = "pbx.test"

// mesh is all daemons. Every second one is far from the primary.
type mesh struct {
	t      *testing.T
	s      *stores
	probes time.Duration
	phones int // of each node
	taught int // so many nodes, the first ones, teach their switches the phones of the others

	daemons []*daemon // nodes first
}

// daemon is a daemon in this process, with its simulated switch if it has one.
type daemon struct {
	*app.App

	name string
	far  bool
	sw   *simswitch.Switch
}

// domainOf is the domain of a node's own phones: burst0, burst1 and so on.
func domainOf(node string) string { return node + "." + zone }

// begin starts so many daemons, and returns how long it took until all of them know all.
func (m *mesh) begin(nodes, servers int) time.Duration {
	m.t.Helper()
	began := time.Now()
	for i := range nodes {
		m.node(i)
	}
	for i := range servers {
		m.nameServer(i, servers)
	}
	m.up()
	m.until("all phones are known", 2*time.Minute, m.knowsAll)
	return time.Since(began)
}

func (m *mesh) node(i int) *daemon {
	m.t.Helper()
	d := &daemon{name: fmt.Sprintf("node%02d", i+1), far: i%2 == 1}
	d.sw = simulated(m.t, d.name, addressOf(i), m.phones)
	address, secret := d.sw.EventSocket()
	file := filepath.Join(m.t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	cfg := config.Defaults()
	cfg.Name, cfg.Site = d.name, siteOf(i)
	cfg.Node = &config.Node{
		ID: pbxmesh.NodeID(d.name), Addresses: []netip.Addr{d.sw.SIP().Addr()}, MeshAddress: d.sw.Mesh(), SIP: config.SIP{UDP: d.sw.SIP().Port()},
	}
	cfg.Router.Native.Enabled = i < m.taught
	cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(address), PasswordFile: config.SecretFile(file)}
	m.start(d, cfg)
	return d
}

// siteOf is the site of daemon i: ten of a region stand together.
func siteOf(i int) string { return fmt.Sprintf("%s%d", [...]string{"home", "far"}[i%2], i/20) }

// simulated starts a switch with so many phones of its own domain.
func simulated(t *testing.T, name string, host netip.Addr, registered int) *simswitch.Switch {
	t.Helper()
	sw, err := simswitch.New(simswitch.Options{Config: fixtures.Config{Name: name, Host: host}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := sw.Start(); err != nil {
		t.Fatal(err)
	}
	if registered > 0 {
		if _, err := sw.Burst(registered, registered, domainOf(name)); err != nil {
			t.Fatal(err)
		}
	}
	return sw
}

func (m *mesh) nameServer(i, of int) {
	m.t.Helper()
	cfg := config.Defaults()
	d := &daemon{name: fmt.Sprintf("ns%d", i+1), far: i%2 == 1}
	cfg.Name = d.name
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 121, byte(i + 1)}) }
	cfg.DNS.Listen = []netip.AddrPort{netip.AddrPortFrom(at(i), 5300)}
	cfg.DNS.Zone = zone
	for j := range of {
		cfg.DNS.Nameservers = append(cfg.DNS.Nameservers, config.Nameserver{Name: fmt.Sprintf("ns%d.%s", j+1, zone), Addresses: []netip.Addr{at(j)}})
	}
	m.start(d, cfg)
}

func (m *mesh) start(d *daemon, cfg *config.Config) {
	m.t.Helper()
	cfg.Registry.URL = config.URL(m.s.home.URL())
	if d.far {
		cfg.Registry.URL, cfg.Registry.Read = config.URL(m.s.far.URL()), config.ReplicaURL(m.s.replica.URL())
	}
	cfg.API.Listen = netip.AddrPort{}
	cfg.Router.Socket.Listen = netip.AddrPort{}
	cfg.Router.DefaultDomain = zone
	cfg.Failover.Probe.Interval = m.probes
	log := slog.New(slog.NewTextHandler(m.t.Output(), &slog.HandlerOptions{Level: slog.LevelError})).With("daemon", cfg.Name)
	var err error
	if d.App, err = app.New(cfg, app.Options{Logger: log}); err == nil {
		err = d.Start()
	}
	if err != nil {
		m.t.Fatalf("daemon of %s: %v", cfg.Name, err)
	}
	m.daemons = append(m.daemons, d)
	m.t.Cleanup(func() { m.stop(d) })
}

func (m *mesh) stop(d *daemon) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := d.Stop(ctx); err != nil {
		m.t.Errorf("stop daemon of %s: %v", d.name, err)
	}
}

// remove stops a daemon and takes it out of the mesh.
func (m *mesh) remove(d *daemon) {
	m.t.Helper()
	m.stop(d)
	kept := m.daemons[:0:0]
	for _, other := range m.daemons {
		if other != d {
			kept = append(kept, other)
		}
	}
	m.daemons = kept
}

// up waits until every daemon sees every node up, and returns how long that took.
func (m *mesh) up() time.Duration {
	m.t.Helper()
	return m.until("every node is up for every daemon", 4*time.Minute, func(d *daemon) bool {
		for _, other := range m.daemons {
			if other.sw != nil && d.Mesh().State(pbxmesh.NodeID(other.name)).Observed != pbxmesh.ObservedUp {
				return false
			}
		}
		return true
	})
}

// until waits until ok holds for every daemon, and returns how long that took.
func (m *mesh) until(what string, most time.Duration, ok func(*daemon) bool) time.Duration {
	m.t.Helper()
	began := time.Now()
	for _, d := range m.daemons {
		for !ok(d) {
			if time.Since(began) > most {
				m.t.Fatalf("%s: not after %s, as %s sees it, whose view is %.1f s old; of all phones it knows: %t", what, most, d.name, age(d).Seconds(), m.knowsAll(d))
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return time.Since(began)
}

// has reports whether d knows that aor is registered on node.
func has(d *daemon, user, node string) bool {
	reply, err := d.Lookup(context.Background(), address(user, domainOf(node)))
	return err == nil && len(reply.Registrations) == 1
}

// knowsAll reports whether d knows all first phones of all nodes.
func (m *mesh) knowsAll(d *daemon) bool {
	for _, other := range m.daemons {
		for i := range m.phones {
			if other.sw != nil && !has(d, fmt.Sprint("burst", i), other.name) {
				return false
			}
		}
	}
	return true
}

// age is how old the view of d is; a minute or more when it has none.
func age(d *daemon) time.Duration {
	reply, err := d.Nodes(context.Background())
	if err != nil {
		return time.Hour
	}
	return reply.DataAge.Duration()
}

// oldest looks at all daemons for so long, and returns the highest age that any had, and how
// many nodes some daemon took out meanwhile: no calls, or no new phones.
func (m *mesh) oldest(over time.Duration) (oldest time.Duration, out int) {
	judged := map[pbxmesh.NodeID]bool{}
	for began := time.Now(); time.Since(began) < over; time.Sleep(100 * time.Millisecond) {
		for _, d := range m.daemons {
			oldest = max(oldest, age(d))
			for id, state := range d.Mesh().States {
				if state.Observed == pbxmesh.ObservedDown || state.Shed > 0 {
					judged[id] = true
				}
			}
		}
	}
	return oldest, len(judged)
}

// addressOf is where the simulated switch of node i stands.
func addressOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 120, byte(i + 1)}) }

// address is user@domain, which are as we make them.
func address(user, domain string) pbxmesh.AOR {
	aor, err := pbxmesh.NewAOR(user, domain)
	if err != nil {
		panic(err)
	}
	return aor
}
