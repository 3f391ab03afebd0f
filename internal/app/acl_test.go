package app_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/internal/app"
	"pbxmesh/internal/config"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/registrytest"
)

const ownACL = `<configuration name="acl.conf" description="Network Lists">
  <network-lists>
    <list name="office" default="deny"><node type="allow" cidr="192.0.2.0/24"/></list>
  </network-lists>
</configuration>
`

// TestListFollowsMembership lets a node in that joins and shuts one out that was
// removed, in the operator's own file, and has the switch read it each time.
func TestListFollowsMembership(t *testing.T) {
	t.Parallel()
	sw, err := simswitch.New(simswitch.Options{Config: fixtures.Config{Name: "buffalo", Host: netip.MustParseAddr("127.0.31.1")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sw.Close() })
	if err := sw.Start(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, secret := filepath.Join(dir, "acl.conf.xml"), filepath.Join(dir, "password")
	address, password := sw.EventSocket()
	for name, text := range map[string]string{file: ownACL, secret: password} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config.Defaults()
	cfg.Name = "buffalo"
	cfg.Node = &config.Node{ID: "buffalo", MeshAddress: sw.Mesh(), Addresses: []netip.Addr{sw.SIP().Addr()}, SIP: config.SIP{UDP: sw.SIP().Port()}}
	cfg.FreeSWITCH.EventSocket = config.EventSocket{Address: config.HostPort(address), PasswordFile: config.SecretFile(secret)}
	cfg.FreeSWITCH.ACLFile = config.File(file)
	cfg.Registry.LeaseTTL, cfg.Registry.LeaseRenew = 2*time.Second, 200*time.Millisecond
	cfg.Router.Socket.Listen, cfg.API.Listen = netip.AddrPort{}, netip.AddrPort{}
	store := memory.New(memory.Options{})
	a, err := app.New(cfg, app.Options{Backend: store})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := a.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	list := func(yes bool, what string) func() bool {
		return func() bool {
			text, err := os.ReadFile(file)
			return err == nil && strings.Contains(string(text), what) == yes && strings.Contains(string(text), `name="office"`)
		}
	}
	reloads := func() int {
		n := 0
		for _, c := range sw.Commands() {
			if c == "api reloadacl" {
				n++
			}
		}
		return n
	}
	registrytest.WaitFor(t, "the node itself is let in", list(true, `cidr="127.0.31.1/32"`))
	registrytest.WaitFor(t, "the switch was told", func() bool { return reloads() == 1 })

	london := pbxmesh.Node{ID: "london", Mesh: netip.MustParseAddrPort("127.0.32.1:5090")}
	if err := store.Announce(t.Context(), registry.Announcement{Node: london}); err != nil {
		t.Fatal(err)
	}
	registrytest.WaitFor(t, "london is let in", list(true, `cidr="127.0.32.1/32"`))
	registrytest.WaitFor(t, "the switch was told", func() bool { return reloads() == 2 })

	if err := store.Forget(t.Context(), "london"); err != nil {
		t.Fatal(err)
	}
	registrytest.WaitFor(t, "london is shut out", list(false, `127.0.32.1`))
	registrytest.WaitFor(t, "the switch was told", func() bool { return reloads() == 3 })
	if i := slices.Index(sw.Commands(), "api reloadxml"); i >= 0 {
		t.Error("reloadxml is not needed: reloadacl reads the file")
	}
}
