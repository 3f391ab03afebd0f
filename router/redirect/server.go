package redirect

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/gaissmai/bart"
)

// Server answers SIP requests.
//
// It has socket loops of its own. sipgo's transports start a goroutine for each
// packet, keep every peer's connection for ever and without a bound, and end their
// read loop on an ICMP error; its transactions keep each request for 32 s.
type Server struct {
	opt         Options
	log         *slog.Logger
	allow       bart.Lite
	allowHeader string
	seed        maphash.Seed // of the tags: another process gives others
	numbers     numbers
	cert        *certificate // nil without TLS
	recent      recent
	logged      bool // one line for each call
	counters    counters

	udp []*net.UDPConn
	tcp []*net.TCPListener
	tls []*net.TCPListener

	ctx    context.Context // of look-ups; ends with Shutdown
	cancel context.CancelFunc

	mu      sync.Mutex
	serving bool
	stopped bool
	conns   map[net.Conn]struct{}
	clients map[netip.Addr]int
	broken  error

	wg   sync.WaitGroup
	done chan struct{} // closed when Serve has waited for everything
}

// New binds the listeners, reads the table of numbers and the certificate, and
// starts nothing. A Server that is never served is released by Shutdown.
func New(o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	log := o.Logger.With("component", "redirect")
	s := &Server{
		opt: o, log: log, logged: log.Enabled(context.Background(), slog.LevelDebug), seed: maphash.MakeSeed(), allowHeader: allowed,
		numbers: numbers{file: o.NumbersFile, log: log, now: o.Now},
		conns:   make(map[net.Conn]struct{}),
		clients: make(map[netip.Addr]int),
		done:    make(chan struct{}),
	}
	if o.Chooser != nil {
		s.allowHeader = allowedRegister
	}
	for _, p := range o.Allow {
		s.allow.Insert(p)
	}
	if err := s.numbers.poll(); err != nil {
		return nil, err
	}
	if len(o.TLS) > 0 {
		if s.cert, err = newCertificate(o.CertFile, o.KeyFile, log); err != nil {
			return nil, err
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.bind(); err != nil {
		s.cancel()
		s.closeSockets()
		return nil, fmt.Errorf("redirect: %w; choose another address or free it", err)
	}
	return s, nil
}

func (s *Server) bind() error {
	for _, a := range s.opt.UDP {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if err != nil {
			return err
		}
		_ = c.SetReadBuffer(udpBuffer) // less means more loss in bursts, no failure
		s.udp = append(s.udp, c)
	}
	for _, set := range []struct {
		at []netip.AddrPort
		to *[]*net.TCPListener
	}{{s.opt.TCP, &s.tcp}, {s.opt.TLS, &s.tls}} {
		for _, a := range set.at {
			l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
			if err != nil {
				return err
			}
			*set.to = append(*set.to, l)
		}
	}
	return nil
}

// Addrs returns the bound addresses of a transport in the order of Options.
func (s *Server) Addrs(t Transport) []netip.AddrPort {
	var out []netip.AddrPort
	if t == UDP {
		for _, c := range s.udp {
			out = append(out, c.LocalAddr().(*net.UDPAddr).AddrPort())
		}
		return out
	}
	for _, l := range map[Transport][]*net.TCPListener{TCP: s.tcp, TLS: s.tls}[t] {
		out = append(out, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return out
}

// Serve answers until Shutdown, and waits for all that it started. It may be called
// once. It returns nil after Shutdown, at once when that came first, and the socket's
// error when one broke; the others are then closed.
func (s *Server) Serve() error {
	s.mu.Lock()
	if s.serving {
		s.mu.Unlock()
		return errors.New("redirect: served twice")
	}
	if s.stopped {
		s.mu.Unlock()
		return nil
	}
	s.serving = true
	for _, c := range s.udp {
		for range s.opt.Readers {
			s.wg.Go(func() { s.failed(s.serveUDP(c)) })
		}
	}
	for _, l := range s.tcp {
		s.wg.Go(func() { s.failed(s.accept(l, nil)) })
	}
	for _, l := range s.tls {
		cfg := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.cert.get}
		s.wg.Go(func() { s.failed(s.accept(l, cfg)) })
	}
	s.wg.Go(s.watchFiles)
	s.mu.Unlock()
	s.wg.Wait()
	s.closeSockets()
	close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
}

// watchFiles reads files again that changed, until Shutdown.
func (s *Server) watchFiles() {
	tick := time.NewTicker(s.opt.Poll)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		if err := s.numbers.poll(); err != nil { // only ever at the first time, which New made
			s.log.Error("table of numbers", "err", err)
		}
		if s.cert != nil {
			s.cert.poll()
		}
	}
}

// Run serves until ctx ends, then shuts down within DefaultGrace.
func (s *Server) Run(ctx context.Context) error {
	release := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), DefaultGrace)
		defer cancel()
		_ = s.Shutdown(grace) // Serve reports
	})
	defer release()
	return s.Serve()
}

// Shutdown stops reading, lets requests that were read be answered, and waits. When
// ctx ends first it cuts the connections and returns ctx's error. It is idempotent,
// and ends a Server that was never served.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.stopped {
		s.interrupt()
	}
	serving := s.serving
	s.mu.Unlock()
	if !serving {
		s.closeSockets()
		return nil
	}
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		s.closeSockets()
		s.mu.Lock()
		for c := range s.conns {
			_ = c.Close()
		}
		s.mu.Unlock()
		return ctx.Err()
	}
}

// interrupt stops the server and wakes everybody who waits for a packet. The caller
// holds mu.
func (s *Server) interrupt() {
	s.stopped = true
	s.cancel()
	past := time.Unix(1, 0)
	for _, c := range s.udp {
		_ = c.SetReadDeadline(past)
	}
	for _, list := range [][]*net.TCPListener{s.tcp, s.tls} {
		for _, l := range list {
			_ = l.SetDeadline(past)
		}
	}
	for c := range s.conns {
		_ = c.SetReadDeadline(past)
	}
}

func (s *Server) closeSockets() {
	for _, c := range s.udp {
		_ = c.Close()
	}
	for _, list := range [][]*net.TCPListener{s.tcp, s.tls} {
		for _, l := range list {
			_ = l.Close()
		}
	}
}

func (s *Server) stopping() bool { return s.ctx.Err() != nil }

// failed ends the whole server when one socket broke: half a server looks alive to
// those who watch it.
func (s *Server) failed(err error) {
	if err == nil || s.stopping() {
		return
	}
	s.log.Error("socket broke, the redirect server stops", "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = errors.Join(s.broken, err)
	if !s.stopped {
		s.interrupt()
	}
}

// allowed reports whether requests of a are answered.
func (s *Server) allowed(a netip.Addr) bool { return s.allow.Contains(a) }
