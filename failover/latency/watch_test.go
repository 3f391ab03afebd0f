package latency

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/sofia"
)

// waitLong bounds every wait of a test.
const waitLong = 20 * time.Second

// sink keeps samples.
type sink struct {
	mu  sync.Mutex
	all []Sample
}

func (s *sink) add(x Sample) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, x)
}

func (s *sink) samples(match func(Sample) bool) []Sample {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Sample
	for _, x := range s.all {
		if match(x) {
			out = append(out, x)
		}
	}
	return out
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitLong); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after %v", what, waitLong)
		}
	}
}

// TestWatchMeasuresPhones: a phone behind a slow line registers with a switch; the
// samples show its line, for the challenge as for the switch's keep-alive.
func TestWatchMeasuresPhones(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), waitLong)
	defer cancel()
	o := simswitch.Options{PingEvery: 20 * time.Millisecond}
	o.Name, o.Host = "buffalo", netip.MustParseAddr("127.0.81.1")
	o.Users = []fixtures.User{{Name: "1001", Domain: "pbx.test", Password: "secret-1001"}}
	sw, err := simswitch.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := sw.Start(); err != nil {
		t.Fatal(err)
	}
	defer sw.Close()
	var got sink
	address, password := sw.EventSocket()
	w := NewWatch(WatchOptions{
		ESL:      esl.Config{Address: address, Password: password},
		Profiles: []string{"internal"}, Sink: got.add, KeepAliveEvery: 20 * time.Millisecond, MinBackoff: time.Millisecond,
	})
	stop, end := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(stop) }()
	eventually(t, "connected", func() bool { return w.Stats().Connected })
	p, err := phone.New(phone.Config{
		User: "1001", Domain: "pbx.test", Password: "secret-1001", Local: netip.MustParseAddr("127.0.82.1"), Registrar: sw.SIP(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Start()
	const line = 200 * time.Millisecond
	p.Endpoint().SetFaults(sipwire.Faults{DelayOut: func(*sipwire.Message, netip.AddrPort) time.Duration { return line }})
	// The subscription may come a moment after the connection.
	eventually(t, "a sample of a challenge", func() bool {
		if err := p.Register(ctx); err != nil {
			t.Fatal(err)
		}
		return len(got.samples(func(s Sample) bool { return s.Visit && s.RTT > 0 })) > 0
	})
	eventually(t, "a sample of a keep-alive", func() bool {
		return len(got.samples(func(s Sample) bool { return !s.Visit })) > 0
	})
	for _, s := range got.samples(func(s Sample) bool { return s.RTT > 0 }) {
		if s.Client != netip.MustParseAddr("127.0.82.1") || s.RTT < line/2 || time.Since(s.At) > waitLong {
			t.Errorf("%+v, want %v from the phone's address, or as much less as the first event came late", s, line)
		}
	}
	// The same time is no second sample: it may be hours old.
	p.Endpoint().SetFaults(sipwire.Faults{DropIn: sipwire.DropAll})
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if w.Stats().Connected {
		t.Error("still connected")
	}
}

// TestChallengesArePaired plays the events of registrations at given times.
func TestChallengesArePaired(t *testing.T) {
	t.Parallel()
	event := func(subclass, callID, ip, result, more string) *esl.Event {
		return esl.ParseEvent("Event-Name: CUSTOM\nEvent-Subclass: " + strings.ReplaceAll(subclass, ":", "%3A") + "\nprofile-name: internal\ncall-id: " + callID +
			"\nnetwork-ip: " + ip + "\nnetwork-port: 5062\nuser-agent: unknown\nauth-result: " + result + "\n" + more + "\n")
	}
	pre := func(id string) *esl.Event { return event("sofia::pre_register", id, client, "", "expires: 120\n") }
	attempt := func(id, result string) *esl.Event {
		return event("sofia::register_attempt", id, client, result, "expires: 120\n")
	}
	register := func(id string) *esl.Event {
		return event("sofia::register", id, client, "", "expires: 120\nusername: 1001\nrealm: of-my-own-making\nuser_name: 1001\ndomain_name: PBX.test\n")
	}
	type at struct {
		ms float64
		e  *esl.Event
	}
	for _, tt := range []struct {
		name   string
		events []at
		want   []float64 // milliseconds of each sample, 0 for a visit alone
	}{
		{"a challenge and its answer", []at{{0, pre("a")}, {48, attempt("a", "RENEWED")}, {53, register("a")}}, []float64{48}},
		{"two phones at once", []at{{0, pre("a")}, {5, pre("b")}, {48, attempt("b", "RENEWED")}, {49, register("b")}, {60, attempt("a", "SUCCESS")}, {61, register("a")}}, []float64{43, 60}},
		{"events that overtake one another", []at{{0, pre("a")}, {48, register("a")}, {48, attempt("a", "RENEWED")}}, []float64{48}},
		{"a nonce that ran out", []at{{0, attempt("a", "STALE")}, {1, pre("a")}, {41, attempt("a", "RENEWED")}, {41, register("a")}}, []float64{40}},
		{"an old nonce after a challenge", []at{{0, pre("a")}, {300, attempt("a", "STALE")}, {300, pre("a")}, {340, attempt("a", "RENEWED")}, {340, register("a")}}, []float64{40}},
		{"no challenge", []at{{0, attempt("a", "RENEWED")}, {0, register("a")}}, []float64{0}},
		{"a repeated digest", []at{{0, pre("a")}, {40, attempt("a", "RENEWED")}, {41, register("a")}, {900, attempt("a", "RENEWED")}, {901, register("a")}}, []float64{40, 0}},
		{"a digest that comes again before the registration", []at{{0, pre("a")}, {40, attempt("a", "RENEWED")}, {900, attempt("a", "RENEWED")}, {901, register("a")}}, []float64{0}},
		{"wrong password", []at{{0, pre("a")}, {40, attempt("a", "FORBIDDEN")}}, nil},
		{"a right password after a wrong one", []at{{0, pre("a")}, {40, attempt("a", "FORBIDDEN")}, {900, attempt("a", "RENEWED")}, {901, register("a")}}, []float64{0}},
		{"two challenges: which one is answered?", []at{{0, pre("a")}, {500, pre("a")}, {520, attempt("a", "RENEWED")}, {521, register("a")}}, []float64{0}},
		{"the next challenge after two", []at{{0, pre("a")}, {500, pre("a")}, {520, attempt("a", "RENEWED")}, {521, register("a")}, {9000, pre("a")}, {9040, attempt("a", "RENEWED")}, {9041, register("a")}}, []float64{0, 40}},
		{"a challenge that nobody answered, and the next", []at{{0, pre("a")}, {9000, pre("a")}, {9040, attempt("a", "RENEWED")}, {9041, register("a")}}, []float64{40}},
		{"an answer after hours", []at{{0, pre("a")}, {5e6, attempt("a", "RENEWED")}, {5e6, register("a")}}, []float64{0}},
		{"a goodbye is no visit", []at{{0, pre("a")}, {40, event("sofia::register_attempt", "a", client, "RENEWED", "expires: 0\n")}, {50, attempt("a", "RENEWED")}, {50, register("a")}}, []float64{0}},
		{"another profile", []at{{0, esl.ParseEvent("Event-Name: CUSTOM\nEvent-Subclass: sofia::register_attempt\nprofile-name: mesh\nauth-result: RENEWED\nnetwork-ip: 192.0.2.1\n")}}, nil},
		{"no address", []at{{0, event("sofia::register", "a", "nowhere", "", "")}}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			now := epoch
			var got sink
			w := NewWatch(WatchOptions{Profiles: []string{"internal"}, Sink: got.add, Now: func() time.Time { return now }})
			for _, x := range tt.events {
				now = epoch.Add(ms(x.ms))
				w.onEvent(x.e)
			}
			if len(got.all) != len(tt.want) {
				t.Fatalf("%+v, want %v", got.all, tt.want)
			}
			for i, s := range got.all {
				if s.RTT != ms(tt.want[i]) || !s.Visit || s.Client != addr(client) || s.Phone != "1001@pbx.test" {
					t.Errorf("%+v, want %v ms", s, tt.want[i])
				}
			}
			if len(w.pending) > 1 {
				t.Errorf("%d challenges are remembered", len(w.pending))
			}
		})
	}
}

func TestPendingIsBounded(t *testing.T) {
	t.Parallel()
	now := epoch
	w := NewWatch(WatchOptions{Sink: func(Sample) {}, Now: func() time.Time { return now }})
	for i := range maxPending + 10 {
		w.challenged(binding{callID: string(rune('a' + i%26)), source: time.Duration(i).String()}, now)
	}
	if len(w.pending) != maxPending || w.Stats().Lost != 10 {
		t.Errorf("%d pending, %+v", len(w.pending), w.Stats())
	}
	now = now.Add(maxRTT + 1)
	w.challenged(binding{callID: "later"}, now)
	if len(w.pending) != 1 {
		t.Errorf("%d pending after the others ran out", len(w.pending))
	}
}

// recorded is `sofia xmlstatus profile internal reg` as a real switch answered it.
const recorded = `<?xml version="1.0" encoding="ISO-8859-1"?>
<profile>
  <registrations>
    <registration>
        <call-id>9b34ea60-b63c-47be-a70d-22ec0e98e4f5</call-id>
        <user>1003@pbx.test</user>
        <contact>&quot;&quot; &lt;sip:1003@127.0.4.3:5062&gt;</contact>
        <agent>unknown</agent>
        <status>Registered(UDP)(unknown) exp(2026-11-22 15:59:07) expsecs(147)</status>
        <ping-status>Reachable</ping-status>
        <ping-time>0.49</ping-time>
        <host>buffalo</host>
        <network-ip>127.0.4.3</network-ip>
        <network-port>5062</network-port>
        <sip-auth-user>1003</sip-auth-user>
        <sip-auth-realm>pbx.test</sip-auth-realm>
        <mwi-account>1003@pbx.test</mwi-account>
    </registration>
  </registrations>
</profile>`

func TestKeepAlives(t *testing.T) {
	t.Parallel()
	var got sink
	w := NewWatch(WatchOptions{Sink: got.add})
	look := func(reply string) int {
		before := len(got.all)
		seen := make(map[binding]string)
		_ = sofia.Rows(reply, "internal", func(r sofia.Row) { w.keepAlive(&r, map[string]bool{"buffalo": true}, seen, epoch) })
		w.pings = seen
		return len(got.all) - before
	}
	if n := look(recorded); n != 1 || got.all[0] != (Sample{Client: addr("127.0.4.3"), RTT: 490 * time.Microsecond, At: epoch}) {
		t.Fatalf("%d samples: %+v", n, got.all)
	}
	if n := look(recorded); n != 0 {
		t.Error("the same time was a sample again")
	}
	if n := look(strings.Replace(recorded, "0.49", "0.51", 1)); n != 1 {
		t.Error("a new time was no sample")
	}
	for name, change := range map[string][2]string{
		"not reachable": {"Reachable", "Unreachable"}, "never asked": {"0.49", "0.00"}, "no number": {"0.49", "NaN"}, "too long": {"0.49", "4001.00"},
		"another switch": {"<host>buffalo", "<host>london"}, "a row of the mesh": {"<agent>unknown", "<agent>pbxmesh"}, "no address": {"127.0.4.3</net", "x</net"},
		"cut off": {"</registration>", ""}, "another time of the phone's own making": {"0.49</ping-time>", "</ping-time>"},
	} {
		w.pings = nil
		if n := look(strings.Replace(recorded, change[0], change[1], 1)); n != 0 {
			t.Errorf("%s: a sample", name)
		}
	}
	w.pings = nil
	if n := look(strings.Replace(recorded, "<agent>unknown", "<agent><ping-time>9.00</ping-time><network-ip>192.0.2.1</network-ip>", 1)); n != 1 || got.all[len(got.all)-1].RTT > time.Millisecond {
		t.Errorf("a phone named its own time: %+v", got.all)
	}
}

// TestKeepAlivesBelongToTheAccount: rows carry what the phone says of itself, so the account
// is what its registration proved; without one the address stands for the phone.
func TestKeepAlivesBelongToTheAccount(t *testing.T) {
	t.Parallel()
	var got sink
	w := NewWatch(WatchOptions{Profiles: []string{"internal"}, Sink: got.add, KeepAliveEvery: time.Hour})
	w.onEvent(esl.ParseEvent("Event-Name: CUSTOM\nEvent-Subclass: sofia%3A%3Aregister\nprofile-name: internal\ncall-id: odd%20id\nnetwork-ip: 127.0.4.3\n" +
		"network-port: 5062\nexpires: 120\nusername: 1003\nrealm: mine\nuser_name: 1003\ndomain_name: pbx.test\n"))
	for name, tt := range map[string]struct{ row, phone string }{
		"its own":          {strings.Replace(recorded, "9b34ea60-b63c-47be-a70d-22ec0e98e4f5", "odd%20id", 1), "1003@pbx.test"},
		"another Call-ID":  {recorded, ""},
		"another realm":    {strings.Replace(recorded, "<sip-auth-realm>pbx.test", "<sip-auth-realm>pbx2.test", 1), ""},
		"another's source": {strings.NewReplacer("9b34ea60-b63c-47be-a70d-22ec0e98e4f5", "odd%20id", "<network-port>5062", "<network-port>5063").Replace(recorded), ""},
	} {
		seen := make(map[binding]string)
		before := len(got.all)
		if err := sofia.Rows(tt.row, "internal", func(r sofia.Row) { w.keepAlive(&r, map[string]bool{"buffalo": true}, seen, epoch) }); err != nil {
			t.Fatal(err)
		}
		if len(got.all) != before+1 || got.all[before].Phone != tt.phone {
			t.Errorf("%s: %+v, want %q", name, got.all[before:], tt.phone)
		}
	}
}
