package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// responder answers every OPTIONS with a status line; "" is silence.
type responder struct {
	t      testing.TB
	conn   *net.UDPConn
	status atomic.Value                         // string
	drop   atomic.Int32                         // requests to lose before answering
	delay  atomic.Int64                         // of the answers, as a long path has it
	before atomic.Pointer[func(request string)] // nil, or called before each answer

	mu       sync.Mutex
	requests []string
	sources  map[string]bool
	done     chan struct{}
}

func newResponder(t testing.TB, host, status string) *responder {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(host), 0)))
	if err != nil {
		t.Skipf("SKIPPED: no address %s on this machine: %v", host, err)
	}
	r := &responder{t: t, conn: conn, sources: make(map[string]bool), done: make(chan struct{})}
	r.status.Store(status)
	go r.serve()
	t.Cleanup(r.close)
	return r
}

func (r *responder) close() {
	_ = r.conn.Close()
	<-r.done
}

// refuse makes the kernel refuse every packet to r, as when nobody listens there. The
// port stays ours: a connected socket takes from its peer alone, and whoever binds to a
// port of the kernel's choice gets another one.
func (r *responder) refuse() {
	r.t.Helper()
	raw, err := r.conn.SyscallConn()
	if err != nil {
		r.t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = syscall.Connect(int(fd), &syscall.SockaddrInet4{Port: 1, Addr: [4]byte{127, 0, 0, 1}})
	})
	if err := errors.Join(err, failed); err != nil {
		r.t.Fatal(err)
	}
}

func (r *responder) addr() netip.AddrPort { return r.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

func (r *responder) serve() {
	defer close(r.done)
	buf := make([]byte, 4096)
	for {
		n, from, err := r.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		req := string(buf[:n])
		r.mu.Lock()
		r.requests = append(r.requests, req)
		r.sources[from.String()] = true
		r.mu.Unlock()
		if before := r.before.Load(); before != nil {
			(*before)(req)
		}
		status := r.status.Load().(string)
		if r.drop.Add(-1) >= 0 || status == "" {
			continue
		}
		time.AfterFunc(time.Duration(r.delay.Load()), func() { _, _ = r.conn.WriteToUDPAddrPort(reply(req, status), from) })
	}
}

// reply copies what RFC 3261 section 8.2.6.2 says a response copies.
func reply(req, status string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "SIP/2.0 %s\r\n", status)
	for line := range strings.SplitSeq(req, "\r\n") {
		name, _, _ := strings.Cut(line, ":")
		switch name {
		case "Via", "From", "Call-ID", "CSeq":
			b.WriteString(line + "\r\n")
		case "To":
			b.WriteString(line + ";tag=x\r\n")
		}
	}
	b.WriteString("Content-Length: 0\r\n\r\n")
	return b.Bytes()
}

func (r *responder) node(id pbxmesh.NodeID) pbxmesh.Node {
	return pbxmesh.Node{ID: id, Addresses: []netip.Addr{r.addr().Addr()}, Ports: pbxmesh.SIPPorts{UDP: r.addr().Port()}}
}

// start runs a prober and returns its results. Those that say nothing, because this
// machine is busy, are left out.
func start(t *testing.T, o Options) (*Prober, <-chan failover.ProbeResult) {
	t.Helper()
	results := make(chan failover.ProbeResult, 1000)
	o.OnResult = func(r failover.ProbeResult) {
		if r.Outcome == failover.OutcomeLate {
			return
		}
		select {
		case results <- r:
		default:
		}
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return p, results
}

func await(t *testing.T, results <-chan failover.ProbeResult, want func(failover.ProbeResult) bool) failover.ProbeResult {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case r := <-results:
			if want(r) {
				return r
			}
		case <-deadline:
			t.Fatal("no such result in a minute")
		}
	}
}

// hurry asks for a probe of id until there is a result; the prober may not run yet.
func hurry(t *testing.T, p *Prober, id pbxmesh.NodeID, results <-chan failover.ProbeResult) failover.ProbeResult {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(time.Minute)
	for {
		p.Hurry(id)
		select {
		case r := <-results:
			return r
		case <-tick.C:
		case <-deadline:
			t.Fatal("no result in a minute")
		}
	}
}
