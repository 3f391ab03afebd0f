package config

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"pbxmesh"
)

// Latency is how the distance of clients is learnt, and what name servers do with it.
type Latency struct {
	Enabled bool `yaml:"enabled"`

	// KeepAliveInterval is the time between two looks at the switch's own keep-alive
	// times; 0 is never.
	KeepAliveInterval time.Duration `yaml:"keepalive_interval"`

	// ExploreCost bounds what an answer may cost a client that measures another node by
	// it; 0 tries none.
	ExploreCost time.Duration `yaml:"explore_cost"`

	// MaxNetworks bounds the client networks that this node remembers.
	MaxNetworks int `yaml:"max_networks"`

	// GeoFile is a database of places in MaxMind's format.
	GeoFile File `yaml:"geo_file"`

	Networks []PlacedNetwork `yaml:"networks"`
}

// PlacedNetwork says where a client network is.
type PlacedNetwork struct {
	Network  netip.Prefix `yaml:"network"`
	Location Location     `yaml:"location"`
}

// Location is a place on earth; the zero Location is not known.
type Location struct {
	Latitude  Degrees `yaml:"latitude"`
	Longitude Degrees `yaml:"longitude"`
}

// Place returns l in the words of the mesh.
func (l Location) Place() pbxmesh.Location {
	return pbxmesh.Location{Latitude: float64(l.Latitude), Longitude: float64(l.Longitude)}
}

// Degrees are degrees of latitude or longitude (WGS 84), north and east positive.
type Degrees float64

func parseDegrees(s string) (Degrees, error) {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || v < -180 || v > 180 || v != v {
		return 0, fmt.Errorf("%s is no angle: write degrees such as 42.89 or -78.88, north and east positive", show(s))
	}
	return Degrees(v), nil
}

// Bounds of max_networks.
const (
	minClientNetworks = 256
	maxClientNetworks = 64 << 10
)

func (l *Latency) setDefaults() {
	*l = Latency{Enabled: true, KeepAliveInterval: 5 * time.Minute, ExploreCost: 150 * time.Millisecond, MaxNetworks: 16 << 10}
}

func (d *decoder) validateLatency(l *Latency) {
	if l.KeepAliveInterval != 0 {
		inRange(d, "failover.latency.keepalive_interval", l.KeepAliveInterval, 10*time.Second, 24*time.Hour)
	}
	inRange(d, "failover.latency.explore_cost", l.ExploreCost, 0, time.Second)
	inRange(d, "failover.latency.max_networks", l.MaxNetworks, minClientNetworks, maxClientNetworks)
	seen := make(map[netip.Prefix]bool)
	for i, n := range l.Networks {
		path := fmt.Sprintf("failover.latency.networks[%d]", i)
		longest := 48
		if n.Network.Addr().Is4() {
			longest = 24
		}
		switch {
		case !n.Network.IsValid():
			d.check(path+".network", "is missing: write the clients' network, such as 198.51.100.0/24")
		case n.Network.Bits() > longest:
			d.check(path+".network", "%s is too small to be placed: at most /%d", n.Network, longest)
		case seen[n.Network]:
			d.check(path+".network", "%s stands in the list twice: remove one", n.Network)
		}
		seen[n.Network] = true
		if n.Location == (Location{}) {
			d.check(path+".location", "is missing: write {latitude: 40.42, longitude: -3.70}")
		}
		d.validateLocation(path+".location", n.Location)
	}
}

func (d *decoder) validateLocation(path string, l Location) {
	inRange(d, path+".latitude", l.Latitude, -90, 90)
}
