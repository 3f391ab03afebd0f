package latency

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"
	"github.com/oschwald/maxminddb-golang/v2"

	"pbxmesh"
)

// maxGeoFile bounds the file that is read into memory: the largest databases of cities
// have some 150 MB.
const maxGeoFile = 1 << 30

// Atlas tells where clients are: from networks that the configuration places, and else
// from a database in MaxMind's format (GeoLite2 City, DB-IP City Lite and the like). It
// is for concurrent use.
type Atlas struct {
	placed bart.Table[pbxmesh.Location]
	any4   bool // networks are placed, by family
	any6   bool

	file     string
	database atomic.Pointer[maxminddb.Reader]
	read     fileStamp // of the file that database was read from; only Reload touches it
}

type fileStamp struct {
	size int64
	at   time.Time
}

// NewAtlas returns the Atlas of networks and of a database; "" is no database. A file
// that cannot be read is an error that names it.
func NewAtlas(networks []Placed, file string) (*Atlas, error) {
	a := &Atlas{file: file}
	for _, n := range networks {
		if !n.Network.IsValid() || n.Network != n.Network.Masked() || !n.Location.Valid() {
			return nil, fmt.Errorf("latency: network %v at %v is not valid", n.Network, n.Location)
		}
		a.placed.Insert(n.Network, n.Location)
		a.any4, a.any6 = a.any4 || n.Network.Addr().Is4(), a.any6 || n.Network.Addr().Is6()
	}
	if file != "" {
		if _, err := a.Reload(); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Reload reads the database again when its file changed, and reports whether it did.
// After an error the one that was read before stays. It is not for concurrent use.
func (a *Atlas) Reload() (changed bool, err error) {
	if a.file == "" {
		return false, nil
	}
	info, err := os.Stat(a.file)
	if err != nil {
		return false, fmt.Errorf("latency: database of places: %w", err)
	}
	stamp := fileStamp{info.Size(), info.ModTime()}
	if stamp == a.read {
		return false, nil
	}
	if info.Size() > maxGeoFile {
		return false, fmt.Errorf("latency: database of places %s has %d bytes, at most %d are read", a.file, info.Size(), maxGeoFile)
	}
	// Into memory and not mapped: a file that is overwritten in place must not change
	// under a reader.
	b, err := os.ReadFile(a.file)
	if err != nil {
		return false, fmt.Errorf("latency: database of places: %w", err)
	}
	r, err := maxminddb.OpenBytes(b)
	if err != nil {
		return false, fmt.Errorf("latency: %s is no database in MaxMind's format: %w", a.file, err)
	}
	a.database.Store(r)
	a.read = stamp
	return true, nil
}

// geoRecord is what counts of a record: GeoIP2 and GeoLite2, DB-IP; the AS where the
// database has it (GeoIP2 Enterprise in traits, merged ones at the top, IPinfo as text).
type geoRecord struct {
	Location struct {
		Latitude  float64 `maxminddb:"latitude"`
		Longitude float64 `maxminddb:"longitude"`
	} `maxminddb:"location"`
	AS     uint32 `maxminddb:"autonomous_system_number"`
	Traits struct {
		AS uint32 `maxminddb:"autonomous_system_number"`
	} `maxminddb:"traits"`
	ASN string `maxminddb:"asn"`
}

// Where implements Places.
func (a *Atlas) Where(client netip.Addr) Where {
	client = client.Unmap().WithZone("")
	var w Where
	if !client.IsValid() {
		return w
	}
	if r := a.database.Load(); r != nil {
		w = lookup(r, client)
	}
	if client.Is4() && a.any4 || client.Is6() && a.any6 {
		// The networks may lie within those of the database: the answer holds for the
		// client's /24 or /48, which is the smallest network that can be placed.
		unit, _ := client.Prefix(unitBits(client))
		if !w.Network.IsValid() || w.Network.Bits() < unit.Bits() {
			w.Network = unit
		}
		if l, ok := a.placed.Lookup(client); ok {
			w.Location = l
		}
	}
	return w
}

func unitBits(client netip.Addr) int {
	if client.Is4() {
		return bits4
	}
	return bits6
}

// lookup reads one record. What is not valid in it is not known.
func lookup(r *maxminddb.Reader, client netip.Addr) (w Where) {
	found := r.Lookup(client)
	if p := found.Prefix(); p.IsValid() {
		if p.Addr().Is4In6() || client.Is4() && p.Addr().Is6() {
			p, _ = client.Prefix(max(0, p.Bits()-96))
		}
		w.Network = p.Masked()
	}
	var rec geoRecord
	if !found.Found() || found.Decode(&rec) != nil {
		return w
	}
	if l := (pbxmesh.Location{Latitude: rec.Location.Latitude, Longitude: rec.Location.Longitude}); l.Valid() {
		w.Location = l
	}
	w.AS = max(rec.AS, rec.Traits.AS)
	if digits, ok := strings.CutPrefix(rec.ASN, "AS"); ok && w.AS == 0 {
		if n, err := strconv.ParseUint(digits, 10, 32); err == nil {
			w.AS = uint32(n)
		}
	}
	return w
}

// Describe says what the Atlas knows, for the log.
func (a *Atlas) Describe() string {
	r := a.database.Load()
	if r == nil {
		return fmt.Sprintf("%d placed networks", a.placed.Size())
	}
	return fmt.Sprintf("%d placed networks, database %s of %s", a.placed.Size(), r.Metadata.DatabaseType,
		time.Unix(int64(r.Metadata.BuildEpoch), 0).UTC().Format(time.DateOnly)) //nolint:gosec // shown only
}

// Empty reports whether nobody can be placed.
func (a *Atlas) Empty() bool { return a.database.Load() == nil && a.placed.Size() == 0 }

// ErrTooSmall says that a placed network is smaller than estimates are kept for.
var ErrTooSmall = errors.New("smaller than a /24 (IPv6: /48)")

// CheckPlaced returns why a network cannot be placed, or nil.
func CheckPlaced(network netip.Prefix) error {
	if network.Bits() > unitBits(network.Addr()) {
		return ErrTooSmall
	}
	return nil
}
