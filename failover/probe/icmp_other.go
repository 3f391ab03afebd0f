//go:build !linux

package probe

import (
	"net"
	"net/netip"
)

// Elsewhere a closed port costs the timeout like a silent one.
func enableICMPErrors(*net.UDPConn) error { return nil }

func readICMPErrors(*net.UDPConn) ([]netip.AddrPort, int) { return nil, 0 }
