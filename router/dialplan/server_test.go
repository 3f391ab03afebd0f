package dialplan

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve runs s on a port of its own until the test ends.
func serve(t testing.TB, s *Server) string {
	t.Helper()
	l := listen(t)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if n := s.Stats().OpenConnections; n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
	return l.Addr().String()
}

// raw sends bytes and returns what comes back until the server closes.
func raw(t testing.TB, addr, request string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		return "" // it closed while we wrote
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

func TestAccess(t *testing.T) {
	t.Parallel()
	open := newServer(t, newFake(), func(o *Options) { o.Explain = explainStub })
	closed := newServer(t, newFake(), func(o *Options) { o.Token = "s3cret"; o.Explain = explainStub })
	const path = "/dialstring/1002@pbx.test"
	basic := func(pass string) string {
		r := &http.Request{Header: http.Header{}}
		r.SetBasicAuth("anybody", pass)
		return r.Header.Get("Authorization")
	}
	for _, tt := range []struct {
		name, method, path string
		s                  *Server
		code               int
		header             []string
	}{
		{"plain", "GET", path, open, 200, nil},
		{"head", "HEAD", path, open, 200, nil},
		{"post to a GET door", "POST", path, open, 405, nil},
		{"get to the POST door", "GET", "/xml", open, 405, nil},
		{"no such path", "GET", "/", open, 404, nil},
		{"below xml", "POST", "/xml/", open, 404, nil},
		{"encoded xml", "POST", "/%78ml", open, 404, nil},
		{"encoded door", "GET", "/%64ialstring/1002@pbx.test", open, 404, nil},
		{"unclean path", "GET", "//dialstring/1002@pbx.test", open, 404, nil},
		{"dots", "GET", "/x/../dialstring/1002@pbx.test", open, 404, nil},
		{"long path", "GET", "/dialstring/" + strings.Repeat("1", 3000) + "@pbx.test", open, 414, nil},
		{"route", "GET", "/route/1002@pbx.test", open, 200, nil},
		{"route from the mesh", "GET", "/route/1002@pbx.test?from=mesh", open, 200, nil},
		{"route of nobody we could ask", "GET", "/route/1099@pbx.test", open, 503, nil},
		{"route with a typing error", "GET", "/route/1002@pbx.test?local=contact", open, 400, nil},
		{"route by mod_curl without naming JSON", "GET", "/route/1002@pbx.test", open, 404, []string{"User-Agent", "freeswitch-curl/1.0", "Accept", "*/*"}},
		{"route by mod_curl", "GET", "/route/1002@pbx.test", open, 200, []string{"User-Agent", "freeswitch-curl/1.0", "Accept", "application/json"}},
		{"no token", "GET", path, closed, 401, nil},
		{"no token for xml", "POST", "/xml", closed, 401, nil},
		{"wrong token", "GET", path, closed, 401, []string{"Authorization", "Bearer s3cre"}},
		{"another scheme", "GET", path, closed, 401, []string{"Authorization", "Digest s3cret"}},
		{"bearer", "GET", path, closed, 200, []string{"Authorization", "bearer s3cret"}},
		{"basic", "GET", path, closed, 200, []string{"Authorization", basic("s3cret")}},
		{"basic, wrong", "GET", path, closed, 401, []string{"Authorization", basic("")}},
	} {
		r := ask(tt.s, tt.method, tt.path, "", tt.header...)
		if r.StatusCode != tt.code {
			t.Errorf("%s: %d, want %d: %s", tt.name, r.StatusCode, tt.code, r.body)
		}
		if r.StatusCode == http.StatusUnauthorized && !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Basic ") {
			t.Errorf("%s: no challenge that FreeSWITCH answers", tt.name)
		}
	}
	if got := ask(closed, "POST", "/xml", callForm("1002")).body; got != string(notFound) {
		t.Errorf("without a token the switch reads %s", got)
	}
	if got := closed.Stats(); got.Refused == 0 || got.Routed == 0 {
		t.Errorf("%+v", got)
	}
}

