package doctor

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/config"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// TestScenarioDoctor looks at a real switch: what its answers look like is known from
// here only.
func TestScenarioDoctor(t *testing.T) {
	binary := os.Getenv(realswitch.EnvBinary)
	if binary == "" {
		t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
	}
	host, london := netip.MustParseAddr("127.0.92.1"), netip.MustParseAddr("127.0.92.2")
	sw, err := realswitch.New(fixtures.Config{
		Name: "buffalo", Host: host, Users: []fixtures.User{{Name: "1001", Domain: "pbx.test", Password: "secret"}},
		Peers: func() []netip.Addr { return []netip.Addr{host, london} },
	}, binary)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sw.Close() })
	if err := sw.Start(); err != nil {
		t.Fatal(err)
	}
	other := newSwitch(t, "london", london.String())
	ringing, err := phone.New(phone.Config{User: "1001", Domain: "pbx.test", Password: "secret", Local: netip.MustParseAddr("127.0.92.11"), Registrar: sw.SIP()})
	if err != nil {
		t.Fatal(err)
	}
	ringing.Start()
	t.Cleanup(func() { _ = ringing.Close() })
	ringing.SetBehaviour(phone.RingForever())
	if err := ringing.Register(t.Context()); err != nil {
		t.Fatal(err)
	}

	address, password := sw.EventSocket()
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.Defaults()
	cfg.Name, cfg.Node = "buffalo", &config.Node{ID: "buffalo", MeshAddress: sw.Mesh()}
	cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(address), PasswordFile: config.SecretFile(secret)}
	cfg.API = config.API{}
	store := memory.New(memory.Options{})
	t.Cleanup(func() { _ = store.Close() })
	for _, n := range []pbxmesh.Node{{ID: "buffalo", Mesh: sw.Mesh()}, {ID: "london", Mesh: other.Mesh()}} {
		if err := store.Announce(t.Context(), registry.Announcement{Node: n}); err != nil {
			t.Fatal(err)
		}
	}
	aor, err := pbxmesh.ParseAOR("1001@pbx.test")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), Options{Config: cfg, Backend: store, Call: aor})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range r.Checks {
		t.Logf("%-4s %s: %s (%s)", c.Status, c.Check, c.Seen, c.Do)
	}
	for _, check := range []string{
		"event socket", "sofia profiles", "mesh profile", "mesh settings", "mesh list", "mesh strangers",
		"mesh port of buffalo", "mesh port of london", "call to 1001@pbx.test",
	} {
		if c := find(t, r, check); c.Status != OK {
			t.Errorf("%+v", c)
		}
	}
	call, err := ringing.WaitIncoming(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := call.WaitEnded(t.Context()); err != nil || info.Cancel == nil {
		t.Errorf("the phone was not told that the call is over: %+v, %v", info, err)
	}

	// The same switch, looked at for a profile that it does not have.
	cfg.FreeSWITCH.MeshProfile = "far"
	cfg.Node.MeshAddress = netip.MustParseAddrPort("127.0.92.1:5999")
	if r, err = Run(t.Context(), Options{Config: cfg, Backend: store}); err != nil {
		t.Fatal(err)
	}
	for _, check := range []string{"mesh profile", "mesh settings", "mesh list"} {
		if c := find(t, r, check); c.Status != Fail || c.Do == "" {
			t.Errorf("%+v", c)
		}
	}
	if c := find(t, r, "mesh list"); !strings.Contains(c.Seen, "keeps out london") {
		t.Errorf("%+v", c)
	}
}
