package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"pbxmesh/fixtures"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/registry/registrytest"
)

// binary builds the program once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pbxmesh-e2e-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "pbxmesh")
	out, err := exec.Command("go", "build", "-o", path, "pbxmesh/cmd/pbxmesh").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

// process is a daemon as an operator runs it: the program and a file.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	api  netip.AddrPort
	file string
	log  *logBuffer
	path string
}

// logBuffer holds a log that is read while the program writes it.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func (p *process) start() {
	p.t.Helper()
	p.log = new(logBuffer)
	p.cmd = exec.Command(p.path, "serve", "-c", p.file)
	p.cmd.Stderr = p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// query runs a query command against the daemon; code is its exit code.
func (p *process) query(args ...string) (out string, code int) {
	p.t.Helper()
	cmd := exec.Command(p.path, append(args, "--api", p.api.String())...)
	var buf bytes.Buffer
	cmd.Stdout, cmd.Stderr = &buf, &buf
	err := cmd.Run()
	if cmd.ProcessState == nil {
		p.t.Fatal(err)
	}
	return buf.String(), cmd.ProcessState.ExitCode()
}

// TestDaemonProcesses runs two daemons as programs with files beside simulated
// switches and a real Redis, asks them by command, and kills one.
func TestDaemonProcesses(t *testing.T) {
	t.Parallel()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	redis := registrytest.StartRedis(t)
	c := &cluster{t: t, nodes: map[string]*node{}}
	daemons := map[string]*process{}
	for name, host := range map[string]string{"buffalo": "127.0.21.1", "london": "127.0.22.1"} {
		addr := netip.MustParseAddr(host)
		n := &node{name: name, socket: freePort(t, addr)}
		users := []fixtures.User{{Name: "1001", Domain: domain, Password: password("1001")}, {Name: "1002", Domain: domain, Password: password("1002")}}
		n.sw, err = simswitch.New(simswitch.Options{Config: fixtures.Config{
			Name: name, Host: addr, Users: users, Socket: n.socket.String(),
			Peers: func() []netip.Addr {
				return []netip.Addr{netip.MustParseAddr("127.0.21.1"), netip.MustParseAddr("127.0.22.1")}
			},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.sw.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = n.sw.Close() })
		c.nodes[name] = n
		d := &process{t: t, path: path, api: freePort(t, netip.MustParseAddr("127.0.0.1"))}
		d.file = writeConfig(t, n, d.api, redis.URL())
		d.start()
		t.Cleanup(func() {
			d.kill()
			if t.Failed() {
				t.Logf("daemon %s:\n%s", name, d.log)
			}
		})
		daemons[name] = d
	}
	b, l := daemons["buffalo"], daemons["london"]

	// lookup says yes with code 0, no with code 1.
	c.eventually("buffalo's daemon answers that 1002 is registered nowhere", func() bool {
		_, code := b.query("lookup", "1002@"+domain)
		return code == 1
	})
	callee := c.phone("1002", "127.0.92.1", "london")
	if err := callee.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.eventually("buffalo's daemon finds 1002 on london", func() bool {
		out, code := b.query("lookup", "1002@"+domain)
		return code == 0 && strings.Contains(out, "london")
	})
	c.eventually("both nodes are up", func() bool {
		out, _ := b.query("nodes", "-o", "json")
		return strings.Count(out, `"effective": "up"`) == 2
	})
	var explained struct {
		Result, Bridge string
		Groups         [][]struct{ Node string }
	}
	out, code := b.query("explain", "1002@"+domain, "-o", "json")
	if err := json.Unmarshal([]byte(out), &explained); err != nil || code != 0 {
		t.Fatalf("explain: %v, exit code %d:\n%s", err, code, out)
	}
	if explained.Result != "routed" || !strings.Contains(explained.Bridge, url.QueryEscape(c.nodes["london"].sw.Mesh().String())) || len(explained.Groups) != 1 {
		t.Errorf("explain says %+v", explained)
	}

	for _, args := range [][]string{{"list"}, {"list", "--all", "-o", "json", "--node", "london"}, {"list", "--user", "100*", "--domain", domain}} {
		if out, code := b.query(args...); code != 0 || strings.Count(out, "1002@"+domain) != 1 || !strings.Contains(out, "london") {
			t.Errorf("%v: exit code %d:\n%s", args, code, out)
		}
	}

	// A call over both, and its daemon killed while it talks: the call goes on.
	caller := c.phone("1001", "127.0.91.1", "buffalo")
	if err := caller.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	far, in := c.call(caller, callee)
	b.kill()
	if info := far.Info(); !info.EndedAt.IsZero() || !in.Info().EndedAt.IsZero() {
		t.Error("the daemon's death ended a call")
	}
	if err := far.Reinvite(c.ctx()); err != nil {
		t.Errorf("the call is dead: %v", err)
	}
	c.hangup(in, far)
	// With nobody on the hook's port the dialplan goes on at once, without variables.
	if result, _, took := c.dialplan(caller, "1002"); result != "" {
		t.Errorf("pbxmesh_result %q after %s with the daemon dead", result, took)
	}
	if out, code := b.query("nodes"); code != 3 || !strings.Contains(out, "pbxmesh serve") {
		t.Errorf("with the daemon dead `nodes` exits %d:\n%s", code, out)
	}

	// Its switch lives on: london still knows it, and it comes back by itself.
	b.start()
	c.eventually("buffalo's daemon is back and finds 1002", func() bool {
		_, code := b.query("lookup", "1002@"+domain)
		return code == 0
	})
	c.eventually("london's daemon still has 1001 on buffalo", func() bool {
		out, code := l.query("lookup", "1001@"+domain)
		return code == 0 && strings.Contains(out, "buffalo")
	})
	far, in = c.call(caller, callee)
	c.hangup(far, in)

	startsWithoutRedis(c, b, redis)

	// An orderly end: exit code 0.
	if err := l.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- l.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("an interrupted daemon ends with %v:\n%s", err, l.log)
		}
	case <-ctx.Done():
		t.Error("an interrupted daemon does not end")
	}

	// A node that is alive is not forgotten; one that was stopped is, everywhere.
	if out, code := b.query("forget", "buffalo"); code != 4 || !strings.Contains(out, "is alive") {
		t.Errorf("`forget buffalo` exits %d:\n%s", code, out)
	}
	c.eventually("london can be forgotten once its lease is gone", func() bool {
		_, code := b.query("forget", "london")
		return code == 0
	})
	c.eventually("london is no node any more", func() bool {
		out, code := b.query("nodes", "-o", "json")
		return code == 0 && !strings.Contains(out, "london")
	})
	if out, code := b.query("forget", "london"); code != 4 || !strings.Contains(out, "no node is called london") {
		t.Errorf("`forget london` again exits %d:\n%s", code, out)
	}
}

