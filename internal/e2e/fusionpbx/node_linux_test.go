package fusionpbx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/esl"
)

// node is one machine with FusionPBX, FreeSWITCH and a daemon.
type node struct {
	t    *testing.T
	inst *installation
	name string // host name, node id
	host netip.Addr
	dir  string
	conn *esl.Conn

	config string // pbxmesh.yaml
}

// modules are those of a usual FusionPBX that make calls work without the network.
var modules = []string{
	"mod_console", "mod_logfile", "mod_event_socket", "mod_commands", "mod_db", "mod_hash", "mod_expr", "mod_lua", "mod_pgsql", "mod_xml_cdr",
	"mod_dptools", "mod_dialplan_xml", "mod_sofia", "mod_loopback", "mod_voicemail", "mod_valet_parking", "mod_conference", "mod_fifo",
	"mod_callcenter", "mod_enum", "mod_sndfile", "mod_native_file", "mod_local_stream", "mod_tone_stream", "mod_say_en", "mod_opus",
}

// newNode starts the switch as FusionPBX configures it.
func newNode(inst *installation, name, host string) *node {
	t := inst.t
	t.Helper()
	n := &node{t: t, inst: inst, name: name, host: netip.MustParseAddr(host)}
	var err error
	if n.dir, err = os.MkdirTemp("", "pbxmesh-fusionpbx-"+name+"-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if os.Getenv("PBXMESH_KEEP") == "" {
			_ = os.RemoveAll(n.dir)
		}
	})
	inst.site(n.dir, host)
	if err := os.CopyFS(filepath.Join(n.dir, "scripts"), os.DirFS(filepath.Join(inst.checkout, "app/switch/resources/scripts"))); err != nil {
		t.Fatal(err)
	}
	n.write("conf/autoload_configs/modules.conf.xml", `<configuration name="modules.conf"><modules>`+
		regexp.MustCompile(`\S+`).ReplaceAllString(strings.Join(modules, " "), `<load module="$0"/>`)+`</modules></configuration>`)
	n.replace("conf/autoload_configs/event_socket.conf.xml", `name="listen-ip" value="[^"]*"`, `name="listen-ip" value="`+host+`"`)
	// Two switches on one machine: each takes an address for what FusionPBX calls local_ip_v4.
	n.replace("conf/vars.xml", `<include>`, "<include>\n<X-PRE-PROCESS cmd=\"set\" data=\"local_ip_v4="+host+"\"/>")
	// Phones may come over TLS; the switch makes the certificate.
	n.replace("conf/vars.xml", `internal_ssl_enable=false`, `internal_ssl_enable=true`)
	n.write("conf/tls/README", "")
	args := []string{"-nf", "-nc", "-nonat", "-nonatmap", "-u", "root", "-g", "root"}
	for _, d := range []string{"conf", "log", "db", "run", "temp", "storage", "recordings", "cache", "certs", "scripts", "sounds", "grammar", "htdocs"} {
		path := filepath.Join(n.dir, d)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		args = append(args, "-"+d, path)
	}
	// A host name of its own: a new UTS namespace, named before the switch starts.
	cmd := exec.Command("sh", append([]string{"-c", `echo "$0" >/proc/sys/kernel/hostname && exec "$@"`, name, os.Getenv(envFreeSWITCH)}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: syscall.CLONE_NEWUTS}
	cmd.Env = append(os.Environ(), "SystemDrive="+n.dir)
	console, err := os.Create(filepath.Join(n.dir, "console.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("switch %s ends with:\n%s", name, n.tail("log/freeswitch.log", 3000))
		}
	})
	return n
}

