package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh"
	"pbxmesh/dnsserver"
	"pbxmesh/dnsserver/pdns"
	"pbxmesh/failover"
	"pbxmesh/failover/drain"
	"pbxmesh/failover/probe"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
	"pbxmesh/registry/bindings"
	"pbxmesh/registry/feed"
	"pbxmesh/router"
	"pbxmesh/router/dialplan"
	"pbxmesh/router/native"
	"pbxmesh/router/redirect"
	"pbxmesh/router/socket"
)

// stopTimeout bounds an orderly stop: the lease is given up and listeners close.
const stopTimeout = 10 * time.Second

// Options are what a command adds to the configuration.
type Options struct {
	// Logger may be nil.
	Logger *slog.Logger

	Version control.VersionReply

	// Backend replaces the store that the configuration names. It is shared by
	// several daemons in one process, and not closed by the App.
	Backend registry.Backend

	// Exchange replaces what carries lamps and mailboxes between daemons, for
	// several of them in one process.
	Exchange native.Exchange
}

// App is one daemon. New binds its listeners, Start lets it work, Stop ends it;
// Run does all of it in turn.
type App struct {
	cfg  *config.Config
	opts Options
	log  *slog.Logger
	now  func() time.Time

	lock      string // ID of the node's lock, "" without one
	backend   registry.Backend
	files     *storeFiles // of the store; nil when it has none
	publisher *publisher
	replica   *registry.Replica
	syncer    *registry.Sync
	writer    *registry.Writer // nil without a node
	feed      *feed.Feed       // nil without a node
	tracker   *failover.Tracker
	prober    *probe.Prober // nil when probes are off
	voter     *voter
	native    nativeHook
	ownDomain ownDomain
	bindings  *bindings.Keeper // nil without a node
	wishes    *wishes
	drainer   *drain.Drainer   // nil without a node
	acl       *aclKeeper       // nil when the operator keeps the list
	hook      *socket.Hook     // nil without a node or listener
	web       *dialplan.Server // nil without a node or listener
	ranker    *ranker
	dns       *dnsserver.Server
	cookies   *cookieSecrets   // nil: of the name server alone
	pdns      *pdns.Server     // nil without a listener
	zone      *dnsserver.Zone  // nil without a name server
	redirect  *redirect.Server // nil without a listener
	api       *http.Server

	hookListener, apiListener, webListener, pdnsListener net.Listener

	carry      sync.Mutex // held by carryMembers
	polled     news       // of the registry
	switchNews news
	stranded   atomic.Pointer[map[pbxmesh.NodeID]int]
	teardowns  stack
	failed     chan error
}

// New builds the daemon that cfg describes, locks its node and binds its listeners. It
// starts nothing and connects to nothing, and waits up to 12 s for a former daemon of the
// node to end. On an error nothing is left behind.
func New(cfg *config.Config, opts Options) (*App, error) {
	return build(context.Background(), cfg, opts)
}

// build is New; the end of ctx ends the waiting.
func build(ctx context.Context, cfg *config.Config, opts Options) (*App, error) {
	a := &App{cfg: cfg, opts: opts, log: opts.Logger, now: time.Now, failed: make(chan error, 1), polled: newNews(), switchNews: newNews()}
	if a.log == nil {
		a.log = slog.New(slog.DiscardHandler)
	}
	if err := a.lockNode(ctx); err != nil {
		return nil, err
	}
	for _, part := range []func() error{a.buildRegistry, a.buildFailover, a.buildDrain, a.buildWishes, a.buildFeed, a.buildBindings, a.buildACL, a.buildNative, a.buildHook, a.buildHTTP, a.buildLatency, a.buildDNS, a.buildPDNS, a.buildRedirect, a.buildAPI} {
		if err := part(); err != nil {
			return nil, errors.Join(err, a.teardowns.unwind(context.Background()))
		}
	}
	return a, nil
}

// Run starts the daemon, waits until ctx ends or a part fails, and stops it.
func Run(ctx context.Context, cfg *config.Config, opts Options) error {
	a, err := build(ctx, cfg, opts)
	if errors.Is(err, context.Canceled) {
		return nil // told to end before it began
	}
	if err != nil {
		return err
	}
	if err := a.Start(); err != nil {
		return err
	}
	a.log.Info("ready to work", "name", cfg.Name, "node", a.nodeID(), "registry", cfg.Registry.Mode().String(),
		"api", a.APIAddr(), "socket", a.SocketAddr(), "http", a.HTTPAddr(), "dns", a.DNSAddrs())
	select {
	case <-ctx.Done():
		err = nil
	case err = <-a.failed:
		a.log.Error("a part of the daemon failed", "error", err)
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	return errors.Join(err, a.Stop(stop))
}

// nodeID returns the node beside this daemon, "" for a pure observer.
func (a *App) nodeID() pbxmesh.NodeID {
	if a.cfg.Node == nil {
		return ""
	}
	return a.cfg.Node.ID
}

func (a *App) bridgeOptions() router.BridgeOptions {
	o := router.BridgeOptions{MeshProfile: a.cfg.FreeSWITCH.MeshProfile}
	if len(a.cfg.FreeSWITCH.Profiles) > 0 {
		o.LocalProfile = a.cfg.FreeSWITCH.Profiles[0]
	}
	return o
}

// Stop ends everything in reverse order and waits for it, at most until ctx ends.
// The lease is given up, registrations stay: a stopped daemon makes no call fail.
// Idempotent.
func (a *App) Stop(ctx context.Context) error { return a.teardowns.unwind(ctx) }

// Kill ends the daemon as kill -9 would be seen from outside: nothing is said to
// the registry, and the lease runs out by itself. For tests and the demo.
func (a *App) Kill() {
	a.publisher.cut.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := a.Stop(ctx); err != nil {
		a.log.Warn("kill", "error", err)
	}
}

// Mesh returns the present picture of all nodes, as this observer sees it.
func (a *App) Mesh() *pbxmesh.Mesh { return a.tracker.Mesh() }

// APIAddr returns where the control API listens; zero when it is off.
func (a *App) APIAddr() netip.AddrPort { return addrOf(a.apiListener) }

// SocketAddr returns where the event socket hook listens; zero when it is off.
func (a *App) SocketAddr() netip.AddrPort { return addrOf(a.hookListener) }

// DNSAddrs returns where the name server listens, UDP and TCP on each; nil when
// it is off.
func (a *App) DNSAddrs() []netip.AddrPort {
	if a.dns == nil {
		return nil
	}
	return a.dns.Addrs()
}

func addrOf(l net.Listener) netip.AddrPort {
	if l == nil {
		return netip.AddrPort{}
	}
	if t, ok := l.Addr().(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	return netip.AddrPort{}
}

// listen binds a TCP listener now, so that a port in use is told at the start.
func (a *App) listen(what, key string, at netip.AddrPort) (net.Listener, error) {
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		return nil, fmt.Errorf("%s: %w; change %s in the configuration, or stop what listens there", what, err, key)
	}
	a.teardowns.push(what+" listener", func(context.Context) error {
		if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	})
	return l, nil
}
