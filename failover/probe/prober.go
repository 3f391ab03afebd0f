package probe

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/emiago/sipgo"
	"github.com/emiago/sipgo/sip"

	"pbxmesh"
	"pbxmesh/failover"
)

// Defaults of Options.
const (
	DefaultInterval    = time.Second
	DefaultTimeout     = 500 * time.Millisecond
	DefaultMaxInFlight = 64

	// copies of a request are sent within one probe while no answer comes, one every
	// Timeout/copies. With 30 % of the packets lost in each direction one round trip
	// fails with probability 1 - 0.7^2 = 0.51, five with 0.51^5 = 0.035, and three
	// probes in a row with 4e-5. See docs/failover.md.
	copies = 5

	// maxQuick bounds the quick probes after a failed one: long enough for every
	// verdict, not for days.
	maxQuick = 20
)

// Options configure a Prober.
type Options struct {
	// Local is the address probes leave from; the zero value means any address
	// and a port of the kernel's choice. The nodes' mesh ACL must let it in when
	// Mesh is set.
	Local netip.AddrPort

	// Interval between two probes of one address, 100 ms to 1 h, each jittered by
	// a tenth either way; 0 means DefaultInterval.
	Interval time.Duration

	// Timeout of one probe; 0 means DefaultTimeout or, with a short interval, four
	// fifths of it. At most nine tenths of Interval, so that two probes of one
	// address never overlap. The request is sent again every fifth of it while no
	// answer comes. After a failed probe the next one begins a Timeout after the failed
	// one began, at once when that is over.
	Timeout time.Duration

	// Mesh also probes every node's mesh address. A node without a UDP port for
	// phones is probed there in any case.
	Mesh bool

	// MaxInFlight bounds the probes under way at one time; 0 means
	// DefaultMaxInFlight. Who finds none free waits and is probed late.
	MaxInFlight int

	// OnResult gets every result, from several goroutines at once. It must not
	// block: the next probe of that address waits for it.
	OnResult func(failover.ProbeResult)

	// Logger may be nil.
	Logger *slog.Logger
}

func (o *Options) setDefaults() error {
	if o.Interval == 0 {
		o.Interval = DefaultInterval
	}
	if o.Timeout == 0 {
		o.Timeout = min(DefaultTimeout, o.Interval*4/5)
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.OnResult == nil:
		return errors.New("probe: no receiver for results; set OnResult")
	case o.Interval < 100*time.Millisecond || o.Interval > time.Hour:
		return fmt.Errorf("probe: interval %v, 100ms to 1h are allowed", o.Interval)
	case o.Timeout < 10*time.Millisecond || o.Timeout > o.Interval*9/10:
		return fmt.Errorf("probe: timeout %v, 10ms to nine tenths of the interval %v are allowed", o.Timeout, o.Interval)
	case o.MaxInFlight < 1:
		return fmt.Errorf("probe: at most %d probes in flight, at least 1 is needed", o.MaxInFlight)
	}
	return nil
}

// Prober probes the members it was given last.
//
// One sipgo client transaction per probe costs 70 µs of processor and keeps timers E and
// K of RFC 3261 out of our code. What sipgo would do badly is kept from it by the
// socket wrapper (see socket): it ends its read loop at the first ICMP error,
// remembers every address that ever sent a packet, and starts a goroutine and a
// 32 s transaction for every request from a stranger.
type Prober struct {
	opts Options
	sock *socket

	mu      sync.Mutex
	targets map[target]*running          // nil until Run started it
	flights map[netip.AddrPort][]*flight // probes under way
	runCtx  context.Context              // nil unless running
	closed  bool
	wg      sync.WaitGroup // targets' goroutines

	slots  chan struct{}
	client *sipgo.Client
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

// flight is one probe under way.
type flight struct {
	refuse context.CancelCauseFunc
	callID string
	sent   chan []byte // the packet, once sipgo has sent it; capacity 1
}

// New binds the socket and starts nothing: Run does. A Prober that is not run is
// released by Close.
func New(o Options) (*Prober, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	o.Logger = o.Logger.With("component", "probe")
	p := &Prober{
		opts:    o,
		targets: make(map[target]*running),
		flights: make(map[netip.AddrPort][]*flight),
		slots:   make(chan struct{}, o.MaxInFlight),
	}
	sock, err := listen(o.Local, p.awaited, p.onRefused)
	if err == nil {
		sock.sent = p.onSent
	}
	if err != nil {
		return nil, fmt.Errorf("probe: bind %v, choose another local address: %w", o.Local, err)
	}
	p.sock = sock
	return p, nil
}

// Addr returns the socket's address.
func (p *Prober) Addr() netip.AddrPort { return p.sock.addr() }

// Close releases the socket of a Prober that is not running. After Run has
// returned it does nothing. It is idempotent.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runCtx != nil || p.closed {
		return nil
	}
	p.closed = true
	return p.sock.Close()
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
		p.loop(ctx, t, r.hurry)
	})
}

