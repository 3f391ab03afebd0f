package latency

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"pbxmesh"
)

// database writes a database of places: cities for two networks of each family.
func database(t *testing.T, file string, london mmdbtype.Map) {
	t.Helper()
	w, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test-City", IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for network, record := range map[string]mmdbtype.Map{
		"198.51.100.0/24": london, "2001:db8:100::/40": london,
		"203.0.0.0/10": {"location": mmdbtype.Map{"latitude": mmdbtype.Float64(1.35), "longitude": mmdbtype.Float64(103.82)}, "asn": mmdbtype.String("AS64501")},
		"192.0.2.0/24": {"location": mmdbtype.Map{"latitude": mmdbtype.Float64(1000), "longitude": mmdbtype.Float64(0)}},
	} {
		_, n, err := net.ParseCIDR(network)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Insert(n, record); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func city(lat, lon float64) mmdbtype.Map {
	return mmdbtype.Map{
		"location":                 mmdbtype.Map{"latitude": mmdbtype.Float64(lat), "longitude": mmdbtype.Float64(lon)},
		"autonomous_system_number": mmdbtype.Uint32(64500),
	}
}

func TestAtlas(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "city.mmdb")
	database(t, file, city(51.51, -0.13))
	here := pbxmesh.Location{Latitude: 51.51, Longitude: -0.13}
	a, err := NewAtlas(nil, file)
	if err != nil {
		t.Fatal(err)
	}
	for client, want := range map[string]Where{
		"198.51.100.7":    {here, 64500, netip.MustParsePrefix("198.51.100.0/24")},
		"2001:db8:100::1": {here, 64500, netip.MustParsePrefix("2001:db8:100::/40")},
		"203.0.113.9":     {pbxmesh.Location{Latitude: 1.35, Longitude: 103.82}, 64501, netip.MustParsePrefix("203.0.0.0/10")},
		"192.0.2.1":       {pbxmesh.Location{}, 0, netip.MustParsePrefix("192.0.2.0/24")}, // a latitude of 1000
	} {
		if got := a.Where(addr(client)); got != want {
			t.Errorf("%s: %+v, want %+v", client, got, want)
		}
	}
	if got := a.Where(addr("8.8.8.8")); got.Location.Known() || !got.Network.Contains(addr("8.8.8.8")) {
		t.Errorf("8.8.8.8: %+v", got)
	}
	if got := a.Where(netip.Addr{}); got != (Where{}) {
		t.Errorf("nobody: %+v", got)
	}

	// Another file is read when it changed, and not when it is broken.
	if changed, err := a.Reload(); changed || err != nil {
		t.Errorf("read again without a change: %v %v", changed, err)
	}
	database(t, file, city(48.86, 2.35))
	later := time.Now().Add(time.Minute)
	if err := os.Chtimes(file, later, later); err != nil {
		t.Fatal(err)
	}
	if changed, err := a.Reload(); !changed || err != nil {
		t.Errorf("%v %v", changed, err)
	}
	if got := a.Where(addr("198.51.100.7")); got.Location.Latitude != 48.86 {
		t.Errorf("after a change: %+v", got)
	}
	if err := os.WriteFile(file, []byte("no database"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Reload(); err == nil {
		t.Error("a broken file was taken")
	}
	if got := a.Where(addr("198.51.100.7")); got.Location.Latitude != 48.86 {
		t.Errorf("after a broken file: %+v", got)
	}
	if _, err := NewAtlas(nil, file); err == nil {
		t.Error("started with a broken file")
	}
	if _, err := NewAtlas(nil, file+".gone"); err == nil {
		t.Error("started without its file")
	}
}

func TestPlacedNetworksWin(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "city.mmdb")
	database(t, file, city(51.51, -0.13))
	paris, lyon := pbxmesh.Location{Latitude: 48.86, Longitude: 2.35}, pbxmesh.Location{Latitude: 45.76, Longitude: 4.84}
	a, err := NewAtlas([]Placed{{netip.MustParsePrefix("203.0.0.0/16"), paris}, {netip.MustParsePrefix("203.0.113.0/24"), lyon}}, file)
	if err != nil {
		t.Fatal(err)
	}
	for client, want := range map[string]pbxmesh.Location{"203.0.112.1": paris, "203.0.113.1": lyon, "203.1.0.1": {Latitude: 1.35, Longitude: 103.82}} {
		got := a.Where(addr(client))
		if got.Location != want || got.Network.Bits() != 24 {
			t.Errorf("%s: %+v, want %v in a /24", client, got, want)
		}
	}
	if got := a.Where(addr("2001:db8:100::1")); got.Network.Bits() != 40 {
		t.Errorf("IPv6, where nothing is placed: %+v", got)
	}
	if CheckPlaced(netip.MustParsePrefix("203.0.113.0/25")) == nil || CheckPlaced(netip.MustParsePrefix("203.0.113.0/24")) != nil {
		t.Error("the bound of placed networks is not /24")
	}
	if _, err := NewAtlas([]Placed{{netip.MustParsePrefix("203.0.113.1/24"), lyon}}, ""); err == nil {
		t.Error("host bits were taken")
	}
}
