package probe

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// link carries packets to the nodes and back. It is the socket, and in tests a network
// in virtual time.
type link interface {
	// send sends one packet. It returns an error when this very packet could not be
	// sent; it does not block.
	send(packet []byte, to netip.AddrPort) error

	// serve hands on what comes in until Close. heard gets packets; it must not keep
	// them. quoted gets ICMP errors, and reports whether they quote a packet of ours.
	serve(heard func(packet []byte, from netip.AddrPort), quoted func(icmpError) bool)

	addr() netip.AddrPort
	Close() error
}

// icmpError is one ICMP error as the kernel queues it.
type icmpError struct {
	to      netip.AddrPort // where the packet went that it is about
	refusal bool           // port unreachable
	quoted  []byte         // the beginning of that packet, as the error has it; anybody can forge it
}

const (
	// noise is how many ICMP errors in a second that quote nothing of ours make us
	// deaf for quiet: from then on the kernel drops them before they cost us anything,
	// and a closed port costs the timeout.
	noise = 1000
	quiet = 5 * time.Second

	// maxPending errors in a row for one packet are not pending ones of others any
	// more: long before, all ICMP errors are noise.
	maxPending = 1000

	// Reads that fail for no known reason are followed by pauses of minPause to maxPause.
	minPause = time.Millisecond
	maxPause = 100 * time.Millisecond
)

// udpConn is what a socket needs of net.UDPConn.
type udpConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	LocalAddr() net.Addr
	Close() error
}

// socket is the link over the kernel's UDP. It keeps the reading alive: the kernel
// reports every ICMP error as an error of the next read or send, to whomever that goes.
type socket struct {
	conn   udpConn
	listen func(on bool) error             // whether ICMP errors are queued
	queued func(heard func(icmpError)) int // empties the queue
	log    *slog.Logger
	closed chan struct{}

	mu     sync.Mutex
	quoted func(icmpError) bool // nil before serve
	since  time.Time            // the second in which strange are counted
	alien  int                  // errors in it that quote nothing of ours
	deaf   time.Time            // until when no ICMP errors are queued; zero: they are
	once   sync.Once
}

func listen(local netip.AddrPort, log *slog.Logger) (*socket, error) {
	var laddr *net.UDPAddr
	if local.IsValid() {
		laddr = net.UDPAddrFromAddrPort(local)
	}
	c, err := net.ListenUDP("udp", laddr)
	if err != nil {
		return nil, err
	}
	s := &socket{
		conn:   c,
		listen: func(on bool) error { return setICMPErrors(c, on) },
		queued: func(heard func(icmpError)) int { return readICMPErrors(c, heard) },
		log:    log,
		closed: make(chan struct{}),
	}
	// Without it a port that nobody listens on costs the whole timeout.
	// Nothing depends on it, so a kernel that refuses is no error.
	_ = s.listen(true)
	return s, nil
}

func (s *socket) addr() netip.AddrPort {
	a := s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// Close ends serve. It is idempotent.
func (s *socket) Close() (err error) {
	s.once.Do(func() {
		close(s.closed)
		err = s.conn.Close()
	})
	return err
}

// serve reads until Close. An error of a read is an ICMP error as a rule, and never
// a reason to end; one that comes again and again without such a cause is waited out.
func (s *socket) serve(heard func([]byte, netip.AddrPort), quoted func(icmpError) bool) {
	s.mu.Lock()
	s.quoted = quoted
	s.mu.Unlock()
	buf := make([]byte, 64<<10)
	var pause time.Duration
	told := false
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		switch {
		case err == nil:
			pause, told = 0, false
			heard(buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
			continue
		case errors.Is(err, net.ErrClosed):
			return
		case s.drain() > 0:
			pause = 0
			continue
		case errors.Is(err, syscall.ECONNREFUSED):
			continue // a sender was quicker and has emptied the queue
		}
		if pause == maxPause && !told {
			told = true
			s.log.Warn("the probes' socket cannot be read; it is tried again and again", "error", err)
		}
		pause = min(max(minPause, 2*pause), maxPause)
		select {
		case <-s.closed:
			return
		case <-time.After(pause):
		}
	}
}

// send sends packet. The kernel reports pending ICMP errors of earlier packets at the next
// sends to anybody, one each, and more may come in meanwhile: those errors are not this
// packet's, and it is sent again. An error is this packet's when it comes back
// although none is pending.
func (s *socket) send(packet []byte, to netip.AddrPort) error {
	s.hearAgain()
	own := false
	for try := 0; ; try++ {
		_, err := s.conn.WriteToUDPAddrPort(packet, to)
		if err == nil || errors.Is(err, net.ErrClosed) || try == maxPending {
			return err
		}
		// A refusal is never this packet's, even when the reader took it off the queue
		// before us.
		if s.drain() > 0 || errors.Is(err, syscall.ECONNREFUSED) {
			continue
		}
		if own {
			return fmt.Errorf("probe: send OPTIONS to %s: %w", to, err)
		}
		own = true
	}
}

// drain empties the error queue, hands on what was in it and returns how much that was.
func (s *socket) drain() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queued(func(e icmpError) {
		if s.quoted == nil || s.quoted(e) {
			return
		}
		now := time.Now()
		if now.Sub(s.since) > time.Second {
			s.since, s.alien = now, 0
		}
		s.alien++
		if s.alien == noise && s.deaf.IsZero() {
			s.deaf = now.Add(quiet)
			_ = s.listen(false)
			s.log.Warn("many ICMP errors that are about none of the probes, maybe forged: all are ignored for a while", "errors", noise, "within", now.Sub(s.since), "for", quiet)
		}
	})
}

// hearAgain ends the deafness that drain began.
func (s *socket) hearAgain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.deaf.IsZero() && time.Now().After(s.deaf) {
		s.deaf, s.alien = time.Time{}, 0
		_ = s.listen(true)
	}
}
