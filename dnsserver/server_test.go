package dnsserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/fixtures"
)

// startServer serves z until the test ends.
func startServer(t testing.TB, z *Zone, change ...func(*Options)) (*Server, string) {
	t.Helper()
	o := Options{Zone: z}
	for _, f := range change {
		f(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return s, s.Addrs()[0].String()
}

func exchange(t testing.TB, network, addr, name string, qtype uint16) *dns.Msg {
	t.Helper()
	req := new(dns.Msg)
	req.SetQuestion(name, qtype)
	c := dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(req, addr)
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return m
}

func TestServerUDPAndTCP(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0", "0.0.0.0:0", ":0"} {
		t.Run(listen, func(t *testing.T) {
			t.Parallel()
			if c, err := net.Listen("tcp", listen); err != nil {
				t.Skipf("SKIPPED: cannot bind %s here: %v", listen, err)
			} else {
				_ = c.Close()
			}
			z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
			s, _ := startServer(t, z, func(o *Options) { o.Listen = []string{listen} })
			a := s.Addrs()[0]
			host := a.Addr()
			if host.IsUnspecified() {
				// Not the address the kernel would choose by itself: the answer must
				// come from where the question went.
				host = netip.MustParseAddr("127.0.0.2")
			}
			addr := netip.AddrPortFrom(host, a.Port()).String()
			for _, network := range []string{"udp", "tcp"} {
				if got := brief(exchange(t, network, addr, "pbx.example.com.", dns.TypeA).Answer); got != "pbx.example.com. 30 A 192.0.2.1" {
					t.Errorf("%s: %s", network, got)
				}
			}
			if st := s.Stats(); st.UDP != 1 || st.TCP != 1 || st.Queries["A"] != 2 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestServerTCPPipelining(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	_, addr := startServer(t, z)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var out []byte
	const n = 100
	for i := range n {
		req := new(dns.Msg)
		req.SetQuestion("pbx.example.com.", dns.TypeNAPTR)
		req.Id = uint16(i)
		p, _ := req.Pack()
		out = binary.BigEndian.AppendUint16(out, uint16(len(p)))
		out = append(out, p...)
	}
	go func() { // in pieces that do not match the messages
		for len(out) > 0 {
			k := min(37, len(out))
			if _, err := c.Write(out[:k]); err != nil {
				return
			}
			out = out[k:]
		}
	}()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	conn := &dns.Conn{Conn: c}
	for i := range n {
		m, err := conn.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if m.Id != uint16(i) || len(m.Answer) != 5 {
			t.Fatalf("answer %d: %v", i, m)
		}
	}
}

func TestServerTCPLimits(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	_, addr := startServer(t, z, func(o *Options) {
		o.MaxTCPPerClient, o.TCPTimeout, o.TCPIdle = 2, 2*time.Second, 2*time.Second
	})
	closed := func(c net.Conn) error {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := c.Read(make([]byte, 1))
		return err
	}
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	begin := time.Now()
	if err := closed(conns[2]); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("the third connection: %v, want closed", err)
	}
	if _, err := conns[0].Write([]byte{0, 100, 1}); err != nil { // a query that never ends
		t.Fatal(err)
	}
	for i, c := range conns[:2] {
		if err := closed(c); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("silent connection %d: %v, want closed", i, err)
		}
	}
	if d := time.Since(begin); d > 20*time.Second {
		t.Errorf("closed after %v", d)
	}
	if z.Stats().TCPRefused != 1 {
		t.Errorf("refused %d, want 1", z.Stats().TCPRefused)
	}
	exchange(t, "tcp", addr, "pbx.example.com.", dns.TypeA) // room again
}

func TestServerGarbage(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))
	_, addr := startServer(t, z)
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range 300 {
		_, _ = c.Write(bytes.Repeat([]byte{byte(i)}, i*10))
	}
	req := new(dns.Msg)
	req.SetQuestion("pbx.example.com.", dns.TypeA)
	client := dns.Client{Timeout: time.Second}
	for try := 0; ; try++ { // the kernel may lose the first ones while its buffer is full
		m, _, err := client.Exchange(req, addr)
		if err == nil && len(m.Answer) == 1 {
			break
		}
		if try == 5 {
			t.Fatalf("no answer after the garbage: %v", err)
		}
	}
	if m := exchange(t, "tcp", addr, "pbx.example.com.", dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("tcp: %v", m)
	}
}

type crashingSource struct{}

func (crashingSource) Mesh() *pbxmesh.Mesh { panic("no mesh today") }

func TestServerSurvivesPanics(t *testing.T) {
	t.Parallel()
	z, err := NewZone(testZoneOptions(t, crashingSource{}))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	_, addr := startServer(t, z, func(o *Options) {
		o.Readers = 1
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	})
	for range 2 {
		if m := exchange(t, "udp", addr, "pbx.example.com.", dns.TypeA); m.Rcode != dns.RcodeServerFailure {
			t.Errorf("%v", m)
		}
	}
	if z.Stats().Crashes != 2 {
		t.Errorf("%d crashes counted, want 2", z.Stats().Crashes)
	}
}

func TestSwapUnderTraffic(t *testing.T) {
	t.Parallel()
	z, src := newTestZone(t, fixtures.ThreeTowns(nil))
	_, addr := startServer(t, z)
	down := fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{buffalo: {Observed: pbxmesh.ObservedDown}})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				// Every answer comes from one snapshot: address and TTL fit together.
				got := brief(exchange(t, "udp", addr, "pbx.example.com.", dns.TypeA).Answer)
				if got != "pbx.example.com. 30 A 192.0.2.1" && got != "pbx.example.com. 15 A 192.0.2.2" {
					t.Errorf("mixed answer %s", got)
					return
				}
			}
		})
	}
	for i := range 50 {
		mesh := fixtures.ThreeTowns(nil)
		want := "pbx.example.com. 30 A 192.0.2.1"
		if i%2 == 0 {
			mesh, want = down, "pbx.example.com. 15 A 192.0.2.2"
		}
		src.mesh.Store(mesh)
		if got := brief(exchange(t, "udp", addr, "pbx.example.com.", dns.TypeA).Answer); got != want {
			t.Errorf("after the swap: %s, want %s", got, want)
		}
	}
	close(stop)
	wg.Wait()
}

