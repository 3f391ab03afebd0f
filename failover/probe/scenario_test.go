package probe

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/realswitch"
)

// realSwitch starts one, or skips.
func realSwitch(t *testing.T) *realswitch.Switch {
	t.Helper()
	binary := os.Getenv(realswitch.EnvBinary)
	if binary == "" {
		t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
	}
	host := netip.MustParseAddr("127.0.0.1")
	s, err := realswitch.New(fixtures.Config{Name: "london", Host: host, Peers: func() []netip.Addr { return []netip.Addr{host} }}, binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	if err := s.Start(); err != nil {
		t.Fatalf("start: %v\n%s", err, s.Log())
	}
	return s
}

// TestScenarioCopies sends a real switch five requests of one row at once: it answers each
// as a request of its own, and says whose answer it is.
func TestScenarioCopies(t *testing.T) {
	s := realSwitch(t)
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, to := range []netip.AddrPort{s.SIP(), s.Mesh()} {
		id := newID()
		for n := range copies {
			if _, err := conn.WriteToUDPAddrPort(request(id, n+1, to, conn.LocalAddr().String()), to); err != nil {
				t.Fatal(err)
			}
		}
		var numbers []int
		buf := make([]byte, 4096)
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for range copies {
			n, _, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil {
				t.Fatalf("after the answers to %v: %v", numbers, err)
			}
			if code := finalStatus(buf[:n]); code != 200 {
				t.Errorf("%d, want 200:\n%s", code, buf[:n])
			}
			numbers = append(numbers, numberIn(buf[:n], id))
		}
		if slices.Sort(numbers); !slices.Equal(numbers, []int{1, 2, 3, 4, 5}) {
			t.Errorf("%s answers %v, want each request once", to, numbers)
		}
	}
}

// TestScenarioSilence stops a real switch for good, for moments, and kills it: three
// probes in a row are silent within 1.8 s and not before half a second, moments of 0.3 s are no
// silence, and a closed port is refused.
func TestScenarioSilence(t *testing.T) {
	s := realSwitch(t)
	results := make(chan failover.ProbeResult, 1000)
	p, err := New(Options{OnResult: func(r failover.ProbeResult) { results <- r }})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	p.SetMembers([]pbxmesh.Node{{ID: "london", Addresses: []netip.Addr{s.SIP().Addr()}, Ports: pbxmesh.SIPPorts{UDP: s.SIP().Port()}}})
	next := func() failover.ProbeResult {
		select {
		case r := <-results:
			return r
		case <-time.After(10 * time.Second):
			t.Fatal("no result in ten seconds")
			return failover.ProbeResult{}
		}
	}
	// answers waits for n answers in a row and returns the longest row of silences before.
	answers := func(n int) (silences int) {
		row := 0
		for answered := 0; answered < n; answered++ {
			switch r := next(); r.Outcome {
			case failover.OutcomeOK:
				row = 0
			case failover.OutcomeLate:
				answered = -1
			default:
				answered = -1
				row++
				silences = max(silences, row)
			}
		}
		return silences
	}
	for range 5 {
		answers(3)
		began := time.Now()
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
		row := 0
		for row < 3 {
			switch r := next(); r.Outcome {
			case failover.OutcomeTimeout:
				row++
			case failover.OutcomeLate:
			default:
				row = 0
			}
		}
		silent := time.Since(began)
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		answers(1)
		t.Logf("stopped: silent after %v, answers after %v", silent, time.Since(began)-silent)
		if silent < 500*time.Millisecond || silent > 1800*time.Millisecond {
			t.Errorf("silent after %v", silent)
		}
	}
	for range 5 {
		if err := s.Pause(); err != nil {
			t.Fatal(err)
		}
		<-time.After(300 * time.Millisecond)
		if err := s.Resume(); err != nil {
			t.Fatal(err)
		}
		if row := answers(2); row >= 3 {
			t.Errorf("stopped for 0.3 s: %d silences in a row", row)
		}
	}
	answers(2)
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	for {
		r := next()
		if r.Outcome == failover.OutcomeOK || r.Outcome == failover.OutcomeTimeout {
			continue
		}
		if r.Outcome != failover.OutcomeRefused || !errors.Is(r.Err, errRefused) {
			t.Errorf("killed: %+v", r)
		}
		break
	}
}
