package health_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh/fixtures"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/registry/registrytest"
)

// soon bounds everything that happens by itself. It is generous because these tests
// share two cores with others; what is measured is printed, not asserted.
const soon = 30 * time.Second

const zone = "pbx.test"

// binary builds the program once.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pbxmesh-health-")
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

// pace is how quickly a mesh lives. The zero pace is that of the default configuration.
type pace struct {
	renew, probe, timeout time.Duration
	hold, ramp            time.Duration // negative: none at all
}

// lab is a mesh of processes: three nodes, two name servers, a Redis.
type lab struct {
	t       *testing.T
	netns   *network            // nil: everything on loopback addresses
	store   *registrytest.Redis // nil in namespaces
	pace    pace
	redis   string // URL
	nodes   []*host
	servers []*host
}

// host is one machine of the lab.
type host struct {
	lab    *lab
	name   string
	addr   netip.Addr
	ns     string // network namespace, "" for the test's own
	sw     fixtures.Switch
	daemon *process
	config string // path
	api    string
	dns    netip.AddrPort
}

// victim is the node that all clients prefer: it fails.
func (l *lab) victim() *host { return l.nodes[0] }

// newLab boots a mesh and returns when both name servers answer with the victim.
func newLab(t *testing.T, p pace, namespaces bool) *lab {
	t.Helper()
	l := &lab{t: t, pace: p}
	if _, err := binary(); err != nil {
		t.Fatal(err)
	}
	if namespaces {
		l.netns = newNetwork(t)
		l.redis = l.netns.startRedis(t)
	} else {
		l.store = registrytest.StartRedis(t)
		l.redis = l.store.URL()
	}
	for i, name := range []string{"london", "buffalo", "singapore", "losangeles", "jacksonville"} {
		h := &host{lab: l, name: name, addr: netip.AddrFrom4([4]byte{127, 0, 40, byte(i + 1)})}
		if namespaces {
			h.addr = l.netns.address(i + 10)
			h.ns = l.netns.plug(t, name, h.addr)
		}
		h.api = "127.0.0.1:8085"
		if !namespaces {
			h.api = freePort(t, h.addr).String()
		}
		if i < 3 {
			l.nodes = append(l.nodes, h)
		} else {
			h.dns = netip.AddrPortFrom(h.addr, 53)
			if !namespaces {
				h.dns = freePort(t, h.addr)
			}
			l.servers = append(l.servers, h)
		}
		t.Cleanup(func() { h.close(t) })
	}
	for _, h := range l.nodes {
		h.newSwitch(t)
		if err := h.sw.Start(); err != nil {
			t.Fatalf("switch of %s: %v", h.name, err)
		}
	}
	for _, h := range append(l.nodes, l.servers...) {
		h.writeConfig(t)
		h.startDaemon(t)
	}
	for _, h := range append(l.nodes, l.servers...) {
		l.eventually(h.name+" hears all observers and sees all nodes up", func() bool {
			r := h.all()
			up := 0
			for i := range r.Nodes {
				if r.Nodes[i].Effective == "up" {
					up++
				}
			}
			return r.Observers == 5 && up == 3
		})
	}
	l.answers(l.victim())
	return l
}

// newSwitch makes the switch of h: a real one when PBXMESH_FREESWITCH names it, which
// works on loopback addresses only, else a simulated one in a process of its own.
func (h *host) newSwitch(t *testing.T) {
	t.Helper()
	cfg := fixtures.Config{Name: h.name, Host: h.addr, Peers: func() []netip.Addr {
		var all []netip.Addr
		for _, n := range h.lab.nodes {
			all = append(all, n.addr)
		}
		return all
	}}
	var err error
	if binary := os.Getenv(realswitch.EnvBinary); binary != "" && h.ns == "" {
		h.sw, err = realswitch.New(cfg, binary)
	} else {
		h.sw, err = newChildSwitch(h)
	}
	if err != nil {
		t.Fatalf("switch of %s: %v", h.name, err)
	}
}

