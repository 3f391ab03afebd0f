package dialplan

import (
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
)

var update = flag.Bool("update", false, "write the golden documents anew")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 22, 15, 0, 0, 0, time.UTC)

// fake is a registry of three nodes, of which singapore is down.
type fake struct {
	regs map[string][]*pbxmesh.Registration
	err  error
	hang chan struct{} // when not nil, Lookup waits for it and ignores its context
	mesh *pbxmesh.Mesh
}

func (f *fake) Lookup(_ context.Context, aor pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	if f.hang != nil {
		<-f.hang
	}
	return f.regs[aor.String()], time.Second, f.err
}

func (f *fake) Mesh() *pbxmesh.Mesh { return f.mesh }

func mustAOR(s string) pbxmesh.AOR {
	a, err := pbxmesh.ParseAOR(s)
	if err != nil {
		panic(err)
	}
	return a
}

// newFake knows 1001 here, 1002 on london, 1003 here and on london, 1004 on
// singapore, 1005 here twice and on a node nobody has looked at.
func newFake() *fake {
	f := &fake{regs: map[string][]*pbxmesh.Registration{}, mesh: &pbxmesh.Mesh{
		Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{},
	}}
	for id, n := range map[pbxmesh.NodeID]struct {
		mesh  string
		state pbxmesh.Observed
	}{
		"buffalo": {"192.0.2.1:5090", pbxmesh.ObservedUp}, "london": {"192.0.2.2:5090", pbxmesh.ObservedUp},
		"singapore": {"192.0.2.3:5090", pbxmesh.ObservedDown}, "sydney": {"192.0.2.4:5090", pbxmesh.ObservedUnknown},
	} {
		f.mesh.Nodes[id] = pbxmesh.Node{ID: id, Mesh: netip.MustParseAddrPort(n.mesh)}
		f.mesh.States[id] = pbxmesh.NodeState{Observed: n.state}
	}
	for _, r := range []struct {
		aor, call string
		node      pbxmesh.NodeID
	}{
		{"1001@pbx.test", "a", "buffalo"}, {"1002@pbx.test", "a", "london"}, {"1003@pbx.test", "a", "buffalo"}, {"1003@pbx.test", "b", "london"},
		{"1004@pbx.test", "a", "singapore"}, {"1005@pbx.test", "a", "buffalo"}, {"1005@pbx.test", "b", "buffalo"}, {"1005@pbx.test", "c", "sydney"},
		{"+4912@pbx.test", "a", "london"},
	} {
		f.regs[r.aor] = append(f.regs[r.aor], &pbxmesh.Registration{
			AOR: mustAOR(r.aor), Node: r.node, CallID: r.call, Profile: "internal", Expires: now.Add(time.Hour),
			Contact: "sip:1@192.0.2.9;x=${system(id)},sofia/gateway/premium/1", // never to be seen
		})
	}
	return f
}

