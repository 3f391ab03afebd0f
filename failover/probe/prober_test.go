package probe

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
	"pbxmesh/failover"
)

func TestMain(m *testing.M) {
	if text := os.Getenv(envObserver); text != "" {
		os.Exit(runObserver(text))
	}
	goleak.VerifyTestMain(m)
}

func TestOutcomes(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status string
		want   failover.Outcome
		code   int
	}{
		{"200 OK", failover.OutcomeOK, 200},
		{"401 Unauthorized", failover.OutcomeOK, 401},
		{"403 Forbidden", failover.OutcomeOK, 403},
		{"404 Not Found", failover.OutcomeOK, 404},
		{"405 Method Not Allowed", failover.OutcomeOK, 405},
		{"486 Busy Here", failover.OutcomeOK, 486},
		{"501 Not Implemented", failover.OutcomeOK, 501},
		{"503 Maximum Calls In Progress", failover.OutcomeOverloaded, 503},
		{"500 Server Internal Error", failover.OutcomeOK, 500},
		{"504 Server Time-out", failover.OutcomeOK, 504},
		{"513 Message Too Large", failover.OutcomeOK, 513},
		{"599", failover.OutcomeOK, 599},
		{"603 Decline", failover.OutcomeOK, 603},
		{"", failover.OutcomeTimeout, 0},
		{"nonsense", failover.OutcomeTimeout, 0},
		{"100 Trying", failover.OutcomeTimeout, 0},
		{"183 Session Progress", failover.OutcomeTimeout, 0},
		{"700 No Such Class", failover.OutcomeTimeout, 0},
		{"2000 OK", failover.OutcomeTimeout, 0},
	} {
		t.Run(tt.status, func(t *testing.T) {
			t.Parallel()
			r := newResponder(t, "127.0.0.1", tt.status)
			p, results := start(t, Options{Interval: 200 * time.Millisecond})
			p.SetMembers([]pbxmesh.Node{r.node("london")})
			got := await(t, results, func(failover.ProbeResult) bool { return true })
			if got.Outcome != tt.want || got.Code != tt.code || got.Node != "london" || got.Path != failover.PathPhones || got.At.IsZero() {
				t.Fatalf("got %+v, want %v with code %d", got, tt.want, tt.code)
			}
			if answered := tt.code != 0; (got.RTT > 0) != answered {
				t.Errorf("round trip %v with code %d", got.RTT, got.Code)
			}
			if failed := tt.want == failover.OutcomeTimeout || tt.want == failover.OutcomeError; (got.Err != nil) != failed {
				t.Errorf("error %v with outcome %v", got.Err, got.Outcome)
			}
		})
	}
}

// TestRefusedAtOnce shows that a closed port is known long before the timeout, and
// that neither the other nodes' probes nor the socket suffer from it.
func TestRefusedAtOnce(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("SKIPPED: ICMP errors are read on Linux only")
	}
	for _, local := range []string{"127.0.0.1:0", "[::]:0"} {
		t.Run(local, func(t *testing.T) {
			t.Parallel()
			dead := newResponder(t, "127.0.0.1", "200 OK")
			deadNode := dead.node("london")
			dead.refuse()
			alive := newResponder(t, "127.0.0.1", "200 OK")
			p, results := start(t, Options{Local: netip.MustParseAddrPort(local), Interval: 2 * time.Second, Timeout: 1800 * time.Millisecond})
			begin := time.Now()
			p.SetMembers([]pbxmesh.Node{deadNode})
			got := await(t, results, func(r failover.ProbeResult) bool { return r.Node == "london" })
			if got.Outcome != failover.OutcomeRefused {
				t.Fatalf("got %+v, want refused (after %v)", got, time.Since(begin))
			}
			p.SetMembers([]pbxmesh.Node{deadNode, alive.node("buffalo")})
			if got := await(t, results, func(r failover.ProbeResult) bool { return r.Node == "buffalo" }); got.Outcome != failover.OutcomeOK {
				t.Fatalf("the living node: %+v, want ok", got)
			}
		})
	}
}