// startsWithoutRedis ends buffalo's daemon and Redis, and starts the daemon alone: it
// answers from its state file, and log and answers say how old that is.
func startsWithoutRedis(c *cluster, b *process, redis *registrytest.Redis) {
	c.t.Helper()
	if err := b.cmd.Process.Signal(os.Interrupt); err != nil {
		c.t.Fatal(err)
	}
	if err := b.cmd.Wait(); err != nil {
		c.t.Fatalf("an interrupted daemon ends with %v:\n%s", err, b.log)
	}
	if err := redis.Kill(); err != nil {
		c.t.Fatal(err)
	}
	b.start()
	var nodes struct {
		Nodes []struct{ ID string }
		Age   float64 `json:"data_age_seconds"`
	}
	c.eventually("buffalo's daemon answers from its state file, and says that it is a second old", func() bool {
		out, code := b.query("nodes", "-o", "json")
		return code == 0 && json.Unmarshal([]byte(out), &nodes) == nil && len(nodes.Nodes) == 2 && nodes.Age > 1
	})
	for _, args := range [][]string{{"lookup", "1002@" + domain}, {"list"}, {"nodes"}} {
		if out, code := b.query(args...); code != 0 || !strings.Contains(out, "london") || !strings.Contains(out, "data ") || strings.Contains(out, "data 0.") {
			c.t.Errorf("with Redis away %v exits %d:\n%s", args, code, out)
		}
	}
	b.kill()
	for _, want := range []string{"state file read", "the store does not answer; calls are routed from memory"} {
		if !strings.Contains(b.log.String(), want) {
			c.t.Errorf("the log does not say %q:\n%s", want, b.log)
		}
	}
	if err := redis.Start(); err != nil {
		c.t.Fatal(err)
	}
	b.start()
	c.eventually("with Redis back everything is fresh", func() bool {
		out, code := b.query("nodes", "-o", "json")
		nodes.Nodes = nil
		return code == 0 && json.Unmarshal([]byte(out), &nodes) == nil && len(nodes.Nodes) == 2 && nodes.Age < 1
	})
}

func writeConfig(t *testing.T, n *node, api netip.AddrPort, redisURL string) string {
	t.Helper()
	dir := t.TempDir()
	address, secret := n.sw.EventSocket()
	text := fmt.Sprintf(`name: %[1]s
node:
  id: %[1]s
  addresses: [%[2]s]
  mesh_address: %[3]s
  sip: {udp: %[4]d, tcp: 0}
freeswitch:
  event_socket: {address: "%[5]s", password_file: password}
registry:
  url: %[6]s
  lease_ttl: 4s
  lease_renew: 800ms
  state_file: %[9]s
router:
  socket: {listen: "%[7]s"}
  default_domain: %[10]s
failover:
  probe: {interval: 500ms, timeout: 300ms}
api: {listen: "%[8]s"}
`, n.name, n.sw.SIP().Addr(), n.sw.Mesh(), n.sw.SIP().Port(), address, redisURL, n.socket, api, filepath.Join(dir, "state"), domain)
	file := filepath.Join(dir, "pbxmesh.yaml")
	for name, content := range map[string]string{"pbxmesh.yaml": text, "password": secret + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return file
}