func newServer(t testing.TB, f *fake, change func(*Options)) *Server {
	t.Helper()
	// Ordinary tests must not depend on how busy the machine is.
	o := Options{Directory: f, Nodes: f, Local: "buffalo", Now: func() time.Time { return now }, Deadline: 30 * time.Second}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reply is an answer as a switch would read it.
type reply struct {
	StatusCode int
	Header     http.Header
	body       string
}

// ask sends one request straight to the handler. What net/http itself refuses gets
// its 400.
func ask(s *Server, method, target, body string, header ...string) reply {
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return reply{StatusCode: http.StatusBadRequest, Header: http.Header{}}
	}
	r := &http.Request{Method: method, URL: u, RequestURI: target, Host: "127.0.0.1:8086", Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return reply{w.Code, w.Header(), w.Body.String()}
}

func TestDialstring(t *testing.T) {
	t.Parallel()
	const london = "sofia/mesh/sip:1002@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"
	s := newServer(t, newFake(), nil)
	for _, tt := range []struct {
		path string
		code int
		want string
	}{
		{"1002@pbx.test", 200, london},
		{"1002@PBX.Test", 200, london},
		{"1002%40pbx.test", 200, london},
		{"%31002@pbx.test", 200, london},
		{"1002@pbx.test?local=none", 200, london},
		{"1002@pbx.test?from=local", 200, london},
		{"+4912@pbx.test", 200, "sofia/mesh/sip:+4912@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"},
		{"%2B4912@pbx.test", 200, "sofia/mesh/sip:+4912@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"},
		{"1002@pbx.test?local=contact", 200, london},
		{"1001@pbx.test", 200, "error/user_not_registered"},
		{"1001@pbx.test?local=contact", 200, "{presence_id=1001@pbx.test,sip_invite_domain=pbx.test}${sofia_contact(internal/1001@pbx.test)}"},
		{"1003@pbx.test", 200, "sofia/mesh/sip:1003@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"},
		{"1003@pbx.test?local=contact", 200, "[presence_id=1003@pbx.test,sip_invite_domain=pbx.test]${sofia_contact(internal/1003@pbx.test)},sofia/mesh/sip:1003@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"},
		{"1005@pbx.test", 200, "sofia/mesh/sip:1005@pbx.test;fs_path=sip%3A192.0.2.4%3A5090"},
		{"1002@pbx.test?from=mesh", 404, "error/user_not_registered"},
		{"1001@pbx.test?from=mesh&local=contact", 200, "{presence_id=1001@pbx.test,sip_invite_domain=pbx.test}${sofia_contact(internal/1001@pbx.test)}"},
		{"1099@pbx.test", 404, "error/user_not_registered"},
		{"1002@other.test", 404, "error/user_not_registered"},
		{"1004@pbx.test", 503, "error/destination_out_of_order"},
		{"1002", 400, "error/invalid_number_format"},
		{"1002@", 400, "error/invalid_number_format"},
		{"@pbx.test", 400, "error/invalid_number_format"},
		{"", 400, "error/invalid_number_format"},
		{"1002@pbx.test/", 400, "error/invalid_number_format"},
		{"1002@pbx.test?local=all", 400, "error/invalid_number_format"},
		{"1002@pbx.test?from=public", 400, "error/invalid_number_format"},
		{"1002@pbx.test?form=mesh", 400, "error/invalid_number_format"},
		{"1002@pbx.test?from=mesh&from=local", 400, "error/invalid_number_format"},
		{"1002@pbx.test?from=mesh;x", 400, "error/invalid_number_format"},
		{"1002@pbx.test?%zz", 400, "error/invalid_number_format"},
	} {
		r := ask(s, "GET", "/dialstring/"+tt.path, "")
		if got := r.body; r.StatusCode != tt.code || got != tt.want {
			t.Errorf("%s: %d %q, want %d %q", tt.path, r.StatusCode, got, tt.code, tt.want)
		}
		if ct := r.Header.Get("Content-Type"); ct != typeText {
			t.Errorf("%s: %s", tt.path, ct)
		}
	}
}

// hostile is what callers may dial; none of it is an address.
var hostile = []string{
	"1002,sofia/gateway/x", "1002|y", "${system(id)}", "$${system(id)}", "[a=b]1002", "{x}1002", "<x>1002", "1002@other", "^^:1002", "1002\r\nX: y", "1002\n",
	strings.Repeat("1", 4096), "%31002", "%2531002", "%2f..%2f", "../route/1002", "..", ".../..", "１００２", "1002\x00", "1002 post x", "1002?local=contact", "1002#",
	"1002&Hunt-Destination-Number=1003", "1002;fs_path=sip:evil", "1002\"/><action application=\"system\" data=\"id", "]]>", "<!--", "1002'", "1002\\,", "&quot;", "\u0000",
	"<X-PRE-PROCESS cmd=\"exec\" data=\"id\"/>", "10)02", "1002:5060", "sip:1002", "error/x",
}

// TestHostile: a number that is no address rings nobody at any door, and nothing of
// it stands in an answer.
func TestHostile(t *testing.T) {
	t.Parallel()
	s := newServer(t, newFake(), func(o *Options) { o.Explain = explainStub })
	for _, number := range hostile {
		for _, path := range []string{number + "@pbx.test", url.PathEscape(number) + "@pbx.test", url.PathEscape(url.PathEscape(number)) + "@pbx.test", "1002@" + url.PathEscape(number)} {
			if path == "%31002@pbx.test" || path == "1002@.." {
				continue // one decoding makes the first an address: see TestDialstring
			}
			for _, door := range []string{"/dialstring/", "/route/"} {
				r := ask(s, "GET", door+path, "", "User-Agent", "freeswitch-curl/1.0")
				if got := r.body; r.StatusCode == http.StatusOK && path != "1002?local=contact@pbx.test" || strings.Contains(got, "sofia") || !harmless(got) {
					t.Errorf("GET %s%.60q: %d %q", door, path, r.StatusCode, got)
				}
			}
		}
		for _, field := range []string{"Hunt-Destination-Number", "variable_domain_name", "Hunt-Context"} {
			v := url.Values{"section": {"dialplan"}, "Hunt-Destination-Number": {"1002"}, "Hunt-Context": {"default"}, "variable_domain_name": {"pbx.test"}}
			v.Set(field, number)
			r := ask(s, "POST", "/xml", v.Encode())
			if got := r.body; got != string(notFound) || r.StatusCode != http.StatusOK {
				t.Errorf("%s=%.60q: %d %s", field, number, r.StatusCode, got)
			}
		}
	}
}

// harmless is every answer that rings nobody.
func harmless(text string) bool {
	return text == "" || text == "error/user_not_registered" || text == "error/invalid_number_format" || text == "error/destination_out_of_order" ||
		text == "error/normal_temporary_failure" || strings.HasPrefix(text, `{"error":`)
}

func explainStub(_ context.Context, aor pbxmesh.AOR, fromMesh bool) (any, error) {
	if aor.User() == "1099" {
		return nil, pbxmesh.ErrUnavailable
	}
	return map[string]any{"aor": aor, "from_mesh": fromMesh}, nil
}

// golden compares an answer with a document in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".xml")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil || string(want) != got {
		t.Errorf("%s (%v): got\n%s\nwant\n%s", name, err, got, want)
	}
}

