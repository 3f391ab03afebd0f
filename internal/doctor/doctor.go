package doctor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/internal/esl"
	"pbxmesh/registry"
)

// DefaultTimeout bounds each check.
const DefaultTimeout = 3 * time.Second

// Switch is what the checks need of the event socket.
type Switch interface {
	API(ctx context.Context, command string) (string, error)
	Close() error
}

var _ Switch = (*esl.Conn)(nil)

// Options say what to look at.
type Options struct {
	Config *config.Config // checked already

	// API replaces the address of the daemon that Config names.
	API string

	// Call is whom to ring for a moment; the zero AOR rings nobody.
	Call pbxmesh.AOR

	// Timeout bounds each check; 0 means DefaultTimeout. The call takes up to two
	// of them more.
	Timeout time.Duration

	// Progress, when not nil, gets every result as soon as it is there, one at a
	// time.
	Progress func(Result)

	// Dial replaces the event socket, Backend the store that Config names; both
	// are for tests, and Backend is not closed.
	Dial    func(ctx context.Context, cfg esl.Config) (Switch, error)
	Backend registry.Backend

	// DNSPort is where name servers on other machines are asked; 0 means 53.
	DNSPort uint16
}

// patient is one run.
type patient struct {
	o   Options
	cfg *config.Config

	mu      sync.Mutex
	results map[string][]Result // by group

	// What the first round found, for the second one.
	sw     Switch // nil: not reached
	nodes  map[pbxmesh.NodeID]member
	daemon *control.Client // nil: none configured
}

// member is a node that is known from the daemon or the registry.
type member struct {
	id     pbxmesh.NodeID
	mesh   netip.AddrPort
	wanted string // "in service" or what the operator asked for; "" when unknown
}

// order is that of the report.
var order = []string{
	"configuration", "event socket", "sofia profiles", "mesh profile", "mesh settings", "keep-alives", "domain", "mesh list", "mesh strangers", "mesh port",
	"registry", "replica", "lease", "clock", "control API", "file descriptors", "name server", "zone keys", "call",
}

// Run makes all checks, those that do not need one another at the same time, and
// returns within about two timeouts, four when a call was asked for. It returns an
// error only when ctx ends.
func Run(ctx context.Context, o Options) (*Report, error) {
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.DNSPort == 0 {
		o.DNSPort = 53
	}
	if o.Dial == nil {
		o.Dial = func(ctx context.Context, cfg esl.Config) (Switch, error) { return esl.Dial(ctx, cfg) }
	}
	p := &patient{o: o, cfg: o.Config, results: map[string][]Result{}, nodes: map[pbxmesh.NodeID]member{}}
	p.configuration()
	p.together(ctx, p.eventSocket, p.store, p.controlAPI, p.nameServers, p.zoneKeys)
	defer func() {
		if p.sw != nil {
			_ = p.sw.Close()
		}
	}()
	second := []func(context.Context){p.meshPorts}
	if p.cfg.Node != nil {
		second = append(second, p.profiles, p.settings, p.list, p.strangers)
	}
	p.together(ctx, second...)
	if !o.Call.IsZero() {
		p.call(ctx)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return p.report(), nil
}

// together runs checks at the same time, each under its timeout, and waits for all.
func (p *patient) together(ctx context.Context, checks ...func(context.Context)) {
	var wg sync.WaitGroup
	for _, check := range checks {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, p.o.Timeout)
			defer cancel()
			check(ctx)
		})
	}
	wg.Wait()
}

// say notes a result. took starts with the check; name is the group's, or the
// group's with more behind it.
func (p *patient) say(group, name string, since time.Time, r Result) {
	r.Check, r.Took = name, control.SecondsOf(time.Since(since))
	p.mu.Lock()
	defer p.mu.Unlock()
	p.results[group] = append(p.results[group], r)
	if p.o.Progress != nil {
		p.o.Progress(r)
	}
}

func (p *patient) report() *Report {
	out := &Report{Name: p.cfg.Name, Checks: []Result{}}
	if p.cfg.Node != nil {
		out.Node = p.cfg.Node.ID
	}
	for _, group := range order {
		for _, r := range p.results[group] {
			out.Checks = append(out.Checks, r)
			out.Failed = out.Failed || r.Status == Fail
		}
	}
	return out
}

// learn adds a node. What the daemon says wins over what the registry says, because
// it knows what the operator wants of the node.
func (p *patient) learn(m member) {
	if !m.mesh.IsValid() {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if old, known := p.nodes[m.id]; !known || old.wanted == "" {
		p.nodes[m.id] = m
	}
}

func (p *patient) configuration() {
	start := time.Now()
	role := "a name server and observer"
	if p.cfg.Node != nil {
		role = "node " + string(p.cfg.Node.ID) + ", mesh address " + p.cfg.Node.MeshAddress.String()
	}
	warnings := p.cfg.Warnings()
	if len(warnings) == 0 {
		p.say("configuration", "configuration", start, ok("%s, registry %s", role, p.cfg.Registry.Mode()))
	}
	for _, w := range warnings {
		p.say("configuration", "configuration", start, warn(w, "change it if it is not meant"))
	}
}

// loopback replaces the unspecified address, which is where a daemon listens and not
// where it can be asked.
func loopback(at netip.AddrPort) netip.AddrPort {
	switch {
	case !at.Addr().IsUnspecified():
		return at
	case at.Addr().Is4():
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	default:
		return netip.AddrPortFrom(netip.IPv6Loopback(), at.Port())
	}
}

// plain shortens an error of the network to its cause.
func plain(err error) string {
	var op *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "no answer in time"
	case errors.As(err, &op):
		return op.Err.Error()
	default:
		return fmt.Sprint(err)
	}
}

var discard = slog.New(slog.DiscardHandler)
