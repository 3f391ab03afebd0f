package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	start  = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	age    = SecondsOf(400 * time.Millisecond)
	lease  = Seconds(0.9)
	calls  = 3
	limit  = 1000
	linked = true
)

func mustAOR(t testing.TB, s string) pbxmesh.AOR {
	t.Helper()
	aor, err := pbxmesh.ParseAOR(s)
	if err != nil {
		t.Fatal(err)
	}
	return aor
}

// fake answers for one registered user, and fails in every way for the others.
func fake(t testing.TB) Backend {
	reg := &pbxmesh.Registration{
		AOR: mustAOR(t, "1002@pbx.test"), Node: "london", CallID: "c1", Contact: "sip:1002@192.0.2.7:5062",
		Profile: "internal", Source: netip.MustParseAddrPort("192.0.2.7:5062"), Transport: "udp",
		UserAgent: "Phone 1.0", Expires: start.Add(time.Hour),
	}
	return Backend{
		Lookup: func(ctx context.Context, aor pbxmesh.AOR) (*LookupReply, error) {
			reply := &LookupReply{AOR: aor, DataAge: age, Source: "replica"}
			switch aor.User() {
			case "1002", "a+b":
				reply.Registrations = []Registration{NewRegistration(reg, "up", start)}
			case "away":
				return nil, fmt.Errorf("redis at 192.0.2.1:6379: %w", pbxmesh.ErrUnavailable)
			case "broken":
				return nil, errors.New("a bug")
			case "slow":
				<-ctx.Done()
				return nil, fmt.Errorf("wait: %w", ctx.Err())
			}
			return reply, nil
		},
		Nodes: func(context.Context) (*NodesReply, error) {
			return &NodesReply{Observer: "buffalo", DataAge: age, Nodes: []Node{{
				ID: "london", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.20")}, Mesh: netip.MustParseAddrPort("192.0.2.20:5090"),
				Ports: pbxmesh.SIPPorts{UDP: 5060}, Observed: "up", Wanted: "in service", Effective: "up", Since: start,
				LeaseAge: &lease, Sessions: &calls, MaxSessions: &limit, Registrations: 7, SwitchConnected: &linked,
			}}}, nil
		},
		Explain: func(_ context.Context, aor pbxmesh.AOR, fromMesh bool) (*ExplainReply, error) {
			return &ExplainReply{AOR: aor, Node: "buffalo", FromMesh: fromMesh, Result: "not-registered", DataAge: age}, nil
		},
		Ready:   func() error { return errors.New("the event socket is not connected") },
		Version: VersionReply{Version: "v1", Go: "go1.26"},
		Metrics: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1\n") }),
	}
}

func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func client(t testing.TB, address, token string) *Client {
	t.Helper()
	c, err := NewClient(address, token, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	b := fake(t)
	for _, token := range []string{"", "s3cret"} {
		c := client(t, serve(t, NewHandler(b, token)), token)
		// '+' in a user must survive the query string.
		for _, user := range []string{"1002@pbx.test", "a+b@pbx.test", "nobody@pbx.test"} {
			got, err := c.Lookup(t.Context(), mustAOR(t, user))
			want, _ := b.Lookup(t.Context(), mustAOR(t, user))
			if want.Registrations == nil {
				want.Registrations = []Registration{}
			}
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("lookup %s = %+v, %v; want %+v", user, got, err, want)
			}
		}
		got, err := c.Nodes(t.Context())
		want, _ := b.Nodes(t.Context())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("nodes = %+v, %v; want %+v", got, err, want)
		}
		for _, fromMesh := range []bool{false, true} {
			got, err := c.Explain(t.Context(), mustAOR(t, "1002@pbx.test"), fromMesh)
			if err != nil || got.FromMesh != fromMesh || got.Groups == nil || got.Reasons == nil {
				t.Errorf("explain from mesh %v = %+v, %v", fromMesh, got, err)
			}
		}
		if got, err := c.Version(t.Context()); err != nil || *got != b.Version {
			t.Errorf("version = %+v, %v", got, err)
		}
	}
}

