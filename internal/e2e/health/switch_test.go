package health_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"pbxmesh/fixtures"
	"pbxmesh/fixtures/simswitch"
)

// envSwitch makes this test binary a simulated switch, described by its value.
const envSwitch = "PBXMESH_HEALTH_SWITCH"

func TestMain(m *testing.M) {
	if text := os.Getenv(envSwitch); text != "" {
		os.Exit(runSwitch(text))
	}
	code := m.Run()
	if path, err := binary(); err == nil {
		_ = os.Remove(path)
	}
	os.Exit(code)
}

type switchOptions struct {
	Name  string
	Host  netip.Addr
	Ports simswitch.Ports
	Peers []netip.Addr
}

// runSwitch is a simulated switch until its standard input ends; what it reads there are
// faults.
func runSwitch(text string) int {
	var o switchOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	sw, err := simswitch.New(simswitch.Options{
		Config: fixtures.Config{Name: o.Name, Host: o.Host, Peers: func() []netip.Addr { return o.Peers }},
		Ports:  o.Ports, AnyHost: true, Heartbeat: time.Hour,
	})
	if err == nil {
		err = sw.Start()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("ready")
	for in := json.NewDecoder(os.Stdin); ; {
		var f fault
		if in.Decode(&f) != nil {
			return 0
		}
		sw.Hang(f.Hang)
		sw.AnswerOptions(f.Options)
		if f.Beat {
			sw.PretendLoad(f.Sessions, f.Idle)
			sw.FireHeartbeat()
		}
		fmt.Println("done")
	}
}

// fault is what is wrong with a simulated switch, in place of what was before; the zero
// fault is nothing.
type fault struct {
	Hang    bool // the event socket accepts and never answers
	Options int  // status of the answers to OPTIONS, -1 for none

	// Beat fires a HEARTBEAT with so many sessions, of 2000, and percent of idle
	// processor; later ones tell the same.
	Beat     bool
	Sessions int
	Idle     float64
}

// childSwitch is a simulated switch in a process of its own, so that kill -9 and SIGSTOP
// are what they are.
type childSwitch struct {
	ns   string
	opts switchOptions

	mu    sync.Mutex
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
}

var _ fixtures.Switch = (*childSwitch)(nil)

func newChildSwitch(h *host) (*childSwitch, error) {
	s := &childSwitch{ns: h.ns, opts: switchOptions{Name: h.name, Host: h.addr, Ports: simswitch.Ports{EventSocket: 8021, SIP: 5060, Mesh: 5090}}}
	for _, n := range h.lab.nodes {
		s.opts.Peers = append(s.opts.Peers, n.addr)
	}
	if h.ns == "" {
		for _, port := range []*uint16{&s.opts.Ports.EventSocket, &s.opts.Ports.SIP, &s.opts.Ports.Mesh} {
			*port = freePort(h.lab.t, h.addr).Port()
		}
	}
	return s, nil
}

func (s *childSwitch) Name() string { return s.opts.Name }

func (s *childSwitch) EventSocket() (addr, password string) {
	return netip.AddrPortFrom(s.opts.Host, s.opts.Ports.EventSocket).String(), "ClueCon"
}

func (s *childSwitch) SIP() netip.AddrPort {
	return netip.AddrPortFrom(s.opts.Host, s.opts.Ports.SIP)
}

func (s *childSwitch) Mesh() netip.AddrPort {
	return netip.AddrPortFrom(s.opts.Host, s.opts.Ports.Mesh)
}

func (s *childSwitch) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := json.Marshal(s.opts)
	if err != nil {
		return err
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), envSwitch+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	if err := within(s.ns, cmd.Start); err != nil {
		return err
	}
	s.cmd, s.out = cmd, bufio.NewReader(out)
	if line, err := s.out.ReadString('\n'); err != nil || line != "ready\n" {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		s.cmd = nil
		return fmt.Errorf("switch %s says %q: %w", s.opts.Name, line, err)
	}
	return nil
}

func (s *childSwitch) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Kill()
	_ = s.cmd.Wait()
	s.cmd = nil
	return err
}

func (s *childSwitch) signal(sig os.Signal) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return fmt.Errorf("switch %s does not run", s.opts.Name)
	}
	return s.cmd.Process.Signal(sig)
}

// fault makes something wrong with the switch, or nothing any more.
func (s *childSwitch) fault(f fault) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := json.NewEncoder(s.stdin).Encode(f); err != nil {
		return err
	}
	if line, err := s.out.ReadString('\n'); err != nil || line != "done\n" {
		return fmt.Errorf("switch %s says %q: %w", s.opts.Name, line, err)
	}
	return nil
}

func (s *childSwitch) Pause() error  { return s.signal(syscall.SIGSTOP) }
func (s *childSwitch) Resume() error { return s.signal(syscall.SIGCONT) }
func (s *childSwitch) Close() error  { return s.Kill() }
