package feed

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/esl"
)

// startReal boots a real switch with users 1001 to 1060, or skips without one.
func startReal(t *testing.T, host string, opts ...realswitch.Option) *realswitch.Switch {
	t.Helper()
	binary := os.Getenv(realswitch.EnvBinary)
	if binary == "" {
		t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
	}
	cfg := fixtures.Config{Name: "buffalo", Host: netip.MustParseAddr(host)}
	for i := range 60 {
		user := fmt.Sprint(1001 + i)
		cfg.Users = append(cfg.Users, fixtures.User{Name: user, Domain: "pbx.test", Password: "secret-" + user})
	}
	s, err := realswitch.New(cfg, binary, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(s.Log()[max(0, len(s.Log())-300):])
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// followReal runs a feed on a switch; it asks for no snapshot by itself.
func followReal(t *testing.T, sw fixtures.Switch, margin time.Duration) (*Feed, *lockedBooks) {
	t.Helper()
	addr, password := sw.EventSocket()
	sink := &lockedBooks{b: newBooks()}
	f := New(Options{
		ESL: esl.Config{Address: addr, Password: password}, Node: "buffalo", Profiles: []string{"internal"}, Sink: sink,
		SnapshotEvery: time.Hour, SnapshotGap: 20 * time.Millisecond, LateMargin: margin, MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	t.Cleanup(runFeed(t, f))
	connected(t, f)
	return f, sink
}

// snapshots reads n more of them.
func snapshots(t *testing.T, f *Feed, n int) {
	t.Helper()
	for range n {
		before := f.Status().Snapshots
		f.askSnapshot()
		eventually(t, "a snapshot", func() bool { return f.Status().Snapshots > before })
	}
}

// quiet waits until that many events have come and nothing is in doubt.
func quiet(t *testing.T, f *Feed, events int) {
	t.Helper()
	eventually(t, "nothing is in doubt", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.status.Events >= uint64(events) && len(f.doubts) == 0
	})
}

// oddPhones are REGISTERs that are legal or that real phones send.
func oddPhones(rng *rand.Rand) (out []func(*rawPhone)) {
	set := func(call, contact, agent, path string) {
		out = append(out, func(p *rawPhone) {
			if call != "" {
				p.call = call
			}
			if contact != "" {
				p.contact = strings.ReplaceAll(contact, "HERE", p.conn.LocalAddr().String())
			}
			if agent != "" {
				p.agent = agent
			}
			p.path = path
		})
	}
	for _, path := range []string{
		"<sip:192.0.2.7:5080;lr>", "<sip:edge@192.0.2.7;lr;ob>, <sip:192.0.2.8;transport=tcp;lr>", `"a, <b>" <sip:192.0.2.7:5080;lr>`,
		"<sip:%41%3c@192.0.2.7:5080;lr;x=%22%3E>", "<sip:[2001:db8::7]:5080;lr>", "<sips:192.0.2.7;lr;keep>",
	} {
		set("", "", "", path)
	}
	for _, call := range []string{
		"z97<8df>6d~8g6+7sdg@192.0.2.9", `a"b'c`, "x</call-id>y@h", "<registration>", "</registrations>@h", "&amp;<&lt;>", "{[a]}?/:\\b@!%*_+`'~()",
		"%41%3c%3C%zz%", "%25%2541@%40", "a`b|c", "<!--x-->@]]>", strings.Repeat("c", pbxmesh.MaxCallIDLen), "(paren)@[2001:db8::1]", "'or'1'='1",
		"x\xff\xfe@h", "caf\xe9@\x80", "\xc3\xa9t\xc3\xa9@h",
	} {
		set(call, "", "", "")
	}
	for _, contact := range []string{
		"<sip:1001@HERE;transport=tcp>", "<sip:1001@HERE;transport=tls>", "<sip:1001@HERE;transport=ws>", "<sips:1001@HERE>",
		"<sip:1001@[2001:db8::9]:5070>", "<sip:1001@[2001:db8::9];transport=tcp>;q=0.7", `"Bob <b> \" & 'x'" <sip:1001@HERE>`, `Bob Builder <sip:1001@HERE>;q=0.1`,
		"<sip:caf%E9%20%22x%22@HERE>", "<sip:1001%3cx%3C%25@HERE;a=%3E;b=%41>", "<sip:1001@HERE;line=abc;rinstance=0123456789abcdef;ob>;reg-id=1;+sip.instance=\"<urn:uuid:00000000-0000-1000-8000-000A95A0E128>\"",
		"<sip:1001@device.invalid;transport=ws>", "sip:1001@HERE", "<sip:HERE>", "<sip:1001@HERE;x=" + strings.Repeat("y", 1100) + ">", "<sip:10&01@HERE;a='b'&c=d>",
		"<sip:1001@HERE;amp=" + strings.Repeat("&", 450) + ">", "<sip:1001@HERE?X-Hdr=1&Y=%0d%0a>",
	} {
		set("", contact, "", "")
	}
	for _, agent := range []string{
		"evil </agent></registration><registration><call-id>x</call-id>", "Yealink \"T46U\" 'x' & <y> &amp; &lt; &#65;", "caf\xe9 \xff", "Téléphone ☎ %41%3c%3C%",
		strings.Repeat("☎", 60), "a" + strings.Repeat("☎", 60), "ab" + strings.Repeat("☎", 60), // the bound falls within one
		strings.Repeat("long & ", 300), "pbx\tmesh", "ARRAY::a|:b", "a\r\n    b", "_undef_",
	} {
		set("", "", agent, "")
	}
	// Call-IDs of the whole alphabet of a word, and parameters of all that is allowed.
	const word = "abzABZ019-.!%*_+`'~()<>:\\\"/[]?{}"
	const param = "abzABZ019-.!%*_+`'~()[]/:&+$"
	some := func(alphabet string) string {
		b := make([]byte, 1+rng.IntN(40))
		for i := range b {
			b[i] = alphabet[rng.IntN(len(alphabet))]
		}
		return string(b)
	}
	for range 40 {
		set(some(word)+"@"+some(word), "<sip:1001@HERE;"+strings.ReplaceAll(some(param), "%", "%4"+string("1aAcE"[rng.IntN(5)]))+"="+strings.ReplaceAll(some(param), "%", "%3"+string("1cCeE"[rng.IntN(5)]))+">", some(word+param), "")
	}
	return out
}

// TestScenarioOddPhones registers dozens of odd phones: events and snapshots say the
// same of each, so that five snapshots repair nothing, and nothing is lost.
func TestScenarioOddPhones(t *testing.T) {
	for name, opts := range map[string][]realswitch.Option{
		"plain": nil,
		"behind NAT": {realswitch.WithInternalParam("aggressive-nat-detection", "true"), realswitch.WithInternalParam("apply-nat-acl", "rfc1918.auto"),
			realswitch.WithInternalParam("tls-always-nat", "true"), realswitch.WithInternalParam("tcp-always-nat", "true"), realswitch.WithInternalParam("NDLB-received-in-nat-reg-contact", "true")},
		"by Call-ID": {realswitch.WithInternalParam("multiple-registrations", "call-id")},
		"one each":   {realswitch.WithInternalParam("multiple-registrations", "false")},
	} {
		t.Run(name, func(t *testing.T) {
			sw := startReal(t, "127.0.91.1", opts...)
			f, sink := followReal(t, sw, time.Minute)
			var taken []*rawPhone
			for i, odd := range oddPhones(rand.New(rand.NewPCG(1, 2))) {
				p := rawOver(t, []string{"udp", "udp", "tcp"}[i%3], "127.0.93.1", sw.SIP())
				p.user = fmt.Sprint(1001 + i%60)
				odd(p)
				status := p.register(3600)
				if status == 200 {
					taken = append(taken, p)
				} else {
					t.Logf("%d: Call-ID %.60q Contact %.80q", status, p.call, p.contact)
				}
			}
			quiet(t, f, len(taken))
			snapshots(t, f, 1)
			before := f.Status()
			t.Logf("%d phones taken, %d registrations, %d refused, %d questions changed %d, first snapshot repaired %d",
				len(taken), before.Registrations, before.Refused, before.Questions, before.Answered, before.Repairs)
			snapshots(t, f, 5)
			if n := f.Status().Repairs; n != 0 {
				t.Errorf("%d repairs in 6 snapshots", n)
			}
			for _, reg := range sink.regs() {
				readable(t, reg)
			}
			for _, p := range taken {
				p.must(3600)
			}
			quiet(t, f, 2*len(taken))
			snapshots(t, f, 5)
			if n := f.Status().Repairs; n != 0 {
				t.Errorf("%d repairs after all registered again", n)
			}
			sameAsSwitch(t, sw, f, sink)
			for _, p := range taken {
				p.must(0)
			}
			sameAsSwitch(t, sw, f, sink)
			if n := f.Status().Repairs; n != 0 {
				t.Errorf("%d repairs after all unregistered", n)
			}
		})
	}
}

// sameAsSwitch waits until the Sink holds what a feed that starts now reads. The end of
// a contact with hundreds of "&" is known from its event only: a row is cut short.
func sameAsSwitch(t *testing.T, sw fixtures.Switch, f *Feed, sink *lockedBooks) {
	t.Helper()
	var want, got []string
	same := func() bool {
		_, fresh := followReal(t, sw, f.opts.LateMargin)
		want, got = cutAmps(fresh.list()), cutAmps(sink.list())
		return slices.Equal(want, got)
	}
	for deadline := time.Now().Add(waitLong); !same(); {
		if time.Now().After(deadline) {
			less := func(a, b []string) []string {
				return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
			}
			t.Fatalf("only the switch has\n%s\nonly the Sink has\n%s", strings.Join(less(want, got), "\n"), strings.Join(less(got, want), "\n"))
		}
	}
	t.Logf("%d registrations, %d questions", len(want), f.Status().Questions)
}

func cutAmps(list []string) []string {
	out := slices.Clone(list)
	for i := range out {
		for strings.Contains(out[i], "&&") {
			out[i] = strings.ReplaceAll(out[i], "&&", "&")
		}
	}
	return out
}
