package redirect

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const domain = "pbx.test"

var loopback = netip.MustParseAddrPort("127.0.0.1:0")

// world is a Directory, Nodes and Chooser that a test changes while calls come.
type world struct {
	mu     sync.Mutex
	regs   map[string][]*pbxmesh.Registration
	mesh   *pbxmesh.Mesh
	err    error
	choice []pbxmesh.NodeID
}

// newWorld knows three nodes, all of them up, and nobody.
func newWorld() *world {
	w := &world{regs: map[string][]*pbxmesh.Registration{}, mesh: &pbxmesh.Mesh{
		Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{},
	}}
	for i, id := range []pbxmesh.NodeID{"buffalo", "london", "singapore"} {
		w.mesh.Nodes[id] = pbxmesh.Node{
			ID: id, Mesh: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(10 * (i + 1))}), 5090),
			Addresses: []netip.Addr{
				netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1)),
				netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}),
			},
			Ports: pbxmesh.SIPPorts{UDP: 5060, TCP: 5061},
		}
		w.mesh.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
	}
	return w
}

// register puts a device of user on each of the nodes.
func (w *world) register(t testing.TB, user, domain string, nodes ...pbxmesh.NodeID) {
	t.Helper()
	aor, err := pbxmesh.NewAOR(user, domain)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range nodes {
		w.regs[aor.String()] = append(w.regs[aor.String()], &pbxmesh.Registration{
			AOR: aor, Node: n, CallID: fmt.Sprintf("%s-%s-%d", user, n, len(w.regs[aor.String()])), Expires: time.Now().Add(time.Hour),
		})
	}
}

// observe sets what is seen of a node.
func (w *world) observe(id pbxmesh.NodeID, o pbxmesh.Observed) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := *w.mesh
	m.States = maps.Clone(m.States)
	m.States[id] = pbxmesh.NodeState{Observed: o}
	w.mesh = &m
}

func (w *world) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err = err
}

func (w *world) Lookup(_ context.Context, aor pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, 0, w.err
	}
	if regs := w.regs[aor.String()]; regs != nil {
		return regs, time.Second, nil
	}
	return nil, time.Second, pbxmesh.ErrNotRegistered
}

func (w *world) Mesh() *pbxmesh.Mesh {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mesh
}

func (w *world) Choose(netip.Addr) []pbxmesh.NodeID { return w.choice }

func (w *world) options() Options {
	return Options{Directory: w, Nodes: w, UDP: []netip.AddrPort{loopback}}
}

// newServer makes a server and lets it serve until the test ends.
func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(s.Shutdown(ctx), <-served); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if n := s.Stats().Panics; n != 0 {
			t.Errorf("%d panics", n)
		}
	})
	return s
}

// message joins lines to a request; "\n" is written as CRLF.
func message(lines ...string) string {
	return strings.ReplaceAll(strings.Join(lines, "\n")+"\n\n", "\n", "\r\n")
}

// invite is a request as a carrier sends it; extra lines come at its end.
func invite(method, uri string, extra ...string) string {
	cseq := method
	return message(append([]string{
		method + " " + uri + " SIP/2.0",
		"Via: SIP/2.0/UDP 127.0.0.1:5999;branch=z9hG4bK-1;rport",
		"Max-Forwards: 70",
		"From: \"Carrier\" <sip:+17165550000@carrier.test>;tag=abc",
		"To: <" + uri + ">",
		"Call-ID: call-1@carrier.test",
		"CSeq: 7 " + cseq,
		"Contact: <sip:+17165550000@127.0.0.1:5999>",
		"Content-Length: 0",
	}, extra...)...)
}

// client is a UDP socket that asks a server.
type client struct {
	t    testing.TB
	conn *net.UDPConn
}

func newClient(t testing.TB, to netip.AddrPort) *client {
	t.Helper()
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &client{t, c}
}

// ask sends a request and returns the answer to it.
func (c *client) ask(request string) string {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(request)); err != nil {
		c.t.Fatal(err)
	}
	return c.read()
}

func (c *client) read() string {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 65535)
	n, err := c.conn.Read(buf)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return string(buf[:n])
}

// silent sends requests that must not be answered, and finds out by one that is.
func (c *client) silent(requests ...string) {
	c.t.Helper()
	for _, r := range requests {
		if _, err := c.conn.Write([]byte(r)); err != nil {
			c.t.Fatal(err)
		}
	}
	const mark = "call-mark"
	got := c.ask(strings.Replace(invite("OPTIONS", "sip:mark@pbx.test"), "call-1", mark, 1))
	if !strings.Contains(got, mark) {
		c.t.Errorf("answered:\n%s", got)
	}
}
