package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/esl"
)

// envVanilla names FreeSWITCH's sample configuration, when it is not beside the binary.
const envVanilla = "PBXMESH_FREESWITCH_CONF"

// vanilla returns the folder of the sample configuration that this FreeSWITCH came with.
func vanilla(t *testing.T) string {
	t.Helper()
	if realBinary() == "" {
		t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
	}
	dir := os.Getenv(envVanilla)
	if dir == "" {
		path, err := exec.LookPath(realBinary())
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(filepath.Dir(filepath.Dir(path)), "etc", "freeswitch")
	}
	vars, err := os.ReadFile(filepath.Join(dir, "vars.xml"))
	if err != nil || !bytes.Contains(vars, []byte(`"domain=$${local_ip_v4}"`)) {
		t.Skipf("%s is not FreeSWITCH's sample configuration as it came; set %s to a copy of it (conf/vanilla of its sources)", dir, envVanilla)
	}
	return dir
}

// stockNode is one machine with the sample configuration and a daemon, as an operator
// has them who follows README.md.
type stockNode struct {
	t    *testing.T
	name string
	host netip.Addr
	dir  string

	sip, esl, mesh, api netip.AddrPort

	conn *esl.Conn
	stop func() // the switch

	program, file string // pbxmesh and its configuration
	kill          func() // the daemon
}

