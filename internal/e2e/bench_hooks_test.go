package e2e_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/internal/esl"
	"pbxmesh/router/dialplan"
	"pbxmesh/router/socket"
)

const (
	envBenchHooks = "PBXMESH_BENCH_HOOKS"

	benchSamples = 200             // calls a hook for the delay
	benchStep    = 2 * time.Second // of each rate of the ramp
	benchRing    = 60 * time.Millisecond
	benchCall    = 4 * time.Second // a call that is not answered by then failed
)

// benchRates is the ramp in calls per second; with its steps it takes 20 s.
// The switch of the fixtures takes 500 new channels a second, two a call.
var benchRates = []int{10, 20, 40, 60, 80, 100, 130, 160, 200, 250}

// london is a registry in which one user is on another node, whose mesh address is
// the callee's own phone: so every hook ends in an INVITE to the same phone, and what
// differs is the hook.
type london struct{ at netip.AddrPort }

func (l london) Lookup(_ context.Context, aor pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	return []*pbxmesh.Registration{{AOR: aor, Node: "london", CallID: "x", Contact: "sip:phone", Expires: time.Now().Add(time.Hour)}}, 0, nil
}

func (l london) Mesh() *pbxmesh.Mesh {
	return &pbxmesh.Mesh{
		Nodes:  map[pbxmesh.NodeID]pbxmesh.Node{"london": {ID: "london", Mesh: l.at}},
		States: map[pbxmesh.NodeID]pbxmesh.NodeState{"london": {Observed: pbxmesh.ObservedUp}},
	}
}

// bench is one switch, a caller, a callee and both hooks that answer questions.
type bench struct {
	t        *testing.T
	sw       fixtures.Switch
	callers  []*phone.Phone
	callee   *phone.Phone
	web, out netip.AddrPort
}

// TestBenchHooks is `make bench-hooks`: it measures, and fails only when calls do.
func TestBenchHooks(t *testing.T) {
	if os.Getenv(envBenchHooks) == "" {
		t.Skipf("run it by `make bench-hooks` (it sets %s)", envBenchHooks)
	}
	if realBinary() == "" {
		benchSimulated(t)
		return
	}
	host := netip.MustParseAddr("127.0.1.1")
	b := &bench{t: t, web: freePort(t, host), out: freePort(t, host)}
	var err error
	b.sw, err = realswitch.New(b.config(host), realBinary(),
		// mod_xml_curl is loaded last: from then on it is asked for every call.
		realswitch.WithModule("mod_curl", fmt.Sprintf(`<configuration name="xml_curl.conf"><bindings><binding name="pbxmesh">
          <param name="gateway-url" value="http://%s/xml" bindings="dialplan"/><param name="timeout" value="2"/>
        </binding></bindings></configuration>`, b.web)),
		realswitch.WithDialplan(b.dialplan()))
	if err != nil {
		t.Fatal(err)
	}
	b.boot()
	b.serve()
	b.inject()

	doors := []string{"direct", "native", "socket", "curl"}
	delays := map[string][]time.Duration{}
	b.callee.SetBehaviour(phone.AutoAnswer(benchRing))
	for range benchSamples { // in turn, so that whatever else the machine does hits all
		for _, d := range doors {
			delays[d] = append(delays[d], b.delay(d))
		}
	}
	b.callee.SetBehaviour(phone.AutoAnswer(0))
	rates := map[string]string{}
	for _, d := range doors {
		rates[d] = b.ramp(d)
	}
	reply, err := b.sw.(*realswitch.Switch).API(t.Context(), "load mod_xml_curl")
	if err != nil || !strings.Contains(reply, "+OK") {
		t.Fatalf("load mod_xml_curl: %q, %v", reply, err)
	}
	doors = append(doors, "xml_curl")
	b.callee.SetBehaviour(phone.AutoAnswer(benchRing))
	for range benchSamples {
		delays["xml_curl"] = append(delays["xml_curl"], b.delay("xml_curl"))
	}
	b.callee.SetBehaviour(phone.AutoAnswer(0))
	rates["xml_curl"] = b.ramp("xml_curl")
	report(t, "real FreeSWITCH", doors, delays, rates)
}

func (b *bench) config(host netip.Addr) fixtures.Config {
	fc := fixtures.Config{Name: "buffalo", Host: host, Socket: b.out.String()}
	for _, u := range []string{"1001", "1002", "1003", "1004", "1005"} {
		fc.Users = append(fc.Users, fixtures.User{Name: u, Domain: domain, Password: password(u)})
	}
	return fc
}

// dialplan has one extension a hook; a header of the caller chooses.
func (b *bench) dialplan() string {
	var out strings.Builder
	out.WriteString(`<context name="default">`)
	for _, e := range [][2]string{
		{"direct", `<action application="bridge" data="${sofia_contact(internal/$1@${domain_name})}"/>`},
		{"native", `<action application="bridge" data="${sofia_contact(mesh/$1@${domain_name})}"/>`},
		{"socket", fmt.Sprintf(`<action application="socket" data="%s async full"/>`, b.out)},
		{"curl", fmt.Sprintf(`<action application="bridge" data="${curl(http://%s/dialstring/$1@${domain_name})}"/>`, b.web)},
	} {
		fmt.Fprintf(&out, `<extension name="%s"><condition field="${sip_h_X-Hook}" expression="^%s$"/>
          <condition field="destination_number" expression="^([0-9]+)$">
          <action application="set" data="hangup_after_bridge=true"/><action application="set" data="continue_on_fail=true"/>%s%s
          </condition></extension>`, e[0], e[0], e[1], goesOn)
	}
	return out.String() + `</context>` + meshContext
}