// ready waits for the event socket and the two profiles that FusionPBX brings, one of
// which listens for TLS too.
func (n *node) ready() {
	n.t.Helper()
	eventually(n.t, n.name+" runs its profiles", func() bool {
		if n.conn == nil {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			conn, err := esl.Dial(ctx, esl.Config{Address: n.host.String() + ":8021", Password: "ClueCon"})
			if err != nil {
				return false
			}
			n.conn = conn
			n.t.Cleanup(func() { _ = conn.Close() })
		}
		return strings.Count(n.api("sofia xmlstatus"), ">RUNNING") == 3
	})
	if got := n.api("hostname"); got != n.name {
		n.t.Fatalf("the switch says that it is %q, want %q", got, n.name)
	}
}

// api runs a command on the switch.
func (n *node) api(command string) string {
	n.t.Helper()
	reply, err := n.ask(command)
	var refused *esl.ReplyError
	if errors.As(err, &refused) && strings.HasSuffix(strings.TrimSpace(refused.Text), "-ERR no reply") {
		return "" // a variable that is not set
	}
	if err != nil {
		n.t.Fatalf("%s: %s: %v", n.name, command, err)
	}
	return reply
}

// ask is api with an error for what the switch refuses.
func (n *node) ask(command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	reply, err := n.conn.API(ctx, command)
	return strings.TrimSpace(reply), err
}

// bridged says that every channel of the switch is in a call with another one.
func (n *node) bridged() bool {
	n.t.Helper()
	alone, err := realswitch.Unbridged(n.ask)
	if err != nil {
		n.t.Fatalf("%s: %v", n.name, err)
	}
	return alone == ""
}

func (n *node) write(name, text string) {
	n.t.Helper()
	path := filepath.Join(n.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) replace(name, pattern, with string) {
	n.t.Helper()
	text, err := os.ReadFile(filepath.Join(n.dir, name))
	if err != nil {
		n.t.Fatal(err)
	}
	re := regexp.MustCompile(pattern)
	if !re.Match(text) {
		n.t.Fatalf("%s: nothing like %s", name, pattern)
	}
	n.write(name, string(re.ReplaceAllLiteral(text, []byte(with))))
}

func (n *node) tail(name string, size int) string {
	text, _ := os.ReadFile(filepath.Join(n.dir, name))
	return string(text[max(0, len(text)-size):])
}

// program builds pbxmesh once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pbxmesh-fusionpbx-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "pbxmesh")
	if out, err := exec.Command("go", "build", "-o", path, "pbxmesh/cmd/pbxmesh").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

// configure writes the daemon's configuration, as README.md says.
func (n *node) configure(redisURL string) {
	n.t.Helper()
	n.config = filepath.Join(n.dir, "pbxmesh", "pbxmesh.yaml")
	n.write("pbxmesh/password", "ClueCon\n")
	n.write("pbxmesh/pbxmesh.yaml", fmt.Sprintf(`node:
  id: %[1]s
  addresses: [%[2]s]
  mesh_address: %[2]s:5090
  sip: {udp: 5060, tcp: 5060}
freeswitch:
  event_socket: {address: "%[2]s:8021", password_file: password}
  mesh_profile: %[4]s
registry:
  url: %[3]s
router:
  socket: {listen: ""}
api: {listen: "%[2]s:8085"}
`, n.name, n.host, redisURL, n.profile()))
}

// profile is the name of the node's mesh profile: nodes on one database have one each.
func (n *node) profile() string { return "mesh-" + n.name }

// pbxmesh runs the program as an operator does on this node.
func (n *node) pbxmesh(args ...string) (out string, code int) {
	n.t.Helper()
	path, err := program()
	if err != nil {
		n.t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	if cmd.ProcessState == nil {
		n.t.Fatal(err)
	}
	if stdout.Len() == 0 {
		return stderr.String(), cmd.ProcessState.ExitCode()
	}
	return stdout.String(), cmd.ProcessState.ExitCode()
}

// serve starts the daemon.
func (n *node) serve() {
	n.t.Helper()
	path, err := program()
	if err != nil {
		n.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(n.dir, "pbxmesh.log"))
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(path, "serve", "-c", n.config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		if n.t.Failed() {
			n.t.Logf("daemon %s ends with:\n%s", n.name, n.tail("pbxmesh.log", 4000))
		}
	})
}
