package socket

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/sipwire"
)

// TestScenarioUUIDs routes calls of a real switch whose channels are called by the
// caller's Call-ID, or as a dial string says.
func TestScenarioUUIDs(t *testing.T) {
	binary := os.Getenv(realswitch.EnvBinary)
	if binary == "" {
		t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
	}
	var reg []*pbxmesh.Registration
	h, addr := start(t, func(o *Options) {
		o.Directory = directoryFunc(func(_ context.Context, a pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
			if a.User() != "1002" {
				return nil, 0, nil
			}
			return reg, 0, nil
		})
	})
	const domain = "pbx.test"
	sw, err := realswitch.New(fixtures.Config{
		Name: "buffalo", Host: netip.MustParseAddr("127.0.93.1"), Socket: addr,
		Users: []fixtures.User{{Name: "1001", Domain: domain, Password: "secret"}, {Name: "1002", Domain: domain, Password: "secret"}},
	}, binary, realswitch.WithInternalParam("inbound-use-callid-as-uuid", "true"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := sw.Start(); err != nil {
		t.Fatal(err)
	}
	within := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		t.Cleanup(cancel)
		return ctx
	}
	var phones []*phone.Phone
	for i, user := range []string{"1001", "1002"} {
		p, err := phone.New(phone.Config{User: user, Domain: domain, Password: "secret", Local: netip.AddrFrom4([4]byte{127, 0, 93, byte(10 + i)}), Registrar: sw.SIP()})
		if err != nil {
			t.Fatal(err)
		}
		p.Start()
		t.Cleanup(func() { _ = p.Close() })
		if err := p.Register(within()); err != nil {
			t.Fatal(err)
		}
		phones = append(phones, p)
	}
	caller, callee := phones[0], phones[1]
	caller.SetBehaviour(phone.AutoAnswer(0))
	callee.SetBehaviour(phone.AutoAnswer(0))
	aor, err := pbxmesh.NewAOR("1002", domain)
	if err != nil {
		t.Fatal(err)
	}
	reg = []*pbxmesh.Registration{{AOR: aor, Node: "buffalo", CallID: "x", Contact: "sip:phone", Profile: "internal", Expires: now.Add(time.Hour)}}

	told := func(uuid string) {
		t.Helper()
		eventually(t, "the channel to be told of the answer", func() bool {
			got, err := sw.API(within(), "uuid_getvar "+uuid+" pbxmesh_result")
			return err == nil && got == "answered"
		})
	}
	calls := 0
	for _, id := range []string{"5ea7a1dd-e7932921@192.0.2.10", "z97<8df>6d~8g6+7%sdg@192.0.2.9", "a%41b%4/c@h&=;'x`"} {
		c, err := caller.Call(within(), "1002", sipwire.Header{Name: "Call-ID", Value: id})
		if err != nil {
			t.Fatal(err)
		}
		calls++
		if _, err := callee.WaitIncoming(within(), calls); err != nil {
			t.Fatalf("%q: the call was not routed: %v\n%s", id, err, sw.Log())
		}
		if _, err := c.WaitAnswered(within()); err != nil {
			t.Fatal(err)
		}
		told(strings.ReplaceAll(id, "'", `\'`))
		if err := c.Hangup(within()); err != nil {
			t.Fatal(err)
		}
		c, err = caller.Call(within(), "1009", sipwire.Header{Name: "Call-ID", Value: "no" + id})
		if err != nil {
			t.Fatal(err)
		}
		info, err := c.WaitAnswered(within())
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Header("X-Pbxmesh-Result"); got != "not-registered" {
			t.Errorf("%q: the dialplan was told %q", id, got)
		}
		if err := c.Hangup(within()); err != nil {
			t.Fatal(err)
		}
	}
	for i, id := range []string{"my-call-1", "my call 2", "it<a>&%\"#@3"} {
		if _, err := sw.API(within(), fmt.Sprintf("bgapi originate {origination_uuid='%s',domain_name=%[2]s}user/1001@%[2]s 1002 XML default", id, domain)); err != nil {
			t.Fatal(err)
		}
		mine, err := caller.WaitIncoming(within(), i+1)
		if err != nil {
			t.Fatal(err)
		}
		calls++
		c, err := callee.WaitIncoming(within(), calls)
		if err != nil {
			t.Fatalf("%q: the call was not routed: %v\n%s", id, err, sw.Log())
		}
		if _, err := c.WaitAnswered(within()); err != nil {
			t.Fatal(err)
		}
		told("'" + id + "'")
		if err := mine.Hangup(within()); err != nil {
			t.Fatal(err)
		}
	}
	idle(t, h)
	if s := h.Stats(); s.Unset != 0 || s.Unnamed != 0 || s.Lost != 0 || s.Routed != uint64(calls) || s.Answered != uint64(calls) || s.NotRegistered != 3 {
		t.Errorf("stats %+v", s)
	}
}
