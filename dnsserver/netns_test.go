package dnsserver

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// namespace is a network of its own, in which every address and port is free. Checks
// that want a root server and port 53 run in one.
type namespace string

// newNamespace makes one with the addresses on its loopback interface. Where none can be
// made the test is skipped, and fails with CI set: a skipped test proves nothing.
func newNamespace(t testing.TB, addresses ...string) namespace {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("CI") != "" {
		skip = t.Fatalf
	}
	if os.Getuid() != 0 {
		skip("SKIPPED: network namespaces need root")
	}
	n := namespace(fmt.Sprintf("pbxmesh-dns-%d", os.Getpid()))
	if out, err := exec.CommandContext(t.Context(), "ip", "netns", "add", string(n)).CombinedOutput(); err != nil {
		skip("SKIPPED: no network namespace can be made here: %v %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", string(n)).Run() })
	n.ip(t, "link", "set", "lo", "up")
	for _, a := range addresses {
		args := []string{"addr", "add", a, "dev", "lo"}
		if strings.Contains(a, ":") {
			args = append(args, "nodad")
		}
		n.ip(t, args...)
	}
	return n
}

func (n namespace) ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "ip", append([]string{"-n", string(n)}, args...)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %v: %v %s", args, err, out)
	}
}

// do runs f inside: the sockets that f opens stay there.
func (n namespace) do(t testing.TB, f func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	there, err := os.Open("/var/run/netns/" + string(n))
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Skipf("SKIPPED: the namespace cannot be entered: %v", err)
	}
	defer func() {
		// A thread that cannot get home must not be used again: it ends with its goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
	}()
	f()
}

// command runs a program inside.
func (n namespace) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", string(n), name}, args...)...)
}

// rootServer answers for a root zone that holds only what delegates z's zones, at
// port 53 of addr: the parent of a zone under test.
func rootServer(t testing.TB, n namespace, z *Zone, addr string) {
	t.Helper()
	root := func(s string) dns.RR {
		rr, err := dns.NewRR(s)
		if err != nil {
			t.Fatal(err)
		}
		return rr
	}
	soa := root(". 3600 SOA a.root-servers.net. nobody.example. 1 1800 900 604800 3600")
	ns := root(". 3600 NS a.root-servers.net.")
	glue := root("a.root-servers.net. 3600 A " + addr)
	reverse := make(map[string]string)
	for _, s := range z.opts.NameServers {
		for _, a := range s.Addresses {
			if arpa, err := dns.ReverseAddr(a.String()); err == nil {
				reverse[arpa] = s.Name
			}
		}
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(req)
		m.Authoritative = true
		defer func() { _ = w.WriteMsg(m) }()
		if opt := req.IsEdns0(); opt != nil {
			m.SetEdns0(1232, opt.Do())
		}
		q := req.Question[0]
		name := strings.ToLower(q.Name)
		a := z.zoneOf(name)
		switch {
		case a != nil && a.name == name && q.Qtype == dns.TypeDS:
			if keys := z.keys.Load(); keys != nil {
				m.Answer = append(m.Answer, keys.zones[a.name].ds...)
			}
		case a != nil:
			m.Authoritative = false
			for _, s := range z.opts.NameServers {
				m.Ns = append(m.Ns, &dns.NS{Hdr: dns.RR_Header{Name: a.name, Rrtype: dns.TypeNS, Class: 1, Ttl: 3600}, Ns: s.Name})
				for _, ip := range s.Addresses {
					h := dns.RR_Header{Name: s.Name, Rrtype: dns.TypeA, Class: 1, Ttl: 3600}
					if ip.Is6() {
						h.Rrtype = dns.TypeAAAA
					}
					m.Extra = append([]dns.RR{addressRR(h, ip)}, m.Extra...)
				}
			}
			return
		case q.Qtype == dns.TypePTR && reverse[name] != "":
			m.Answer = append(m.Answer, &dns.PTR{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypePTR, Class: 1, Ttl: 3600}, Ptr: reverse[name]})
		case name == "." && q.Qtype == dns.TypeSOA:
			m.Answer = append(m.Answer, soa)
		case name == "." && q.Qtype == dns.TypeNS:
			m.Answer, m.Extra = append(m.Answer, ns), append([]dns.RR{glue}, m.Extra...)
		case name == "a.root-servers.net." && q.Qtype == dns.TypeA:
			m.Answer = append(m.Answer, glue)
		case name != "." && name != "a.root-servers.net.":
			m.Rcode = dns.RcodeNameError
			for _, below := range append(slices.Collect(maps.Keys(reverse)), slices.Collect(maps.Keys(z.apexes))...) {
				if dns.IsSubDomain(name, below) {
					m.Rcode = dns.RcodeSuccess // an empty non-terminal
				}
			}
		}
		if len(m.Answer) == 0 {
			m.Ns = append(m.Ns, soa)
		}
	})
	for _, network := range []string{"udp", "tcp"} {
		s := &dns.Server{Net: network, Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), 53).String(), Handler: handler}
		started, ended := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(started) }
		n.do(t, func() {
			var err error
			if network == "udp" {
				s.PacketConn, err = net.ListenPacket("udp", s.Addr)
			} else {
				s.Listener, err = net.Listen("tcp", s.Addr)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
		go func() { ended <- s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			_ = s.Shutdown()
			<-ended
		})
	}
}
