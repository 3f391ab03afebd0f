package fsconf

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"pbxmesh/fixtures/phone"
	"pbxmesh/internal/esl"
)

// minimal is a small configuration of the shape that FreeSWITCH ships: an entry file
// that includes the folders, and nothing of the mesh in it. A preprocessor line and
// <include> stand alone: the switch drops the rest of the line.
var minimal = map[string]string{
	"freeswitch.xml": `<?xml version="1.0"?>
<document type="freeswitch/xml">
  <X-PRE-PROCESS cmd="include" data="vars.xml"/>
  <section name="configuration">
  <X-PRE-PROCESS cmd="include" data="autoload_configs/*.xml"/>
  </section>
  <section name="dialplan">
  <X-PRE-PROCESS cmd="include" data="dialplan/*.xml"/>
  </section>
  <section name="directory">
  <X-PRE-PROCESS cmd="include" data="directory/*.xml"/>
  </section>
</document>
`,
	"vars.xml": "<include>\n<X-PRE-PROCESS cmd=\"set\" data=\"global_codec_prefs=PCMU,PCMA\"/>\n</include>\n",
	"autoload_configs/modules.conf.xml": `<configuration name="modules.conf"><modules>
  <load module="mod_logfile"/><load module="mod_event_socket"/><load module="mod_commands"/><load module="mod_dptools"/>
  <load module="mod_dialplan_xml"/><load module="mod_sofia"/></modules></configuration>`,
	"autoload_configs/switch.conf.xml": `<configuration name="switch.conf"><settings>
  <param name="switchname" value="fsconf"/><param name="rtp-start-port" value="20000"/><param name="rtp-end-port" value="29998"/></settings></configuration>`,
	"autoload_configs/logfile.conf.xml": `<configuration name="logfile.conf"><settings/><profiles><profile name="default">
  <settings><param name="logfile" value="{{dir}}/log/freeswitch.log"/></settings><mappings><map name="all" value="info,notice,warning,err,crit,alert"/></mappings>
  </profile></profiles></configuration>`,
	"autoload_configs/sofia.conf.xml": `<configuration name="sofia.conf"><global_settings/><profiles>
  <X-PRE-PROCESS cmd="include" data="../sip_profiles/*.xml"/>
  </profiles></configuration>`,
	"sip_profiles/internal.xml": profileText("internal", "{{sip}}"),
	"sip_profiles/second.xml":   profileText("second", "{{second}}"),
	"dialplan/default.xml":      "<include>\n<context name=\"default\"/>\n</include>\n",
	"directory/default.xml": `<include>
  <domain name="pbx.test"><groups><group name="default"><users>
  <user id="1001"><params><param name="password" value="secret"/></params></user>
  <user id="1002"><params><param name="password" value="secret"/></params></user></users></group></groups></domain>
</include>
`,
}

func profileText(name, port string) string {
	return `<profile name="` + name + `"><settings>
  <param name="sip-ip" value="{{host}}"/><param name="rtp-ip" value="{{host}}"/><param name="sip-port" value="` + port + `"/>
  <param name="context" value="default"/><param name="dialplan" value="XML"/><param name="auth-calls" value="true"/>
  <param name="multiple-registrations" value="true"/><param name="challenge-realm" value="auto_from"/>
  <param name="inbound-codec-prefs" value="PCMU"/><param name="outbound-codec-prefs" value="PCMU"/></settings></profile>`
}

// freePorts returns ports of host that were free a moment ago.
func freePorts(t *testing.T, host netip.Addr, n int) []uint16 {
	t.Helper()
	var out []uint16
	for range n {
		l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).AddrPort().Port())
	}
	return out
}

// boot writes the configuration and starts the switch on it. What the test needs
// beside it comes from fsconf alone.
func boot(t *testing.T, s *Settings, host netip.Addr, ports []uint16) *esl.Conn {
	t.Helper()
	binary := os.Getenv("PBXMESH_FREESWITCH")
	if binary == "" {
		t.Skip("set PBXMESH_FREESWITCH to a freeswitch binary to run this on a real switch")
	}
	dir, err := os.MkdirTemp("", "pbxmesh-fsconf-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	conf := filepath.Join(dir, "conf")
	fill := strings.NewReplacer("{{dir}}", dir, "{{host}}", host.String(), "{{sip}}", fmt.Sprint(ports[0]), "{{second}}", fmt.Sprint(ports[1]))
	texts := map[string]string{
		"autoload_configs/acl.conf.xml":          string(stock(t, "acl.conf.xml")),
		"autoload_configs/event_socket.conf.xml": string(stock(t, "event_socket.conf.xml")),
	}
	for name, text := range minimal {
		texts[name] = fill.Replace(text)
	}
	for name, text := range texts {
		path := filepath.Join(conf, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, s, conf)

	args := []string{"-nf", "-nc", "-nonat", "-nonatmap"}
	if os.Getuid() == 0 {
		args = append(args, "-u", "root", "-g", "root")
	}
	for _, d := range []string{"conf", "log", "db", "run", "temp", "storage", "recordings", "cache", "certs", "scripts", "sounds", "grammar", "htdocs"} {
		path := filepath.Join(dir, d)
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-"+d, path)
	}
	var console bytes.Buffer
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &console, &console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(dir, "log", "freeswitch.log"))
			t.Logf("the switch says:\n%s\n%s", console.String(), log[max(0, len(log)-6000):])
		}
	})
	return ready(t, s)
}

