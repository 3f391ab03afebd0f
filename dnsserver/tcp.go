package dnsserver

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

func (s *Server) serveTCP(l *net.TCPListener) error {
	failed := 0
	for !s.stopping() {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			failed = 0
			s.admit(c)
		case s.stopping(), errors.Is(err, net.ErrClosed):
			return nil
		default:
			// Out of file descriptors, or the client was gone before we came. A pause
			// keeps the loop from eating a processor until it passes.
			if failed++; failed > 100 {
				return fmt.Errorf("dnsserver: accept on %v: %w", l.Addr(), err)
			}
			select {
			case <-s.stop:
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

// admit serves c in a goroutine of its own unless there are too many.
func (s *Server) admit(c *net.TCPConn) {
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().WithZone("")
	s.mu.Lock()
	if s.stopped || len(s.conns) >= s.opts.MaxTCP || s.clients[from] >= s.opts.MaxTCPPerClient {
		s.mu.Unlock()
		s.zone.stats.tcpRefused.Add(1)
		_ = c.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.clients[from]++
	s.mu.Unlock()
	s.wg.Go(func() {
		s.serveConn(c, from)
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		if s.clients[from]--; s.clients[from] <= 0 {
			delete(s.clients, from)
		}
		s.mu.Unlock()
	})
}

// serveConn answers one query after the other, in order (RFC 7766 section 7 allows
// it), until the client is done, idle, or slow.
func (s *Server) serveConn(c *net.TCPConn, from netip.Addr) {
	buf := make([]byte, 2, 2+512)
	for wait := s.opts.TCPTimeout; ; wait = s.idle() {
		if !s.readDeadline(c, wait) {
			return
		}
		if _, err := io.ReadFull(c, buf[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n > cap(buf) {
			buf = make([]byte, n)
		}
		if !s.readDeadline(c, s.opts.TCPTimeout) {
			return
		}
		if _, err := io.ReadFull(c, buf[:n]); err != nil {
			return
		}
		s.zone.stats.tcp.Add(1)
		reply := s.respondTCP(buf[:n], from)
		if reply == nil || len(reply) > dns.MaxMsgSize {
			return
		}
		out := make([]byte, 2, 2+len(reply))
		binary.BigEndian.PutUint16(out, uint16(len(reply)))
		_ = c.SetWriteDeadline(time.Now().Add(s.opts.TCPTimeout))
		// One write: two would be two packets, and wait for each other.
		if _, err := c.Write(append(out, reply...)); err != nil {
			return
		}
	}
}

// readDeadline gives c time to send. It must not undo the deadline that Shutdown
// has set, hence the lock.
func (s *Server) readDeadline(c *net.TCPConn, d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.stopped && c.SetReadDeadline(time.Now().Add(d)) == nil
}

// idle is how long a connection may be silent between two queries.
func (s *Server) idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) > s.opts.MaxTCP/2 {
		return s.opts.TCPIdle / 10
	}
	return s.opts.TCPIdle
}
