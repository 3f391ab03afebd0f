package dnsserver

import (
	"context"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
)

// TestConformance asks each query of the table in docs/dns.md by dig, and compares.
func TestConformance(t *testing.T) {
	t.Parallel()
	dig, err := exec.LookPath("dig")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("dig is missing; install bind9-dnsutils")
		}
		t.Skip("SKIPPED: dig is missing; install bind9-dnsutils")
	}
	page, err := os.ReadFile("../docs/dns.md")
	if err != nil {
		t.Fatal(err)
	}
	mesh := fixtures.ThreeTowns(nil)
	crowded := pbxmesh.Node{ID: "crowded", Ports: pbxmesh.SIPPorts{UDP: 5060}}
	for i := range 40 {
		crowded.Addresses = append(crowded.Addresses, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	mesh.Nodes["crowded"] = crowded
	mesh.States["crowded"] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
	z, _ := newTestZone(t, mesh)
	_, addr := startServer(t, z, func(o *Options) { o.RateLimit = &RateLimit{} })
	host, port, _ := net.SplitHostPort(addr)

	row := regexp.MustCompile("(?m)^\\| ([^|]+) \\| `([^`]+)` \\| (.*) \\|$")
	words := regexp.MustCompile("(not )?`([^`]+)`")
	rows := row.FindAllStringSubmatch(string(page), -1)
	if len(rows) < 40 {
		t.Fatalf("%d rows in docs/dns.md: the table was not found", len(rows))
	}
	for _, r := range rows {
		t.Run(r[1]+" "+r[2], func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			args := append([]string{"@" + host, "-p", port, "+tries=3", "+time=5"}, strings.Fields(r[2])...)
			out, err := exec.CommandContext(ctx, dig, args...).CombinedOutput()
			if err != nil && !strings.Contains(err.Error(), "exit status") {
				t.Fatal(err)
			}
			want := words.FindAllStringSubmatch(r[3], -1)
			if len(want) == 0 {
				t.Fatalf("%q expects nothing", r[3])
			}
			for _, w := range want {
				if strings.Contains(string(out), w[2]) != (w[1] == "") {
					t.Errorf("dig %s, expected %s%q:\n%s", r[2], w[1], w[2], out)
				}
			}
			for _, w := range []string{"Malformed", "no servers could be reached", "WARNING: Message"} {
				if strings.Contains(string(out), w) {
					t.Errorf("dig %s has %q:\n%s", r[2], w, out)
				}
			}
		})
	}
}
