package doctor

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"pbxmesh"
	"pbxmesh/dnsserver"
	"pbxmesh/internal/config"
)

type noMesh struct{}

func (noMesh) Mesh() *pbxmesh.Mesh { return nil }

// signedDNS serves sip.example.com, signed with the keys in dir; "" is not signed.
func signedDNS(t *testing.T, dir string) netip.AddrPort {
	t.Helper()
	zone, err := dnsserver.NewZone(dnsserver.ZoneOptions{
		Origin: "sip.example.com", NameServers: []dnsserver.NameServer{{Name: "ns1.example.net"}},
		KeyDir: dir, GenerateKeys: true, Source: noMesh{},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := dnsserver.New(dnsserver.Options{Zone: zone})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve() }()
	t.Cleanup(func() {
		_ = s.Shutdown(context.Background())
		<-done
	})
	return s.Addrs()[0]
}

func TestZoneKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	here, same, other, unsigned := signedDNS(t, dir), signedDNS(t, dir), signedDNS(t, t.TempDir()), signedDNS(t, "")
	for _, tc := range []struct {
		name      string
		own, they netip.AddrPort
		status    Status
		seen      string
	}{
		{"same", here, same, OK, "2 name servers have the same keys"},
		{"other", here, other, Fail, "here are"},
		{"they are unsigned", here, unsigned, Warn, "is not signed there"},
		{"we are unsigned", unsigned, same, Fail, "is not signed there"},
	} {
		p := &patient{cfg: config.Defaults(), results: map[string][]Result{}, o: Options{DNSPort: tc.they.Port()}}
		p.cfg.DNS.Listen = []netip.AddrPort{tc.own}
		p.cfg.DNS.Zone = "sip.example.com"
		p.cfg.DNS.DNSSEC.KeyDir = config.File(dir)
		p.cfg.DNS.Nameservers = []config.Nameserver{{Name: "ns2.example.com", Addresses: []netip.Addr{tc.they.Addr()}}}
		p.zoneKeys(t.Context())
		if got := p.results["zone keys"]; len(got) != 1 || got[0].Status != tc.status || !strings.Contains(got[0].Seen, tc.seen) || (got[0].Do == "") != (tc.status == OK) {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}
