package pdns

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/dnsserver"
	"pbxmesh/dnsserver/selection"
)

type source struct{ mesh atomic.Pointer[pbxmesh.Mesh] }

func (s *source) Mesh() *pbxmesh.Mesh { return s.mesh.Load() }

func threeTowns(down ...pbxmesh.NodeID) *pbxmesh.Mesh {
	m := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
	for i, id := range []pbxmesh.NodeID{"buffalo", "london", "singapore"} {
		m.Nodes[id] = pbxmesh.Node{
			ID: id, Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1))},
			Ports: pbxmesh.SIPPorts{UDP: 5060, TCP: 5060, TLS: 5061},
		}
		m.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
		if slices.Contains(down, id) {
			m.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedDown}
		}
	}
	return m
}

func newZone(t testing.TB, mesh *pbxmesh.Mesh) (*dnsserver.Zone, *source) {
	t.Helper()
	s := &source{}
	s.mesh.Store(mesh)
	var networks []selection.Network
	orders := [][]pbxmesh.NodeID{{"london", "buffalo"}, {"singapore", "london"}, {"buffalo", "singapore"}}
	for i := range 50 {
		networks = append(networks, selection.Network{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, byte(i), 0}), 24), Nodes: orders[i%3]})
	}
	p, err := selection.NewPreferences(networks, []pbxmesh.NodeID{"buffalo", "london"})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "zone")
	if err := os.WriteFile(file, []byte("@ MX 10 mail.example.net.\nwww A 192.0.2.80\nphones CNAME tenant\n@ TXT \"a \\\"quoted\\\" text\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	z, err := dnsserver.NewZone(dnsserver.ZoneOptions{
		Origin: "pbx.example.com", Names: []string{"*.pbx.example.com", "sip.pbx.example.com"}, TenantZones: []string{"phones.customer.example"},
		NameServers: []dnsserver.NameServer{{Name: "losangeles", Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.11")}}, {Name: "ns.elsewhere.example"}},
		Preferences: p, Source: s, ZoneFile: file,
	})
	if err != nil {
		t.Fatal(err)
	}
	return z, s
}

func newServer(t testing.TB, z Zone, allow ...netip.Prefix) *Server {
	t.Helper()
	s, err := New(Options{Zone: z, Allow: allow})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func ask(s *Server, method, path, body, from string, header ...string) (int, string) {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	r.RemoteAddr = from
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}

func TestProtocol(t *testing.T) {
	t.Parallel()
	z, _ := newZone(t, threeTowns())
	empty, _ := newZone(t, nil)
	const local = "127.0.0.1:1"
	lookup := func(name, remote string) string {
		return fmt.Sprintf(`{"method":"lookup","parameters":{"qname":%q,"qtype":"ANY","remote":"127.0.0.1","local":"127.0.0.1","real-remote":%q,"zone-id":-1}}`, name, remote)
	}
	for _, tt := range []struct {
		name, method, path, body, from string
		header                         []string
		zone                           Zone
		code                           int
		want, not                      string
	}{
		{name: "apex", body: lookup("pbx.example.com.", "0.0.0.0/0"), want: `{"qtype":"SOA","qname":"pbx.example.com.","content":"losangeles.pbx.example.com. hostmaster.pbx.example.com. 1 3600 600 604800 10","ttl":300,"scopeMask":0}`},
		{name: "service", body: lookup("Sip.pbx.example.com.", "198.51.0.0/24"), want: `{"qtype":"A","qname":"Sip.pbx.example.com.","content":"192.0.2.2","ttl":30,"scopeMask":24}`, not: "192.0.2.1"},
		{name: "NAPTR", body: lookup("sip.pbx.example.com.", "198.51.0.9/32"), want: `"content":"10 10 \"s\" \"SIP+D2U\" \"\" _sip._udp.sip.pbx.example.com."`},
		{name: "SRV", body: lookup("_sip._udp.sip.pbx.example.com.", "198.51.0.9/32"), want: `"content":"10 0 5060 london.pbx.example.com.","ttl":30,"scopeMask":24`},
		{name: "nobody known", body: lookup("sip.pbx.example.com.", "0.0.0.0/0"), want: `"content":"192.0.2.1","ttl":30,"scopeMask":1}`},
		{name: "static", body: lookup("www.pbx.example.com.", "198.51.0.9/32"), want: `{"result":[{"qtype":"A","qname":"www.pbx.example.com.","content":"192.0.2.80","ttl":3600,"scopeMask":0}]}`},
		{name: "quotes", body: lookup("pbx.example.com.", ""), want: `"content":"\"a \\\"quoted\\\" text\""`},
		{name: "CNAME", body: lookup("phones.pbx.example.com.", ""), want: `[{"qtype":"CNAME","qname":"phones.pbx.example.com.","content":"tenant.pbx.example.com.","ttl":3600,"scopeMask":0}]`},
		{name: "nothing", body: lookup("x.london.pbx.example.com.", ""), want: `{"result":[]}`},
		{name: "not ours", body: lookup("example.org.", ""), want: `{"result":[]}`},
		{name: "long name", body: lookup(strings.Repeat("x", 300)+".pbx.example.com.", ""), want: `{"result":[]}`},
		{name: "GET", method: "GET", path: "/pdns/lookup/sip%2Epbx%2Eexample%2Ecom%2E/ANY", header: []string{"X-RemoteBackend-real-remote", "198.51.1.0/24"}, want: `"content":"192.0.2.3"`},
		{name: "zones", body: `{"method":"getAllDomains","parameters":{"include_disabled":true}}`, want: `{"result":[{"id":1,"zone":"pbx.example.com.","kind":"native","serial":1},{"id":2,"zone":"phones.customer.example.","kind":"native","serial":1}]}`},
		{name: "zone", body: `{"method":"getDomainInfo","parameters":{"name":"PBX.example.com"}}`, want: `{"result":{"id":1,"zone":"pbx.example.com."`},
		{name: "no zone", body: `{"method":"getDomainInfo","parameters":{"name":"example.org."}}`, want: `{"result":false}`},
		{name: "metadata", body: `{"method":"getAllDomainMetadata","parameters":{"name":"pbx.example.com."}}`, want: `{"result":{}}`},
		{name: "unknown method", body: `{"method":"feedRecord","parameters":{}}`, want: `{"result":false}`},
		{name: "no JSON", body: `hello`, code: 400},
		{name: "more", body: `{"method":"getAllDomains"} {}`, code: 400},
		{name: "wrong type", body: `{"method":1}`, code: 400},
		{name: "remote", body: lookup("pbx.example.com.", "nobody"), code: 400},
		{name: "too long", body: lookup(strings.Repeat("x", maxBody), ""), code: 400},
		{name: "other path", path: "/", body: "{}", code: 400},
		{name: "other verb", method: "PUT", body: "{}", code: 400},
		{name: "stranger", body: lookup("pbx.example.com.", ""), from: "192.0.2.1:1", code: 403},
		{name: "nothing known", zone: empty, body: lookup("sip.pbx.example.com.", ""), code: 503},
		{name: "nothing known of a node to come", zone: empty, body: lookup("paris.phones.customer.example.", ""), want: `{"result":[]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			method, path, from, code, zone := tt.method, tt.path, tt.from, tt.code, tt.zone
			if method == "" {
				method = http.MethodPost
			}
			if path == "" {
				path = Path
			}
			if from == "" {
				from = local
			}
			if code == 0 {
				code = http.StatusOK
			}
			if zone == nil {
				zone = z
			}
			got, body := ask(newServer(t, zone), method, path, tt.body, from, tt.header...)
			if got != code || !strings.Contains(body, tt.want) || tt.not != "" && strings.Contains(body, tt.not) {
				t.Errorf("%d %s\nwant %d %s", got, body, code, tt.want)
			}
			if !strings.HasPrefix(body, `{"result":`) {
				t.Errorf("no result in %q", body)
			}
		})
	}
	if code, _ := ask(newServer(t, z, netip.MustParsePrefix("192.0.2.0/24")), "POST", Path, lookup("pbx.example.com.", ""), "192.0.2.1:1"); code != 200 {
		t.Errorf("an allowed network gets %d", code)
	}
}

// FuzzRequest: whatever comes, the reply is a result, and never empty.
func FuzzRequest(f *testing.F) {
	f.Add(true, "/pdns", []byte(`{"method":"lookup","parameters":{"qname":"sip.pbx.example.com.","real-remote":"198.51.0.0/24"}}`))
	f.Add(true, "/pdns", []byte(`{"method":"getAllDomains"}`))
	f.Add(false, "/pdns/lookup/sip.pbx.example.com./ANY", []byte("198.51.0.0/24"))
	f.Add(false, "/pdns/lookup/%00%2e/A", []byte("::/0"))
	z, _ := newZone(f, threeTowns())
	s := newServer(f, z)
	f.Fuzz(func(t *testing.T, post bool, path string, body []byte) {
		r := httptest.NewRequest(http.MethodGet, "/", bytes.NewReader(body))
		r.URL.Path, r.RemoteAddr = path, "127.0.0.1:1"
		if post {
			r.Method = http.MethodPost
		} else {
			r.Header["X-Remotebackend-Real-Remote"] = []string{string(body)}
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if !strings.HasPrefix(w.Body.String(), `{"result":`) || w.Code != 200 && w.Body.String() != `{"result":false}` {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}

// startPowerDNS runs a real PowerDNS on z, and returns its address.
func startPowerDNS(t *testing.T, z Zone) string {
	t.Helper()
	program, err := exec.LookPath("pdns_server")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("pdns_server is missing; install pdns-server and pdns-backend-remote")
		}
		t.Skip("SKIPPED: pdns_server is missing; install pdns-server and pdns-backend-remote")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newServer(t, z)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	for range 5 {
		if addr, ok := runPowerDNS(t, program, l.Addr().String()); ok {
			return addr
		}
	}
	t.Fatal("PowerDNS does not start")
	return ""
}

// runPowerDNS starts it on a port that was free a moment ago; false: it was taken.
func runPowerDNS(t *testing.T, program, backend string) (string, bool) {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := c.LocalAddr().String()
	_ = c.Close()
	_, port, _ := net.SplitHostPort(addr)
	dir := t.TempDir()
	var log bytes.Buffer
	cmd := exec.Command(program, "--config-dir="+dir, "--socket-dir="+dir, "--daemon=no", "--guardian=no", "--disable-syslog",
		"--local-address=127.0.0.1", "--local-port="+port, "--launch=remote",
		"--remote-connection-string=http:url=http://"+backend+Path+",post=1,post_json=1,timeout=5000",
		"--edns-subnet-processing=yes", "--cache-ttl=0", "--query-cache-ttl=0", "--negquery-cache-ttl=0",
		"--zone-cache-refresh-interval=1", "--security-poll-suffix=", "--setuid=", "--setgid=", "--distributor-threads=1", "--receiver-threads=1")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("PowerDNS:\n%s", log.String())
		}
	})
	req := new(dns.Msg)
	req.SetQuestion("pbx.example.com.", dns.TypeSOA)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		select {
		case <-ended:
			return "", false
		default:
		}
		m, _, err := (&dns.Client{Timeout: 200 * time.Millisecond}).Exchange(req, addr)
		if err == nil && len(m.Answer) == 1 {
			return addr, true
		}
		time.Sleep(20 * time.Millisecond)
	}
	return "", false
}

// answerOf writes what counts of an answer, the order within a set left out.
func answerOf(m *dns.Msg) string {
	var lines []string
	for _, rr := range m.Answer {
		lines = append(lines, rr.String())
	}
	slices.Sort(lines)
	scope := "none"
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if s, ok := o.(*dns.EDNS0_SUBNET); ok {
				scope = fmt.Sprint(s.SourceNetmask, "/", s.SourceScope)
			}
		}
	}
	return fmt.Sprintf("%s aa=%v scope=%s\n%s", dns.RcodeToString[m.Rcode], m.Authoritative, scope, strings.Join(lines, "\n"))
}

// TestPowerDNS: a real PowerDNS says what our own server says, to 50 client networks,
// before and after a node died.
func TestPowerDNS(t *testing.T) {
	t.Parallel()
	z, src := newZone(t, threeTowns())
	addr := startPowerDNS(t, z)
	const perClient = 7 // of the questions
	questions := []dns.Question{
		{Name: "pbx.example.com.", Qtype: dns.TypeA}, {Name: "Sip.pbx.example.com.", Qtype: dns.TypeAAAA}, {Name: "tenant.pbx.example.com.", Qtype: dns.TypeA},
		{Name: "_sip._udp.pbx.example.com.", Qtype: dns.TypeSRV}, {Name: "_sips._tcp.tenant.pbx.example.com.", Qtype: dns.TypeSRV},
		{Name: "tenant.pbx.example.com.", Qtype: dns.TypeNAPTR}, {Name: "phones.customer.example.", Qtype: dns.TypeA},
		{Name: "phones.pbx.example.com.", Qtype: dns.TypeA}, {Name: "x.london.pbx.example.com.", Qtype: dns.TypeA},
		{Name: "www.pbx.example.com.", Qtype: dns.TypeA}, {Name: "london.pbx.example.com.", Qtype: dns.TypeA}, {Name: "sip.pbx.example.com.", Qtype: dns.TypeTXT},
	}
	same := func(when string) map[string]int {
		t.Helper()
		bests := make(map[string]int)
		for i := range 50 {
			for j, question := range questions {
				if i >= 5 && j >= perClient {
					continue // the same for everybody
				}
				req := new(dns.Msg)
				req.SetQuestion(question.Name, question.Qtype)
				req.SetEdns0(1232, false)
				req.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(198, 51, byte(i), 0)}}
				theirs, _, err := (&dns.Client{Timeout: 20 * time.Second}).Exchange(req, addr)
				if err != nil {
					t.Fatal(err)
				}
				ours := z.Answer(req, netip.MustParseAddr("127.0.0.1"))
				if a, b := answerOf(theirs), answerOf(ours); a != b {
					t.Errorf("%s, network %d, %s %s: PowerDNS\n%s\nwe\n%s", when, i, question.Name, dns.Type(question.Qtype), a, b)
				}
				if question == questions[0] {
					bests[ours.Answer[0].(*dns.A).A.String()]++
				}
			}
		}
		return bests
	}
	if bests := same("all up"); len(bests) != 3 {
		t.Errorf("the networks get %v: all nodes are wanted", bests)
	}
	src.mesh.Store(threeTowns("london"))
	if bests := same("london down"); len(bests) != 2 || bests["192.0.2.2"] != 0 {
		t.Errorf("after london died the networks get %v", bests)
	}
	src.mesh.Store(nil)
	req := new(dns.Msg)
	req.SetQuestion("pbx.example.com.", dns.TypeA)
	if m, _, err := (&dns.Client{Timeout: 20 * time.Second}).Exchange(req, addr); err != nil || m.Rcode != dns.RcodeServerFailure {
		t.Errorf("nothing known: %v %v, want SERVFAIL", err, m)
	}
}
