package control

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"pbxmesh"
)

// Bounds of the server, for every caller.
const (
	maxQuery       = 2048            // bytes of a query string; an AOR has at most 318
	maxHeaderBytes = 16 << 10        // bytes of a request's headers
	answerTimeout  = 3 * time.Second // for a Backend function
)

// Backend is where answers come from. Functions may be nil: their route then
// answers 501. Each is called concurrently, gets a context that ends after three
// seconds at most, and tells failures with pbxmesh.ErrUnavailable (503) or
// pbxmesh.ErrInvalidAOR (400); any other error is a 500.
type Backend struct {
	Lookup  func(ctx context.Context, aor pbxmesh.AOR) (*LookupReply, error)
	Nodes   func(ctx context.Context) (*NodesReply, error)
	Explain func(ctx context.Context, aor pbxmesh.AOR, fromMesh bool) (*ExplainReply, error)

	// List answers one page. ListAll calls each for everything that is selected and
	// returns how it ended; it has an hour, and stops at an error of each. ErrRefused is a
	// 404 with its text.
	List    func(ctx context.Context, q ListQuery) (*ListReply, error)
	ListAll func(ctx context.Context, q ListQuery, each func(*Listed) error) (*ListEnd, error)

	// DNSExplain answers what a client gets from the name servers. ErrRefused is a 400
	// with its text.
	DNSExplain func(ctx context.Context, name string, client netip.Addr) (*DNSExplainReply, error)

	// Forget removes a node for good. pbxmesh.ErrInvalidNodeID is a 400, ErrRefused
	// a 409 with its text.
	Forget func(ctx context.Context, node pbxmesh.NodeID) error

	// Want records what an operator wants of a node. ErrRefused is a 409, ErrInvalid a
	// 400, each with its text.
	Want func(ctx context.Context, r WantedRequest) (*WantedReply, error)

	// Drain says how far a node is from being empty. ErrRefused, for a node that is
	// not known, is a 404.
	Drain func(ctx context.Context, node pbxmesh.NodeID) (*DrainReply, error)

	// Ready returns nil when the daemon does its work, else what is missing.
	Ready func() error

	Version VersionReply
	Metrics http.Handler
}

// NewHandler serves b. With a token, every route but /healthz and /readyz wants
// "Authorization: Bearer <token>". Without one, only requests that name the
// server by address or as localhost are served: a web page that had its own name
// resolved to this machine would otherwise read the answers (DNS rebinding).
func NewHandler(b Backend, token string) http.Handler {
	h := &handler{b: b, token: token, streams: make(chan struct{}, maxStreams)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { writeText(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", h.ready)
	mux.HandleFunc("GET /v1/lookup", h.protected(h.lookup))
	mux.HandleFunc("GET /v1/list", h.protected(h.list))
	mux.HandleFunc("GET /v1/list/all", h.protected(h.listAll))
	mux.HandleFunc("GET /v1/nodes", h.protected(h.nodes))
	mux.HandleFunc("GET /v1/explain", h.protected(h.explain))
	mux.HandleFunc("GET /v1/dns/explain", h.protected(h.dnsExplain))
	mux.HandleFunc("POST /v1/forget", h.protected(h.forget))
	mux.HandleFunc("POST /v1/wanted", h.protected(h.wanted))
	mux.HandleFunc("GET /v1/drain", h.protected(h.drain))
	mux.HandleFunc("GET /v1/version", h.protected(h.version))
	mux.HandleFunc("GET /metrics", h.protected(h.metrics))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { h.fallback(w, r) })
	return h.bounded(mux)
}

// NewServer returns an http.Server for handler with every bound set; the caller
// gives it a listener and shuts it down.
func NewServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 2 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    maxHeaderBytes,
	}
}

type handler struct {
	b       Backend
	token   string
	streams chan struct{} // one token per listing of everything
}