// newStockNode copies the sample configuration. It changes what two switches on one
// machine without a network need, and the password that the sample itself asks to change.
func newStockNode(t *testing.T, name, host, redisURL string) *stockNode {
	t.Helper()
	from := vanilla(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	n := &stockNode{t: t, name: name, host: netip.MustParseAddr(host), stop: func() {}, kill: func() {}, program: path}
	if n.dir, err = os.MkdirTemp("", "pbxmesh-stock-"+name+"-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(n.dir) })
	if err := os.CopyFS(filepath.Join(n.dir, "conf"), os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	free := released(t, n.host, 6)
	n.sip, n.esl, n.mesh = free[0], free[1], free[2]
	n.api = freePort(t, n.host)
	n.replace("vars.xml", `<include>`, "<include>\n<X-PRE-PROCESS cmd=\"set\" data=\"local_ip_v4="+host+"\"/>")
	n.replace("vars.xml", `cmd="stun-set" data="(external_\w+_ip)=[^"]*"`, `cmd="set" data="${1}=`+host+`"`)
	n.replace("vars.xml", `default_password=1234`, `default_password=`+stockPassword) // 1234: every call waits 10 s
	n.replace("vars.xml", `internal_sip_port=5060`, fmt.Sprintf("internal_sip_port=%d", n.sip.Port()))
	n.replace("vars.xml", `external_sip_port=5080`, fmt.Sprintf("external_sip_port=%d", free[3].Port()))
	for i, p := range []string{"ws", "wss"} {
		n.replace("sip_profiles/internal.xml", `name="`+p+`-binding"\s+value=":\d+"`, fmt.Sprintf(`name="%s-binding" value="%s"`, p, free[4+i]))
	}
	for _, profile := range []string{"internal-ipv6", "external-ipv6"} {
		if err := os.Remove(filepath.Join(n.dir, "conf", "sip_profiles", profile+".xml")); err != nil {
			t.Fatal(err)
		}
	}
	n.write("pbxmesh/event_socket.password", "a password of our own\n")
	n.write("pbxmesh/pbxmesh.yaml", fmt.Sprintf(`node:
  id: %s
  addresses: [%s]
  mesh_address: %s
  sip: {udp: %d, tcp: %[4]d}
freeswitch:
  event_socket:
    address: "%s"
    password_file: event_socket.password
registry:
  url: %s
  state_file: %s
router:
  socket: {listen: "%s"}
  default_domain: %s
api: {listen: "%s"}
`, name, host, n.mesh, n.sip.Port(), n.esl, redisURL, filepath.Join(n.dir, "state"), freePort(t, n.host), stockDomain, n.api))
	n.file = filepath.Join(n.dir, "pbxmesh", "pbxmesh.yaml")
	return n
}

// released returns addresses that were free a moment ago, for a process that shares no
// port with the one that reserved it.
func released(t *testing.T, host netip.Addr, count int) (out []netip.AddrPort) {
	t.Helper()
	for range count {
		l, err := net.Listen("tcp", netip.AddrPortFrom(host, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().(*net.TCPAddr).AddrPort())
	}
	return out
}

func (n *stockNode) write(name, text string) {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// replace changes a file of the sample configuration.
func (n *stockNode) replace(name, pattern, with string) {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, "conf", name))
	if err != nil {
		n.t.Fatal(err)
	}
	re := regexp.MustCompile(pattern)
	if !re.Match(text) {
		n.t.Fatalf("%s: nothing like %s", name, pattern)
	}
	n.write(filepath.Join("conf", name), string(re.ReplaceAll(text, []byte(with))))
}

// pbxmesh runs the program as an operator does on this node.
func (n *stockNode) pbxmesh(args ...string) (out string, code int) {
	n.t.Helper()
	cmd := exec.Command(n.program, args...)
	var buf bytes.Buffer
	cmd.Stdout, cmd.Stderr = &buf, &buf
	if err := cmd.Run(); cmd.ProcessState == nil {
		n.t.Fatal(err)
	}
	return buf.String(), cmd.ProcessState.ExitCode()
}

// start boots the switch on what stands in its files, and waits for the sample's two
// profiles and the one of fsconf.
func (n *stockNode) start() {
	n.t.Helper()
	args := []string{"-nf", "-nc", "-nonat", "-nonatmap", "-u", "root", "-g", "root"}
	for _, d := range []string{"conf", "log", "db", "run", "temp", "storage", "recordings", "cache", "certs", "scripts", "sounds", "grammar", "htdocs"} {
		path := filepath.Join(n.dir, d)
		if err := os.MkdirAll(path, 0o700); err != nil {
			n.t.Fatal(err)
		}
		args = append(args, "-"+d, path)
	}
	cmd := exec.Command(realBinary(), args...)
	cmd.Dir = n.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.stop = func() {
		if n.conn != nil {
			_ = n.conn.Close()
			n.conn = nil
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		n.stop = func() {}
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var last string
	for {
		if n.conn == nil {
			var err error
			n.conn, err = esl.Dial(ctx, esl.Config{Address: n.esl.String(), Password: "a password of our own"})
			last = fmt.Sprint(err)
		}
		if n.conn != nil {
			reply, err := n.conn.API(ctx, "sofia xmlstatus")
			if strings.Count(reply, "<state>RUNNING (0)</state>") == 3 {
				return
			}
			if ctx.Err() == nil {
				last = fmt.Sprint(reply, err)
			}
		}
		select {
		case <-ctx.Done():
			n.t.Fatalf("the switch %s is not ready: %s\n%s", n.name, last, n.log(60))
		case <-tick.C:
		}
	}
}

// log returns the last lines of the switch's log.
func (n *stockNode) log(count int) string {
	text, _ := os.ReadFile(filepath.Join(n.dir, "log", "freeswitch.log"))
	lines := strings.Split(string(text), "\n")
	return strings.Join(lines[max(0, len(lines)-count):], "\n")
}

// serve starts the daemon.
func (n *stockNode) serve() {
	n.t.Helper()
	log, err := os.Create(n.logFile())
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(n.program, "serve", "-c", n.file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		n.kill = func() {}
	}
}

// logFile is the daemon's log since its last start.
func (n *stockNode) logFile() string { return filepath.Join(n.dir, "pbxmesh.log") }

func (n *stockNode) said() string {
	text, err := os.ReadFile(n.logFile())
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

func (n *stockNode) run(command string) string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	reply, err := n.conn.API(ctx, command)
	if err != nil {
		n.t.Fatalf("%s: %s: %v", n.name, command, err)
	}
	return strings.TrimSpace(reply)
}

// phone registers one that speaks PCMU, or codec.
func (n *stockNode) phone(user, domain, local string, codec ...phone.Codec) *phone.Phone {
	n.t.Helper()
	p, err := phone.New(phone.Config{
		User: user, Domain: domain, Password: stockPassword, Local: netip.MustParseAddr(local), Registrar: n.sip,
		Codecs: append(codec, phone.PCMU),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	p.Start()
	n.t.Cleanup(func() { _ = p.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	if err := p.Register(ctx); err != nil {
		n.t.Fatalf("register %s at %s: %v", user, n.name, err)
	}
	return p
}
