package redirect

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// lookSipp returns the path of sipp, the independent SIP tester (Debian package
// sip-tester). Without it the test is skipped, except in CI.
func lookSipp(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("sipp")
	if err == nil {
		return path
	}
	if os.Getenv("CI") != "" {
		t.Fatal("sipp is not installed and CI forbids to skip: install the package sip-tester")
	}
	t.Skip("SKIPPED, NOT TESTED: sipp is not installed (Debian package sip-tester)")
	return ""
}

// runSipp runs a scenario of testdata/sipp and returns what it printed. The error
// is sipp's verdict.
func runSipp(t *testing.T, scenario string, to netip.AddrPort, args ...string) (string, error) {
	t.Helper()
	path := lookSipp(t)
	file, err := filepath.Abs(filepath.Join("testdata", "sipp", scenario))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, append([]string{
		to.String(), "-sf", file, "-s", "1002", "-i", "127.0.0.1", "-p", strconv.Itoa(int(freePort(t))),
		"-m", "1", "-nostdin", "-timeout", "20s", "-timeout_error", "-recv_timeout", "5000",
	}, args...)...)
	cmd.Dir = t.TempDir()
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	return out.String(), err
}

// freePort returns a port that was free a moment ago: sipp cannot tell which one
// the kernel chose for it.
func freePort(t *testing.T) uint16 {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(loopback))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func TestSipp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		scenario string
		set      func(*world)
		tcp      bool
		want     func(Stats) bool
	}{
		{"302.xml", nil, false, func(s Stats) bool { return s.Redirected == 1 && s.Acks == 1 && s.UDP == 2 }},
		{"302.xml", nil, true, func(s Stats) bool { return s.Redirected == 1 && s.Acks == 1 && s.TCP == 2 }},
		{"404.xml", func(w *world) { clear(w.regs) }, false, func(s Stats) bool { return s.NotFound == 1 }},
		{"404.xml", func(w *world) { clear(w.regs) }, true, func(s Stats) bool { return s.NotFound == 1 }},
		{"480.xml", func(w *world) { w.observe("london", pbxmesh.ObservedDown) }, false, func(s Stats) bool { return s.Unreachable == 1 }},
		{"405.xml", nil, false, func(s Stats) bool { return s.Unknown == 1 }},
		{"405.xml", nil, true, func(s Stats) bool { return s.Unknown == 1 }},
		{"options.xml", nil, false, func(s Stats) bool { return s.Options == 1 }},
		{"options.xml", nil, true, func(s Stats) bool { return s.Options == 1 }},
		{"retransmission.xml", nil, false, func(s Stats) bool { return s.Redirected > 20 && s.Acks >= 20 }},
		{"cancel.xml", nil, false, func(s Stats) bool { return s.Redirected == 1 && s.OtherAnswer == 2 }},
		{"bye.xml", nil, false, func(s Stats) bool { return s.OtherAnswer == 1 }},
	} {
		name, transport := c.scenario, UDP
		if c.tcp {
			name, transport = name+" over TCP", TCP
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld()
			w.register(t, "1002", domain, "london")
			if c.set != nil {
				c.set(w)
			}
			o := w.options()
			o.TCP = []netip.AddrPort{loopback}
			s := newServer(t, o)
			args := []string{}
			if c.tcp {
				args = append(args, "-t", "t1")
			}
			if c.scenario == "retransmission.xml" {
				args = append(args, "-m", "20", "-r", "100", "-max_invite_retrans", "30", "-recv_timeout", "9500")
			}
			out, err := runSipp(t, c.scenario, s.Addrs(transport)[0], args...)
			// sipp chooses its port before it binds it; another test may take it first.
			for range 5 {
				if err == nil || !strings.Contains(out, "Unable to bind main socket") {
					break
				}
				out, err = runSipp(t, c.scenario, s.Addrs(transport)[0], args...)
			}
			if err != nil {
				t.Fatalf("sipp %v\n%s", err, out)
			}
			eventually(t, "the counters say what sipp did", func() bool { return c.want(s.Stats()) })
		})
	}
}

// A source that is not allowed hears nothing over UDP, and over TCP the end of its
// connection.
func TestSippStranger(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.register(t, "1002", domain, "london")
	o := w.options()
	o.TCP = []netip.AddrPort{loopback}
	o.Allow = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	s := newServer(t, o)
	out, err := runSipp(t, "stranger.xml", s.Addrs(UDP)[0], "-recv_timeout", "700", "-max_invite_retrans", "3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("sipp ends with %v\n%s", err, out)
	}
	if st := s.Stats(); st.Strangers < 2 || st.UDP != 0 {
		t.Errorf("stats %+v", st)
	}
	c, err := net.Dial("tcp", s.Addrs(TCP)[0].String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a stranger reads %d bytes, %v", n, err)
	}
}

// eventually waits for what happens by itself.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(10 * time.Second); !cond(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}
