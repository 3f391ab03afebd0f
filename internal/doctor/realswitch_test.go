package doctor

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/config"
	"pbxmesh/internal/fsconf"
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

	cfg := looksAt(t, sw)
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

// looksAt is the configuration of a daemon beside a real switch.
func looksAt(t *testing.T, sw *realswitch.Switch) *config.Config {
	t.Helper()
	address, password := sw.EventSocket()
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.Defaults()
	cfg.Name, cfg.Node = "buffalo", &config.Node{ID: "buffalo", MeshAddress: sw.Mesh()}
	cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(address), PasswordFile: config.SecretFile(secret)}
	cfg.API = config.API{}
	return cfg
}

// TestScenarioDoctorStrangers looks at real switches whose mesh profile is that of
// pbxmesh fsconf, whole, and without what keeps strangers out.
func TestScenarioDoctorStrangers(t *testing.T) {
	binary := os.Getenv(realswitch.EnvBinary)
	if binary == "" {
		t.Skipf("set %s to a freeswitch binary to run this on a real switch", realswitch.EnvBinary)
	}
	const (
		calls = `    <param name="auth-calls" value="true"/>
`
		only = `    <param name="auth-calls-acl-only" value="true"/>
`
		list = `    <param name="apply-inbound-acl" value="mesh"/>
`
		end   = `  </settings>`
		rings = `<context name="mesh"><extension name="all"><condition><action application="ring_ready"/><action application="sleep" data="60000"/></condition></extension></context>`
	)
	for _, tc := range []struct {
		name      string
		without   []string
		with      string
		context   string // "": that of fsconf
		strangers Status
		seen      string // of strangers
		settings  string // "": they are as they should be
	}{
		{"whole", nil, "", "", OK, "403", ""},
		{"without auth-calls-acl-only", []string{only}, "", "", Fail, "asks strangers for a password (407)", "auth-calls-acl-only is not set, not true"},
		// The list alone keeps strangers out; it lets nobody in when it is not named.
		{"without auth-calls", []string{calls}, "", "", OK, "403", "auth-calls is not set, not true"},
		{"without both", []string{calls, only}, "", "", OK, "403", "auth-calls is not set, not true; auth-calls-acl-only is not set, not true"},
		{"without the list", []string{list}, "", "", OK, "403", "apply-inbound-acl is not set, not mesh"},
		{"without the list and auth-calls-acl-only", []string{list, only}, "", "", Fail, "asks strangers for a password (407)", "apply-inbound-acl is not set, not mesh"},
		{"without the list and auth-calls", []string{list, calls}, "", "", Fail, "takes calls of strangers (4", "apply-inbound-acl is not set, not mesh"},
		{"rings", []string{calls, only, list}, `<param name="enable-3pcc" value="proxy"/>`, rings, Fail, "takes calls of strangers (180)", "auth-calls is not set"},
		{"answers", []string{calls, only, list}, `<param name="enable-3pcc" value="true"/>`, rings, Fail, "takes calls of strangers (200)", "auth-calls is not set"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			host, london := netip.MustParseAddr("127.0.93.1"), netip.MustParseAddr("127.0.93.2")
			sw, err := realswitch.New(fixtures.Config{Name: "buffalo", Host: host}, binary, realswitch.WithMesh(func(mesh netip.AddrPort) realswitch.MeshConfig {
				s := fsconf.Settings{Mesh: mesh, Profile: "mesh", Profiles: []string{"internal"}, Peers: []fsconf.Peer{{Name: "buffalo", Address: host}, {Name: "london", Address: london}}}
				// The dialplan file is an <include>; a switch with one file needs what is in it.
				_, context, _ := strings.Cut(string(s.DialplanXML()), "<include>")
				context, _, _ = strings.Cut(context, "</include>")
				out := realswitch.MeshConfig{Profile: string(s.ProfileXML()), ACL: string(s.ACLFragment()), Context: context}
				for _, line := range tc.without {
					if !strings.Contains(out.Profile, line) {
						t.Fatalf("fsconf does not write %q:\n%s", line, out.Profile)
					}
					out.Profile = strings.Replace(out.Profile, line, "", 1)
				}
				out.Profile = strings.Replace(out.Profile, end, tc.with+end, 1)
				if tc.context != "" {
					out.Context = tc.context
				}
				return out
			}))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = sw.Close() })
			if err := sw.Start(); err != nil {
				t.Fatal(err)
			}
			store := memory.New(memory.Options{})
			t.Cleanup(func() { _ = store.Close() })
			for _, n := range []pbxmesh.Node{{ID: "buffalo", Mesh: sw.Mesh()}, {ID: "london", Mesh: netip.AddrPortFrom(london, 5090)}} {
				if err := store.Announce(t.Context(), registry.Announcement{Node: n}); err != nil {
					t.Fatal(err)
				}
			}
			r, err := Run(t.Context(), Options{Config: looksAt(t, sw), Backend: store})
			if err != nil {
				t.Fatal(err)
			}
			for _, check := range []string{"mesh settings", "mesh strangers"} {
				c := find(t, r, check)
				t.Logf("%-4s %s: %s (%s)", c.Status, c.Check, c.Seen, c.Do)
			}
			c := find(t, r, "mesh strangers")
			if c.Status != tc.strangers || !strings.Contains(c.Seen, tc.seen) || c.Status == Fail && !strings.Contains(c.Do, "pbxmesh fsconf") {
				t.Errorf("want %s and %q: %+v", tc.strangers, tc.seen, c)
			}
			c = find(t, r, "mesh settings")
			if bad := tc.settings != ""; bad != (c.Status == Fail) || !strings.Contains(c.Seen, tc.settings) || bad && !strings.Contains(c.Do, "pbxmesh fsconf") || !bad && c.Status != OK {
				t.Errorf("want %q: %+v", tc.settings, c)
			}
			if c := find(t, r, "mesh list"); c.Status != OK {
				t.Errorf("%+v", c)
			}
			// doctor leaves no call behind.
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			tick := time.NewTicker(50 * time.Millisecond)
			defer tick.Stop()
			for {
				channels, err := sw.API(ctx, "show channels count")
				if err == nil && strings.Contains(channels, "0 total") {
					break
				}
				select {
				case <-ctx.Done():
					t.Fatalf("calls are left: %s, %v", channels, err)
				case <-tick.C:
				}
			}
		})
	}
}
