package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/redisstore"
	"pbxmesh/router/native"
)

// zone is the SIP domain of all phones and the zone of the name servers. The name
// ends in .test, which no resolver of the world knows (RFC 6761 section 6.2).
const zone = "pbx.test"

// towns of the nodes and of the name servers, in the order of the story.
var (
	nodeNames   = []string{"buffalo", "london", "singapore"}
	serverNames = []string{"losangeles", "jacksonville"}
)

// host gives every town a loopback address of its own.
var host = map[string]netip.Addr{
	"buffalo":      netip.MustParseAddr("127.0.1.1"),
	"london":       netip.MustParseAddr("127.0.2.1"),
	"singapore":    netip.MustParseAddr("127.0.3.1"),
	"losangeles":   netip.MustParseAddr("127.0.8.1"),
	"jacksonville": netip.MustParseAddr("127.0.9.1"),
	"Vancouver":    netip.MustParseAddr("127.11.0.1"),
	"Rome":         netip.MustParseAddr("127.12.0.1"),
	"Tokyo":        netip.MustParseAddr("127.13.0.1"),
}

// preferences are the networks of the three towns and their order of nodes.
var preferences = []config.Preference{
	{Network: netip.MustParsePrefix("127.11.0.0/16"), Nodes: ids("buffalo", "singapore", "london")},
	{Network: netip.MustParsePrefix("127.12.0.0/16"), Nodes: ids("london", "buffalo", "singapore")},
	{Network: netip.MustParsePrefix("127.13.0.0/16"), Nodes: ids("singapore", "buffalo", "london")},
}

func ids(names ...string) []pbxmesh.NodeID {
	out := make([]pbxmesh.NodeID, 0, len(names))
	for _, n := range names {
		out = append(out, pbxmesh.NodeID(n))
	}
	return out
}

// stage is everything that runs.
type stage struct {
	log      *slog.Logger
	registry string
	prefix   string
	version  control.VersionReply
	store    registry.Backend // shared by all daemons with the memory registry
	exchange native.Exchange
	dir      string // secrets of this run

	switches map[string]*simswitch.Switch
	daemons  map[string]*app.App // nodes and name servers
	phones   map[string]*phone.Phone
	dead     map[string]bool
}

func newStage(url string, log *slog.Logger) *stage {
	return &stage{
		log: log, registry: url, prefix: "pbxmesh-demo-" + strings.ToLower(rand.Text()[:8]),
		switches: map[string]*simswitch.Switch{}, daemons: map[string]*app.App{},
		phones: map[string]*phone.Phone{}, dead: map[string]bool{},
	}
}

