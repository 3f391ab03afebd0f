package probe

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"pbxmesh"
	"pbxmesh/failover"
)

// inNamespace puts the rest of the test into a network namespace of its own, where no
// other test's port can be taken for ours and forged packets go nowhere else. It skips,
// loudly, who is not root; in CI that is an error.
func inNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces and forged ICMP: not root")
		}
		t.Skip("SKIPPED, NO ICMP WAS FORGED: not root")
	}
	runtime.LockOSThread() // for good: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatalf("make a network namespace: %v", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		t.Fatal(err)
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo); err != nil {
		t.Fatalf("lo up: %v", err)
	}
}

// forger sends ICMP errors that nobody caused.
type forger struct {
	t  *testing.T
	fd int
}

func newForger(t *testing.T) *forger {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Fatalf("raw socket: %v", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &forger{t: t, fd: fd}
}

// unreachable says, as RFC 792 does, that the port of a packet from one loopback address
// to another is unreachable, and quotes its headers and so much of its payload.
func (f *forger) unreachable(from, to uint16, payload string) {
	b := []byte{3, 3, 0, 0, 0, 0, 0, 0}
	b = append(b, 0x45, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(28+len(payload))) //nolint:gosec // short
	b = append(b, 0, 1, 0, 0, 64, unix.IPPROTO_UDP, 0, 0, 127, 0, 0, 1, 127, 0, 0, 1)
	for _, v := range []uint16{from, to, uint16(8 + len(payload)), 0} { //nolint:gosec // short
		b = binary.BigEndian.AppendUint16(b, v)
	}
	b = append(b, payload...)
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		pair := [2]byte{}
		copy(pair[:], b[i:])
		sum += uint32(binary.BigEndian.Uint16(pair[:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum)) //nolint:gosec // the lower half
	if err := unix.Sendto(f.fd, b, 0, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		f.t.Errorf("forge: %v", err)
	}
}

// TestForgedRefusals answers every request with a port unreachable before the answer
// itself: it counts only when it quotes what nobody off the path can know.
func TestForgedRefusals(t *testing.T) {
	t.Parallel()
	cut := func(n int) func(string) string { return func(req string) string { return req[:n] } }
	for _, tt := range []struct {
		name    string
		quote   func(request string) string
		refused bool
	}{
		{"headers only", cut(0), false},
		{"8 bytes", cut(8), false},
		{"half of the unguessable word", cut(60), false},
		{"another word", func(req string) string {
			_, id, _ := strings.Cut(req, "Call-ID: ")
			return strings.ReplaceAll(req, id[:26], newID())
		}, false},
		{"what 128 bytes of the packet quote", cut(100), true},
		{"everything", func(req string) string { return req }, true},
	} {
		for _, local := range []string{"127.0.0.1:0", "[::]:0"} {
			t.Run(tt.name+" to "+local, func(t *testing.T) {
				t.Parallel()
				inNamespace(t)
				f := newForger(t)
				r := newResponder(t, "127.0.0.1", "200 OK")
				var port atomic.Uint32                                                                            // of the prober
				before := func(req string) { f.unreachable(uint16(port.Load()), r.addr().Port(), tt.quote(req)) } //nolint:gosec // a port
				r.before.Store(&before)
				if tt.refused {
					r.status.Store("") // so that no answer is quicker
				}
				p, results := start(t, Options{Local: netip.MustParseAddrPort(local), Interval: 100 * time.Millisecond})
				port.Store(uint32(p.Addr().Port()))
				p.SetMembers([]pbxmesh.Node{r.node("london")})
				answered := 0
				await(t, results, func(got failover.ProbeResult) bool {
					switch {
					case tt.refused:
						return got.Outcome == failover.OutcomeRefused
					case got.Outcome == failover.OutcomeOK:
						answered++
					case got.Outcome != failover.OutcomeTimeout: // a busy machine
						t.Fatalf("a healthy switch: %+v", got)
					}
					return answered == 3
				})
			})
		}
	}
}

// TestClosedPort shows that a port that is really closed is known by ICMP, long before the
// wait is over.
func TestClosedPort(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			t.Parallel()
			inNamespace(t)
			r := newResponder(t, host, "200 OK")
			node := r.node("london")
			_ = r.conn.Close() // nobody else takes the port here
			p, results := start(t, Options{Interval: 3 * time.Minute, Timeout: 2 * time.Minute})
			p.SetMembers([]pbxmesh.Node{node})
			for range 3 {
				if got := hurry(t, p, "london", results); got.Outcome != failover.OutcomeRefused {
					t.Fatalf("%+v, want refused", got)
				}
				p.SetMembers(nil) // or Hurry would wait for half of the two minutes
				p.SetMembers([]pbxmesh.Node{node})
			}
		})
	}
}

// TestICMPFlood forges 20,000 errors within a second: the prober does not end,
// and answers are heard meanwhile and afterwards.
func TestICMPFlood(t *testing.T) {
	t.Parallel()
	inNamespace(t)
	f := newForger(t)
	r := newResponder(t, "127.0.0.1", "200 OK")
	results := make(chan failover.ProbeResult, 1000)
	p, err := New(Options{Local: netip.MustParseAddrPort("127.0.0.1:0"), Interval: 100 * time.Millisecond, OnResult: func(r failover.ProbeResult) { results <- r }})
	if err != nil {
		t.Fatal(err)
	}
	p.SetMembers([]pbxmesh.Node{r.node("london")})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()

	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	heard := 0
	hear := func() bool {
		select {
		case got := <-results:
			switch got.Outcome {
			case failover.OutcomeOK:
				heard++
			case failover.OutcomeTimeout, failover.OutcomeLate: // a busy machine
			default:
				t.Fatalf("a healthy switch: %+v", got)
			}
		case err := <-done:
			t.Fatalf("the prober ended: %v", err)
		case <-tick.C:
			return true
		}
		return false
	}
	for sent := 0; sent < 20_000; {
		if !hear() {
			continue
		}
		for range 20 {
			f.unreachable(p.Addr().Port(), r.addr().Port(), "")
			sent++
		}
	}
	for deadline := time.Now().Add(time.Minute); heard < 10; {
		if hear(); time.Now().After(deadline) {
			t.Fatalf("%d answers were heard", heard)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestManyRefusedSends has more refusals in a row than any count of errors could take for
// a broken socket, without root: nobody listens where the packets go.
func TestManyRefusedSends(t *testing.T) {
	t.Parallel()
	r := newResponder(t, "127.0.0.1", "200 OK")
	closed := newResponder(t, "127.0.0.1", "200 OK")
	closed.refuse()
	p, results := start(t, Options{Local: netip.MustParseAddrPort("127.0.0.1:0"), Interval: 100 * time.Millisecond})
	conn := p.link.(*socket).conn.(*net.UDPConn)
	for range 20_000 {
		_, _ = conn.WriteToUDPAddrPort([]byte("x"), closed.addr()) // every other one only collects the error of the one before
	}
	p.SetMembers([]pbxmesh.Node{r.node("london")})
	await(t, results, func(got failover.ProbeResult) bool { return got.Outcome == failover.OutcomeOK })
}
