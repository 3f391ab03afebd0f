package dnsserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"pbxmesh/internal/udpbatch"
)

// Defaults of Options.
const (
	DefaultMaxTCP          = 256
	DefaultMaxTCPPerClient = 32
	DefaultTCPTimeout      = 5 * time.Second
	DefaultTCPIdle         = 10 * time.Second // RFC 7766 section 6.2.3: a few seconds
	DefaultGrace           = 3 * time.Second
	DefaultAmplification   = 10
)

// Options configure a Server.
type Options struct {
	Zone *Zone

	// Listen are "host:port" addresses, each bound for UDP and TCP; port 0 lets the
	// kernel choose one port for both. Empty means 127.0.0.1:0.
	Listen []string

	// MaxTCP and MaxTCPPerClient bound the connections, all and from one address;
	// what comes above is closed at once. 0 means the default.
	MaxTCP, MaxTCPPerClient int

	// TCPTimeout bounds the reading of one query and the writing of one reply;
	// TCPIdle the wait for the next query, one tenth of it while more than half of
	// MaxTCP are open. 0 means the default.
	TCPTimeout, TCPIdle time.Duration

	// Readers is the number of goroutines per UDP socket; 0 means one for two
	// processors, as the kernel's half of the work is done on the others. Each reads,
	// answers and writes a batch, so that the kernel's receive buffer is the only
	// queue: when it is full, the newest packets are lost. Each has a cache of packed
	// answers, of at most 32 MiB.
	Readers int

	// Cookies know which clients are where they say; nil makes a secret for this
	// server alone.
	Cookies *Cookies

	// RateLimit bounds UDP responses to who may not be; nil is without limit.
	RateLimit *RateLimit

	// Amplification bounds a UDP response to somebody without a valid cookie to so
	// many times the bytes of the query; additional records go first, then the answer
	// is cut and TC set. 0 means DefaultAmplification, negative is without bound, at
	// least 2 otherwise.
	Amplification int

	// Asked gets some of the queries over UDP that came without client subnet, from several
	// goroutines; it must not block and must not keep the list. nil: nobody wants to know.
	Asked func([]Asked)

	Logger *slog.Logger // nil discards
}

// Server moves packets between sockets and a Zone.
//
// It has loops of its own in place of dns.Server, which starts a goroutine without
// a bound for each packet, answers what it rejects without an OPT record, never
// limits connections, and cannot be shut down before it has begun to serve.
type Server struct {
	opts Options
	responder
	log *slog.Logger
	udp []*net.UDPConn
	tcp []*net.TCPListener

	mu      sync.Mutex
	serving bool
	stopped bool
	conns   map[*net.TCPConn]struct{}
	clients map[netip.Addr]int
	broken  error

	wg   sync.WaitGroup
	stop chan struct{} // closed by Shutdown
	done chan struct{} // closed when Serve has waited for everything
}

// New binds the listeners and starts nothing. A Server that is never served is
// released by Shutdown.
func New(o Options) (*Server, error) {
	if o.Zone == nil {
		return nil, errors.New("dnsserver: no zone to serve")
	}
	if len(o.Listen) == 0 {
		o.Listen = []string{"127.0.0.1:0"}
	}
	if o.MaxTCP < 0 || o.MaxTCPPerClient < 0 || o.TCPTimeout < 0 || o.TCPIdle < 0 || o.Readers < 0 {
		return nil, errors.New("dnsserver: a limit or timeout is negative; 0 means its default")
	}
	if o.MaxTCP == 0 {
		o.MaxTCP = DefaultMaxTCP
	}
	if o.MaxTCPPerClient == 0 {
		o.MaxTCPPerClient = DefaultMaxTCPPerClient
	}
	if o.TCPTimeout == 0 {
		o.TCPTimeout = DefaultTCPTimeout
	}
	if o.TCPIdle == 0 {
		o.TCPIdle = DefaultTCPIdle
	}
	if o.Readers == 0 {
		o.Readers = udpbatch.Readers()
	}
	switch {
	case o.Amplification == 0:
		o.Amplification = DefaultAmplification
	case o.Amplification < 0:
		o.Amplification = 0
	case o.Amplification == 1:
		return nil, errors.New("dnsserver: an amplification of 1 has no room for any answer; at least 2, or negative for no bound")
	}
	if o.Cookies == nil {
		o.Cookies = RandomCookies()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		opts:      o,
		responder: responder{zone: o.Zone, cookies: o.Cookies, amplification: o.Amplification},
		log:       o.Logger.With("component", "dns"),
		conns:     make(map[*net.TCPConn]struct{}),
		clients:   make(map[netip.Addr]int),
		stop:      make(chan struct{}),
		done:      make(chan struct{}),
	}
	if o.RateLimit != nil {
		limits := *o.RateLimit
		if err := limits.defaults(); err != nil {
			return nil, err
		}
		s.rate = newRateLimiter(limits)
	}
	for _, addr := range o.Listen {
		u, t, err := bind(addr)
		if err != nil {
			s.closeSockets()
			return nil, fmt.Errorf("dnsserver: bind %s, choose another address or free it: %w", addr, err)
		}
		s.udp = append(s.udp, u)
		s.tcp = append(s.tcp, t)
	}
	return s, nil
}

