package feed

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/internal/esl"
)

// TestScenarioFeed follows phones on a simulated switch, and on a real one when the
// environment names a binary: what they do is what the Sink holds.
func TestScenarioFeed(t *testing.T) {
	config := func(host string) fixtures.Config {
		cfg := fixtures.Config{Name: "buffalo", Host: netip.MustParseAddr(host)}
		for i := range 5 {
			user := fmt.Sprint(1001 + i)
			cfg.Users = append(cfg.Users, fixtures.User{Name: user, Domain: "pbx.test", Password: "secret-" + user})
		}
		return cfg
	}
	for name, boot := range map[string]func(*testing.T) fixtures.Switch{
		"simulated": func(t *testing.T) fixtures.Switch {
			s, err := simswitch.New(simswitch.Options{Config: config("127.0.92.1"), LateMargin: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		"real": func(t *testing.T) fixtures.Switch {
			binary := os.Getenv(realswitch.EnvBinary)
			if binary == "" {
				t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
			}
			s, err := realswitch.New(config("127.0.91.1"), binary, realswitch.WithLateMargin(time.Second))
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sw := boot(t)
			t.Cleanup(func() {
				if err := sw.Close(); err != nil {
					t.Error(err)
				}
			})
			if err := sw.Start(); err != nil {
				t.Fatal(err)
			}
			follow(t, sw)
		})
	}
}

func follow(t *testing.T, sw fixtures.Switch) {
	addr, password := sw.EventSocket()
	sink := &lockedBooks{b: newBooks()}
	f := New(Options{
		ESL: esl.Config{Address: addr, Password: password}, Node: "buffalo", Profiles: []string{"internal"}, Sink: sink,
		SnapshotEvery: time.Hour, SnapshotGap: 50 * time.Millisecond, LateMargin: time.Second,
		MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
	})
	stop := runFeed(t, f)
	defer stop()
	connected(t, f)

	newPhone := func(user string, expires time.Duration) *phone.Phone {
		p, err := phone.New(phone.Config{
			User: user, Domain: "pbx.test", Password: "secret-" + user, Local: netip.MustParseAddr("127.0.93.1"),
			Registrar: sw.SIP(), Expires: expires, UserAgent: "Yealink SIP-T46U (test) <x>",
		})
		if err != nil {
			t.Fatal(err)
		}
		p.Start()
		t.Cleanup(func() { p.Close() })
		return p
	}
	line := func(p *phone.Phone, user string) string {
		r, ok := p.Registered()
		if !ok {
			t.Fatalf("%s is not registered", user)
		}
		return user + " " + strings.Trim(r.Contact, "<>") + " " + r.CallID
	}
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	ctx := t.Context()

	one, two := newPhone("1001", time.Hour), newPhone("1002", time.Hour)
	must("register", one.Register(ctx))
	must("register", two.Register(ctx))
	expectRegs(t, "registered", sink, line(one, "1001"), line(two, "1002"))
	for _, r := range sink.regs() {
		if left := time.Until(r.Expires); r.Transport != "udp" || r.UserAgent != "Yealink SIP-T46U (test) <x>" || r.Source.Addr().String() != "127.0.93.1" ||
			left < time.Hour-10*time.Second || left > time.Hour+10*time.Second {
			t.Errorf("registration %+v (%v left)", r, left)
		}
	}
	must("refresh", one.Refresh(ctx))
	must("move to another port", two.Rebind(ctx, phone.KeepCallID))
	expectRegs(t, "refreshed and moved", sink, line(one, "1001"), line(two, "1002"))
	must("unregister with another Call-ID", one.Unregister(ctx, phone.NewCallID))
	expectRegs(t, "unregistered", sink, line(two, "1002"))

	three := newPhone("1003", 2*time.Second)
	must("register", three.Register(ctx))
	expectRegs(t, "a short registration", sink, line(two, "1002"), line(three, "1003"))
	three.PowerOff()
	expectRegs(t, "expired", sink, line(two, "1002"))

	// Two phones of one user, and a removal of all contacts, of which only the switch
	// knows what it does (1.11.1 with multiple registrations: nothing).
	first, second := newPhone("1005", time.Hour), newPhone("1005", time.Hour)
	must("register", first.Register(ctx))
	must("register", second.Register(ctx))
	expectRegs(t, "two phones of one user", sink, line(two, "1002"), line(first, "1005"), line(second, "1005"))
	must("unregister", first.Unregister(ctx, phone.KeepCallID))
	expectRegs(t, "one left", sink, line(two, "1002"), line(second, "1005"))
	must("unregister of all contacts", second.UnregisterAll(ctx))
	must("register again", second.Register(ctx))
	expectRegs(t, "registered again", sink, line(two, "1002"), line(second, "1005"))
	if st := f.Status(); st.Err != nil || st.Refused != 0 {
		t.Errorf("status %+v", st)
	}

	core := f.Status().CoreUUID
	must("kill", sw.Kill())
	eventually(t, "the loss is known", func() bool { return !f.Status().Connected })
	if got := sink.list(); len(got) != 2 {
		t.Errorf("after the loss of the connection the Sink holds %q", got)
	}
	must("start", sw.Start())
	connected(t, f)
	if n, epoch := sink.resets(); n != 2 || epoch == core || epoch != f.Status().CoreUUID {
		t.Errorf("%d resets, epoch %q after %q", n, epoch, core)
	}
	must("register after the restart", one.Register(ctx))
	eventually(t, "registered again", func() bool {
		for _, l := range sink.list() {
			if l == line(one, "1001") {
				return true
			}
		}
		return false
	})
	t.Logf("after the restart: %q", sink.list())
}