// TestHosts: without a token a name of somebody else's choice is refused.
func TestHosts(t *testing.T) {
	t.Parallel()
	addr := serve(t, newServer(t, newFake(), nil))
	for host, code := range map[string]string{
		"127.0.0.1:8086": "200", "localhost": "200", "LOCALHOST:1": "200", "[::1]:8086": "200", "evil.test": "421", "127.0.0.1.evil.test": "421", "": "421",
	} {
		got := raw(t, addr, "GET /dialstring/1002@pbx.test HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 "+code) {
			t.Errorf("%s: %.60q, want %s", host, got, code)
		}
	}
}

// TestKeepAlive: one connection carries many requests, and none after it hurts.
func TestKeepAlive(t *testing.T) {
	t.Parallel()
	s := newServer(t, newFake(), nil)
	addr := serve(t, s)
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(c)
	form := callForm("1002")
	for i := range 50 {
		fmt.Fprintf(c, "POST /xml HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n%s", addr, len(form), form)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !strings.Contains(string(got), "fs_path") {
			t.Fatalf("request %d: %v, %s", i, err, got)
		}
	}
	if n := s.Stats().OpenConnections; n != 1 {
		t.Errorf("%d connections for 50 requests", n)
	}
}

// TestWireLimits: what is too large or no HTTP is refused, and the server lives on.
func TestWireLimits(t *testing.T) {
	t.Parallel()
	s := newServer(t, newFake(), nil)
	addr := serve(t, s)
	for name, request := range map[string]string{
		"no HTTP":        "INVITE sip:1002@pbx.test SIP/2.0\r\n\r\n",
		"huge header":    "GET /dialstring/1002@pbx.test HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n",
		"two lengths":    "POST /xml HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
		"bad length":     "POST /xml HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
		"huge body":      "POST /xml HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: 600000\r\n\r\n" + strings.Repeat("a", 600000),
		"endless chunks": "POST /xml HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1000\r\n"+strings.Repeat("a", 4096)+"\r\n", 100),
		"options":        "OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
		"connect":        "CONNECT evil.test:80 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
		"absolute":       "GET http://127.0.0.1/../dialstring/1002@pbx.test HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
	} {
		if got := raw(t, addr, request); strings.HasPrefix(got, "HTTP/1.1 2") || strings.HasPrefix(got, "HTTP/1.1 3") || strings.Contains(got, "fs_path") {
			t.Errorf("%s: %.100q", name, got)
		}
	}
	if got := raw(t, addr, "GET /dialstring/1002@pbx.test HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.0 200") {
		t.Errorf("after all that: %.100q", got)
	}
}

// TestOverload: requests beyond the bound get 503 in the form of their door, at
// once, and connections beyond theirs are closed.
func TestOverload(t *testing.T) {
	t.Parallel()
	f := newFake()
	f.hang = make(chan struct{})
	s := newServer(t, f, func(o *Options) { o.MaxRequests = 2; o.Deadline = 30 * time.Second })
	addr := serve(t, s)
	var held sync.WaitGroup
	for range 2 {
		held.Go(func() {
			if got := raw(t, addr, "GET /dialstring/1002@pbx.test HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"); !strings.Contains(got, "fs_path") {
				t.Errorf("the request that was held gets %q", got)
			}
		})
	}
	waitFor(t, func() bool { return s.Stats().Lookups == 2 })
	if got := raw(t, addr, "GET /dialstring/1002@pbx.test HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.0 503") || !strings.HasSuffix(got, "\r\n\r\nerror/switch_congestion") || !strings.Contains(got, "Retry-After: 1") {
		t.Errorf("one more gets %q", got)
	}
	if got := raw(t, addr, "POST /xml HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.0 503") || !strings.HasSuffix(got, string(notFound)) {
		t.Errorf("one more binding gets %q", got)
	}
	var idle []net.Conn
	for range 40 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	waitFor(t, func() bool { return s.Stats().RefusedConnections > 0 })
	for _, c := range idle {
		_ = c.Close()
	}
	close(f.hang)
	held.Wait()
	if got := s.Stats(); got.Overloaded != 2 || got.Routed != 2 {
		t.Errorf("%+v", got)
	}
}

func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("not within 10s")
		}
		<-tick.C
	}
}

const ownLists = `<configuration name="acl.conf" description="Network Lists">
  <network-lists>
    <!-- the operator's own -->
    <list name="lan" default="allow">
      <node type="deny" cidr="192.168.42.0/24"/>
      <node type="allow" host="$${local_ip_v4}" mask="255.255.255.255"/>
    </list>
    <list name="mesh" default="deny"><node type="allow" cidr="203.0.113.9/32"/></list>
    <list name="domains" default="deny"><node type="allow" domain="$${domain}"/></list>
  </network-lists>
</configuration>
`

