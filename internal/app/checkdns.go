package app

import (
	"fmt"

	"pbxmesh"
	"pbxmesh/dnsserver"
	"pbxmesh/internal/config"
)

// CheckDNS checks what only the name server can judge: the zone file against the
// names of the configuration. It binds nothing and is quiet where there is no name
// server.
func CheckDNS(cfg *config.Config) error {
	if !cfg.DNS.On() {
		return nil
	}
	o := zoneOptions(&cfg.DNS, cfg.Name)
	o.Source = nothingKnown{}
	if o.GenerateKeys {
		o.KeyDir, o.GenerateKeys = "", false // a check makes nothing
	}
	if _, err := dnsserver.NewZone(o); err != nil {
		return fmt.Errorf("dns: %w", err)
	}
	return nil
}

// nothingKnown is a source of snapshots for who asks for none.
type nothingKnown struct{}

// Mesh implements dnsserver.Source.
func (nothingKnown) Mesh() *pbxmesh.Mesh { return nil }
