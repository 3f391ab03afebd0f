package dnsserver

import (
	"net"

	"golang.org/x/sys/unix"
)

// neverFragment has answers over IPv4 sent with "don't fragment", and not cut into
// fragments here either (RFC 9715 section 3.1, R2): MaxUDPSize with its headers fits 1280
// bytes. What the kernel learnt of a path from ICMP, which anybody may forge, is not
// looked at. A kernel that does not know the option goes on as it did.
func neverFragment(c *net.UDPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	})
}
