package resolver_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/registry/memory"
	"pbxmesh/router/native"
)

const (
	zone = "pbx.test"

	// Each phone registers so often, and asks before. A resolver has an answer for ttl.
	interval = 5 * time.Minute
	ttl      = 5 * time.Second

	// Networks of five phones each: those behind unbound, and those that register at buffalo
	// without asking anybody.
	behind, others, perNetwork = 6, 4, 5

	// What a phone needs for the digest that it sends to a node: its latency, as far as one
	// machine has any.
	toBuffalo, toLondon = 150 * time.Millisecond, 20 * time.Millisecond

	limit = 17 * time.Minute
)

var (
	buffaloAt, londonAt, serverAt = host(50), host(51), host(52)
	order                         = []pbxmesh.NodeID{"buffalo", "london"}

	// In a parent network of its own: what its neighbours showed would be known of it.
	unboundAt = netip.AddrFrom4([4]byte{127, 9, 53, 1})
)

func host(i byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, i, 1}) }

// mesh is two real switches with their daemons, a name server, and unbound before it.
type mesh struct {
	t        *testing.T
	store    *memory.Store
	switches map[pbxmesh.NodeID]*realswitch.Switch
	server   *app.App
	unbound  netip.AddrPort
}

// TestScenarioUnbound: phones whose resolver sends no client subnet are told the node that is
// best for them, not the one that the resolver's place suggests, once enough of their
// registrations followed its queries.
func TestScenarioUnbound(t *testing.T) {
	binary := os.Getenv(realswitch.EnvBinary)
	if binary == "" {
		t.Skipf("SKIPPED, NOT TESTED: name a freeswitch binary in %s", realswitch.EnvBinary)
	}
	program, err := exec.LookPath("unbound")
	if err != nil {
		t.Skip("SKIPPED, NOT TESTED: no unbound; on Debian apt-get install unbound")
	}
	m := newMesh(t, binary)
	m.startUnbound(program)
	if first := m.told(); first != "buffalo" {
		t.Fatalf("at first unbound is told %s", first)
	}

	// The phones were at london once, so that both latencies are known.
	var phones []*phone.Phone
	for i := range behind {
		for k := range perNetwork {
			phones = append(phones, m.phone(1000+len(phones), netip.AddrFrom4([4]byte{127, 0, byte(60 + i), byte(k + 1)}), true))
		}
	}
	for range 2 {
		for _, p := range phones {
			if err := p.RegisterAt(t.Context(), m.switches["london"].SIP()); err != nil {
				t.Fatal(err)
			}
		}
	}
	asking := len(phones)
	for i := range others {
		for k := range perNetwork {
			phones = append(phones, m.phone(1000+len(phones), netip.AddrFrom4([4]byte{127, 0, byte(80 + i), byte(k + 1)}), false))
		}
	}

	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var registered, failed atomic.Int64
	for i, p := range phones {
		first := time.Duration(rand.Int64N(int64(interval)))
		all.Go(func() {
			next := time.NewTimer(first)
			defer next.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-next.C:
				}
				var err error
				if i < asking {
					_, err = p.RegisterByDNS(ctx)
				} else {
					err = p.RegisterAt(ctx, m.switches["buffalo"].SIP())
				}
				if registered.Add(1); err != nil && ctx.Err() == nil {
					failed.Add(1)
					t.Log(err)
				}
				next.Reset(interval + time.Duration(rand.Int64N(int64(interval/20))))
			}
		})
	}
	defer all.Wait()
	defer stop()

	began := time.Now()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	// Not by asking through unbound: its queries would be nobody's then.
	for m.explained().Nodes[0].Node != "london" {
		if time.Since(began) > limit {
			t.Fatalf("unbound is not to be told london within %v; %d registrations, %d failed; explained as %+v", limit, registered.Load(), failed.Load(), m.explained())
		}
		<-tick.C
	}
	t.Logf("unbound is to be told london after %v and %d registrations, %d failed", time.Since(began).Round(time.Second), registered.Load(), failed.Load())
	reasons := m.explained().Stages[0].Reasons
	t.Log(reasons)
	if !slices.ContainsFunc(reasons, func(r string) bool {
		return strings.Contains(r, "127.9.53.0/24") && strings.Contains(r, "learnt from")
	}) {
		t.Errorf("the reason is not told: %q", reasons)
	}
	// And so it is told, and a phone that asks it registers there.
	m.eventually("unbound says london", func() bool { return m.told() == "london" })
	if _, err := phones[0].RegisterByDNS(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r, _ := phones[0].Registered(); r.Registrar != m.switches["london"].SIP() {
		t.Errorf("a phone that asks registers at %v", r.Registrar)
	}
	if failed.Load() > 0 {
		t.Errorf("%d registrations failed", failed.Load())
	}
}

