package app

import (
	"context"
	"fmt"
	"net/netip"

	"pbxmesh/dnsserver/pdns"
)

func (a *App) buildPDNS() error {
	p := a.cfg.DNS.PDNS
	if a.zone == nil || !p.Listen.IsValid() {
		return nil
	}
	var err error
	if a.pdns, err = pdns.New(pdns.Options{Zone: a.zone, Allow: p.Allow, Logger: a.log}); err != nil {
		return fmt.Errorf("dns.pdns: %w", err)
	}
	a.pdnsListener, err = a.listen("PowerDNS backend", "dns.pdns.listen", p.Listen)
	return err
}

func (a *App) startPDNS() {
	if a.pdns == nil {
		return
	}
	a.task("PowerDNS backend", func(context.Context) error { return a.pdns.Serve(a.pdnsListener) })
	a.teardowns.push("PowerDNS backend requests", a.pdns.Shutdown)
}

// PDNSAddr returns where the backend of PowerDNS listens; zero when it is off.
func (a *App) PDNSAddr() netip.AddrPort { return addrOf(a.pdnsListener) }