func (h *host) writeConfig(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	var b strings.Builder
	l := h.lab
	fmt.Fprintf(&b, "name: %s\napi: {listen: %q}\nregistry:\n  url: %s\n  state_file: %s\n", h.name, h.api, l.redis, filepath.Join(dir, "state"))
	if p := l.pace; p.renew > 0 {
		fmt.Fprintf(&b, "  lease_ttl: %s\n  lease_renew: %s\n", 5*p.renew, p.renew)
	}
	b.WriteString("failover:\n")
	if p := l.pace; p.probe > 0 {
		fmt.Fprintf(&b, "  probe: {interval: %s, timeout: %s}\n", p.probe, p.timeout)
	}
	fmt.Fprintf(&b, "  return: {hold: %s, ramp: %s}\n", max(0, l.pace.hold), max(0, l.pace.ramp))
	if h.sw != nil {
		address, secret := h.sw.EventSocket()
		if err := os.WriteFile(filepath.Join(dir, "password"), []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		hook := "127.0.0.1:8084"
		if h.ns == "" {
			hook = freePort(t, h.addr).String()
		}
		fmt.Fprintf(&b, "node:\n  id: %s\n  addresses: [%s]\n  mesh_address: %s\n  sip: {udp: %d, tcp: 0}\n", h.name, h.addr, h.sw.Mesh(), h.sw.SIP().Port())
		fmt.Fprintf(&b, "freeswitch:\n  event_socket: {address: %q, password_file: password}\nrouter:\n  socket: {listen: %q}\n", address, hook)
	} else {
		fmt.Fprintf(&b, "dns:\n  listen: [%q]\n  zone: %s\n  default_order: [london, buffalo, singapore]\n  nameservers:\n", h.dns, zone)
		for _, s := range l.servers {
			fmt.Fprintf(&b, "    - {name: %s.%s, addresses: [%s]}\n", s.name, zone, s.addr)
		}
	}
	h.config = filepath.Join(dir, "pbxmesh.yaml")
	if err := os.WriteFile(h.config, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (h *host) startDaemon(t *testing.T) {
	t.Helper()
	path, _ := binary()
	h.daemon = &process{cmd: exec.Command(path, "serve", "-c", h.config)}
	h.daemon.cmd.Stderr = &h.daemon.log
	if err := within(h.ns, h.daemon.start); err != nil {
		t.Fatalf("daemon of %s: %v", h.name, err)
	}
}

// query runs a query command beside the daemon of h.
func (h *host) query(args ...string) string {
	path, _ := binary()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append(args, "--api", h.api)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := within(h.ns, cmd.Start); err != nil {
		return err.Error()
	}
	_ = cmd.Wait()
	return out.String()
}

func (h *host) close(t *testing.T) {
	if h.daemon != nil {
		h.daemon.kill()
		if t.Failed() {
			t.Logf("daemon of %s ends with:\n%s", h.name, h.daemon.tail())
		}
	}
	if h.sw != nil {
		_ = h.sw.Close()
	}
}

// process is a program that can be killed and started anew.
type process struct {
	cmd *exec.Cmd
	log safeBuffer
}

func (p *process) start() error { return p.cmd.Start() }

// kill is kill -9.
func (p *process) kill() {
	if p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

func (p *process) tail() string {
	lines := strings.Split(p.log.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// eventually polls until cond holds.
func (l *lab) eventually(what string, cond func() bool) {
	l.t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > soon {
			l.t.Fatalf("not within %s: %s\n%s", soon, what, l.servers[0].query("nodes", "london"))
		}
		<-tick.C
	}
}

// freePort keeps a port for this test: a listener of its own can take it.
func freePort(t *testing.T, host netip.Addr) netip.AddrPort {
	t.Helper()
	at, release, err := fixtures.ReserveTCP(netip.AddrPortFrom(host, 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return at
}