func TestErrorsHaveCodes(t *testing.T) {
	t.Parallel()
	address := serve(t, NewHandler(fake(t), ""))
	empty := serve(t, NewHandler(Backend{}, ""))
	cases := []struct {
		name, address, method, target, host string
		code                                int
		want                                string
	}{
		{"no aor", address, "GET", "/v1/lookup", "", 400, "no '@'"},
		{"hostile aor", address, "GET", "/v1/lookup?aor=1001%2Csofia/gateway/x@pbx.test", "", 400, "letters, digits"},
		{"aor twice", address, "GET", "/v1/lookup?aor=a@b&aor=c@d", "", 400, "once each"},
		{"unknown parameter", address, "GET", "/v1/lookup?aor=a@b&form=mesh", "", 400, "is not taken"},
		{"parameter where none is", address, "GET", "/v1/nodes?x=1", "", 400, "no parameter"},
		{"broken escape", address, "GET", "/v1/lookup?aor=%zz", "", 400, "percent-encode"},
		{"from where", address, "GET", "/v1/explain?aor=a@b&from=moon", "", 400, "from=mesh"},
		{"store away", address, "GET", "/v1/lookup?aor=away@pbx.test", "", 503, "192.0.2.1:6379"},
		{"bug", address, "GET", "/v1/lookup?aor=broken@pbx.test", "", 500, "log says more"},
		{"not ready", address, "GET", "/readyz", "", 503, "event socket"},
		{"post", address, "POST", "/v1/nodes", "", 405, "only GET"},
		{"no path", address, "GET", "/v2/nodes", "", 404, "/v1/lookup"},
		{"long query", address, "GET", "/v1/lookup?aor=" + strings.Repeat("a", maxQuery), "", 414, "2048"},
		{"rebound name", address, "GET", "/v1/nodes", "evil.example.com", 421, "IP address"},
		{"rebound name with port", address, "GET", "/healthz", "evil.example.com:80", 421, "IP address"},
		{"localhost", address, "GET", "/healthz", "localhost:80", 200, "ok"},
		{"IPv6", address, "GET", "/healthz", "[::1]:80", 200, "ok"},
		{"metrics", address, "GET", "/metrics", "", 200, "up 1"},
		{"nothing behind lookup", empty, "GET", "/v1/lookup?aor=a@b", "", 501, "does not serve"},
		{"nothing behind nodes", empty, "GET", "/v1/nodes", "", 501, "does not serve"},
		{"nothing behind explain", empty, "GET", "/v1/explain?aor=a@b", "", 501, "does not serve"},
		{"nothing behind metrics", empty, "GET", "/metrics", "", 501, "does not serve"},
		{"nothing behind ready", empty, "GET", "/readyz", "", 200, "ready"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			req, err := http.NewRequestWithContext(t.Context(), tc.method, "http://"+tc.address+tc.target, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Host = tc.host
			code, body := do(t, req)
			if code != tc.code || !strings.Contains(body, tc.want) {
				t.Errorf("got %d %s, want %d with %q", code, body, tc.code, tc.want)
			}
			var e ErrorReply
			if strings.HasPrefix(tc.target, "/v") && code >= 400 && (json.Unmarshal([]byte(body), &e) != nil || e.Message == "" || e.Hint == "") {
				t.Errorf("the body is no error with hint: %s", body)
			}
		})
	}
}

func do(t testing.TB, req *http.Request) (int, string) {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestSlowBackendIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		w := httptest.NewRecorder()
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/v1/lookup?aor=slow@pbx.test", nil)
		NewHandler(fake(t), "").ServeHTTP(w, req)
		if took := time.Since(begin); w.Code != http.StatusGatewayTimeout || took != answerTimeout {
			t.Errorf("a backend that hangs gives %d after %v", w.Code, took)
		}
	})
}

func TestToken(t *testing.T) {
	t.Parallel()
	address := serve(t, NewHandler(fake(t), "s3cret"))
	for token, want := range map[string]int{"s3cret": 200, "": 401, "s3cre": 401, "s3cretx": 401, "S3CRET": 401} {
		_, err := client(t, address, token).Nodes(t.Context())
		var status *StatusError
		switch {
		case want == 200 && err != nil:
			t.Errorf("token %q: %v", token, err)
		case want == 401 && (!errors.As(err, &status) || status.Code != 401 || !strings.Contains(err.Error(), "--token-file")):
			t.Errorf("token %q: %v", token, err)
		}
	}
	for _, open := range []string{"/healthz", "/readyz"} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+open, nil)
		if code, body := do(t, req); code == 401 {
			t.Errorf("%s wants a token: %s", open, body)
		}
	}
	for _, closed := range []string{"/metrics", "/v1/version", "/v1/lookup?aor=a@b"} {
		req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+address+closed, nil)
		req.Header.Set("Authorization", "Basic s3cret")
		if code, _ := do(t, req); code != 401 {
			t.Errorf("%s answers %d without a token", closed, code)
		}
	}
}

// Every way in which no daemon answers is ErrNoDaemon and tells what to do.
func TestNoDaemon(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	const free = "127.0.0.1:1"                                  // not a port that the kernel gives to somebody else
	silent, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // accepts in the kernel, says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = silent.Close() })
	text := func(code int, body string) string {
		return serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
		}))
	}
	cases := []struct{ name, address, want string }{
		{"nothing listens", free, "pbxmesh serve -c"},
		{"silence", silent.Addr().String(), "--timeout"},
		{"another server", text(200, "<html>"), "something else"},
		{"another server's error", text(502, "<html>"), "HTTP 502"},
		{"a redirect", text(302, ""), "HTTP 302"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, err := NewClient(tc.address, "", stall)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = c.Nodes(t.Context()); !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), tc.address) {
				t.Errorf("got %v, want ErrNoDaemon with %q", err, tc.want)
			}
		})
	}
}

