package app

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"pbxmesh/internal/config"
)

// A daemon may serve its zones by PowerDNS alone.
func TestPDNSAlone(t *testing.T) {
	t.Parallel()
	cfg := config.Defaults()
	cfg.Name = "losangeles"
	cfg.DNS.Zone = "pbx.example.com"
	cfg.DNS.Nameservers = []config.Nameserver{{Name: "ns1.example.net"}}
	cfg.DNS.PDNS.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	cfg.API.Listen = netip.AddrPort{}
	a, err := New(cfg, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	reply, err := http.Post("http://"+a.PDNSAddr().String()+"/pdns", "text/javascript", strings.NewReader(`{"method":"getAllDomains"}`))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(reply.Body)
	if err != nil || !strings.Contains(string(body), `"zone":"pbx.example.com."`) {
		t.Errorf("%s %v", body, err)
	}
	_ = reply.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if len(a.DNSAddrs()) != 0 {
		t.Errorf("listens at %v", a.DNSAddrs())
	}
	if err := a.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