// bounded refuses what no route needs before any route sees it.
func (h *handler) bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// No route reads a body; what comes after a small one closes the connection.
		r.Body = http.MaxBytesReader(w, r.Body, 1024)
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Cache-Control", "no-store")
		switch {
		case len(r.URL.RawQuery) > maxQuery:
			writeError(w, http.StatusRequestURITooLong, "the query is too long", fmt.Sprintf("at most %d bytes are read", maxQuery))
		case h.token == "" && !localName(r.Host):
			writeError(w, http.StatusMisdirectedRequest, "the request names another host",
				"ask by IP address or as localhost, or configure api.token_file")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	_, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil || strings.EqualFold(host, "localhost")
}

func (h *handler) protected(next http.HandlerFunc) http.HandlerFunc {
	if h.token == "" {
		return next
	}
	// Hashes have one length, so the comparison does not tell the token's.
	want := sha256.Sum256([]byte(h.token))
	return func(w http.ResponseWriter, r *http.Request) {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		got := sha256.Sum256([]byte(strings.TrimSpace(given)))
		if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
			w.Header().Set("WWW-Authenticate", `Bearer realm="pbxmesh"`)
			writeError(w, http.StatusUnauthorized, "the token is missing or wrong",
				"name the file that api.token_file names with --token-file")
			return
		}
		next(w, r)
	}
}

func (h *handler) ready(w http.ResponseWriter, _ *http.Request) {
	if h.b.Ready != nil {
		if err := h.b.Ready(); err != nil {
			writeText(w, http.StatusServiceUnavailable, "not ready: "+err.Error())
			return
		}
	}
	writeText(w, http.StatusOK, "ready")
}