// TestManyRefusals keeps errors pending on the socket while others are probed.
func TestManyRefusals(t *testing.T) {
	t.Parallel()
	var nodes []pbxmesh.Node
	for i := range 30 {
		r := newResponder(t, "127.0.0.1", "200 OK")
		n := r.node(pbxmesh.NodeID(fmt.Sprintf("n%d", i)))
		if i%3 != 0 {
			r.refuse()
		}
		nodes = append(nodes, n)
	}
	p, results := start(t, Options{Interval: 100 * time.Millisecond, MaxInFlight: 8})
	p.SetMembers(nodes)
	seen := make(map[pbxmesh.NodeID]int)
	await(t, results, func(r failover.ProbeResult) bool {
		var n int
		_, _ = fmt.Sscanf(string(r.Node), "n%d", &n)
		want := failover.OutcomeOK
		if n%3 != 0 {
			want = failover.OutcomeRefused
			if runtime.GOOS != "linux" {
				want = failover.OutcomeTimeout
			}
		}
		// The kernel limits ICMP per destination, so a refusal may be late. An answer
		// is late when the machine is busy; it does not count, and comes next time.
		if r.Outcome != want && r.Outcome != failover.OutcomeTimeout {
			t.Fatalf("%s: %+v, want %v", r.Node, r, want)
		}
		if r.Outcome == want || n%3 != 0 {
			seen[r.Node]++
		}
		for _, node := range nodes {
			if seen[node.ID] < 3 {
				return false
			}
		}
		return true
	})
}

func TestRequest(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			r := newResponder(t, host, "200 OK")
			p, results := start(t, Options{Interval: 100 * time.Millisecond})
			p.SetMembers([]pbxmesh.Node{r.node("london")})
			for range 3 {
				if got := await(t, results, func(failover.ProbeResult) bool { return true }); got.Outcome != failover.OutcomeOK {
					t.Fatalf("got %+v", got)
				}
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if len(r.sources) != 1 {
				t.Errorf("probes came from %d sockets, want one", len(r.sources))
			}
			req := r.requests[0]
			want := "OPTIONS sip:" + r.addr().String() + " SIP/2.0\r\n"
			if !strings.HasPrefix(req, want) {
				t.Errorf("request line %q, want %q", strings.SplitN(req, "\r\n", 2)[0], want)
			}
			for _, header := range []string{"\r\nVia: SIP/2.0/UDP pbxmesh.invalid:", ";rport", "\r\nMax-Forwards: 70", "\r\nCall-ID: ", "\r\nCSeq: ", "\r\nFrom: ", "\r\nTo: "} {
				if !strings.Contains(req, header) {
					t.Errorf("the request lacks %q:\n%s", header, req)
				}
			}
		})
	}
}

// TestLostRequestIsSentAgain shows that copies are requests of their own, and that the
// round trip is that of the one that was answered.
func TestLostRequestIsSentAgain(t *testing.T) {
	t.Parallel()
	r := newResponder(t, "127.0.0.1", "200 OK")
	r.drop.Store(2)
	p, results := start(t, Options{Interval: 3 * time.Minute, Timeout: 5 * time.Second})
	p.SetMembers([]pbxmesh.Node{r.node("london")})
	got := hurry(t, p, "london", results)
	if got.Outcome != failover.OutcomeOK || got.Sent < 3 || got.RTT >= time.Second {
		t.Fatalf("got %+v, want ok after two copies half a second apart, with the round trip of the last", got)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sources) != 1 {
		t.Errorf("the copies came from %d sockets, want one", len(r.sources))
	}
	for _, name := range []string{"\r\nCall-ID: ", ";branch=z9hG4bK", "\r\nCSeq: "} {
		seen := make(map[string]bool)
		for _, req := range r.requests {
			_, value, _ := strings.Cut(req, name)
			value, _, _ = strings.Cut(value, "\r\n")
			seen[value] = true
		}
		if len(seen) != len(r.requests) {
			t.Errorf("of %d copies several have the same %q, so that an answer does not tell which it answers", len(r.requests), name)
		}
	}
}

// TestPace shows that a failed probe is followed at once, that an answer ends that, and
// that Hurry does not wait for the interval.
func TestPace(t *testing.T) {
	t.Parallel()
	r := newResponder(t, "127.0.0.1", "")
	p, results := start(t, Options{Interval: 3 * time.Minute, Timeout: 200 * time.Millisecond})
	p.SetMembers([]pbxmesh.Node{r.node("london")})
	p.Hurry("paris") // nobody
	got := hurry(t, p, "london", results)
	for range 3 { // with the interval this would take nine minutes
		if got.Outcome != failover.OutcomeTimeout || got.Sent < 2 {
			t.Fatalf("got %+v, want a timeout after copies", got)
		}
		got = await(t, results, func(failover.ProbeResult) bool { return true })
	}
	r.status.Store("200 OK")
	await(t, results, func(r failover.ProbeResult) bool { return r.Outcome == failover.OutcomeOK })
	if got := hurry(t, p, "london", results); got.Outcome != failover.OutcomeOK {
		t.Fatalf("after Hurry: %+v, want ok", got)
	}
}

