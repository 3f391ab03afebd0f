package app

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"pbxmesh/dnsserver"
	"pbxmesh/internal/config"
)

// A daemon with a zone file and keys tells whether they are in force, also when it is
// PowerDNS that asks.
func TestDNSFileMetrics(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "zone")
	if err := os.WriteFile(file, []byte("www A 192.0.2.80\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config.Defaults()
	cfg.DNS.Zone = "pbx.example.com"
	cfg.DNS.Nameservers = []config.Nameserver{{Name: "ns1.example.net"}}
	cfg.DNS.ZoneFile = config.File(file)
	cfg.DNS.DNSSEC.KeyDir, cfg.DNS.DNSSEC.Generate = config.File(dir), true
	o := zoneOptions(&cfg.DNS, "losangeles")
	o.Source = nothingKnown{}
	zone, err := dnsserver.NewZone(o)
	if err != nil {
		t.Fatal(err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(dnsCollector{&App{cfg: cfg, zone: zone}})
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[f.GetName()+" "+m.Label[0].GetValue()] = m.GetGauge().GetValue() == 0 && m.GetCounter().GetValue() == 0
		}
	}
	want := map[string]bool{
		"pbxmesh_dns_file_errors_total keys": true, "pbxmesh_dns_file_errors_total zone": true,
		"pbxmesh_dns_file_stale keys": true, "pbxmesh_dns_file_stale zone": true,
	}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
