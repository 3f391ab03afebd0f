package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
	"pbxmesh/failover/probe"
	"pbxmesh/internal/control"
	"pbxmesh/internal/esl"
	"pbxmesh/registry"
	"pbxmesh/registry/feed"
	"pbxmesh/router/socket"
)

func (a *App) buildRegistry() error {
	a.backend = a.opts.Backend
	if a.backend == nil {
		backend, files, err := openStore(&a.cfg.Registry, a.log)
		if err != nil {
			return fmt.Errorf("registry: %w", err)
		}
		a.backend, a.files = backend, files
		a.teardowns.push("registry store", func(context.Context) error { return backend.Close() })
	}
	a.publisher = &publisher{Records: a.backend, to: a.backend}
	a.replica = registry.NewReplica(registry.ReplicaOptions{Local: a.nodeID(), OnChange: a.onChange})
	stateFile := string(a.cfg.Registry.StateFile)
	if stateFile != "" {
		switch report, err := a.replica.LoadState(stateFile, a.now()); {
		case errors.Is(err, fs.ErrNotExist):
			a.log.Info("no state file yet", "file", stateFile)
		case err != nil:
			a.log.Warn("start without the state file", "file", stateFile, "error", err)
		default:
			a.log.Info("state file read", "file", stateFile, "saved", report.Saved,
				"members", report.Members, "registrations", report.Registrations)
		}
	}
	var err error
	a.syncer, err = registry.NewSync(registry.SyncOptions{
		Replica: a.replica, Backend: a.backend, Poll: a.cfg.Registry.LeaseRenew,
		StateFile: stateFile, OnPoll: a.polled.tell, Logger: a.log,
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	if a.cfg.Node == nil {
		return nil
	}
	a.writer, err = registry.NewWriter(registry.WriterOptions{
		Node: a.cfg.Announcement(), Replica: a.replica, Backend: a.publisher, Owner: a.cfg.Owner(), Lock: a.lock,
		LeaseTTL: a.cfg.Registry.LeaseTTL, RenewEvery: a.cfg.Registry.LeaseRenew, Logger: a.log,
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

func (a *App) buildFailover() error {
	p := a.cfg.Failover.Probe
	var err error
	a.tracker, err = failover.New(failover.Options{
		Self: a.nodeID(), SuspectAfter: p.SuspectAfter, DownAfter: p.DownAfter, UpAfter: p.UpAfter, Logger: a.log,
		Observer: a.cfg.Name, Instance: instance(), Site: a.cfg.Site, Return: failover.ReturnOptions(a.cfg.Failover.Return),
		DaemonSilentAfter: a.cfg.Registry.LeaseRenew * 3, LeaveGrace: max(a.cfg.Failover.RestartGrace, 1),
		OnTransition: func(failover.Transition) { a.nodesChanged() },
		OnVote:       func() { a.voter.changed() },
		OnDoubt: func(id pbxmesh.NodeID) {
			if a.prober != nil {
				a.prober.Hurry(id)
			}
		},
	})
	if err != nil {
		return err
	}
	a.voter = newVoter(a, a.backend)
	if !p.SIP {
		return nil
	}
	a.prober, err = probe.New(probe.Options{
		Interval: p.Interval, Timeout: p.Timeout, OnResult: a.tracker.Probe, Logger: a.log,
		// Calls between nodes are the daemons' business; a name server may well be shut
		// out from there.
		Mesh: a.cfg.Node != nil && p.Mesh,
	})
	if err != nil {
		return fmt.Errorf("probes: %w", err)
	}
	a.teardowns.push("prober", func(context.Context) error { return a.prober.Close() })
	return nil
}

// eventSocketKeepAlive is how long the event socket may be silent before it is asked
// something: with the 5 s of a command and the 3 s of a new connection, a switch whose event
// socket hangs is known after 11 s at most.
const eventSocketKeepAlive = 3 * time.Second

func (a *App) buildFeed() error {
	if a.cfg.Node == nil {
		return nil
	}
	sw := a.cfg.FreeSWITCH
	password, err := sw.EventSocket.PasswordFile.Read()
	if err != nil {
		return fmt.Errorf("freeswitch.event_socket.password_file: %w", err)
	}
	margin := sw.LateMargin
	if margin == 0 {
		margin = -1 // the feed's word for none
	}
	a.feed = feed.New(feed.Options{
		ESL:  esl.Config{Address: string(sw.EventSocket.Address), Password: password, KeepAlive: eventSocketKeepAlive},
		Node: a.cfg.Node.ID, Profiles: sw.Profiles, Sink: a.writer,
		SnapshotEvery: sw.SnapshotInterval, LateMargin: margin, OnStatus: a.switchNews.tell, Logger: a.log,
	})
	return nil
}

func (a *App) buildHook() error {
	s := a.cfg.Router.Socket
	if a.cfg.Node == nil || !s.Listen.IsValid() {
		return nil
	}
	var err error
	a.hook, err = socket.New(socket.Options{
		Directory: directory{a}, Nodes: a.tracker, Local: a.nodeID(), Bridge: a.bridgeOptions(),
		Domain: a.cfg.Router.DefaultDomain, Budget: s.Deadline, DecisionTimeout: s.DecisionTimeout,
		MaxCalls: s.MaxCalls, LogCalls: true, Logger: a.log,
	})
	if err != nil {
		return fmt.Errorf("socket hook: %w", err)
	}
	a.hookListener, err = a.listen("socket hook", "router.socket.listen", s.Listen)
	return err
}

func (a *App) buildAPI() error {
	if !a.cfg.API.Listen.IsValid() {
		return nil
	}
	token, err := a.cfg.API.TokenFile.Read()
	if err != nil {
		return fmt.Errorf("api.token_file: %w", err)
	}
	version := a.opts.Version
	version.Observer = a.cfg.Name
	a.api = control.NewServer(control.NewHandler(control.Backend{
		Lookup: a.Lookup, List: a.List, ListAll: a.ListAll, Nodes: a.Nodes, Explain: a.Explain, DNSExplain: a.DNSExplain, Forget: a.Forget, Want: a.Want, Drain: a.Drain, Ready: a.ready, Version: version, Metrics: a.metrics(),
	}, token))
	a.apiListener, err = a.listen("control API", "api.listen", a.cfg.API.Listen)
	return err
}

// Start lets every part work. Parts that others read from come first, so that
// nothing answers from an empty picture when it need not.
func (a *App) Start() error {
	if a.files != nil {
		a.task("files of the registry", a.files.watch)
	}
	if a.cfg.Registry.Read != "" {
		a.task("replica of the registry", a.watchReplica)
	}
	a.task("registry sync", a.syncer.Run)
	if a.writer != nil {
		a.task("registry writer", a.writer.Run)
		a.task("feed", a.feed.Run)
		a.task("switch state", a.watchSwitch)
		a.task("phones that moved", a.bindings.Run)
	}
	a.task("members", a.watchMembers)
	a.task("stranded", a.countStranded)
	a.startLatency()
	a.task("votes read", a.voter.read)
	a.task("votes watch", a.voter.watch)
	a.task("votes post", a.voter.post)
	if a.prober != nil {
		a.task("prober", a.prober.Run)
	}
	if a.acl != nil {
		a.task("list of nodes", a.keepACL)
	}
	a.startWishes()
	a.startNative()
	if a.hook != nil {
		a.task("socket hook", func(context.Context) error { return a.hook.Serve(a.hookListener) })
		a.teardowns.push("socket hook calls", a.hook.Shutdown)
	}
	a.startHTTP()
	a.startRedirect()
	if a.zone != nil {
		a.task("zone", a.zone.Run)
	}
	a.startPDNS()
	if a.dns != nil {
		a.task("name server", a.dns.Run)
	}
	if a.cookies != nil {
		a.task("cookie secrets", a.followCookieSecrets)
	}
	if a.api != nil {
		a.task("control API", func(context.Context) error {
			if err := a.api.Serve(a.apiListener); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
		a.teardowns.push("control API requests", a.api.Shutdown)
	}
	return nil
}