// bind opens both sockets on one port. The kernel chooses a port for UDP without
// looking at TCP, so with port 0 it may take several goes.
func bind(addr string) (*net.UDPConn, *net.TCPListener, error) {
	ua, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, nil, err
	}
	for try := 0; ; try++ {
		u, err := net.ListenUDP("udp", ua)
		if err != nil {
			return nil, nil, err
		}
		bound := u.LocalAddr().(*net.UDPAddr)
		t, err := net.ListenTCP("tcp", &net.TCPAddr{IP: bound.IP, Port: bound.Port, Zone: bound.Zone})
		if err == nil {
			return u, t, nil
		}
		_ = u.Close()
		if ua.Port != 0 || try == 32 {
			return nil, nil, err
		}
	}
}

// Addrs returns the bound addresses in the order of Options.Listen, each good for
// UDP and TCP.
func (s *Server) Addrs() []netip.AddrPort {
	addrs := make([]netip.AddrPort, len(s.udp))
	for i, u := range s.udp {
		a := u.LocalAddr().(*net.UDPAddr).AddrPort()
		addrs[i] = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return addrs
}

// Stats returns the counts of the server and its zone.
func (s *Server) Stats() Stats { return s.zone.Stats() }

// Serve answers until Shutdown, and waits for all that it started. It may be called
// once. It returns nil after Shutdown, at once when that came first, and the socket's error when one broke; the others are then closed.
func (s *Server) Serve() error {
	s.mu.Lock()
	if s.serving {
		s.mu.Unlock()
		return errors.New("dnsserver: served twice")
	}
	if s.stopped {
		s.mu.Unlock()
		return nil
	}
	s.serving = true
	for i := range s.udp {
		_ = s.udp[i].SetReadBuffer(udpBuffer) // less means more loss in bursts, no failure
		neverFragment(s.udp[i])
		for range s.opts.Readers {
			s.wg.Go(func() { s.failed(s.serveUDP(s.udp[i])) })
		}
		s.wg.Go(func() { s.failed(s.serveTCP(s.tcp[i])) })
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.closeSockets()
	close(s.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.broken
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

// Shutdown stops reading, lets queries that were read be answered, and waits. When
// ctx ends first it cuts the connections and returns ctx's error. It is idempotent,
// and ends a Server that was never served.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := !s.stopped
	s.stopped = true
	serving := s.serving
	if first {
		close(s.stop)
		s.interrupt()
	}
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

// interrupt wakes everybody who waits for a packet. The caller holds mu.
func (s *Server) interrupt() {
	past := time.Unix(1, 0)
	for _, u := range s.udp {
		_ = u.SetReadDeadline(past)
	}
	for _, t := range s.tcp {
		_ = t.SetDeadline(past)
	}
	for c := range s.conns {
		_ = c.SetReadDeadline(past)
	}
}

func (s *Server) closeSockets() {
	for _, u := range s.udp {
		_ = u.Close()
	}
	for _, t := range s.tcp {
		_ = t.Close()
	}
}

func (s *Server) stopping() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// failed ends the whole server when one socket broke: half a name server looks
// alive to those who watch it.
func (s *Server) failed(err error) {
	if err == nil || s.stopping() {
		return
	}
	s.log.Error("socket broke, the name server stops", "err", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = errors.Join(s.broken, err)
	if !s.stopped {
		s.stopped = true
		close(s.stop)
		s.interrupt()
	}
}

// respondTCP answers one query over TCP. Whatever it does to us, the next one is
// answered.
func (s *Server) respondTCP(packet []byte, client netip.Addr) (reply []byte) {
	defer func() {
		if r := recover(); r != nil {
			reply = crashed(s.zone, s.log, packet, r)
		}
	}()
	return s.respond(packet, client, false, time.Now()).reply
}
