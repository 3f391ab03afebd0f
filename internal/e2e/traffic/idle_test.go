package traffic_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/registry/registrytest"
)

const zone = "pbx.test"

// server is the Redis under test, which counts.
type server struct {
	t   *testing.T
	raw *redis.Client
}

// counters are those of INFO: commands (those within scripts included), bytes, and calls by
// name.
type counters struct {
	commands, in, out float64
	calls             map[string]float64
}

func (s *server) counters() counters {
	s.t.Helper()
	text, err := s.raw.Info(s.t.Context(), "stats", "commandstats").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	c := counters{calls: map[string]float64{}}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		number := func(text string) float64 { f, _ := strconv.ParseFloat(text, 64); return f }
		switch {
		case name == "total_commands_processed":
			c.commands = number(value)
		case name == "total_net_input_bytes":
			c.in = number(value)
		case name == "total_net_output_bytes":
			c.out = number(value)
		case strings.HasPrefix(name, "cmdstat_"):
			calls, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
			c.calls[strings.TrimPrefix(name, "cmdstat_")] = number(calls)
		}
	}
	return c
}

// TestBenchMesh prints what an idle mesh asks of Redis:
// PBXMESH_BENCH_MESH="NODES NAMESERVERS SECONDS".
func TestBenchMesh(t *testing.T) {
	var nodes, servers, seconds int
	if n, _ := fmt.Sscan(os.Getenv("PBXMESH_BENCH_MESH"), &nodes, &servers, &seconds); n != 3 {
		t.Skip("a measurement: make bench-mesh runs it")
	}
	store := registrytest.StartRedis(t)
	opts, err := redis.ParseURL(store.URL())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, raw: redis.NewClient(opts)}
	t.Cleanup(func() { _ = s.raw.Close() })

	m := &mesh{t: t, url: store.URL()}
	for i := range nodes {
		m.node(i)
	}
	for i := range servers {
		m.nameServer(i, servers)
	}
	m.settle(nodes)
	cpu := busy(t)
	before, began := s.counters(), time.Now()
	time.Sleep(time.Duration(seconds) * time.Second)
	after, took := s.counters(), time.Since(began).Seconds()
	cpu = busy(t) - cpu

	t.Logf("%d nodes and %d name servers, idle for %.0f s:", nodes, servers, took)
	t.Logf("  commands at Redis, those within scripts included: %.0f/s", (after.commands-before.commands)/took)
	t.Logf("  bytes to Redis %.1f kB/s, from Redis %.1f kB/s", (after.in-before.in)/took/1000, (after.out-before.out)/took/1000)
	t.Logf("  processor of all daemons and simulated switches in this process: %.1f %% of a core, %.2f %% for each daemon",
		100*cpu.Seconds()/took, 100*cpu.Seconds()/took/float64(nodes+servers))
	for _, name := range slices.SortedFunc(maps.Keys(after.calls), func(a, b string) int {
		return int(after.calls[b] - before.calls[b] - after.calls[a] + before.calls[a])
	}) {
		if rate := (after.calls[name] - before.calls[name]) / took; rate >= 1 {
			t.Logf("  %-20s %8.1f/s", name, rate)
		}
	}
}

// busy is how long this process kept processors busy.
func busy(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// mesh is all daemons.
type mesh struct {
	t    *testing.T
	url  string
	apps []*app.App
}

func (m *mesh) node(i int) {
	m.t.Helper()
	name := fmt.Sprintf("node%02d", i+1)
	host := netip.AddrFrom4([4]byte{127, 0, 120, byte(i + 1)})
	var users []fixtures.User
	for u := range 20 {
		users = append(users, fixtures.User{Name: fmt.Sprint(1000 + u), Domain: zone, Password: "secret"})
	}
	sw, err := simswitch.New(simswitch.Options{Config: fixtures.Config{Name: name, Host: host, Users: users}})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			m.t.Error(err)
		}
	})
	if err := sw.Start(); err != nil {
		m.t.Fatal(err)
	}
	address, secret := sw.EventSocket()
	file := filepath.Join(m.t.TempDir(), "password")
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
	cfg := config.Defaults()
	cfg.Name = name
	cfg.Node = &config.Node{ID: pbxmesh.NodeID(name), Addresses: []netip.Addr{host}, MeshAddress: sw.Mesh(), SIP: config.SIP{UDP: sw.SIP().Port()}}
	cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(address), PasswordFile: config.SecretFile(file)}
	m.start(cfg)
}

func (m *mesh) nameServer(i, of int) {
	m.t.Helper()
	cfg := config.Defaults()
	cfg.Name = fmt.Sprintf("ns%d", i+1)
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 121, byte(i + 1)}) }
	cfg.DNS.Listen = []netip.AddrPort{netip.AddrPortFrom(at(i), 5300)}
	cfg.DNS.Zone = zone
	for j := range of {
		cfg.DNS.Nameservers = append(cfg.DNS.Nameservers, config.Nameserver{Name: fmt.Sprintf("ns%d.%s", j+1, zone), Addresses: []netip.Addr{at(j)}})
	}
	m.start(cfg)
}

func (m *mesh) start(cfg *config.Config) {
	m.t.Helper()
	cfg.Registry.URL = config.URL(m.url)
	cfg.API.Listen = netip.AddrPort{}
	cfg.Router.Socket.Listen = netip.AddrPort{}
	cfg.Router.DefaultDomain = zone
	log := slog.New(slog.NewTextHandler(m.t.Output(), &slog.HandlerOptions{Level: slog.LevelError})).With("daemon", cfg.Name)
	a, err := app.New(cfg, app.Options{Logger: log})
	if err == nil {
		err = a.Start()
	}
	if err != nil {
		m.t.Fatalf("daemon of %s: %v", cfg.Name, err)
	}
	m.apps = append(m.apps, a)
	m.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := a.Stop(ctx); err != nil {
			m.t.Errorf("stop daemon of %s: %v", cfg.Name, err)
		}
	})
}

// settle waits until every daemon sees every node up, and for a lease or two.
func (m *mesh) settle(nodes int) {
	m.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		missing := 0
		for _, a := range m.apps {
			for i := range nodes {
				if a.Mesh().State(pbxmesh.NodeID(fmt.Sprintf("node%02d", i+1))).Observed != pbxmesh.ObservedUp {
					missing++
				}
			}
		}
		if missing == 0 {
			break
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("%d views of nodes are not up after two minutes", missing)
		}
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(15 * time.Second)
}