func newMesh(t *testing.T, binary string) *mesh {
	t.Helper()
	m := &mesh{t: t, store: memory.New(memory.Options{}), switches: make(map[pbxmesh.NodeID]*realswitch.Switch)}
	t.Cleanup(func() { _ = m.store.Close() })
	var users []fixtures.User
	for i := range 100 {
		users = append(users, fixtures.User{Name: fmt.Sprint(1000 + i), Domain: zone, Password: "secret"})
	}
	lamps := native.NewMemory()
	for i, at := range []netip.Addr{buffaloAt, londonAt} {
		sw, err := realswitch.New(fixtures.Config{Name: string(order[i]), Host: at, Users: users, Peers: func() []netip.Addr { return []netip.Addr{buffaloAt, londonAt} }}, binary)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sw.Close() })
		if err := sw.Start(); err != nil {
			t.Fatal(err)
		}
		m.switches[order[i]] = sw
		cfg := config.Defaults()
		cfg.Name = string(order[i])
		cfg.Node = &config.Node{ID: order[i], Addresses: []netip.Addr{at}, MeshAddress: sw.Mesh(), SIP: config.SIP{UDP: sw.SIP().Port()}}
		address, secret := sw.EventSocket()
		file := filepath.Join(t.TempDir(), "password")
		if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(address), PasswordFile: config.SecretFile(file)}
		cfg.Router.DefaultDomain = zone
		m.start(cfg, lamps)
	}
	cfg := config.Defaults()
	cfg.Name = "ns1"
	cfg.DNS.Listen = []netip.AddrPort{freePort(t, serverAt)}
	cfg.DNS.Zone, cfg.DNS.TTL.Answer, cfg.DNS.DefaultOrder = zone, ttl, order
	cfg.DNS.Nameservers = []config.Nameserver{{Name: "ns1." + zone, Addresses: []netip.Addr{serverAt}}}
	m.server = m.start(cfg, lamps)
	for _, id := range order {
		m.eventually(string(id)+" is up", func() bool { return m.server.Mesh().State(id).Observed == pbxmesh.ObservedUp })
	}
	return m
}

func (m *mesh) start(cfg *config.Config, lamps native.Exchange) *app.App {
	m.t.Helper()
	cfg.Router.Socket.Listen, cfg.API.Listen = netip.AddrPort{}, netip.AddrPort{}
	cfg.Failover.Return = config.Return{MaxHold: time.Minute}
	log := slog.New(slog.NewTextHandler(m.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("daemon", cfg.Name)
	a, err := app.New(cfg, app.Options{Logger: log, Backend: m.store, Exchange: lamps})
	if err == nil {
		err = a.Start()
	}
	if err != nil {
		m.t.Fatalf("daemon of %s: %v", cfg.Name, err)
	}
	m.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := a.Stop(ctx); err != nil {
			m.t.Errorf("stop daemon of %s: %v", cfg.Name, err)
		}
	})
	return a
}

// startUnbound puts unbound before the name server. It keeps what it is told no longer than
// that allows, and asks nobody else.
func (m *mesh) startUnbound(program string) {
	m.t.Helper()
	dir := m.t.TempDir()
	m.unbound = freePort(m.t, unboundAt)
	upstream := m.server.DNSAddrs()[0]
	file := filepath.Join(dir, "unbound.conf")
	conf := fmt.Sprintf(`server:
  interface: %s
  port: %d
  outgoing-interface: %s
  access-control: 127.0.0.0/8 allow
  do-ip6: no
  do-daemonize: no
  username: ""
  chroot: ""
  directory: %q
  pidfile: ""
  use-syslog: no
  module-config: "iterator"
  do-not-query-localhost: no
  local-zone: "test." nodefault
remote-control:
  control-enable: no
stub-zone:
  name: %s
  stub-addr: %s@%d
  stub-no-cache: no
`, m.unbound.Addr(), m.unbound.Port(), m.unbound.Addr(), dir, zone, upstream.Addr(), upstream.Port())
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		m.t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := exec.Command(program, "-d", "-c", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if m.t.Failed() {
			m.t.Logf("unbound says:\n%s", out.String())
		}
	})
	m.eventually("unbound answers", func() bool {
		_, err := m.lookup()
		return err == nil
	})
}

// lookup asks unbound, as a phone does.
func (m *mesh) lookup() (phone.Answer, error) {
	r := &phone.Resolver{Servers: []netip.AddrPort{m.unbound}, Local: host(54), NoCache: true}
	return r.Lookup(m.t.Context(), zone)
}

// told returns the first node of the name server's answer to unbound.
func (m *mesh) told() pbxmesh.NodeID {
	m.t.Helper()
	a, err := m.lookup()
	if err != nil || len(a.Candidates) == 0 {
		m.t.Fatalf("unbound says %+v, %v", a, err)
	}
	for id, sw := range m.switches {
		if sw.SIP() == a.Candidates[0].Addr {
			return id
		}
	}
	m.t.Fatalf("unbound names %v", a.Candidates)
	return ""
}

// explained is what unbound would be told, and why.
func (m *mesh) explained() *control.DNSExplainReply {
	m.t.Helper()
	reply, err := m.server.DNSExplain(m.t.Context(), zone, unboundAt)
	if err != nil {
		m.t.Fatal(err)
	}
	return reply
}

// phone makes a phone that asks unbound. A far one needs time for its digests.
func (m *mesh) phone(user int, at netip.Addr, far bool) *phone.Phone {
	m.t.Helper()
	p, err := phone.New(phone.Config{
		User: fmt.Sprint(user), Domain: zone, Password: "secret", Local: at, Expires: 2 * interval, AttemptTimeout: 5 * time.Second,
		Resolver: &phone.Resolver{Servers: []netip.AddrPort{m.unbound}, Local: at, NoCache: true, Timeout: 2 * time.Second},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	if far {
		p.Endpoint().SetFaults(sipwire.Faults{DelayOut: func(msg *sipwire.Message, to netip.AddrPort) time.Duration {
			switch {
			case msg.Get("Authorization") == "":
				return 0
			case to.Addr() == buffaloAt:
				return toBuffalo
			}
			return toLondon
		}})
	}
	p.Start()
	m.t.Cleanup(func() { _ = p.Close() })
	return p
}

func (m *mesh) eventually(what string, cond func() bool) {
	m.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); !cond(); <-tick.C {
		if time.Since(began) > time.Minute {
			m.t.Fatalf("not within a minute: %s", what)
		}
	}
}

// freePort returns a port that is free for UDP and TCP, about.
func freePort(t *testing.T, at netip.Addr) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}
