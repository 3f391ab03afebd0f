package probe

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// brokenConn is a socket that fails for as long as it is told.
type brokenConn struct {
	closed chan struct{}

	mu     sync.Mutex
	reads  int   // that were tried
	writes int   // that were tried
	fail   int   // so many reads, and writes, fail yet
	err    error // with this
}

func (c *brokenConn) attempt(tries *int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	*tries++
	if c.fail > 0 {
		c.fail--
		return c.err
	}
	return nil
}

func (c *brokenConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	if err := c.attempt(&c.reads); err != nil {
		return 0, netip.AddrPort{}, err
	}
	select {
	case <-c.closed:
		return 0, netip.AddrPort{}, net.ErrClosed
	case <-time.After(time.Second):
		return copy(b, "hello"), netip.MustParseAddrPort("192.0.2.1:5060"), nil
	}
}

func (c *brokenConn) WriteToUDPAddrPort(b []byte, _ netip.AddrPort) (int, error) {
	return len(b), c.attempt(&c.writes)
}

func (c *brokenConn) LocalAddr() net.Addr { return &net.UDPAddr{} }
func (c *brokenConn) Close() error        { close(c.closed); return nil }

// TestReadingNeverEnds has every read fail, in virtual time: with a cause on the queue as
// many times as there are causes, without one ever more slowly, and in either case packets
// are read when that is over.
func TestReadingNeverEnds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		err    error
		fail   int
		queued int           // ICMP errors that each read finds
		most   time.Duration // until the first packet is read
	}{
		{"refused, two nodes for minutes", syscall.ECONNREFUSED, 100_000, 1, 1100 * ms},
		{"refused, and senders are quicker", syscall.ECONNREFUSED, 100_000, 0, 1100 * ms},
		{"unreachable, and senders are quicker now and then", syscall.EHOSTUNREACH, 3, 0, 1100 * ms},
		{"network down for a minute", syscall.ENETDOWN, 607, 0, 62 * time.Second},
		{"network down for ever", syscall.ENETDOWN, 1 << 40, 0, -1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := &brokenConn{closed: make(chan struct{}), fail: tt.fail, err: tt.err}
				s := &socket{
					conn: c, log: slog.New(slog.DiscardHandler), closed: make(chan struct{}),
					listen: func(bool) error { return nil },
					queued: func(func(icmpError)) int { return tt.queued },
				}
				began := time.Now()
				var first atomic.Int64
				done := make(chan struct{})
				go func() {
					defer close(done)
					s.serve(func([]byte, netip.AddrPort) { first.CompareAndSwap(0, int64(time.Since(began))) }, func(icmpError) bool { return true })
				}()
				time.Sleep(2 * time.Minute) // virtual
				if got := time.Duration(first.Load()); got > tt.most && tt.most > 0 || (got > 0) != (tt.most > 0) {
					t.Errorf("the first packet was read after %v, want %v at most", got, tt.most)
				}
				c.mu.Lock()
				if c.fail > 0 && c.reads > 1300 {
					t.Errorf("%d reads of a broken socket in two minutes", c.reads)
				}
				c.mu.Unlock()
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				<-done
			})
		})
	}
}

// TestSendGoesOut has pending errors of others greet the send of a packet.
func TestSendGoesOut(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		err    error
		fail   int
		queued int
		sent   bool
	}{
		{"none", syscall.ECONNREFUSED, 0, 0, true},
		{"refusals", syscall.ECONNREFUSED, 900, 1, true},
		{"refusals that the reader took", syscall.ECONNREFUSED, 900, 0, true},
		{"another error", syscall.EHOSTUNREACH, 900, 1, true},
		{"another error that the reader took", syscall.EHOSTUNREACH, 1, 0, true},
		{"its own error", syscall.ENETUNREACH, 1 << 40, 0, false},
		{"errors without end", syscall.ECONNREFUSED, 1 << 40, 1, false},
	} {
		c := &brokenConn{closed: make(chan struct{}), fail: tt.fail, err: tt.err}
		s := &socket{conn: c, log: slog.New(slog.DiscardHandler), listen: func(bool) error { return nil }, queued: func(func(icmpError)) int { return tt.queued }}
		err := s.send([]byte("x"), netip.MustParseAddrPort("192.0.2.1:5060"))
		if (err == nil) != tt.sent || err != nil && !errors.Is(err, tt.err) {
			t.Errorf("%s: %v after %d tries, want sent %v", tt.name, err, c.writes, tt.sent)
		}
	}
}

// TestNoiseIsDropped has errors that quote nothing of ours come in: a thousand in a second
// make the kernel drop them for a while, and fewer do not.
func TestNoiseIsDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		listening := true
		burst := 0
		s := &socket{
			conn: &brokenConn{}, log: slog.New(slog.DiscardHandler),
			listen: func(on bool) error { listening = on; return nil },
			queued: func(heard func(icmpError)) int {
				for range burst {
					heard(icmpError{refusal: true})
				}
				return burst
			},
			quoted: func(e icmpError) bool { return len(e.quoted) > 0 },
		}
		send := func() {
			if err := s.send(nil, netip.AddrPort{}); err != nil {
				t.Error(err)
			}
		}
		for range 20 { // 500 a second
			burst = 500
			if s.drain(); !listening {
				t.Fatal("deaf at 500 a second")
			}
			time.Sleep(1001 * ms) // virtual
		}
		burst = noise
		s.drain()
		if send(); listening {
			t.Error("a thousand at once are listened to")
		}
		time.Sleep(quiet + ms)
		if send(); !listening {
			t.Error("deaf for ever")
		}
		burst = noise
		if s.drain(); listening {
			t.Error("the second thousand is listened to")
		}
	})
}