// build starts switches, then daemons, then name servers.
func (s *stage) build() error {
	var err error
	if s.dir, err = os.MkdirTemp("", "pbxmesh-demo-"); err != nil {
		return fmt.Errorf("folder for secrets: %w", err)
	}
	if s.registry == string(config.MemoryURL) {
		s.store, s.exchange = memory.New(memory.Options{}), native.NewMemory()
	}
	var users []fixtures.User
	for _, u := range []string{"1001", "1002", "2001", "3001"} {
		users = append(users, fixtures.User{Name: u, Domain: zone, Password: password(u)})
	}
	for _, name := range nodeNames {
		if err := s.startNode(name, users); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, name := range serverNames {
		if err := s.startNameServer(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func password(user string) string { return "secret-of-" + user }

// startNode boots a switch and its daemon.
func (s *stage) startNode(name string, users []fixtures.User) error {
	// The dialplan must know the hook's address before the daemon can listen there.
	socket, release, err := fixtures.ReserveTCP(netip.AddrPortFrom(host[name], 0))
	if err != nil {
		return err
	}
	defer release()
	sw, err := simswitch.New(simswitch.Options{Config: fixtures.Config{
		Name: name, Host: host[name], Users: users, Socket: socket.String(), Peers: func() []netip.Addr {
			return []netip.Addr{host["buffalo"], host["london"], host["singapore"]}
		},
	}})
	if err != nil {
		return err
	}
	s.switches[name] = sw
	if err := sw.Start(); err != nil {
		return err
	}
	address, secret := sw.EventSocket()
	file := filepath.Join(s.dir, name)
	if err := os.WriteFile(file, []byte(secret+"\n"), 0o600); err != nil {
		return fmt.Errorf("event socket password: %w", err)
	}
	cfg := s.config(name)
	cfg.Node = &config.Node{
		ID: pbxmesh.NodeID(name), Addresses: []netip.Addr{sw.SIP().Addr()}, MeshAddress: sw.Mesh(),
		SIP: config.SIP{UDP: sw.SIP().Port()},
	}
	cfg.FreeSWITCH.EventSocket = config.EventSocket{
		Address: config.HostPort(address), PasswordFile: config.SecretFile(file),
	}
	cfg.Router.Socket.Listen = socket
	cfg.Router.DefaultDomain = zone
	return s.startDaemon(name, cfg)
}

// startNameServer starts a daemon that has no switch.
func (s *stage) startNameServer(name string) error {
	cfg := s.config(name)
	cfg.DNS.Listen = []netip.AddrPort{netip.AddrPortFrom(host[name], 0)}
	cfg.DNS.Zone = zone
	cfg.DNS.Services = []string{zone}
	cfg.DNS.Tenants = []string{"*.tenants." + zone}
	for _, n := range serverNames {
		cfg.DNS.Nameservers = append(cfg.DNS.Nameservers, config.Nameserver{Name: n + "." + zone, Addresses: []netip.Addr{host[n]}})
	}
	cfg.DNS.Preferences = preferences
	cfg.DNS.DefaultOrder = ids(nodeNames...)
	cfg.Router.Socket.Listen = netip.AddrPort{}
	return s.startDaemon(name, cfg)
}

// config is what all daemons share. Probes are quicker than in a mesh across oceans, so
// that the story does not make its listener wait.
func (s *stage) config(name string) *config.Config {
	cfg := config.Defaults()
	cfg.Name = name
	cfg.Registry.URL = config.URL(s.registry)
	cfg.Registry.KeyPrefix = s.prefix
	cfg.Failover.Probe.Interval, cfg.Failover.Probe.Timeout = 500*time.Millisecond, 300*time.Millisecond
	cfg.Failover.Return = config.Return{Hold: time.Second, Ramp: time.Second, MaxHold: time.Minute}
	cfg.API.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	return cfg
}

func (s *stage) startDaemon(name string, cfg *config.Config) error {
	a, err := app.New(cfg, app.Options{Logger: s.log.With("daemon", name), Backend: s.store, Exchange: s.exchange, Version: s.version})
	if err != nil {
		return err
	}
	s.daemons[name] = a
	return a.Start()
}

// resolvers returns the two name servers' addresses.
func (s *stage) nameServers() []netip.AddrPort {
	var out []netip.AddrPort
	for _, n := range serverNames {
		out = append(out, s.daemons[n].DNSAddrs()...)
	}
	return out
}

// phone buys a phone in a town; it knows both name servers and nothing else.
func (s *stage) phone(user, town string) (*phone.Phone, error) {
	p, err := phone.New(phone.Config{
		User: user, Domain: zone, Password: password(user), Display: town, Local: host[town],
		Resolver: &phone.Resolver{Servers: s.nameServers(), Local: host[town], NoCache: true},
	})
	if err != nil {
		return nil, fmt.Errorf("phone in %s: %w", town, err)
	}
	p.Start()
	s.phones[user] = p
	return p, nil
}

// close takes everything down, the newest first, and removes what it left.
func (s *stage) close() error {
	var errs []error
	for _, p := range s.phones {
		errs = append(errs, p.Close())
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	for _, list := range [][]string{serverNames, nodeNames} {
		for _, name := range list {
			if a := s.daemons[name]; a != nil {
				errs = append(errs, a.Stop(ctx))
			}
		}
	}
	for _, sw := range s.switches {
		errs = append(errs, sw.Close())
	}
	errs = append(errs, s.forget(ctx))
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}

// forget removes this run's keys from a Redis.
func (s *stage) forget(ctx context.Context) error {
	if s.store != nil {
		return s.store.Close()
	}
	if len(s.daemons) == 0 {
		return nil
	}
	cfg := config.Defaults().Registry
	cfg.URL, cfg.KeyPrefix = config.URL(s.registry), s.prefix
	store, err := app.OpenStore(&cfg)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range nodeNames {
		errs = append(errs, store.Forget(ctx, pbxmesh.NodeID(name)))
	}
	if redis, ok := store.(*redisstore.Store); ok {
		states := native.NewRedis(native.RedisOptions{Client: redis.Client(), Prefix: redis.KeyPrefix()})
		for _, name := range nodeNames {
			errs = append(errs, states.Forget(ctx, pbxmesh.NodeID(name)))
		}
		errs = append(errs, redis.Dissolve(ctx))
	}
	return errors.Join(append(errs, store.Close())...)
}