func TestServerLifecycle(t *testing.T) {
	t.Parallel()
	z, _ := newTestZone(t, fixtures.ThreeTowns(nil))

	// Never served.
	s, err := New(Options{Zone: z, Listen: []string{"127.0.0.1:0", "127.0.0.2:0"}})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Addrs()) != 2 {
		t.Errorf("addresses %v", s.Addrs())
	}
	for range 2 {
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := s.Serve(); err != nil {
		t.Errorf("serve after shutdown: %v", err)
	}

	// The port is free again, and taken once served.
	addr := s.Addrs()[0].String()
	s, err = New(Options{Zone: z, Listen: []string{addr}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Zone: z, Listen: []string{addr}}); err == nil || !strings.Contains(err.Error(), "bind "+addr) {
		t.Errorf("the same port twice: %v", err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	exchange(t, "tcp", addr, "pbx.example.com.", dns.TypeA)

	// A client that says nothing does not hold up the shutdown.
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	if err := s.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("shutdown took %v", d)
	}
	if err := s.Serve(); err == nil {
		t.Error("served twice")
	}

	for _, o := range []Options{{}, {Zone: z, Listen: []string{"nonsense"}}, {Zone: z, MaxTCP: -1}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

func TestPanicRuleIsLoudButNotPerQuery(t *testing.T) {
	t.Parallel()
	s := &source{}
	s.mesh.Store(fixtures.ThreeTowns(map[pbxmesh.NodeID]pbxmesh.NodeState{
		buffalo: {Observed: pbxmesh.ObservedDown}, london: {Observed: pbxmesh.ObservedDown}, singapore: {Observed: pbxmesh.ObservedDown}}))
	o := testZoneOptions(t, s)
	var log syncBuffer
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	z, err := NewZone(o)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		ask(t, z, defaultClient, "pbx.example.com.", dns.TypeA)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d log lines, want 1:\n%s", n, log.String())
	}
	if z.Stats().PanicRule != 100 {
		t.Errorf("%d answers counted, want 100", z.Stats().PanicRule)
	}

	// Answers that stand packed in the cache count as well, and a panic that lasts is
	// logged anew.
	_, addr := startServer(t, z)
	client := dns.Client{Timeout: 5 * time.Second}
	conn, err := client.Dial(addr) // one socket is one worker with one cache
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i := range 50 {
		if i == 25 {
			z.panics.next.Store(0) // ten seconds are over
		}
		if _, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion("pbx.example.com.", dns.TypeA), conn); err != nil {
			t.Fatal(err)
		}
	}
	if s := z.Stats(); s.CacheHits < 10 || s.PanicRule < 149 || s.PanicRule > 152 {
		t.Errorf("%d hits, %d answers counted, want 150 and at most one more for each answer that was not kept", s.CacheHits, s.PanicRule)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 2 {
		t.Errorf("%d log lines, want 2:\n%s", n, log.String())
	}
}