// boot starts the switch and registers all phones.
func (b *bench) boot() {
	t := b.t
	t.Helper()
	t.Cleanup(func() { _ = b.sw.Close() })
	if err := b.sw.Start(); err != nil {
		t.Fatal(err)
	}
	for i, u := range []string{"1002", "1001", "1003", "1004", "1005"} {
		p, err := phone.New(phone.Config{
			User: u, Domain: domain, Password: password(u), Local: netip.MustParseAddr(fmt.Sprintf("127.0.41.%d", i+1)), Registrar: b.sw.SIP(),
		})
		if err != nil {
			t.Fatal(err)
		}
		p.Start()
		t.Cleanup(func() { _ = p.Close() })
		if err := p.Register(t.Context()); err != nil {
			t.Fatal(err)
		}
		if u == "1002" {
			b.callee = p
		} else {
			b.callers = append(b.callers, p)
		}
	}
}

// serve starts both hooks as a daemon would.
func (b *bench) serve() {
	t := b.t
	t.Helper()
	known := london{at: b.callee.Addr()}
	log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelError})) // calls that end at once make the socket hook warn
	hook, err := socket.New(socket.Options{Directory: known, Nodes: known, Local: "buffalo", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	web, err := dialplan.New(dialplan.Options{Directory: known, Nodes: known, Local: "buffalo", Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		at       netip.AddrPort
		serve    func(net.Listener) error
		shutdown func(context.Context) error
	}{{b.out, hook.Serve, hook.Shutdown}, {b.web, web.Serve, web.Shutdown}} {
		l, err := net.Listen("tcp", s.at.String())
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.serve(l) }()
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), soon)
			defer cancel()
			if err := s.shutdown(ctx); err != nil {
				t.Error(err)
			}
			<-done
		})
	}
}

// inject writes the callee's row into the switch's own table, as the native hook
// does; nothing of ours is in the path of its calls.
func (b *bench) inject() {
	t := b.t
	t.Helper()
	addr, secret := b.sw.EventSocket()
	conn, err := esl.Dial(t.Context(), esl.Config{Address: addr, Password: secret})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	at := b.callee.Addr()
	var headers []esl.Header
	for _, h := range [][2]string{
		{"Event-Subclass", "multicast::event"}, {"Multicast", "yes"}, {"orig-event-name", "CUSTOM"}, {"orig-event-subclass", "sofia::register"},
		{"orig-profile-name", "mesh"}, {"orig-from-user", "1002"}, {"orig-from-host", domain}, {"orig-to-user", "1002"}, {"orig-to-host", domain},
		{"orig-contact", `"" <sip:1002@` + domain + `;fs_path=sip:` + at.String() + `>`}, {"orig-expires", "3600"}, {"orig-rpid", "unknown"},
		{"orig-call-id", "bench-1002"}, {"orig-user-agent", "pbxmesh"}, {"orig-network-ip", at.Addr().String()}, {"orig-network-port", fmt.Sprint(at.Port())},
		{"orig-username", "1002"}, {"orig-realm", domain}, {"orig-FreeSWITCH-IPv4", at.Addr().String()}, {"orig-FreeSWITCH-Hostname", "london"},
	} {
		headers = append(headers, esl.Header{Name: h[0], Value: h[1]})
	}
	if err := conn.SendEvent(t.Context(), "CUSTOM", headers, nil); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for {
		reply, err := conn.API(t.Context(), "sofia_contact mesh/1002@"+domain)
		if err == nil && strings.Contains(reply, "fs_path") {
			return
		}
		if time.Since(began) > soon {
			t.Fatalf("the injected row does not show: %q, %v", reply, err)
		}
	}
}

// delay is the time from INVITE to ringing of one call by the door.
func (b *bench) delay(door string) time.Duration {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	call, err := b.callers[0].Call(ctx, "1002", sipwire.Header{Name: "X-Hook", Value: door})
	if err != nil {
		b.t.Fatalf("%s: %v", door, err)
	}
	info, err := call.WaitAnswered(ctx)
	if err != nil || info.Header("X-Pbxmesh-Result")+info.Header("X-Pbxmesh-Cause") != "" {
		b.t.Fatalf("%s: not answered by the callee: %v", door, err)
	}
	if err := call.Hangup(ctx); err != nil {
		b.t.Fatalf("%s: %v", door, err)
	}
	if info.RingingAt.IsZero() {
		b.t.Fatalf("%s: it was answered without ringing", door)
	}
	return info.RingingAt.Sub(info.StartedAt)
}