// TestACLTrouble: when the operator's lists cannot be repeated in full, or no node is
// known, the switch keeps its own.
func TestACLTrouble(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const question = "section=configuration&tag_name=configuration&key_name=name&key_value=acl.conf"
	for name, path := range map[string]string{
		"missing":     filepath.Join(dir, "none"),
		"a folder":    dir,
		"no XML":      write("a", "<list name="),
		"another":     write("b", "<configuration/>"),
		"preprocess":  write("c", `<network-lists><X-PRE-PROCESS cmd="include" data="acl/*.xml"/></network-lists>`),
		"entities":    write("d", `<!DOCTYPE x [<!ENTITY e "x">]><network-lists/>`),
		"unclosed":    write("e", `<network-lists><list name="a">`),
		"too large":   write("f", `<network-lists>`+strings.Repeat(" ", maxACLFile)+`</network-lists>`),
		"many lists":  write("g", `<network-lists>`+strings.Repeat(`<list name="a"/>`, maxACLLists+1)+`</network-lists>`),
		"empty file":  write("h", ""),
		"undefined &": write("i", `<network-lists><list name="&e;"/></network-lists>`),
	} {
		s := newServer(t, newFake(), func(o *Options) { o.ACL = ACL{List: "mesh", File: path} })
		if r := ask(s, "POST", "/xml", question); r.body != string(notFound) || r.StatusCode != http.StatusOK {
			t.Errorf("%s: the switch's own lists are replaced", name)
		}
	}
	f := newFake()
	f.mesh.Nodes = nil
	s := newServer(t, f, func(o *Options) { o.ACL = ACL{List: "mesh", File: write("j", ownLists)} })
	if r := ask(s, "POST", "/xml", question); r.body != string(notFound) {
		t.Error("with no node known everybody is locked out")
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	good := func() Options { f := newFake(); return Options{Directory: f, Nodes: f, Local: "buffalo"} }
	for name, change := range map[string]func(*Options){
		"no directory": func(o *Options) { o.Directory = nil },
		"no nodes":     func(o *Options) { o.Nodes = nil },
		"local":        func(o *Options) { o.Local = "Buffalo" },
		"deadline":     func(o *Options) { o.Deadline = -1 },
		"requests":     func(o *Options) { o.MaxRequests = -1 },
		"profile":      func(o *Options) { o.Bridge.MeshProfile = "a,b" },
		"domain":       func(o *Options) { o.Domain = "a b" },
		"context":      func(o *Options) { o.Contexts = []string{"default", "a b"} },
		"list alone":   func(o *Options) { o.ACL.List = "mesh" },
		"file alone":   func(o *Options) { o.ACL.File = "x" },
		"list name":    func(o *Options) { o.ACL = ACL{List: `"`, File: "x"} },
	} {
		o := good()
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(good()); err != nil {
		t.Error(err)
	}
}

// TestObserve: every decision is told once, with its words.
func TestObserve(t *testing.T) {
	t.Parallel()
	var got []Record
	s := newServer(t, newFake(), func(o *Options) { o.Observe = func(r Record) { got = append(got, r) }; o.LogCalls = true })
	ask(s, "GET", "/dialstring/1002@pbx.test", "")
	ask(s, "POST", "/xml", callForm("1099"))
	ask(s, "POST", "/xml", callForm("a b"))
	ask(s, "POST", "/xml", callForm("1002", "Hunt-Context", "public")) // no question for us
	if len(got) != 3 || got[0].Door != "dialstring" || got[0].Outcome != Routed || len(got[0].Nodes) != 1 || got[0].Nodes[0] != "london" ||
		got[1].Door != "xml" || got[1].Outcome != NotRegistered || got[1].Cause != "USER_NOT_REGISTERED" || got[2].Outcome != Invalid || !got[2].AOR.IsZero() {
		t.Errorf("%+v", got)
	}
	if st := s.Stats(); st.Requests != 4 || st.Active != 0 || st.Routed != 1 || st.NotRegistered != 1 || st.Invalid != 1 {
		t.Errorf("%+v", st)
	}
}
