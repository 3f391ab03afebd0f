package native

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/meshcontext"
)

// realNode is a real switch with an event socket connection for the test's own use.
type realNode struct {
	*realswitch.Switch
	t    testing.TB
	conn *esl.Conn
}

// startReal boots a real switch, or skips when the environment names none.
func startReal(t testing.TB, name, host string, users ...fixtures.User) *realNode {
	t.Helper()
	return startRealWith(t, name, host, users)
}

// startRealWith is startReal with options of the switch.
func startRealWith(t testing.TB, name, host string, users []fixtures.User, opts ...realswitch.Option) *realNode {
	t.Helper()
	binary := os.Getenv(realswitch.EnvBinary)
	if binary == "" {
		t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
	}
	s, err := realswitch.New(fixtures.Config{
		Name: name, Host: netip.MustParseAddr(host), Users: users,
		Peers: func() []netip.Addr {
			return []netip.Addr{netip.MustParseAddr("127.0.81.1"), netip.MustParseAddr("127.0.82.1"), netip.MustParseAddr("127.0.83.1")}
		},
	}, binary, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	n := &realNode{Switch: s, t: t}
	n.dial()
	return n
}

func (n *realNode) esl() esl.Config {
	addr, password := n.EventSocket()
	return esl.Config{Address: addr, Password: password}
}

func (n *realNode) dial() {
	n.t.Helper()
	c, err := esl.Dial(n.t.Context(), n.esl())
	if err != nil {
		n.t.Fatal(err)
	}
	n.conn = c
	n.t.Cleanup(func() { _ = c.Close() })
}

func (n *realNode) api(command string) string {
	n.t.Helper()
	out, err := n.conn.API(n.t.Context(), command)
	if err != nil {
		n.t.Fatalf("%s: %v\n%s", command, err, n.Log())
	}
	return out
}

// contact waits until sofia_contact gives want for every profile together.
func (n *realNode) contact(aor, want string) time.Duration {
	n.t.Helper()
	return eventually(n.t, 10*time.Second, func() string {
		return wantString(n.api("sofia_contact */"+aor), want)
	})
}

// rows returns the Call-IDs of all rows on the mesh profile.
func (n *realNode) rows() []string {
	n.t.Helper()
	var out []string
	if err := scanSnapshot(n.api("sofia xmlstatus profile mesh reg"), func(s switchRow) { out = append(out, s.callID) }); err != nil {
		n.t.Fatal(err)
	}
	return out
}

const (
	nobody = "error/user_not_registered"
	london = "127.0.82.1:5090"
)

func meshContact(aor, at string) string {
	return "sofia/mesh/sip:" + aor + ";fs_path=sip%3A" + strings.Replace(at, ":", "%3A", 1) + "%3B" + meshcontext.Mark
}

// TestScenarioRows plays the life of injected rows on a real switch.
func TestScenarioRows(t *testing.T) {
	n := startReal(t, "buffalo", "127.0.81.1")
	w := newWorld()
	w.setNode("buffalo", n.Mesh(), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	w.setNode("london", netip.MustParseAddrPort(london), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	w.setNode("singapore", netip.MustParseAddrPort("127.0.83.1:5090"), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	rows := NewRows(RowsOptions{ESL: n.esl(), Local: "buffalo", Directory: w, Nodes: w, Logger: testLog(t)})
	stop := start(t, rows.Run)

	// Tenants whose domains are one another's parts, users equal, upper case.
	tenants := []string{"1002@a.test", "1002@aa.test", "1002@a.test.example", "Anna@a.test"}
	for i, s := range tenants {
		aor := mustAOR(t, strings.ToUpper(s))
		w.register(aor, "london", time.Hour)
		if i == 1 {
			w.register(aor, "singapore", time.Hour)
		}
	}
	rows.Resync()
	n.contact("1002@a.test", meshContact("1002@a.test", london))
	n.contact("ANNA@a.test", meshContact("anna@a.test", london)) // the switch, too, folds users
	n.contact("1002@a.test.example", meshContact("1002@a.test.example", london))
	eventually(t, 5*time.Second, func() string {
		got := n.api("sofia_contact */1002@aa.test")
		if strings.Count(got, "sofia/mesh/") != 2 || !strings.Contains(got, "127.0.83.1") {
			return got
		}
		return ""
	})
	for _, other := range []string{"test", "a", "n", "n/a", "_", "a_test", "ba.test", "a.test.", "test.example"} {
		if got := n.api("sofia_contact */1002@" + other); got != nobody {
			t.Errorf("a user of the domain %s is %s", other, got)
		}
	}
	if got := n.api("sofia_contact internal/1002@a.test"); got != nobody {
		t.Errorf("the internal profile knows a remote user: %s", got)
	}

	t.Log("unregister", func() time.Duration {
		aor := mustAOR(t, "1002@a.test")
		w.register(aor, "london", 0)
		rows.Changed(aor)
		return n.contact("1002@a.test", nobody)
	}())
	n.contact("1002@a.test.example", meshContact("1002@a.test.example", london))

	t.Log("draining stays, down goes")
	w.setNode("london", netip.MustParseAddrPort(london), pbxmesh.ObservedUp, pbxmesh.WantedDraining)
	rows.NodesChanged()
	n.contact("1002@a.test.example", meshContact("1002@a.test.example", london))
	w.setNode("london", netip.MustParseAddrPort(london), pbxmesh.ObservedDown, pbxmesh.WantedDraining)
	rows.NodesChanged()
	n.contact("1002@a.test.example", nobody)
	n.contact("1002@aa.test", meshContact("1002@aa.test", "127.0.83.1:5090"))
	w.setNode("london", netip.MustParseAddrPort(london), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	rows.NodesChanged()
	n.contact("1002@a.test.example", meshContact("1002@a.test.example", london))

	t.Log("a restarted mesh profile loses its rows")
	eventually(t, 20*time.Second, func() string { // a young profile refuses
		if got := n.api("sofia profile mesh restart"); !strings.Contains(got, "restarting") {
			return got
		}
		return ""
	})
	eventually(t, 45*time.Second, func() string {
		if s := rows.Stats(); s.Drift.Missing+s.Restored.Missing < 8 {
			return fmt.Sprintf("no repair after the profile's restart: %+v", s)
		}
		return ""
	})
	n.contact("1002@a.test.example", meshContact("1002@a.test.example", london))

	t.Log("a killed switch comes back empty")
	if err := n.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	n.dial()
	t.Log("rows back after", n.contact("1002@a.test.example", meshContact("1002@a.test.example", london)))
	eventually(t, 5*time.Second, func() string {
		if got := n.rows(); len(got) != 4 {
			return fmt.Sprintf("%d rows of 4: %q", len(got), got)
		}
		return ""
	})

	t.Log("a stopped daemon leaves its rows, the next one finds them")
	stop()
	n.contact("1002@a.test.example", meshContact("1002@a.test.example", london))
	if _, err := n.conn.API(t.Context(), "uptime"); err != nil {
		t.Fatal(err)
	}
	aor := mustAOR(t, "1002@a.test.example")
	w.register(aor, "london", 0)
	again := NewRows(RowsOptions{ESL: n.esl(), Local: "buffalo", Directory: w, Nodes: w, Logger: testLog(t)})
	start(t, again.Run)
	eventually(t, 5*time.Second, func() string {
		if !again.Stats().Connected {
			return "not connected"
		}
		return ""
	})
	n.contact("1002@a.test.example", meshContact("1002@a.test.example", london)) // not before Resync
	again.Resync()
	t.Log("gone after", n.contact("1002@a.test.example", nobody))
	eventually(t, 5*time.Second, func() string {
		if s := again.Stats(); s.Rows != 3 || s.Injected != 0 || s.Removed != 1 {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})

	t.Log("leave")
	if err := again.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, func() string {
		if left := n.rows(); len(left) > 0 {
			return fmt.Sprint(left)
		}
		return ""
	})
}