// Hurry has the addresses of a node probed at once, unless a probe of them is under
// way or began less than half a Timeout ago. It does not block.
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
// socket. It returns nil after ctx ended, and an error when the socket broke. It
// may be called once.
func (p *Prober) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	p.mu.Lock()
	if p.closed || p.runCtx != nil {
		p.mu.Unlock()
		return errors.New("probe: run called twice or after close")
	}
	ua, err := p.newClient()
	if err != nil {
		p.mu.Unlock()
		return err
	}
	served := make(chan error, 1)
	go func() { served <- ua.TransportLayer().ServeUDP(p.sock) }()
	// sipgo registers the socket before it reads from it. A request before that
	// would make it bind a second socket to the same port and fail.
	<-p.sock.reading
	p.runCtx = ctx
	for t := range p.targets {
		p.startLocked(t)
	}
	p.mu.Unlock()

	var broken error
	ended := false
	select {
	case <-ctx.Done():
	case err := <-served:
		ended, broken = true, fmt.Errorf("probe: the socket %v stopped reading: %w", p.Addr(), errors.Join(err, p.sock.err()))
	}
	stop()
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.wg.Wait()
	errClose := p.sock.Close()
	if !ended {
		<-served //nolint:errcheck // we ended it ourselves
	}
	// After the reader, or a late answer would find the layer gone.
	return errors.Join(broken, errClose, ua.Close())
}

func (p *Prober) newClient() (*sipgo.UserAgent, error) {
	quiet := slog.New(slog.DiscardHandler) // results say it all, and name the node
	ua, err := sipgo.NewUA(
		sipgo.WithUserAgent("pbxmesh"),
		sipgo.WithUserAgentHostname(p.sentBy()),
		sipgo.WithUserAgentTransportLayerOptions(sip.WithTransportLayerLogger(quiet)),
		sipgo.WithUserAgentTransactionLayerOptions(
			sip.WithTransactionLayerLogger(quiet),
			// An answer that comes after its probe ended belongs to nobody.
			sip.WithTransactionLayerUnhandledResponseHandler(func(*sip.Response) {}),
		),
	)
	if err != nil {
		return nil, fmt.Errorf("probe: make a SIP user agent: %w", err)
	}
	local := p.Addr()
	p.client, err = sipgo.NewClient(ua,
		sipgo.WithClientLogger(quiet),
		sipgo.WithClientHostname(p.sentBy()),
		sipgo.WithClientPort(int(local.Port())),
		sipgo.WithClientNAT(), // rport, RFC 3581: answers come back to this very port
		sipgo.WithClientConnectionAddr(p.sock.LocalAddr().String()),
	)
	if err != nil {
		return nil, fmt.Errorf("probe: make a SIP client: %w", err)
	}
	return ua, nil
}

// sentBy is the host of the Via header. A socket bound to any address has none to
// show; a name makes the far end add "received" and answer to where the request
// came from (RFC 3261 section 18.2.1).
func (p *Prober) sentBy() string {
	if a := p.Addr().Addr(); !a.IsUnspecified() {
		if a.Is6() {
			return "[" + a.String() + "]"
		}
		return a.String()
	}
	return "pbxmesh.invalid"
}

// loop probes t until ctx ends. The first delay is random within one interval, so
// that a hundred nodes are not asked, and do not ask, in the same instant.
func (p *Prober) loop(ctx context.Context, t target, hurry <-chan struct{}) {
	timer := time.NewTimer(rand.N(p.opts.Interval))
	defer timer.Stop()
	var start time.Time // of the last probe
	failed := 0         // in a row
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-hurry:
			// Who has just probed knows; and nobody can make us probe all the time.
			if since := time.Since(start); since < p.opts.Timeout/2 {
				timer.Reset(p.opts.Timeout/2 - since)
				continue
			}
		}
		select {
		case <-ctx.Done():
			return
		case p.slots <- struct{}{}:
		}
		start = time.Now()
		result := p.probe(ctx, t)
		<-p.slots
		if ctx.Err() != nil {
			return // our end, not the node's: says nothing about it
		}
		p.opts.OnResult(result)
		pause := p.opts.Interval
		switch result.Outcome {
		case failover.OutcomeOK, failover.OutcomeOverloaded:
			failed = 0
		default:
			if failed++; failed <= maxQuick {
				pause = p.opts.Timeout
			}
		}
		select {
		case <-hurry: // what came in meanwhile is answered
		default:
		}
		timer.Reset(max(0, jitter(pause, rand.Float64())-time.Since(start)))
	}
}

// jitter returns d, a tenth more or less, for r in [0, 1).
func jitter(d time.Duration, r float64) time.Duration {
	return d*9/10 + time.Duration(r*float64(d)/5)
}

