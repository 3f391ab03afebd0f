package traffic_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"pbxmesh"
	"pbxmesh/registry/redisstore"
)

// processorPhones are those of the node whose daemon is a process of its own.
const processorPhones = 1000

// processor adds a node whose daemon is a process, with the intervals of production, and prints
// how busy it is when nothing happens.
func (m *mesh) processor(i int) {
	m.t.Helper()
	const name, over = "process", 40 * time.Second
	dir := m.t.TempDir()
	path := filepath.Join(dir, "pbxmesh")
	if out, err := exec.Command("go", "build", "-o", path, "pbxmesh/cmd/pbxmesh").CombinedOutput(); err != nil {
		m.t.Fatalf("build: %v\n%s", err, out)
	}
	sw := simulated(m.t, name, addressOf(i+1), processorPhones)
	address, secret := sw.EventSocket()
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
  state_file: %[7]s
router:
  socket: {listen: ""}
  default_domain: %[8]s
api: {listen: ""}
`, name, sw.SIP().Addr(), sw.Mesh(), sw.SIP().Port(), address, m.s.home.URL(), filepath.Join(dir, "state"), zone)
	for file, content := range map[string]string{"pbxmesh.yaml": text, "password": secret + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
			m.t.Fatal(err)
		}
	}
	var log strings.Builder
	cmd := exec.Command(path, "serve", "-c", filepath.Join(dir, "pbxmesh.yaml"))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.until("its phones are known", time.Minute, func(d *daemon) bool {
		return has(d, fmt.Sprint("burst", processorPhones-1), name) && d.Mesh().State(name).Observed == pbxmesh.ObservedUp
	})
	time.Sleep(30 * time.Second)
	before := used(m, cmd.Process.Pid)
	time.Sleep(over)
	busy := used(m, cmd.Process.Pid) - before
	m.t.Logf("the daemon of a node with %d phones, a process of its own, idle for %s: %.2f %% of a core", processorPhones, over, 100*busy.Seconds()/over.Seconds())
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		m.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		m.t.Errorf("the process ends with %v:\n%s", err, log.String())
	}
	if err := open(m.t, redisstore.Options{URL: m.s.home.URL()}).Forget(m.t.Context(), name); err != nil {
		m.t.Fatal(err)
	}
	m.until("it is forgotten", time.Minute, func(d *daemon) bool {
		_, known := d.Mesh().Nodes[name]
		return !known
	})
}

// used is the processor time of a process, as its threads' run times on the scheduler add up:
// what counts ticks says little about a program that sleeps most of the time.
func used(m *mesh, pid int) time.Duration {
	m.t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		m.t.Fatal(err)
	}
	var all time.Duration
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			m.t.Fatal(err)
		}
		var ns time.Duration
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			m.t.Fatal(err)
		}
		all += ns
	}
	return all
}
