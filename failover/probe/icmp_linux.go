package probe

import (
	"net"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setICMPErrors makes the kernel queue ICMP errors of an unconnected socket, with the
// address they are about and the packet that they quote (ip(7), IP_RECVERR), or ignore
// them. A socket for both families needs both options.
func setICMPErrors(c *net.UDPConn, on bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	value := 0
	if on {
		value = 1
	}
	var err4, err6 error
	err = raw.Control(func(fd uintptr) {
		err4 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVERR, value)
		err6 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVERR, value)
	})
	if err != nil {
		return err
	}
	if err4 != nil && err6 != nil {
		return err4
	}
	return nil
}

// readICMPErrors empties the error queue, at most 256 entries a call, shows each to
// heard, and returns how many there were. It does not block.
func readICMPErrors(c *net.UDPConn, heard func(icmpError)) (read int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		// The data is our packet as far as the error quotes it, without IP and UDP header.
		var data [256]byte
		var oob [512]byte
		for range 256 {
			n, oobn, _, from, err := unix.Recvmsg(int(fd), data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			read++
			e := icmpError{refusal: isRefusal(oob[:oobn]), quoted: data[:n]}
			// The name of a queued error is where the packet was sent to.
			switch a := from.(type) {
			case *unix.SockaddrInet4:
				e.to = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
			case *unix.SockaddrInet6:
				e.to = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
			}
			heard(e)
		}
	})
	return read
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
