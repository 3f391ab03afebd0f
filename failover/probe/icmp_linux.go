package probe

import (
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// enableICMPErrors makes the kernel queue ICMP errors of an unconnected socket,
// with the address they are about (ip(7), IP_RECVERR). A socket for both families
// needs both options.
func enableICMPErrors(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var err4, err6 error
	err = raw.Control(func(fd uintptr) {
		err4 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, 1)
		err6 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	})
	if err != nil {
		return err
	}
	if err4 != nil && err6 != nil {
		return err4
	}
	return nil
}

// readICMPErrors empties the error queue, at most 64 entries a call, and returns
// the destinations that cannot be reached and how many entries it read. It does not block.
func readICMPErrors(c *net.UDPConn) (refused []netip.AddrPort, read int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, 0
	}
	_ = raw.Control(func(fd uintptr) {
		var data [1]byte
		var oob [512]byte
		for range 64 {
			_, oobn, _, from, err := unix.Recvmsg(int(fd), data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			read++
			if !isRefusal(oob[:oobn]) {
				continue
			}
			// The name of a queued error is where the packet was sent to.
			switch a := from.(type) {
			case *unix.SockaddrInet4:
				refused = append(refused, netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)))
			case *unix.SockaddrInet6:
				refused = append(refused, netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port)))
			}
		}
	})
	return refused, read
}

// isRefusal reports whether the control messages hold an error that means "nobody
// listens on that port". Host and network unreachable are left to the timeout: a
// router says them in passing while routes change.
func isRefusal(oob []byte) bool {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for _, m := range msgs {
		v4 := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
		v6 := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
		if (v4 || v6) && len(m.Data) >= int(unsafe.Sizeof(unix.SockExtendedErr{})) {
			e := (*unix.SockExtendedErr)(unsafe.Pointer(&m.Data[0]))
			if e.Errno == uint32(unix.ECONNREFUSED) {
				return true
			}
		}
	}
	return false
}