func TestNewClientRefuses(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"", "localhost", ":8085", "host:", "https://h:1", "http://h:1/x", "a b:1", "u@h:1"} {
		if c, err := NewClient(address, "", time.Second); err == nil {
			t.Errorf("%q gives %+v", address, c)
		}
	}
	if _, err := NewClient(DefaultAddress, "", 0); err == nil {
		t.Error("no timeout is accepted")
	}
	if _, err := NewClient("http://127.0.0.1:8085/", "", time.Second); err != nil {
		t.Errorf("a URL: %v", err)
	}
}

func TestServerHasBounds(t *testing.T) {
	t.Parallel()
	s := NewServer(http.NotFoundHandler())
	if s.ReadHeaderTimeout == 0 || s.ReadTimeout == 0 || s.WriteTimeout <= answerTimeout || s.IdleTimeout == 0 || s.MaxHeaderBytes == 0 {
		t.Errorf("a bound is missing: %+v", s)
	}
}

// FuzzHandler asks anything: the answer is never a 5xx that the backend did not
// give, and an accepted AOR is one that ParseAOR takes.
func FuzzHandler(f *testing.F) {
	f.Add("/v1/lookup", "aor=1002@pbx.test")
	f.Add("/v1/explain", "aor=1002%40pbx.test&from=mesh")
	f.Add("/v1/nodes", "")
	f.Add("/v1/lookup", "aor=${system(id)}@x;aor=%00")
	b := Backend{
		Lookup: func(_ context.Context, aor pbxmesh.AOR) (*LookupReply, error) {
			if _, err := pbxmesh.NewAOR(aor.User(), aor.Domain()); err != nil {
				return nil, fmt.Errorf("an invalid AOR came through: %w", err)
			}
			return &LookupReply{AOR: aor}, nil
		},
		Nodes: func(context.Context) (*NodesReply, error) { return &NodesReply{}, nil },
		Explain: func(_ context.Context, aor pbxmesh.AOR, _ bool) (*ExplainReply, error) {
			return &ExplainReply{AOR: aor}, nil
		},
	}
	h := NewHandler(b, "")
	f.Fuzz(func(t *testing.T, path, query string) {
		req := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1/", nil)
		req.URL.Path, req.URL.RawQuery = "/"+strings.TrimPrefix(path, "/"), query
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		if w.Code >= 500 && w.Code != http.StatusNotImplemented {
			t.Errorf("%q?%q gives %d %s", path, query, w.Code, w.Body)
		}
		if strings.HasPrefix(path, "/v1/") && w.Code >= 400 && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q?%q gives no JSON: %s", path, query, w.Body)
		}
	})
}

// TestForget: removing a node needs our own header, one node, and a willing daemon.
func TestForget(t *testing.T) {
	t.Parallel()
	var asked []pbxmesh.NodeID
	b := fake(t)
	b.Forget = func(_ context.Context, node pbxmesh.NodeID) error {
		asked = append(asked, node)
		if node == "buffalo" {
			return fmt.Errorf("%w: it is alive", ErrRefused)
		}
		return nil
	}
	h := NewHandler(b, "")
	for _, tt := range []struct {
		method, target string
		header         bool
		code           int
		says           string
	}{
		{http.MethodPost, "/v1/forget?node=London", true, http.StatusOK, `"node":"london"`},
		{http.MethodPost, "/v1/forget?node=buffalo", true, http.StatusConflict, "it is alive"},
		{http.MethodPost, "/v1/forget?node=london", false, http.StatusForbidden, "X-Pbxmesh-Command"},
		{http.MethodPost, "/v1/forget?node=a/b", true, http.StatusBadRequest, "name one node"},
		{http.MethodPost, "/v1/forget?node=a&node=b", true, http.StatusBadRequest, "name one node"},
		{http.MethodPost, "/v1/forget?node=a&force=1", true, http.StatusBadRequest, "name one node"},
		{http.MethodGet, "/v1/forget?node=london", true, http.StatusNotFound, "no such path"},
	} {
		r := httptest.NewRequest(tt.method, tt.target, nil)
		r.Host = "127.0.0.1"
		if tt.header {
			r.Header.Set(commandHeader, "1")
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tt.code || !strings.Contains(w.Body.String(), tt.says) {
			t.Errorf("%s %s: %d %s, want %d and %q", tt.method, tt.target, w.Code, w.Body, tt.code, tt.says)
		}
	}
	if !slices.Equal(asked, []pbxmesh.NodeID{"london", "buffalo"}) {
		t.Errorf("the daemon was asked to forget %v", asked)
	}
}
