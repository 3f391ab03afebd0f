package dnsserver

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func TestNeverFragment(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"udp4", "udp"} { // the second one takes both families
		c, err := net.ListenUDP(network, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		neverFragment(c)
		raw, err := c.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if e := raw.Control(func(fd uintptr) {
			mode, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
			if err != nil || mode != unix.IP_PMTUDISC_PROBE {
				t.Errorf("%s: mode %d, %v", network, mode, err)
			}
		}); e != nil {
			t.Fatal(e)
		}
	}
}
