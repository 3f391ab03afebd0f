package redirect

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Bounds of a stream, in bytes. A request that is longer ends its connection.
const (
	maxStreamRequest = 64 << 10
	maxStreamAnswer  = 64 << 10
	firstStreamRead  = 4 << 10
)

// accept admits connections until Shutdown or until l fails. cfg is nil for TCP.
func (s *Server) accept(l *net.TCPListener, cfg *tls.Config) error {
	failed := 0
	for !s.stopping() {
		c, err := l.AcceptTCP()
		switch {
		case err == nil:
			failed = 0
			s.admit(c, cfg)
		case s.stopping(), errors.Is(err, net.ErrClosed):
			return nil
		default:
			// Out of file descriptors, or the client was gone before we came. A pause
			// keeps the loop from eating a processor until it passes.
			if failed++; failed > 100 {
				return fmt.Errorf("accept on %v: %w", l.Addr(), err)
			}
			select {
			case <-s.ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	return nil
}

// admit serves c in a goroutine of its own, unless it is a stranger's or there are
// too many.
func (s *Server) admit(c *net.TCPConn, cfg *tls.Config) {
	peer := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	from := netip.AddrPortFrom(peer.Addr().Unmap().WithZone(""), peer.Port())
	if !s.allowed(from.Addr()) {
		s.counters.strangers.Add(1)
		_ = c.Close()
		return
	}
	s.mu.Lock()
	if s.stopped || len(s.conns) >= s.opt.MaxConns || s.clients[from.Addr()] >= s.opt.MaxConnsPerClient {
		s.mu.Unlock()
		s.counters.refused.Add(1)
		_ = c.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.clients[from.Addr()]++
	s.mu.Unlock()
	s.wg.Go(func() {
		s.serveConn(c, cfg, from)
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		if s.clients[from.Addr()]--; s.clients[from.Addr()] <= 0 {
			delete(s.clients, from.Addr())
		}
		s.mu.Unlock()
	})
}

func (s *Server) serveConn(c *net.TCPConn, cfg *tls.Config, from netip.AddrPort) {
	if cfg == nil {
		s.serveStream(c, c, from, TCP)
		return
	}
	secure := tls.Server(c, cfg)
	ctx, cancel := context.WithTimeout(s.ctx, s.opt.MessageTimeout)
	err := secure.HandshakeContext(ctx)
	cancel()
	if err != nil {
		s.counters.dropped.Add(1)
		return
	}
	s.serveStream(c, secure, from, TLS)
}

// serveStream answers one request after the other, in order, until the client is
// done, idle, slow, or sends what cannot be told apart any more. raw has the deadlines.
func (s *Server) serveStream(raw *net.TCPConn, c net.Conn, from netip.AddrPort, t Transport) {
	w := new(worker)
	buf := make([]byte, 0, firstStreamRead)
	for {
		rest, ping := skipBreaks(buf)
		buf = append(buf[:0], rest...)
		if ping && !s.write(c, []byte("\r\n")) { // RFC 5626 section 3.5.1
			return
		}
		if len(buf) == 0 {
			if !s.readDeadline(raw, s.opt.IdleTimeout) || !read(c, &buf) {
				return
			}
			if !s.readDeadline(raw, s.opt.MessageTimeout) {
				return
			}
			continue
		}
		size, state := w.frame(buf)
		switch {
		case state == scanDrop || state == scanPartial && len(buf) >= maxStreamRequest:
			s.counters.dropped.Add(1)
			return
		case state == scanPartial:
			if !read(c, &buf) {
				return
			}
			continue
		}
		out := s.answerStream(w, size, from, t)
		if out != nil && !s.write(c, out) {
			return
		}
		if w.req.length < 0 { // nobody knows where the next one starts
			return
		}
		buf = append(buf[:0], buf[size:]...)
		if len(buf) > 0 && !s.readDeadline(raw, s.opt.MessageTimeout) {
			return
		}
	}
}

// answerStream is respond behind the same net as answer.
func (s *Server) answerStream(w *worker, size int, from netip.AddrPort, t Transport) (out []byte) {
	defer func() {
		if p := recover(); p != nil {
			s.panicked(p, nil)
			out = nil
		}
	}()
	out, _ = s.respond(w, size, from, t)
	return out
}

// frame finds the request at the start of buf and how long it is with its body.
func (w *worker) frame(buf []byte) (size int, state scanned) {
	if state = w.req.scan(buf, true); state != scanRequest {
		return 0, state
	}
	if w.req.length < 0 {
		w.req.refuse("Content-Length Missing") // RFC 3261 section 18.3
		return w.req.header, scanRequest
	}
	size = w.req.header + w.req.length
	switch {
	case size > maxStreamRequest:
		return 0, scanDrop
	case size > len(buf):
		return 0, scanPartial
	}
	return size, scanRequest
}

// skipBreaks cuts off the line breaks that may stand before a request (RFC 3261
// section 7.5). Two of them are a keep-alive that wants an answer.
func skipBreaks(b []byte) (rest []byte, ping bool) {
	n := 0
	for bytes.HasPrefix(b, []byte("\r\n")) {
		b = b[2:]
		n++
	}
	return b, n >= 2
}

// read appends to buf what has come, and reports whether the stream is still there.
func read(c net.Conn, buf *[]byte) bool {
	b := *buf
	if len(b) == cap(b) {
		b = append(make([]byte, 0, min(2*cap(b), maxStreamRequest+firstStreamRead)), b...)
	}
	n, err := c.Read(b[len(b):cap(b)])
	*buf = b[:len(b)+n]
	return n > 0 || err == nil
}

func (s *Server) write(c net.Conn, b []byte) bool {
	_ = c.SetWriteDeadline(time.Now().Add(s.opt.MessageTimeout))
	_, err := c.Write(b)
	return err == nil
}

// readDeadline gives c time to send. It must not undo the deadline that Shutdown
// has set, hence the lock.
func (s *Server) readDeadline(c *net.TCPConn, d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.stopped && c.SetReadDeadline(time.Now().Add(d)) == nil
}
