package dialplan

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"pbxmesh/router/lookup"
)

// Bounds of every request. What FreeSWITCH posts for a call has some 8 kB; a
// channel with many variables has more.
const (
	maxHeaderBytes = 16 << 10
	maxTarget      = 2048      // bytes of path and query; an AOR has at most 318
	maxBody        = 256 << 10 // bytes of a posted form
)

// Server answers FreeSWITCH's mod_curl and mod_xml_curl, and scripts.
type Server struct {
	opt   Options
	log   *slog.Logger
	http  *http.Server
	token [sha256.Size]byte

	requests chan struct{} // a place for every request that is served
	ask      *lookup.Asker

	counters counters
}

// New returns a server that does nothing before Serve. The error names the option
// that cannot be.
func New(o Options) (*Server, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Server{
		opt: o, log: o.Logger.With("component", "dialplan"),
		// Hashes have one length, so the comparison does not tell the token's.
		token:    sha256.Sum256([]byte(o.Token)),
		requests: make(chan struct{}, o.MaxRequests),
	}
	s.ask = lookup.New(o.MaxRequests, s.log)
	s.http = &http.Server{
		Handler: s,
		// A request is a few kB from the same machine: who takes longer is no switch.
		ReadHeaderTimeout: 2 * time.Second,
		ReadTimeout:       max(2*time.Second, 2*o.Deadline),
		WriteTimeout:      max(4*time.Second, 4*o.Deadline),
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		// Without this "OPTIONS *" would be answered past the token.
		DisableGeneralOptionsHandler: true,
	}
	return s, nil
}

// Serve answers on l until Shutdown (nil) or until l fails (its error). It closes l.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(&boundedListener{Listener: l, most: uint64(2*s.opt.MaxRequests + 16), c: &s.counters}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops taking requests and finishes those under way. It returns when
// nothing of the server runs any more, or with ctx's error when the directory holds
// a look-up longer than ctx allows. It may be called often.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	if drain := s.ask.Drain(ctx); drain != nil {
		err = errors.Join(err, fmt.Errorf("stop the dialplan hook: %w", drain))
	}
	return err
}

// ServeHTTP implements http.Handler. There is no ServeMux: it would answer an
// unclean path with a redirect, which mod_curl follows, and a dialled "../" must not
// choose the door.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.counters.requests.Add(1)
	s.counters.active.Add(1)
	defer s.counters.active.Add(^uint64(0))
	a := &answer{w: w, door: doorOf(r)}
	defer func() {
		if p := recover(); p != nil {
			s.counters.panics.Add(1)
			s.log.Error("answering panicked", "panic", p, "stack", string(debug.Stack()))
			a.give(Unavailable, "the daemon failed; its log says more")
		}
	}()
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	switch {
	case len(r.RequestURI) > maxTarget:
		s.refuse(a, http.StatusRequestURITooLong, fmt.Sprintf("the address is too long: at most %d bytes are read", maxTarget))
		return
	case s.opt.Token == "" && !localName(r.Host):
		// A web page that had its own name resolved to this machine (DNS rebinding).
		s.refuse(a, http.StatusMisdirectedRequest, "the request names another host: ask by IP address or as localhost, or configure a token")
		return
	case s.opt.Token != "" && !s.authorized(r):
		// Basic, because FreeSWITCH answers no other challenge with a password.
		w.Header().Set("WWW-Authenticate", `Basic realm="pbxmesh"`)
		s.refuse(a, http.StatusUnauthorized, "the token is missing or wrong")
		return
	}
	select {
	case s.requests <- struct{}{}:
		defer func() { <-s.requests }()
	default:
		s.counters.count(Overloaded)
		a.give(Overloaded, fmt.Sprintf("%d requests are being served", s.opt.MaxRequests))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), s.opt.Deadline)
	defer cancel()
	s.serve(a, r.WithContext(ctx))
}

func (s *Server) serve(a *answer, r *http.Request) {
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch a.door {
	case doorDialstring:
		if get {
			s.dialstring(a, r)
			return
		}
		a.w.Header().Set("Allow", "GET, HEAD")
	case doorRoute:
		if get {
			s.route(a, r)
			return
		}
		a.w.Header().Set("Allow", "GET, HEAD")
	case doorXML:
		if r.Method == http.MethodPost {
			s.xml(a, r)
			return
		}
		a.w.Header().Set("Allow", "POST")
	default:
		s.refuse(a, http.StatusNotFound, "no such path: there are /dialstring/user@domain, /route/user@domain and POST /xml")
		return
	}
	s.refuse(a, http.StatusMethodNotAllowed, "this path does not take "+printable(r.Method))
}

func (s *Server) refuse(a *answer, code int, why string) {
	s.counters.refused.Add(1)
	a.refuse(code, why)
}

func (s *Server) authorized(r *http.Request) bool {
	_, given, ok := r.BasicAuth()
	if !ok {
		scheme, rest, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return false
		}
		given = strings.TrimSpace(rest)
	}
	got := sha256.Sum256([]byte(given))
	return subtle.ConstantTimeCompare(got[:], s.token[:]) == 1
}

func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}

// boundedListener closes connections beyond most at once: the bound on requests
// does not see a connection that never asks.
type boundedListener struct {
	net.Listener
	most uint64
	c    *counters
}

func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.c.conns.Add(1) <= l.most {
			return &countedConn{Conn: c, c: l.c}, nil
		}
		l.c.conns.Add(^uint64(0))
		l.c.refusedConns.Add(1)
		_ = c.Close()
	}
}

type countedConn struct {
	net.Conn
	once sync.Once
	c    *counters
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.c.conns.Add(^uint64(0)) })
	return c.Conn.Close()
}