// call is a form as a switch posts it for a call from a phone to number.
func callForm(number string, more ...string) string {
	v := url.Values{
		"hostname": {"buffalo"}, "section": {"dialplan"}, "tag_name": {""}, "key_name": {""}, "key_value": {""},
		"Caller-Destination-Number": {"9999"}, "Hunt-Destination-Number": {number}, "Hunt-Context": {"default"}, "Caller-Context": {"public"},
		"variable_domain_name": {"pbx.test"}, "variable_sip_req_host": {"evil.test"}, "variable_sofia_profile_name": {"internal"},
	}
	for i := 0; i+1 < len(more); i += 2 {
		if v.Set(more[i], more[i+1]); more[i+1] == "" {
			v.Del(more[i])
		}
	}
	return strings.ReplaceAll(v.Encode(), "+", "%20")
}

func TestXML(t *testing.T) {
	t.Parallel()
	lists := filepath.Join(t.TempDir(), "acl.conf.xml")
	if err := os.WriteFile(lists, []byte(ownLists), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServer(t, newFake(), func(o *Options) {
		o.ACL = ACL{List: "mesh", File: lists}
		o.Contexts = []string{"default", "tenant.test"}
		o.Domain = "fallback.test"
	})
	const no = "not-found"
	for _, tt := range []struct{ name, golden, form string }{
		{"other node", "remote", callForm("1002")},
		{"here", "local", callForm("1001")},
		{"here and there", "both", callForm("1003")},
		{"as dialled", "as-dialled", callForm("1002", "variable_domain_name", "PBX.test", "Hunt-Context", "tenant.test")},
		{"variables of the dialplan stay", "variables", callForm("1002", "variable_hangup_after_bridge", "false", "variable_continue_on_fail", "USER_BUSY")},
		{"plus", "plus", callForm("+4912")},
		{"an unencoded plus", "plus", strings.Replace(callForm("+4912"), "%2B", "+", 1)},
		{"only Caller", "remote", callForm("", "Caller-Destination-Number", "1002", "Hunt-Context", "", "Caller-Context", "default")},
		{"domain of the request", "remote", callForm("1002", "variable_domain_name", "", "variable_sip_req_host", "pbx.test")},
		{"over the mesh", "mesh", callForm("1001", "variable_sofia_profile_name", "mesh", "Hunt-Context", "mesh", "variable_sip_req_host", "pbx.test", "variable_domain_name", "")},
		{"over the mesh, elsewhere", no, callForm("1002", "variable_sofia_profile_name", "mesh", "Hunt-Context", "mesh", "variable_sip_req_host", "pbx.test", "variable_domain_name", "")},
		{"over the mesh, answered here and transferred", "remote", callForm("1002", "variable_sofia_profile_name", "mesh", "variable_originate_disposition", "SUCCESS")},
		{"over the mesh, redirected by a phone that rang", "remote", callForm("1002", "variable_sofia_profile_name", "mesh", "variable_pbxmesh_transferred", "true")},
		{"over the mesh, in the context of the phones", no, callForm("1002", "variable_sofia_profile_name", "mesh", "variable_originate_disposition", "NO_ANSWER")},
		{"the dialplan leaves out contacts of its choice", "excludes", callForm("1001", "variable_sip_exclude_contact", "192.0.2.77")},
		{"the second time", no, callForm("1002", "variable_pbxmesh_tried", "1002@pbx.test")},
		{"another number later", "remote", callForm("1002", "variable_pbxmesh_tried", "1003@pbx.test")},
		{"nowhere", no, callForm("1099")},
		{"default domain", no, callForm("1002", "variable_domain_name", "", "variable_sip_req_host", "")},
		{"node down", no, callForm("1004")},
		{"public", no, callForm("1002", "Hunt-Context", "public")},
		{"another tenant", no, callForm("1002", "variable_domain_name", "other.test")},
		{"two numbers", no, callForm("1002") + "&Hunt-Destination-Number=1001"},
		{"the same number twice", "remote", callForm("1002") + "&Hunt-Destination-Number=1002"},
		{"two profiles", no, callForm("1001") + "&variable_sofia_profile_name=mesh"},
		{"bad encoding", no, callForm("1002") + "&Hunt-Context=%zz"},
		{"a long value", no, callForm("1002") + "&variable_continue_on_fail=" + strings.Repeat("x", maxValue+1)},
		{"directory", no, "section=directory&tag_name=domain&key_name=name&key_value=pbx.test&user=1002"},
		{"configuration", no, "section=configuration&tag_name=configuration&key_name=name&key_value=sofia.conf"},
		{"phrases", no, "section=phrases"},
		{"nothing", no, ""},
		{"access lists", "acl", "hostname=x&section=configuration&tag_name=configuration&key_name=name&key_value=acl.conf"},
	} {
		r := ask(s, "POST", "/xml", tt.form, "Content-Type", "application/x-www-form-urlencoded")
		got := r.body
		if r.StatusCode != http.StatusOK || r.Header.Get("Content-Type") != typeXML {
			t.Errorf("%s: %d %s", tt.name, r.StatusCode, r.Header.Get("Content-Type"))
		}
		t.Run(tt.name, func(t *testing.T) { golden(t, tt.golden, got) })
	}
	public := newServer(t, newFake(), func(o *Options) { o.Contexts = []string{AnyContext} })
	golden(t, "public", ask(public, "POST", "/xml", callForm("1002", "Hunt-Context", "public")).body)
	if got := ask(public, "POST", "/xml", "section=configuration&tag_name=configuration&key_value=acl.conf").body; got != string(notFound) {
		t.Errorf("acl.conf without being asked for: %s", got)
	}
}

// TestRegistryTrouble: a registry that fails, panics, hangs or was never read gives
// the caller back within the deadline.
func TestRegistryTrouble(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	release := func() { close(hang) }
	for name, f := range map[string]*fake{
		"fails": {err: pbxmesh.ErrUnavailable}, "hangs": {hang: hang}, "other error": {err: errors.New("no")},
	} {
		s := newServer(t, f, func(o *Options) { o.Deadline = 100 * time.Millisecond; o.MaxRequests = 4 })
		for range 10 { // more than there are places: a look-up that hangs keeps its own
			began := time.Now()
			r := ask(s, "GET", "/dialstring/1002@pbx.test", "")
			if got := r.body; got != "error/normal_temporary_failure" || r.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%s: %d %q", name, r.StatusCode, got)
			}
			r = ask(s, "POST", "/xml", callForm("1002"))
			if got := r.body; got != string(notFound) || r.StatusCode != http.StatusOK || r.Header.Get("X-Pbxmesh-Result") != "unavailable" {
				t.Errorf("%s: %d %q", name, r.StatusCode, got)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("%s: two answers took %s", name, took)
			}
		}
		if name == "hangs" {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || s.Stats().Lookups != 4 {
				t.Errorf("a stop with look-ups that hang: %v, %d", err, s.Stats().Lookups)
			}
			cancel()
			release()
		}
		if err := s.Shutdown(context.Background()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	panics := newServer(t, newFake(), func(o *Options) { o.Directory = panicking{}; o.Explain = nil })
	if got := ask(panics, "POST", "/xml", callForm("1002")).body; got != string(notFound) || panics.Stats().Panics != 1 {
		t.Errorf("a panic gives %s", got)
	}
}

type panicking struct{}

func (panicking) Lookup(context.Context, pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	panic("boom")
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}