func (h *handler) lookup(w http.ResponseWriter, r *http.Request) {
	aor, ok := aorOf(w, r, "aor")
	if !ok {
		return
	}
	if h.b.Lookup == nil {
		notServed(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	reply, err := h.b.Lookup(ctx, aor)
	if err == nil && reply.Registrations == nil {
		reply.Registrations = []Registration{} // "[]" in JSON, never "null"
	}
	answer(w, reply, err)
}

func (h *handler) nodes(w http.ResponseWriter, r *http.Request) {
	if !onlyQuery(w, r) {
		return
	}
	if h.b.Nodes == nil {
		notServed(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	reply, err := h.b.Nodes(ctx)
	if err == nil && reply.Nodes == nil {
		reply.Nodes = []Node{}
	}
	answer(w, reply, err)
}

// commandHeader must stand on every request that changes something. A web page that
// the operator looks at can send a bare POST to this machine, but no header of its
// own without being asked first, and that question is answered with no.
const commandHeader = "X-Pbxmesh-Command"

func (h *handler) forget(w http.ResponseWriter, r *http.Request) {
	if !command(w, r, "pbxmesh forget") {
		return
	}
	query := r.URL.Query()
	node, err := pbxmesh.ParseNodeID(query.Get("node"))
	if err != nil || len(query) != 1 || len(query["node"]) != 1 {
		writeError(w, http.StatusBadRequest, "name one node", "write ?node=london")
		return
	}
	if h.b.Forget == nil {
		notServed(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	if err := h.b.Forget(ctx, node); err != nil {
		if errors.Is(err, ErrRefused) {
			writeError(w, http.StatusConflict, err.Error(), "")
			return
		}
		answer(w, (*ForgetReply)(nil), err)
		return
	}
	answer(w, &ForgetReply{Node: node}, nil)
}

func (h *handler) explain(w http.ResponseWriter, r *http.Request) {
	aor, ok := aorOf(w, r, "aor", "from")
	if !ok {
		return
	}
	from := r.URL.Query().Get("from")
	if from != "" && from != "mesh" && from != "local" {
		writeError(w, http.StatusBadRequest, "the parameter from is not known", "write from=mesh, from=local or leave it out")
		return
	}
	if h.b.Explain == nil {
		notServed(w)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), answerTimeout)
	defer cancel()
	reply, err := h.b.Explain(ctx, aor, from == "mesh")
	if err == nil {
		if reply.Groups == nil {
			reply.Groups = [][]Target{}
		}
		if reply.Reasons == nil {
			reply.Reasons = []Reason{}
		}
	}
	answer(w, reply, err)
}

func (h *handler) version(w http.ResponseWriter, r *http.Request) {
	if onlyQuery(w, r) {
		writeJSON(w, http.StatusOK, h.b.Version)
	}
}

func (h *handler) metrics(w http.ResponseWriter, r *http.Request) {
	if h.b.Metrics == nil {
		notServed(w)
		return
	}
	h.b.Metrics.ServeHTTP(w, r)
}

func (h *handler) fallback(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/healthz", "/readyz", "/metrics", "/v1/lookup", "/v1/nodes", "/v1/explain", "/v1/dns/explain", "/v1/drain", "/v1/version":
		w.Header().Set("Allow", "GET, HEAD")
		writeError(w, http.StatusMethodNotAllowed, "only GET is served here", "this API answers questions and changes nothing")
	default:
		writeError(w, http.StatusNotFound, "no such path",
			"there are /v1/lookup?aor=, /v1/list, /v1/list/all, /v1/nodes, /v1/explain?aor=, /v1/dns/explain?name=&client=, /v1/drain?node=, /v1/version, /healthz, /readyz and /metrics")
	}
}

// onlyQuery refuses parameters that no one reads: a misspelt one would change
// the answer in silence.
func onlyQuery(w http.ResponseWriter, r *http.Request, allowed ...string) bool {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		writeError(w, http.StatusBadRequest, "the query cannot be read", "percent-encode its values: a '+' in a user is %2B")
		return false
	}
	known := make(map[string]bool, len(allowed))
	for _, name := range allowed {
		known[name] = true
	}
	for name, values := range query {
		if !known[name] || len(values) > 1 {
			hint := "this path takes no parameter"
			if len(allowed) > 0 {
				hint = "this path takes, once each: " + strings.Join(allowed, ", ")
			}
			writeError(w, http.StatusBadRequest, fmt.Sprintf("the parameter %+.40q is not taken", name), hint)
			return false
		}
	}
	return true
}

func aorOf(w http.ResponseWriter, r *http.Request, allowed ...string) (pbxmesh.AOR, bool) {
	if !onlyQuery(w, r, allowed...) {
		return pbxmesh.AOR{}, false
	}
	aor, err := pbxmesh.ParseAOR(r.URL.Query().Get("aor"))
	if err != nil {
		writeError(w, http.StatusBadRequest, err.Error(), "write aor=user@domain, percent-encoded")
		return pbxmesh.AOR{}, false
	}
	return aor, true
}

func notServed(w http.ResponseWriter) {
	writeError(w, http.StatusNotImplemented, "this daemon does not serve that", "ask a daemon with a node section")
}

// answer is the one table from errors to HTTP codes.
func answer[T any](w http.ResponseWriter, reply *T, err error) {
	switch {
	case err == nil:
		writeJSON(w, http.StatusOK, reply)
	case errors.Is(err, pbxmesh.ErrInvalidAOR):
		writeError(w, http.StatusBadRequest, err.Error(), "write aor=user@domain, percent-encoded")
	case errors.Is(err, ErrRefused): // what was named is not there
		writeError(w, http.StatusNotFound, err.Error(), "")
	case errors.Is(err, pbxmesh.ErrUnavailable):
		writeError(w, http.StatusServiceUnavailable, err.Error(), "nothing is known about what the registry holds; /readyz says what is missing")
	case errors.Is(err, context.DeadlineExceeded):
		writeError(w, http.StatusGatewayTimeout, "the answer took too long", "the daemon is overloaded; its log says more")
	default:
		writeError(w, http.StatusInternalServerError, err.Error(), "the daemon's log says more")
	}
}

func writeError(w http.ResponseWriter, code int, message, hint string) {
	writeJSON(w, code, ErrorReply{Message: message, Hint: hint})
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		code, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // a caller that went away is told nothing
}

func writeText(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(text + "\n"))
}
