package pdns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"pbxmesh/dnsserver"
)

// Limits of the listener. A PowerDNS has one connection per thread.
const (
	// Path is where requests go: the url of the connection string ends in it.
	Path = "/pdns"

	maxRequests = 256
	timeout     = 2 * time.Second
	idleTimeout = time.Minute
)

// Zone is what is asked for records; *dnsserver.Zone is one.
type Zone interface {
	// Records returns what stands at a name for a client, without blocking.
	Records(name string, client netip.Addr) ([]dnsserver.Record, error)
	Apexes() []dnsserver.Apex
}

var _ Zone = (*dnsserver.Zone)(nil)

// Options configure a Server.
type Options struct {
	Zone Zone

	// Allow are the networks that are answered; empty is this machine. Everybody else
	// gets 403.
	Allow []netip.Prefix

	Logger *slog.Logger // nil discards
}

// Server answers PowerDNS.
type Server struct {
	o        Options
	log      *slog.Logger
	http     *http.Server
	requests chan struct{}
}

// New starts nothing.
func New(o Options) (*Server, error) {
	if o.Zone == nil {
		return nil, errors.New("pdns: no zone to serve")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, log: o.Logger.With("component", "pdns"), requests: make(chan struct{}, maxRequests)}
	s.http = &http.Server{
		Handler: s, ReadHeaderTimeout: timeout, ReadTimeout: timeout, WriteTimeout: 2 * timeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxBody, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Serve answers on l until Shutdown; it then returns nil.
func (s *Server) Serve(l net.Listener) error {
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops listening and waits for the requests that are being answered, at most
// until ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		_ = s.http.Close()
	}
	return err
}

// ServeHTTP implements http.Handler. Every reply has a body: PowerDNS takes an empty
// one for a broken backend. What it cannot be told for sure is an error (503), which
// becomes SERVFAIL, and not "no such name".
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.allowed(r.RemoteAddr) {
		reply(w, http.StatusForbidden, false)
		return
	}
	select {
	case s.requests <- struct{}{}:
		defer func() { <-s.requests }()
	default:
		reply(w, http.StatusServiceUnavailable, false)
		return
	}
	q, err := parseRequest(r, Path)
	if err != nil {
		s.log.Debug("request refused", "err", err)
		reply(w, http.StatusBadRequest, false)
		return
	}
	result, err := s.answer(q)
	if err != nil {
		s.log.Debug("no answer", "method", q.method, "err", err)
		reply(w, http.StatusServiceUnavailable, false)
		return
	}
	reply(w, http.StatusOK, result)
}

func (s *Server) allowed(remote string) bool {
	a, err := netip.ParseAddrPort(remote)
	if err != nil {
		return false
	}
	from := a.Addr().Unmap().WithZone("")
	if len(s.o.Allow) == 0 {
		return from.IsLoopback()
	}
	return slices.ContainsFunc(s.o.Allow, func(p netip.Prefix) bool { return p.Contains(from) })
}

func reply(w http.ResponseWriter, status int, result any) {
	body, err := json.Marshal(map[string]any{"result": result})
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"result":false}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// record is one record in PowerDNS's words.
type record struct {
	QType     string `json:"qtype"`
	QName     string `json:"qname"`
	Content   string `json:"content"`
	TTL       uint32 `json:"ttl"`
	ScopeMask int    `json:"scopeMask"`
}

type domain struct {
	ID     int    `json:"id"`
	Zone   string `json:"zone"`
	Kind   string `json:"kind"`
	Serial uint32 `json:"serial"`
}

// answer returns the result of one request; what is unknown is false.
func (s *Server) answer(q *request) (any, error) {
	switch q.method {
	case "initialize":
		return true, nil
	case "lookup":
		return s.lookup(q)
	case "getAllDomains":
		return s.domains(), nil
	case "getDomainInfo":
		name := strings.ToLower(dns.Fqdn(q.name))
		for _, d := range s.domains() {
			if d.Zone == name {
				return d, nil
			}
		}
		return false, nil
	case "getAllDomainMetadata":
		return map[string][]string{}, nil
	case "getDomainMetadata":
		return []string{}, nil
	}
	return false, nil
}

func (s *Server) domains() []domain {
	list := s.o.Zone.Apexes()
	slices.SortFunc(list, func(a, b dnsserver.Apex) int { return strings.Compare(a.Name, b.Name) })
	out := make([]domain, 0, len(list))
	for i, a := range list {
		out = append(out, domain{ID: i + 1, Zone: a.Name, Kind: "native", Serial: a.Serial})
	}
	return out
}

// lookup returns all records at a name, whatever the type: PowerDNS asks for ANY, and
// chooses itself.
func (s *Server) lookup(q *request) (any, error) {
	found, err := s.o.Zone.Records(dns.Fqdn(q.name), q.client)
	if err != nil {
		return nil, fmt.Errorf("look up %q: %w", q.name, err)
	}
	out := make([]record, 0, len(found))
	for _, r := range found {
		h := r.RR.Header()
		entry := record{
			QType: dns.TypeToString[h.Rrtype], QName: strings.TrimSuffix(q.name, ".") + ".", TTL: h.Ttl,
			Content: strings.TrimPrefix(r.RR.String(), h.String()),
		}
		if r.Tailored {
			// 0 would let its caches give one client's answer to all.
			entry.ScopeMask = max(1, r.Block.Bits())
		}
		out = append(out, entry)
	}
	return out, nil
}