var errRefused = errors.New("ICMP says that nobody listens there")

// probe sends one OPTIONS to t and waits for its end, at most Timeout.
func (p *Prober) probe(ctx context.Context, t target) failover.ProbeResult {
	ctx, cancel := context.WithTimeout(ctx, p.opts.Timeout)
	defer cancel()
	ctx, refuse := context.WithCancelCause(ctx)
	defer refuse(nil)
	req := newOptions(t.addr)
	f := &flight{refuse: refuse, callID: req.CallID().Value(), sent: make(chan []byte, 1)}
	p.takeOff(t.addr, f)
	defer p.land(t.addr, f)

	r := failover.ProbeResult{Node: t.node, Path: t.path}
	start := time.Now()
	answered := make(chan struct{})
	repeated := make(chan int, 1)
	go func() { repeated <- p.repeat(ctx, f, t.addr, answered) }()
	res, err := p.client.Do(ctx, req)
	r.At = time.Now()
	close(answered)
	r.Sent = 1 + <-repeated
	if err != nil {
		r.Outcome, r.Err = classify(ctx, err)
		return r
	}
	r.RTT = r.At.Sub(start)
	r.Code = res.StatusCode
	r.Outcome = outcomeOf(res.StatusCode)
	if r.Outcome == failover.OutcomeError {
		r.Err = fmt.Errorf("probe: OPTIONS to %s answered %d %s", t.addr, res.StatusCode, res.Reason)
	}
	return r
}

// repeat sends the packet of f again and again until answered is closed or ctx ends,
// and returns how often. sipgo would do it by timer E of RFC 3261, which is one for
// the whole program and too slow to tell loss from silence within a probe.
func (p *Prober) repeat(ctx context.Context, f *flight, addr netip.AddrPort, answered <-chan struct{}) int {
	var packet []byte
	select {
	case packet = <-f.sent:
	case <-answered:
		return 0
	case <-ctx.Done():
		return 0
	}
	tick := time.NewTicker(p.opts.Timeout / copies)
	defer tick.Stop()
	to := net.UDPAddrFromAddrPort(addr)
	for n := 0; ; n++ {
		if n == copies-1 {
			return n
		}
		select {
		case <-tick.C:
		case <-answered:
			return n
		case <-ctx.Done():
			return n
		}
		// An error is that of the first copy, or a timeout soon.
		_, _ = p.sock.write(packet, to)
	}
}

// onSent keeps the packet of a probe, to be sent again.
func (p *Prober) onSent(packet []byte, addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flights[addr] {
		if bytes.Contains(packet, []byte(f.callID)) {
			select {
			case f.sent <- bytes.Clone(packet):
			default:
			}
		}
	}
}

func newOptions(addr netip.AddrPort) *sip.Request {
	host := addr.Addr().String()
	if addr.Addr().Is6() {
		host = "[" + host + "]"
	}
	req := sip.NewRequest(sip.OPTIONS, sip.Uri{Scheme: "sip", Host: host, Port: int(addr.Port())})
	req.SetTransport("UDP")
	req.SetDestination(addr.String())
	id := sip.CallIDHeader(crand.Text())
	req.AppendHeader(&id)
	return req
}

// outcomeOf is the one table from SIP status codes to outcomes.
func outcomeOf(code int) failover.Outcome {
	switch {
	case code == sip.StatusServiceUnavailable:
		return failover.OutcomeOverloaded
	case code == sip.StatusNotImplemented, code >= 200 && code < 500, code >= 600:
		return failover.OutcomeOK
	default:
		return failover.OutcomeError // 500 and its like: it answers, and says that it is broken
	}
}

func classify(ctx context.Context, err error) (failover.Outcome, error) {
	switch {
	case errors.Is(context.Cause(ctx), errRefused):
		return failover.OutcomeRefused, errRefused
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, sip.ErrTransactionTimeout):
		return failover.OutcomeTimeout, context.DeadlineExceeded
	default:
		return failover.OutcomeError, fmt.Errorf("probe: send OPTIONS: %w", err)
	}
}

func (p *Prober) takeOff(addr netip.AddrPort, f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flights[addr] = append(p.flights[addr], f)
}

func (p *Prober) land(addr netip.AddrPort, f *flight) {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := slices.DeleteFunc(p.flights[addr], func(g *flight) bool { return g == f })
	if len(rest) == 0 {
		delete(p.flights, addr)
		return
	}
	p.flights[addr] = rest
}

// awaited reports whether a probe of addr is under way; packets from anybody
// else are dropped before they are parsed.
func (p *Prober) awaited(addr netip.AddrPort) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.flights[addr]) > 0
}

// onRefused ends the probes of addr that are under way.
func (p *Prober) onRefused(addr netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.flights[addr] {
		f.refuse(errRefused)
	}
}

var _ net.PacketConn = (*socket)(nil)
