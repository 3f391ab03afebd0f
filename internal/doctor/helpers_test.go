package doctor

import (
	"context"
	"net"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/meshcontext"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// told answers what the simulated switch does not know, and may change what it says.
type told struct {
	Switch
	answers map[string]string
}

func (s told) API(ctx context.Context, command string) (string, error) {
	// The longest beginning wins, so that one peer can differ.
	best := ""
	for begin := range s.answers {
		if strings.HasPrefix(command, begin) && len(begin) > len(best) {
			best = begin
		}
	}
	if best == "" {
		return s.Switch.API(ctx, command)
	}
	if answer := s.answers[best]; strings.HasPrefix(answer, "-ERR") {
		return "", &esl.ReplyError{Command: command, Text: answer}
	}
	return s.answers[best], nil
}

// mesh is buffalo with its daemon, and london, as doctor sees them when all is well.
type mesh struct {
	buffalo, london *simswitch.Switch
	cfg             *config.Config
	backend         registry.Backend
	daemon          control.Backend
	answers         map[string]string
	opts            Options
}

func newSwitch(t *testing.T, name, host string) *simswitch.Switch {
	t.Helper()
	o := simswitch.Options{Tick: -1}
	o.Config = fixtures.Config{Name: name, Host: netip.MustParseAddr(host)}
	s, err := simswitch.New(o)
	if err == nil {
		err = s.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

var sofiaConf = `<configuration name="sofia.conf"><profiles><profile name="internal"><settings>
<param name="all-reg-options-ping" value="true"/></settings></profile><profile name="mesh"><settings>
` + meshSettings() + `</settings></profile></profiles></configuration>`

// answering puts somebody at the mesh address who answers every INVITE with status, and
// returns what comes in: the first lines of the requests.
func (m *mesh) answering(t *testing.T, status int) (requests <-chan string) {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	m.cfg.Node.MeshAddress = conn.LocalAddr().(*net.UDPAddr).AddrPort()
	out := make(chan string, 100)
	go func() {
		defer close(out)
		buf := make([]byte, 4096)
		invite := ""
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			line, headers, _ := strings.Cut(string(buf[:n]), "\r\n")
			out <- line
			answer := func(status int, headers string) {
				_, _ = conn.WriteToUDPAddrPort([]byte("SIP/2.0 "+strconv.Itoa(status)+" No\r\n"+headers), from)
			}
			switch method, _, _ := strings.Cut(line, " "); method {
			case "INVITE":
				invite = strings.Replace(headers, "Contact: ", "Contact: <sip:far@127.0.0.9:5090>\r\nX-Contact: ", 1)
				answer(status, invite)
			case "CANCEL":
				answer(200, headers)
				answer(487, invite)
			}
		}
	}()
	return out
}

// meshSettings are those of the profile that pbxmesh fsconf writes.
func meshSettings() string {
	var b strings.Builder
	for _, s := range (meshcontext.Profile{Name: "mesh", Mesh: netip.MustParseAddrPort("127.0.91.1:5090")}).Settings() {
		b.WriteString(`<param name="` + s.Name + `" value="` + s.Value + `"/>`)
	}
	return b.String()
}

func newMesh(t *testing.T) *mesh {
	t.Helper()
	m := &mesh{buffalo: newSwitch(t, "buffalo", "127.0.91.1"), london: newSwitch(t, "london", "127.0.91.2")}
	address, password := m.buffalo.EventSocket()
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.cfg = config.Defaults()
	m.cfg.Name = "buffalo"
	m.cfg.Node = &config.Node{ID: "buffalo", MeshAddress: m.buffalo.Mesh()}
	m.cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(address), PasswordFile: config.SecretFile(secret)}
	m.cfg.Registry.URL = "redis://127.0.0.1:1/0"
	m.answers = map[string]string{
		"acl ": "true", "acl 198.18.": "false", "acl 127.0.0.1 ": "false", "xml_locate ": sofiaConf,
	}
	m.cfg.Registry.StateFile = "state"
	store := memory.New(memory.Options{})
	m.backend = store
	t.Cleanup(func() { _ = store.Close() })
	m.announce(t)
	m.daemon = control.Backend{
		Nodes: func(context.Context) (*control.NodesReply, error) {
			return &control.NodesReply{Nodes: []control.Node{
				{ID: "buffalo", Local: true, Mesh: m.buffalo.Mesh(), Wanted: "in service"},
				{ID: "london", Mesh: m.london.Mesh(), Wanted: "in service"},
			}}, nil
		},
	}
	m.opts = Options{
		Config: m.cfg, Timeout: 2 * time.Second,
		Dial: func(ctx context.Context, cfg esl.Config) (Switch, error) {
			conn, err := esl.Dial(ctx, cfg)
			if err != nil {
				return nil, err
			}
			return told{conn, m.answers}, nil
		},
	}
	return m
}

// takeOver lets another host's daemon hold buffalo's lease.
func (m *mesh) takeOver(t *testing.T, host string) {
	t.Helper()
	leases, _, err := m.backend.Leases(t.Context(), []pbxmesh.NodeID{"buffalo"})
	if err != nil {
		t.Fatal(err)
	}
	l := leases["buffalo"]
	if err := m.backend.Leave(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	l.Owner, l.Instance, l.Term = host, "2", 0
	if err := m.backend.Renew(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

// announce puts both nodes and buffalo's lease into the store.
func (m *mesh) announce(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	for _, n := range []pbxmesh.Node{{ID: "buffalo", Mesh: m.buffalo.Mesh()}, {ID: "london", Mesh: m.london.Mesh()}} {
		if err := m.backend.Announce(ctx, registry.Announcement{Node: n}); err != nil {
			t.Fatal(err)
		}
	}
	term, err := m.backend.Publish(ctx, registry.Publication{Node: "buffalo", Owner: (&config.Config{Name: "buffalo"}).Owner(), Instance: "1", Epoch: "core"})
	if err != nil {
		t.Fatal(err)
	}
	err = m.backend.Renew(ctx, registry.Lease{
		Node: "buffalo", Owner: (&config.Config{Name: "buffalo"}).Owner(), Instance: "1", Epoch: "core", Term: term, Seq: 1, TTL: time.Minute,
		Switch: registry.SwitchState{Alive: true, MaxSessions: 1000},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// examine runs all checks, with the daemon's API up.
func (m *mesh) examine(t *testing.T) *Report {
	t.Helper()
	server := httptest.NewServer(control.NewHandler(m.daemon, ""))
	defer server.Close()
	if m.opts.API == "" {
		m.opts.API = server.Listener.Addr().String()
	}
	if m.opts.Backend == nil && m.backend != nil {
		m.opts.Backend = m.backend
	}
	start := time.Now()
	report, err := Run(t.Context(), m.opts)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 4*m.opts.Timeout {
		t.Errorf("it took %v", took)
	}
	return report
}

func find(t *testing.T, r *Report, check string) Result {
	t.Helper()
	for _, c := range r.Checks {
		if c.Check == check {
			return c
		}
	}
	t.Fatalf("there is no check %q in %+v", check, r.Checks)
	return Result{}
}

func startDNS(t *testing.T, rcode int) netip.AddrPort {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg)
		reply.SetRcode(q, rcode)
		reply.Authoritative = true
		if rcode == dns.RcodeSuccess {
			rr, err := dns.NewRR(q.Question[0].Name + map[uint16]string{dns.TypeSOA: " SOA ns h 1 1 1 1 1", dns.TypeA: " A 192.0.2.1"}[q.Question[0].Qtype])
			if err == nil {
				reply.Answer = []dns.RR{rr}
			}
		}
		_ = w.WriteMsg(reply)
	})
	l, err := net.Listen("tcp", "127.0.91.53:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: handler}, {PacketConn: pc, Handler: handler}} {
		started, ended := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe(); close(ended) }()
		<-started
		t.Cleanup(func() { _ = s.Shutdown(); <-ended })
	}
	return l.Addr().(*net.TCPAddr).AddrPort()
}
