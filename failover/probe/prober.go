package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// Prober probes the members it was given last.
type Prober struct {
	opts Options
	link link

	mu      sync.Mutex
	targets map[target]*running       // nil until Run started it
	rows    map[netip.AddrPort][]*row // that wait for an answer
	runCtx  context.Context           // nil unless running
	closed  bool
	wg      sync.WaitGroup // targets' goroutines

	slots chan struct{}
}

// target is one probed address. Two nodes may share one by mistake; each is
// probed on its own account.
type target struct {
	node pbxmesh.NodeID
	path failover.Path
	addr netip.AddrPort
}

// running is the goroutine of a target.
type running struct {
	cancel context.CancelFunc
	hurry  chan struct{} // a token: probe at once
}

// New binds the socket and starts nothing: Run does. A Prober that is not run is
// released by Close.
func New(o Options) (*Prober, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	o.Logger = o.Logger.With("component", "probe")
	s, err := listen(o.Local, o.Logger)
	if err != nil {
		return nil, fmt.Errorf("probe: bind %v, choose another local address: %w", o.Local, err)
	}
	return newProber(o, s), nil
}

func newProber(o Options, l link) *Prober {
	return &Prober{
		opts:    o,
		link:    l,
		targets: make(map[target]*running),
		rows:    make(map[netip.AddrPort][]*row),
		slots:   make(chan struct{}, o.MaxInFlight),
	}
}

// Addr returns the socket's address.
func (p *Prober) Addr() netip.AddrPort { return p.link.addr() }

// Close releases the socket of a Prober that is not running. After Run has
// returned it does nothing. It is idempotent.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runCtx != nil || p.closed {
		return nil
	}
	p.closed = true
	return p.link.Close()
}

// SetMembers probes nodes from now on and nobody else. An address that stays is
// not disturbed in its rhythm.
func (p *Prober) SetMembers(nodes []pbxmesh.Node) {
	want := make(map[target]bool)
	for _, n := range nodes {
		phones := len(n.Addresses) > 0 && n.Ports.UDP != 0
		if phones {
			want[target{n.ID, failover.PathPhones, netip.AddrPortFrom(n.Addresses[0].Unmap(), n.Ports.UDP)}] = true
		}
		if n.Mesh.IsValid() && n.Mesh.Port() != 0 && (p.opts.Mesh || !phones) {
			want[target{n.ID, failover.PathMesh, netip.AddrPortFrom(n.Mesh.Addr().Unmap(), n.Mesh.Port())}] = true
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, r := range p.targets {
		if !want[t] {
			delete(p.targets, t)
			if r != nil {
				r.cancel()
			}
		}
	}
	for t := range want {
		if _, ok := p.targets[t]; !ok {
			p.targets[t] = nil
			p.startLocked(t)
		}
	}
}

// startLocked starts t's goroutine when the prober is running.
func (p *Prober) startLocked(t target) {
	if p.runCtx == nil || p.closed {
		return
	}
	ctx, cancel := context.WithCancel(p.runCtx)
	r := &running{cancel: cancel, hurry: make(chan struct{}, 1)}
	p.targets[t] = r
	p.wg.Go(func() {
		defer cancel()
		w := watch{p: p, target: t}
		w.run(ctx, r.hurry)
	})
}

// Hurry has the addresses of a node probed at once, unless a probe of them is under
// way or began less than half its wait ago. It does not block.
func (p *Prober) Hurry(id pbxmesh.NodeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t, r := range p.targets {
		if t.node != id || r == nil {
			continue
		}
		select {
		case r.hurry <- struct{}{}:
		default:
		}
	}
}

// Run probes until ctx ends, then waits for all that it started and closes the
// socket. It returns nil after ctx ended. Nothing that the network or the kernel says
// ends it. It may be called once.
func (p *Prober) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	p.mu.Lock()
	if p.closed || p.runCtx != nil {
		p.mu.Unlock()
		return errors.New("probe: run called twice or after close")
	}
	p.runCtx = ctx
	for t := range p.targets {
		p.startLocked(t)
	}
	p.mu.Unlock()
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.link.serve(p.heard, p.quoted)
	}()

	<-ctx.Done()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
	err := p.link.Close()
	<-served
	return err
}

// expect has answers to the requests of r handed to it.
func (p *Prober) expect(r *row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rows[r.to] = append(p.rows[r.to], r)
}

func (p *Prober) forget(r *row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := slices.DeleteFunc(p.rows[r.to], func(o *row) bool { return o == r })
	if len(rest) == 0 {
		delete(p.rows, r.to)
		return
	}
	p.rows[r.to] = rest
}

// heard hands an answer to whom it belongs; all other packets are dropped.
func (p *Prober) heard(packet []byte, from netip.AddrPort) {
	at := time.Now()
	code := finalStatus(packet)
	if code == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.rows[from] {
		if n := numberIn(packet, r.id); n > 0 {
			select {
			case r.answers <- answer{number: n, code: code, at: at}:
			default: // one is enough
			}
		}
	}
}

// quoted hands a refusal to whom it belongs, and reports whether an ICMP error is about
// one of our packets.
func (p *Prober) quoted(e icmpError) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range p.rows[e.to] {
		n := numberIn(e.quoted, r.id)
		if n == 0 {
			continue
		}
		if e.refusal {
			select {
			case r.refusals <- n:
			default:
			}
		}
		return true
	}
	return false
}