func TestMembersChange(t *testing.T) {
	t.Parallel()
	london, buffalo := newResponder(t, "127.0.0.1", "200 OK"), newResponder(t, "127.0.0.1", "200 OK")
	mesh := newResponder(t, "127.0.0.1", "404 Not Found")
	p, results := start(t, Options{Interval: 100 * time.Millisecond, Mesh: true})
	l := london.node("london")
	l.Mesh = mesh.addr()
	p.SetMembers([]pbxmesh.Node{l})
	await(t, results, func(r failover.ProbeResult) bool { return r.Path == failover.PathPhones })
	if got := await(t, results, func(r failover.ProbeResult) bool { return r.Path == failover.PathMesh }); got.Code != 404 || got.Outcome != failover.OutcomeOK {
		t.Fatalf("mesh address: %+v", got)
	}
	p.SetMembers([]pbxmesh.Node{buffalo.node("buffalo")})
	await(t, results, func(r failover.ProbeResult) bool { return r.Node == "buffalo" })
	// A probe of london may have been under way; its result is dropped, and from
	// here on only buffalo is probed.
	for range 5 {
		for len(results) > 0 {
			<-results
		}
		if got := await(t, results, func(failover.ProbeResult) bool { return true }); got.Node != "buffalo" {
			t.Fatalf("%+v after london left", got)
		}
	}
	core := pbxmesh.Node{ID: "core", Mesh: mesh.addr()} // takes calls, no phones
	p.SetMembers([]pbxmesh.Node{core})
	if got := await(t, results, func(r failover.ProbeResult) bool { return r.Node == "core" }); got.Path != failover.PathMesh {
		t.Fatalf("a node without phones: %+v", got)
	}
}

// TestStrangers floods the socket: no packet of a stranger reaches sipgo.
func TestStrangers(t *testing.T) {
	t.Parallel()
	r := newResponder(t, "127.0.0.1", "200 OK")
	p, results := start(t, Options{Local: netip.MustParseAddrPort("127.0.0.1:0"), Interval: 100 * time.Millisecond})
	p.SetMembers([]pbxmesh.Node{r.node("london")})
	stranger, err := net.Dial("udp", p.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	invite := "INVITE sip:x@y SIP/2.0\r\nVia: SIP/2.0/UDP z;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\nTo: <sip:c@d>\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"
	before := runtime.NumGoroutine()
	for range 500 {
		for _, packet := range []string{invite, "SIP/2.0 200 OK\r\n\r\n", "\x00\x00", "\r\n\r\n"} {
			_, _ = stranger.Write([]byte(packet))
		}
	}
	for range 3 {
		await(t, results, func(r failover.ProbeResult) bool {
			if r.Outcome != failover.OutcomeOK && r.Outcome != failover.OutcomeTimeout { // late on a busy machine
				t.Fatalf("got %+v", r)
			}
			return r.Outcome == failover.OutcomeOK
		})
	}
	if now := runtime.NumGoroutine(); now > before+200 {
		t.Errorf("%d goroutines before the flood, %d after it", before, now)
	}
	_ = stranger.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := stranger.Read(make([]byte, 1500)); err == nil || !os.IsTimeout(err) {
		t.Errorf("a stranger was answered with %d bytes (%v)", n, err)
	}
}

func TestLifecycle(t *testing.T) {
	t.Parallel()
	p, err := New(Options{OnResult: func(failover.ProbeResult) {}})
	if err != nil {
		t.Fatal(err)
	}
	p.SetMembers([]pbxmesh.Node{{ID: "x", Mesh: netip.MustParseAddrPort("127.0.0.1:9")}})
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	if err := p.Run(t.Context()); err == nil {
		t.Error("ran after close")
	}
	q, err := New(Options{OnResult: func(failover.ProbeResult) {}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.Run(ctx); err != nil {
		t.Errorf("run with an ended context: %v", err)
	}
	if again, err := New(Options{Local: q.Addr(), OnResult: func(failover.ProbeResult) {}}); err != nil {
		t.Errorf("the port is not free after run: %v", err)
	} else {
		_ = again.Close()
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	f := func(failover.ProbeResult) {}
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{}, "OnResult"},
		{Options{OnResult: f, Interval: time.Millisecond}, "interval"},
		{Options{OnResult: f, Interval: 2 * time.Hour}, "interval"},
		{Options{OnResult: f, Timeout: time.Second}, "timeout"},
		{Options{OnResult: f, Timeout: time.Millisecond}, "timeout"},
		{Options{OnResult: f, MaxInFlight: -1}, "in flight"},
		{Options{OnResult: f, Local: netip.MustParseAddrPort("192.0.2.1:1")}, "bind"},
	} {
		if _, err := New(tt.o); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.o, err, tt.want)
		}
	}
}

func TestJitter(t *testing.T) {
	t.Parallel()
	for r, want := range map[float64]time.Duration{0: 900 * time.Millisecond, 0.5: time.Second, 1: 1100 * time.Millisecond} {
		if got := jitter(time.Second, r); got != want {
			t.Errorf("jitter(1s, %v) = %v, want %v", r, got, want)
		}
	}
}
