package app

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"pbxmesh/dnsserver"
	"pbxmesh/internal/config"
)

// ZoneKey is a key of a zone, as the commands show it.
type ZoneKey struct {
	Zone      string `json:"zone"`
	Tag       uint16 `json:"tag"`
	File      string `json:"file"` // without extension
	Published bool   `json:"published"`
	Signing   bool   `json:"signing"`

	// DS is empty for a key that only signs the records (no SEP flag).
	DS     string `json:"ds,omitempty"`
	DNSKEY string `json:"dnskey"`
}

// ErrNoKeyDir says that the configuration has no place for keys.
var ErrNoKeyDir = errors.New("dns.dnssec.key_dir is not set in the configuration: name the folder for the keys")

// ErrOtherZone says that a zone is none of the configuration's.
var ErrOtherZone = errors.New("no such zone in the configuration")

// ZoneKeys returns the keys of a zone of cfg, all zones for "", as they are at now.
// A zone without keys has none in the list.
func ZoneKeys(cfg *config.Config, zone string, now time.Time) ([]ZoneKey, error) {
	zones, err := keyZones(cfg, zone)
	if err != nil {
		return nil, err
	}
	list := []ZoneKey{}
	for _, z := range zones {
		keys, err := dnsserver.ReadKeys(string(cfg.DNS.DNSSEC.KeyDir), z)
		if err != nil {
			return nil, fmt.Errorf("read the keys of %s: %w", z, err)
		}
		for _, k := range keys {
			list = append(list, zoneKey(z, k, now))
		}
	}
	return list, nil
}

// GenerateZoneKey makes a key for a zone of cfg, dns.zone for "". It is published at
// once and signs after wait.
func GenerateZoneKey(cfg *config.Config, zone string, wait time.Duration, now time.Time) (ZoneKey, error) {
	zones, err := keyZones(cfg, zone)
	if err != nil {
		return ZoneKey{}, err
	}
	k, err := dnsserver.GenerateKey(string(cfg.DNS.DNSSEC.KeyDir), zones[0], now, now.Add(wait))
	if err != nil {
		return ZoneKey{}, err
	}
	return zoneKey(zones[0], k, now), nil
}

func keyZones(cfg *config.Config, zone string) ([]string, error) {
	zones := slices.Concat([]string{cfg.DNS.Zone}, cfg.DNS.TenantZones)
	zone = strings.ToLower(strings.TrimSuffix(zone, "."))
	switch {
	case cfg.DNS.DNSSEC.KeyDir == "":
		return nil, ErrNoKeyDir
	case cfg.DNS.Zone == "":
		return nil, fmt.Errorf("%w: dns.zone is not set", ErrOtherZone)
	case zone == "":
		return zones, nil
	case !slices.Contains(zones, zone):
		return nil, fmt.Errorf("%w: %q; there are %s", ErrOtherZone, zone, strings.Join(zones, ", "))
	}
	return []string{zone}, nil
}

func zoneKey(zone string, k *dnsserver.Key, now time.Time) ZoneKey {
	z := ZoneKey{
		Zone: zone, Tag: k.Tag, File: k.File, Published: k.Published(now), Signing: k.Active(now),
		DNSKEY: strings.ReplaceAll(k.DNSKEY.String(), "\t", " "),
	}
	if k.SEP() {
		z.DS = strings.ReplaceAll(k.DS().String(), "\t", " ")
	}
	return z
}