// ready waits until the event socket answers to what fsconf wrote, and the profiles run.
func ready(t *testing.T, s *Settings) *esl.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var conn *esl.Conn
	var last error
	for {
		if conn == nil {
			conn, last = esl.Dial(ctx, esl.Config{Address: s.EventSocket.Listen.String(), Password: s.EventSocket.Password})
			if conn != nil {
				t.Cleanup(func() { _ = conn.Close() })
			}
		}
		if conn != nil {
			reply, err := conn.API(ctx, "sofia xmlstatus")
			if err == nil && strings.Count(reply, "RUNNING") == 3 {
				return conn
			}
			last = fmt.Errorf("%w: %s", err, reply)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the switch is not ready: %v", last)
		case <-tick.C:
		}
	}
}

func api(t *testing.T, c *esl.Conn, command string) string {
	t.Helper()
	reply, err := c.API(t.Context(), command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimSpace(reply)
}

// TestScenarioFSConf boots a real switch with a stock-like configuration and exactly
// what fsconf wrote into it.
func TestScenarioFSConf(t *testing.T) {
	host, peer, stranger := netip.MustParseAddr("127.0.81.1"), netip.MustParseAddr("127.0.81.2"), netip.MustParseAddr("127.0.81.9")
	ports := freePorts(t, host, 4)
	s := &Settings{
		Mesh: netip.AddrPortFrom(host, ports[2]), Profile: "mesh", Profiles: []string{"internal", "second"},
		Peers:       []Peer{{"buffalo", host}, {"london", peer}},
		EventSocket: EventSocket{Listen: netip.AddrPortFrom(host, ports[3]), Password: `p&"<w'>d`, PasswordFile: "password"},
	}
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	conn := boot(t, s, host, ports)

	status := api(t, conn, "sofia xmlstatus profile mesh")
	for _, want := range []string{"<context>mesh</context>", "<sip-ip>" + host.String() + "</sip-ip>", s.Mesh.String()} {
		if !strings.Contains(status, want) {
			t.Errorf("%s is missing in\n%s", want, status)
		}
	}
	for ip, want := range map[netip.Addr]string{host: "true", peer: "true", stranger: "false"} {
		if got := api(t, conn, "acl "+ip.String()+" mesh"); got != want {
			t.Errorf("acl %s mesh says %s, want %s", ip, got, want)
		}
	}
	if got := api(t, conn, "acl 192.168.42.42 lan"); got != "true" {
		t.Errorf("the list lan says %s: fsconf broke it", got)
	}

	// A call between nodes finds devices on every profile, and rings all of them.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	one := newPhone(t, "1001", "127.0.81.11", netip.AddrPortFrom(host, ports[0]))
	two := newPhone(t, "1001", "127.0.81.12", netip.AddrPortFrom(host, ports[1]))
	for _, p := range []*phone.Phone{one, two} {
		p.SetBehaviour(phone.RingForever())
		if err := p.Register(ctx); err != nil {
			t.Fatal(err)
		}
	}
	london := newPhone(t, "2001", peer.String(), s.Mesh)
	call, err := london.Call(ctx, "1001")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*phone.Phone{one, two} {
		if _, err := p.WaitIncoming(ctx, 1); err != nil {
			t.Errorf("the phone at %s does not ring: %v", p.Addr(), err)
		}
	}
	lit(t, conn, 2)
	if err := call.Cancel(ctx); err != nil {
		t.Error(err)
	}

	for _, tc := range []struct {
		name, user string
		from       netip.Addr
		want       []int
	}{
		{"nobody there", "1002", peer, []int{480}},
		{"a bridge string", "1001%2Cerror", peer, []int{404, 480}},
		{"an application", "${system(true)}", peer, []int{404, 480, 400}},
		{"a stranger", "1001", stranger, []int{403}},
	} {
		caller := newPhone(t, "1002", tc.from.String(), s.Mesh) // a user of the directory, with its password
		call, err := caller.Call(ctx, tc.user)
		if err != nil {
			t.Fatal(err)
		}
		info, err := call.WaitEnded(ctx)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		ok := false
		for _, code := range tc.want {
			ok = ok || info.Status == code
		}
		if !ok {
			t.Errorf("%s: the call got %d, want one of %v", tc.name, info.Status, tc.want)
		}
		for _, rec := range caller.Endpoint().History() {
			if rec.Msg != nil && (rec.Msg.Status == 401 || rec.Msg.Status == 407) {
				t.Errorf("%s: a password is asked for: %s", tc.name, rec)
			}
		}
		t.Logf("%s: %d after %v", tc.name, info.Status, info.EndedAt.Sub(info.StartedAt))
	}
	// The stranger rang nobody, nor did the strings.
	if n := len(one.Incoming()); n != 1 {
		t.Errorf("the phone rang %d times, want once", n)
	}
	if err := newPhone(t, "1001", "127.0.81.2", s.Mesh).Register(ctx); err == nil {
		t.Error("a phone registered on the mesh profile")
	}
}

// lit waits until n channels have the callee's lamp: the table of channels follows the
// calls a little later.
func lit(t *testing.T, conn *esl.Conn, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		channels := api(t, conn, "show channels as json")
		if strings.Count(channels, `"presence_id":"1001@pbx.test"`) == n {
			return
		}
		select {
		case <-ctx.Done():
			t.Errorf("want %d channels with the callee's lamp:\n%s", n, channels)
			return
		case <-tick.C:
		}
	}
}

func newPhone(t *testing.T, user, local string, registrar netip.AddrPort) *phone.Phone {
	t.Helper()
	p, err := phone.New(phone.Config{User: user, Domain: "pbx.test", Password: "secret", Local: netip.MustParseAddr(local), Registrar: registrar})
	if err != nil {
		t.Fatal(err)
	}
	p.Start()
	t.Cleanup(func() { _ = p.Close() })
	return p
}
