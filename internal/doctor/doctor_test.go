package doctor

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"pbxmesh"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/internal/fsconf"
	"pbxmesh/internal/meshcontext"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestHealthy(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	var mu sync.Mutex
	told := 0
	m.opts.Progress = func(Result) { mu.Lock(); told++; mu.Unlock() }
	r := m.examine(t)
	for _, c := range r.Checks {
		if c.Status != OK && c.Check != "clock" && c.Check != "file descriptors" { // memory tells no time, the fake daemon has no metrics
			t.Errorf("%+v", c)
		}
		if c.Status == OK && c.Do != "" || c.Seen == "" {
			t.Errorf("%+v", c)
		}
	}
	if r.Failed || r.Node != "buffalo" || told != len(r.Checks) {
		t.Errorf("%+v, %d told", r, told)
	}
	if c := find(t, r, "mesh port of london"); !strings.Contains(c.Seen, "answers 200") {
		t.Errorf("%+v", c)
	}
}

// One thing is wrong at a time: its check fails, names it, and says what to do.
func TestSick(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		spoil  func(t *testing.T, m *mesh)
		check  string
		status Status
		seen   string
		do     string
		spared string // a check that is still well
	}{
		{"wrong password", func(t *testing.T, m *mesh) {
			if err := os.WriteFile(string(m.cfg.FreeSWITCH.EventSocket.PasswordFile), []byte("wrong\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "event socket", Fail, "refused our password", "event_socket.conf.xml", "mesh port of london"},
		{"event socket ACL", func(_ *testing.T, m *mesh) { m.buffalo.RefuseByACL(true) },
			"event socket", Fail, "refused us by ACL", "apply-inbound-acl", "lease"},
		{"event socket silent", func(_ *testing.T, m *mesh) { m.buffalo.Silence(true) },
			"event socket", Fail, "no event socket greeting", "listen-port", "lease"},
		{"switch away", func(t *testing.T, m *mesh) {
			if err := m.buffalo.Kill(); err != nil {
				t.Fatal(err)
			}
		}, "event socket", Fail, "refused", "is FreeSWITCH running", "mesh port of london"},
		{"mesh profile missing", func(_ *testing.T, m *mesh) {
			m.answers["sofia xmlstatus"] = "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>\n<profiles>\n<profile>\n<name>internal</name>\n<type>profile</type>\n" +
				"<data>sip:mod_sofia@127.0.91.1:5060</data>\n<state>RUNNING (0)</state>\n</profile>\n<alias>\n<name>mesh</name>\n<type>alias</type>\n<state>ALIASED</state>\n</alias>\n</profiles>\n"
		}, "mesh profile", Fail, "no running profile mesh", "sofia profile mesh start", "sofia profiles"},
		{"mesh profile elsewhere", func(_ *testing.T, m *mesh) { m.cfg.Node.MeshAddress = netip.MustParseAddrPort("127.0.91.2:9") },
			"mesh profile", Fail, "the other nodes send calls to 127.0.91.2:9", "node.mesh_address", "sofia profiles"},
		{"mesh profile in another context", func(_ *testing.T, m *mesh) {
			m.answers["sofia xmlstatus profile mesh"] = "<profile><profile-info><context>public</context></profile-info></profile>"
		}, "mesh profile", Warn, `the dialplan context "public"`, "devices of this switch only", "sofia profiles"},
		{"internal profile misspelt", func(_ *testing.T, m *mesh) { m.cfg.FreeSWITCH.Profiles = []string{"internal", "phones"} },
			"sofia profiles", Fail, "not running: phones", "the switch has: internal, mesh", "mesh profile"},
		{"a setting is missing", func(_ *testing.T, m *mesh) {
			m.answers["xml_locate "] = strings.Replace(sofiaConf, `<param name="auth-calls" value="true"/>`, "", 1)
		}, "mesh settings", Fail, "auth-calls is not set, not true", "everybody may call", "mesh list"},
		{"a setting is not ideal", func(_ *testing.T, m *mesh) {
			m.answers["xml_locate "] = strings.Replace(sofiaConf, "4000", "32000", 1)
		}, "mesh settings", Warn, "timer-T1X64 is 32000", "32 s", "mesh list"},
		{"no keep-alives", func(_ *testing.T, m *mesh) {
			m.answers["xml_locate "] = strings.Replace(sofiaConf, "all-reg-options-ping", "options-ping", 1)
		}, "keep-alives of internal", Warn, "no OPTIONS", "all-reg-options-ping", "mesh settings"},
		{"the switch hides its settings", func(_ *testing.T, m *mesh) { m.answers["xml_locate "] = "-ERR xml_locate Command not found!" },
			"mesh settings", Skip, "does not know", "", "mesh list"},
		{"a peer is kept out", func(_ *testing.T, m *mesh) { m.answers["acl 127.0.91.2 mesh"] = "false" },
			"mesh list", Fail, "keeps out london (127.0.91.2)", "fsconf", "mesh profile"},
		{"everybody is let in", func(_ *testing.T, m *mesh) { m.answers["acl 198.18."] = "true" },
			"mesh list", Fail, "lets everybody in", "default is deny", "mesh profile"},
		{"the domain is the switch's own address", func(_ *testing.T, m *mesh) {
			m.answers["xml_locate "] = strings.Replace(sofiaConf, "<settings>", `<settings><param name="force-register-domain" value="192.0.2.10"/>`, 1)
		}, "domain of internal", Fail, "force-register-domain is 192.0.2.10", "fsconf --domain", "mesh settings"},
		{"strangers are in the list", func(_ *testing.T, m *mesh) { m.answers["acl 127.0.0.1 "] = "true" },
			"mesh strangers", Skip, "nobody here is a stranger", "", "mesh list"},
		{"strangers are asked for a password", func(t *testing.T, m *mesh) { m.answering(t, 407) },
			"mesh strangers", Fail, "asks strangers for a password (407)", "auth-calls-acl-only", "mesh list"},
		{"strangers may call", func(t *testing.T, m *mesh) { m.answering(t, 480) },
			"mesh strangers", Fail, "takes calls of strangers (480)", "restart the profile mesh", "mesh list"},
		{"a stranger's call rings", func(t *testing.T, m *mesh) { m.answering(t, 180) },
			"mesh strangers", Fail, "takes calls of strangers (180)", "restart the profile mesh", "mesh list"},
		{"a peer is away", func(t *testing.T, m *mesh) {
			if err := m.london.Kill(); err != nil {
				t.Fatal(err)
			}
		}, "mesh port of london", Fail, m127, "", "mesh port of buffalo"},
		{"a peer hangs", func(t *testing.T, m *mesh) {
			if err := m.london.Pause(); err != nil {
				t.Fatal(err)
			}
		}, "mesh port of london", Fail, "does not answer", "firewalls", "mesh port of buffalo"},
		{"a peer that was taken out is away", func(t *testing.T, m *mesh) {
			if err := m.london.Kill(); err != nil {
				t.Fatal(err)
			}
			m.daemon.Nodes = func(context.Context) (*control.NodesReply, error) {
				return &control.NodesReply{Nodes: []control.Node{{ID: "london", Mesh: m.london.Mesh(), Wanted: "out"}}}, nil
			}
		}, "mesh port of london", Warn, m127, "", "mesh port of buffalo"},
		{"registry away", func(_ *testing.T, m *mesh) { m.backend = nil },
			"registry", Fail, "redis", "is the store running", "event socket"},
		{"no lease", func(t *testing.T, m *mesh) {
			if err := m.backend.Forget(t.Context(), "buffalo"); err != nil {
				t.Fatal(err)
			}
		}, "lease", Fail, "no sign of life", "start the daemon", "registry"},
		{"another owner", func(t *testing.T, m *mesh) { m.takeOver(t, "another-host") },
			"lease", Fail, "the daemon another-host publishes", "two daemons", "registry"},
		{"daemon away", func(t *testing.T, m *mesh) { m.opts.API = dead(t) },
			"control API", Fail, "refused", "pbxmesh serve", "mesh port of london"},
		{"daemon not ready", func(_ *testing.T, m *mesh) {
			m.daemon.Ready = func() error { return errors.New("the registry was not read yet") }
		}, "control API", Fail, "the registry was not read yet", "log", "mesh port of london"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			tc.spoil(t, m)
			r := m.examine(t)
			c := find(t, r, tc.check)
			seen := tc.seen
			if c.Status != tc.status || !strings.Contains(c.Seen, seen) || !strings.Contains(c.Do, tc.do) || (c.Do == "") != (tc.status == Skip) {
				t.Errorf("%+v", c)
			}
			if r.Failed != (tc.status == Fail) {
				t.Errorf("failed is %v", r.Failed)
			}
			if c := find(t, r, tc.spared); c.Status != OK {
				t.Errorf("this should be well: %+v", c)
			}
		})
	}
}

// TestJudge: each setting that matters is missed, and named, and a wrong value is no better.
func TestJudge(t *testing.T) {
	t.Parallel()
	with := func(name string, value ...string) map[string][]string {
		values := map[string][]string{}
		for _, s := range (meshcontext.Profile{Name: "mesh", Mesh: netip.MustParseAddrPort("192.0.2.1:5090")}).Settings() {
			values[s.Name] = []string{s.Value}
		}
		if name != "" {
			values[name] = value
		}
		return values
	}
	if r := judge("mesh", with("")); r.Status != OK {
		t.Errorf("as fsconf writes it: %+v", r)
	}
	for name, c := range map[string]struct {
		wrong   string
		status  Status
		missing bool // matters too
	}{
		"auth-calls":               {"false", Fail, true},
		"auth-calls-acl-only":      {"false", Fail, true},
		"apply-inbound-acl":        {"domains", Fail, true},
		"multiple-registrations":   {"false", Fail, true},
		"disable-register":         {"false", Warn, true},
		"manage-presence":          {"true", Warn, true},
		"timer-T1X64":              {"32000", Warn, true},
		"inbound-late-negotiation": {"false", Warn, true},
		"dtmf-type":                {"rfc2833", Warn, true},
		"enable-timer":             {"false", Warn, false},
		"session-timeout":          {"1800", Warn, true},
		"context":                  {"public", Warn, true},
	} {
		if r := judge("mesh", with(name, c.wrong)); r.Status != c.status || !strings.Contains(r.Seen, name+" is "+c.wrong) {
			t.Errorf("%s=%s: %+v", name, c.wrong, r)
		}
		want := OK
		if c.missing {
			want = c.status
		}
		if r := judge("mesh", with(name)); r.Status != want {
			t.Errorf("without %s: %+v", name, r)
		}
	}
}

const m127 = "127.0.91.2:"

func dead(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// registry.read on real servers: it follows, refuses the user, follows something else, is gone.
func TestReplica(t *testing.T) {
	t.Parallel()
	primary, other := registrytest.StartRedis(t), registrytest.StartRedis(t)
	near := registrytest.StartReplica(t, primary.Addr())
	m := newMesh(t)
	m.cfg.Registry.URL, m.backend, m.opts.Backend = config.URL(primary.URL()), nil, nil
	if r := m.examine(t); slices.ContainsFunc(r.Checks, func(c Result) bool { return c.Check == "replica" }) {
		t.Error("a replica that nobody named")
	}
	admin := redis.NewClient(&redis.Options{Addr: near.Addr()})
	defer admin.Close()
	for _, tc := range []struct {
		what, read string
		do         []any
		status     Status
		seen, todo string
	}{
		{"follows", near.URL(), nil, OK, "shows in", ""},
		{"no rights", near.URL(), []any{"ACL", "SETUSER", "default", "-hscan"}, Warn, "NOPERM", "users do not follow"},
		{"rights again", near.URL(), []any{"ACL", "SETUSER", "default", "+@all"}, OK, "shows in", ""},
		{"promoted", near.URL(), []any{"REPLICAOF", "NO", "ONE"}, Warn, "does not show", "does it follow this mesh's primary"},
		{"another primary", other.URL(), nil, Warn, "does not show", "reads the primary instead"},
		{"gone", "redis://" + dead(t), nil, Warn, "refused", "is it running"},
	} {
		if tc.do != nil {
			if err := admin.Do(t.Context(), tc.do...).Err(); err != nil {
				t.Fatal(err)
			}
		}
		m.cfg.Registry.Read = config.ReplicaURL(tc.read)
		r := m.examine(t)
		if c := find(t, r, "replica"); c.Status != tc.status || !strings.Contains(c.Seen, tc.seen) || !strings.Contains(c.Do, tc.todo) {
			t.Errorf("%s: %+v", tc.what, c)
		}
		if c := find(t, r, "registry"); c.Status != OK {
			t.Errorf("%s: %+v", tc.what, c)
		}
	}
}

// On a real Redis: written to, its time compared, wrong credentials named, gone.
func TestRedis(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t, "--requirepass", "s3cret")
	m := newMesh(t)
	m.cfg.Registry.URL = config.URL("redis://" + server.Addr() + "/0")
	secret := filepath.Join(t.TempDir(), "redis.password")
	if err := os.WriteFile(secret, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.cfg.Registry.PasswordFile = config.SecretFile(secret)
	store, err := redisstore.New(redisstore.Options{URL: string(m.cfg.Registry.URL), Password: "s3cret"})
	if err != nil {
		t.Fatal(err)
	}
	m.backend = store
	m.announce(t)
	m.backend, m.opts.Backend = nil, nil // doctor opens its own
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}

	r := m.examine(t)
	for _, check := range []string{"registry", "lease", "clock"} {
		if c := find(t, r, check); c.Status != OK {
			t.Errorf("%+v", c)
		}
	}
	if err := os.WriteFile(secret, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c := find(t, m.examine(t), "registry"); c.Status != Fail || !strings.Contains(c.Do, "password_file") {
		t.Errorf("%+v", c)
	}
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	r = m.examine(t)
	if c := find(t, r, "registry"); c.Status != Fail || !strings.Contains(c.Do, "is the store running") {
		t.Errorf("%+v", c)
	}
	if c := find(t, r, "lease"); c.Status != Skip {
		t.Errorf("%+v", c)
	}
}

func TestClock(t *testing.T) {
	t.Parallel()
	for ahead, want := range map[time.Duration]Status{
		3 * time.Millisecond: OK, -900 * time.Millisecond: OK, 2 * time.Second: Warn, -29 * time.Second: Warn, time.Minute: Fail, -time.Hour: Fail,
	} {
		p := &patient{results: map[string][]Result{}}
		p.clock(time.Now(), time.Now(), ahead)
		if got := p.results["clock"][0]; got.Status != want || (got.Do == "") != (want == OK) {
			t.Errorf("%v: %+v", ahead, got)
		}
	}
}

// Our name server answers for its zone, over UDP and TCP; another one that does not is
// a warning, because it is another machine's.
func TestNameServers(t *testing.T) {
	t.Parallel()
	good, refuses := startDNS(t, dns.RcodeSuccess), startDNS(t, dns.RcodeRefused)
	m := newMesh(t)
	m.cfg.DNS.Listen = []netip.AddrPort{good}
	m.cfg.DNS.Zone = "sip.example.com"
	m.opts.DNSPort = refuses.Port()
	m.cfg.DNS.Nameservers = []config.Nameserver{{Name: "ns2.example.com", Addresses: []netip.Addr{refuses.Addr()}}}
	r := m.examine(t)
	if c := find(t, r, "name server here"); c.Status != OK || !strings.Contains(c.Seen, "sip.example.com over UDP and TCP") {
		t.Errorf("%+v", c)
	}
	if c := find(t, r, "name server ns2.example.com"); c.Status != Warn || !strings.Contains(c.Seen, "REFUSED") {
		t.Errorf("%+v", c)
	}
	m.cfg.DNS.Listen = []netip.AddrPort{refuses}
	if c := find(t, m.examine(t), "name server here"); c.Status != Fail || !strings.Contains(c.Seen, "REFUSED") {
		t.Errorf("%+v", c)
	}
}

// A call of doctor's ends whatever becomes of it (RFC 3261 sections 9.1, 13.2.2.4, 17.1.1.3).
func TestKnockEnds(t *testing.T) {
	t.Parallel()
	const to = " sip:pbxmesh-doctor@pbxmesh.invalid SIP/2.0"
	for status, want := range map[int][]string{
		180: {"INVITE" + to, "CANCEL" + to, "ACK" + to},
		200: {"INVITE" + to, "ACK sip:far@127.0.0.9:5090 SIP/2.0", "BYE sip:far@127.0.0.9:5090 SIP/2.0"},
		480: {"INVITE" + to, "ACK" + to},
	} {
		m := &mesh{cfg: config.Defaults()}
		m.cfg.Node = &config.Node{}
		requests := m.answering(t, status)
		if got, err := knock(t.Context(), netip.MustParseAddr("127.0.0.1"), m.cfg.Node.MeshAddress); err != nil || got != status {
			t.Errorf("%d: %d, %v", status, got, err)
		}
		for _, line := range want {
			if got := <-requests; got != line {
				t.Errorf("%d: %q comes, want %q", status, got, line)
			}
		}
	}
}

// What fsconf writes is what doctor wants to see.
func TestFSConfPasses(t *testing.T) {
	t.Parallel()
	s := fsconf.Settings{Mesh: netip.MustParseAddrPort("192.0.2.10:5090"), Profile: "far", Profiles: []string{"internal"}}
	var written struct {
		Params []struct {
			Name  string `xml:"name,attr"`
			Value string `xml:"value,attr"`
		} `xml:"settings>param"`
	}
	if err := decode(string(s.ProfileXML()), &written); err != nil {
		t.Fatal(err)
	}
	values := map[string][]string{}
	for _, p := range written.Params {
		values[p.Name] = append(values[p.Name], p.Value)
	}
	if r := judge("far", values); r.Status != OK {
		t.Errorf("%+v", r)
	}
}

func TestMetric(t *testing.T) {
	t.Parallel()
	text := "# HELP process_open_fds x\nprocess_open_fds 12\nprocess_max_fds 1.048576e+06\nprocess_max_fdsx 1\n"
	if a, b, c := metric(text, "process_open_fds"), metric(text, "process_max_fds"), metric(text, "missing"); a != 12 || b != 1048576 || c != -1 {
		t.Errorf("%v %v %v", a, b, c)
	}
}

func TestFirstLeg(t *testing.T) {
	t.Parallel()
	for dial, want := range map[string]string{
		"sofia/internal/sip:1001@127.0.0.1:5060,sofia/mesh/sip:1001@a.test;fs_path=sip:192.0.2.1:5090": "sofia/internal/sip:1001@127.0.0.1:5060",
		"{presence_id=1001@a.test}sofia/mesh/sip:1001@a.test;fs_path=sip:192.0.2.1:5090|x":             "sofia/mesh/sip:1001@a.test;fs_path=sip:192.0.2.1:5090",
		"error/user_not_registered": "", "": "", "{x": "", "sofia/internal/a b": "", "sofia/internal/${system(x)}": "", "loopback/1": "",
	} {
		got, ok := firstLeg(dial)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q gives %q, %v", dial, got, ok)
		}
	}
}

// The call is ended even when it rang, and each cause names a remedy.
func TestCall(t *testing.T) {
	t.Parallel()
	const uuid = "7a3b0f7e-6f9e-4b53-9b6a-0b8f6f2f9a51"
	for name, tc := range map[string]struct {
		contact, answer string
		status          Status
		want            string
	}{
		"rings":        {"sofia/internal/sip:1001@127.0.0.1:5060", "+OK " + uuid + "\n", OK, "it rings after"},
		"unregistered": {"error/user_not_registered", "", Warn, "registered nowhere"},
		"refused":      {"sofia/mesh/sip:1001@a.test;fs_path=sip:192.0.2.1:5090", "-ERR CALL_REJECTED", Fail, "CALL_REJECTED"},
		"busy":         {"sofia/internal/sip:1001@127.0.0.1:5060", "-ERR USER_BUSY", Warn, "USER_BUSY"},
		"strange":      {"sofia/internal/sip:1001@127.0.0.1:5060", "+OK Job done", Fail, "the switch says"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t)
			aor, err := pbxmesh.ParseAOR("1001@a.test")
			if err != nil {
				t.Fatal(err)
			}
			m.opts.Call = aor
			m.answers["sofia_contact "], m.answers["originate "], m.answers["uuid_kill "+uuid] = tc.contact, tc.answer, "+OK"
			m.daemon.Explain = func(context.Context, pbxmesh.AOR, bool) (*control.ExplainReply, error) {
				return &control.ExplainReply{AOR: aor, Node: "buffalo", Result: "not-registered"}, nil
			}
			c := find(t, m.examine(t), "call to 1001@a.test")
			if c.Status != tc.status || !strings.Contains(c.Seen, tc.want) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// A name server without a switch has fewer checks, and none about a switch.
func TestObserver(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.cfg.Node, m.cfg.Name = nil, "losangeles"
	r := m.examine(t)
	for _, c := range r.Checks {
		if strings.Contains(c.Check, "sofia") || strings.Contains(c.Check, "event") || c.Status == Fail {
			t.Errorf("%+v", c)
		}
	}
	if c := find(t, r, "mesh port of london"); c.Status != OK {
		t.Errorf("%+v", c)
	}
}

// Run ends with its context, and leaves nothing behind (see TestMain).
func TestCancelled(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r, err := Run(ctx, m.opts); !errors.Is(err, context.Canceled) {
		t.Errorf("%+v, %v", r, err)
	}
}