// ramp raises the rate until more than 1 % of a step's calls fail, and returns the
// highest rate before that.
func (b *bench) ramp(door string) string {
	defer b.settle()
	best := 0
	for _, rate := range benchRates {
		var failed atomic.Int64
		var calls sync.WaitGroup
		n := rate * int(benchStep/time.Second)
		tick := time.NewTicker(time.Second / time.Duration(rate))
		for i := range n {
			<-tick.C
			caller := b.callers[i%len(b.callers)]
			calls.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), benchCall)
				defer cancel()
				call, err := caller.Call(ctx, "1002", sipwire.Header{Name: "X-Hook", Value: door})
				if err == nil {
					var info phone.CallInfo
					if info, err = call.WaitAnswered(ctx); err == nil && strings.TrimSpace(info.Header("X-Pbxmesh-Result")+info.Header("X-Pbxmesh-Cause")) != "" {
						failed.Add(1) // the dialplan answered instead
					}
					if err == nil {
						err = call.Hangup(ctx)
					}
				}
				if err != nil {
					failed.Add(1)
				}
			})
		}
		tick.Stop()
		calls.Wait()
		if failed.Load()*100 > int64(n) {
			b.t.Logf("%s: %d of %d calls failed at %d calls/s", door, failed.Load(), n, rate)
			return fmt.Sprint(best)
		}
		best = rate
	}
	return fmt.Sprintf("%d or more", best)
}

// settle waits until the channels of a ramp are gone: the next one must not pay for
// what the last one left behind.
func (b *bench) settle() {
	b.t.Helper()
	addr, secret := b.sw.EventSocket()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	last := ""
	for calm := 0; calm < 4; <-tick.C { // two seconds without a channel
		if ctx.Err() != nil {
			b.t.Fatalf("channels are left a minute after the ramp: %q", last)
		}
		conn, err := esl.Dial(ctx, esl.Config{Address: addr, Password: secret})
		if err != nil {
			continue
		}
		last, err = conn.API(ctx, "show channels count")
		_ = conn.Close()
		if calm++; err != nil || strings.TrimSpace(last) != "0 total." {
			calm = 0
		}
	}
}

// benchSimulated measures what can be without a switch that has an HTTP client: the
// socket hook through a simulated switch, and the others' own share alone.
func benchSimulated(t *testing.T) {
	host := netip.MustParseAddr("127.0.1.1")
	b := &bench{t: t, web: freePort(t, host), out: freePort(t, host)}
	var err error
	if b.sw, err = simswitch.New(simswitch.Options{Config: b.config(host)}); err != nil {
		t.Fatal(err)
	}
	b.boot()
	b.serve()
	b.inject()
	delays := map[string][]time.Duration{}
	addr, secret := b.sw.EventSocket()
	conn, err := esl.Dial(t.Context(), esl.Config{Address: addr, Password: secret})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: soon} // as mod_curl asks
	b.callee.SetBehaviour(phone.AutoAnswer(benchRing))
	for range benchSamples {
		delays["socket"] = append(delays["socket"], b.delay("socket"))
		began := time.Now()
		if _, err := conn.API(t.Context(), "sofia_contact mesh/1002@"+domain); err != nil {
			t.Fatal(err)
		}
		delays["native (look-up alone)"] = append(delays["native (look-up alone)"], time.Since(began))
		began = time.Now()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+b.web.String()+"/dialstring/1002@"+domain, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || !strings.HasPrefix(string(body), "sofia/mesh/") {
			t.Fatalf("%q, %v", body, err)
		}
		delays["http (request alone)"] = append(delays["http (request alone)"], time.Since(began))
	}
	b.callee.SetBehaviour(phone.AutoAnswer(0))
	report(t, "simulated switch; name a real one with FREESWITCH=", []string{"socket", "native (look-up alone)", "http (request alone)"}, delays,
		map[string]string{"socket": b.ramp("socket")})
}

// report prints the table that docs/performance.md holds. What a hook adds is the
// difference of its quantile and the direct call's.
func report(t *testing.T, where string, doors []string, delays map[string][]time.Duration, rates map[string]string) {
	t.Helper()
	quantile := func(door string, q float64) time.Duration {
		d := slices.Sorted(slices.Values(delays[door]))
		if len(d) == 0 {
			return 0
		}
		return d[min(len(d)-1, int(q*float64(len(d))))]
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000) }
	load, _ := os.ReadFile("/proc/loadavg")
	var out strings.Builder
	fmt.Fprintf(&out, "\n%s; %d calls each; load %s\n\n", where, benchSamples, strings.TrimSpace(string(load)))
	out.WriteString("| hook | p50 | p99 | added p50 | added p99 | calls/s until 1 % fail |\n|---|---|---|---|---|---|\n")
	for _, d := range doors {
		added50, added99 := "", ""
		if len(delays["direct"]) > 0 && d != "direct" {
			added50, added99 = ms(quantile(d, .5)-quantile("direct", .5)), ms(quantile(d, .99)-quantile("direct", .99))
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s | %s |\n", d, ms(quantile(d, .5)), ms(quantile(d, .99)), added50, added99, rates[d])
	}
	t.Log(out.String())
}
