package health_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// needNamespaces skips, loudly, where namespaces cannot be made. In CI that is an error.
func needNamespaces(t *testing.T) {
	t.Helper()
	var why string
	switch {
	case os.Geteuid() != 0:
		why = "not root"
	case exec.Command("ip", "-V").Run() != nil:
		why = "no ip in PATH; install it with: apt-get install iproute2"
	case exec.Command("nft", "--version").Run() != nil:
		why = "no nft in PATH; install it with: apt-get install nftables"
	default:
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("network namespaces: %s", why)
	}
	t.Skipf("SKIPPED, NOTHING WAS TESTED IN NETWORK NAMESPACES: %s", why)
}

var networks atomic.Int32

// network is a switch of namespaces: a bridge in a namespace of its own, the hub, and one
// more namespace for every machine. Nothing of it is seen from outside.
type network struct {
	prefix string
	hub    string
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{prefix: fmt.Sprintf("pm%d-%d-", os.Getpid(), networks.Add(1))}
	n.hub = n.prefix + "hub"
	run(t, "ip", "netns", "add", n.hub)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", n.hub).Run() })
	n.ip(t, n.hub, "link set lo up")
	n.ip(t, n.hub, "link add br0 type bridge")
	n.ip(t, n.hub, "addr add "+n.address(1).String()+"/24 dev br0")
	n.ip(t, n.hub, "link set br0 up")
	return n
}

func (n *network) address(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(i)}) }

// plug makes the namespace of a machine, or makes it again after unplug.
func (n *network) plug(t *testing.T, name string, addr netip.Addr) string {
	t.Helper()
	ns := n.prefix + name
	run(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	port := "v" + addr.String()[strings.LastIndex(addr.String(), ".")+1:]
	n.ip(t, n.hub, "link add "+port+" type veth peer name e0 netns "+ns)
	n.ip(t, n.hub, "link set "+port+" master br0 up")
	n.ip(t, ns, "link set lo up")
	n.ip(t, ns, "addr add "+addr.String()+"/24 dev e0")
	n.ip(t, ns, "link set e0 up")
	return ns
}

// unplug removes a machine's namespace with its address. Its processes must be dead.
func (n *network) unplug(t *testing.T, ns string) {
	t.Helper()
	n.ip(t, ns, "link del e0")
	run(t, "ip", "netns", "del", ns)
}

func (n *network) ip(t *testing.T, ns, args string) {
	t.Helper()
	run(t, "ip", append([]string{"-n", ns}, strings.Fields(args)...)...)
}

// filter replaces what a machine drops on arrival: each rule is a condition of nft, such
// as "ip saddr 10.77.0.10". No rule ends it. Arrival, because a packet that is dropped
// when it leaves is an error to its sender.
func (n *network) filter(t *testing.T, ns string, rules ...string) {
	t.Helper()
	text := "add table ip lab\ndelete table ip lab\ntable ip lab {\nchain in {\ntype filter hook input priority 0;\n"
	for _, r := range rules {
		text += r + " drop\n"
	}
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text + "}\n}\n")
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := within(ns, cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out.String())
	}
}

// startRedis starts a redis-server in the hub and returns its URL.
func (n *network) startRedis(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("redis-server"); err != nil {
		t.Fatalf("no redis-server in PATH; install it with: apt-get install redis-server")
	}
	addr := netip.AddrPortFrom(n.address(1), 6379).String()
	cmd := exec.Command("redis-server", "--bind", n.address(1).String(), "--port", "6379", "--save", "", "--appendonly", "no", "--protected-mode", "no", "--dir", t.TempDir())
	if err := within(n.hub, cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	for deadline := time.Now().Add(soon); ; {
		err := within(n.hub, func() error {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				_ = c.Close()
			}
			return err
		})
		if err == nil {
			return "redis://" + addr
		}
		if time.Now().After(deadline) {
			t.Fatalf("redis-server does not answer: %v", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// within runs f in a namespace: sockets that it opens and programs that it starts belong
// there. "" is the test's own.
func within(ns string, f func() error) error {
	if ns == "" {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		// The thread comes back, it does not end: what a test starts to die with its
		// parent, such as a Redis, dies with the thread that started it.
		runtime.LockOSThread()
		back, err := enter("/proc/thread-self/ns/net", "/run/netns/"+ns)
		if err == nil {
			err = f()
		}
		if back() == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// enter puts the thread into another namespace than that of own, and back.
func enter(own, other string) (back func() error, err error) {
	from, err := unix.Open(own, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return func() error { return nil }, fmt.Errorf("namespace %s: %w", own, err)
	}
	back = func() error {
		defer func() { _ = unix.Close(from) }()
		return unix.Setns(from, unix.CLONE_NEWNET)
	}
	to, err := unix.Open(other, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return back, fmt.Errorf("namespace %s: %w", other, err)
	}
	defer func() { _ = unix.Close(to) }()
	if err := unix.Setns(to, unix.CLONE_NEWNET); err != nil {
		return back, fmt.Errorf("namespace %s: %w", other, err)
	}
	return back, nil
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}
