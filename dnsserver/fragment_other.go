//go:build !linux

package dnsserver

import "net"

// neverFragment is for systems whose kernel can be told per socket.
func neverFragment(*net.UDPConn) {}
