package udpbatch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlSize has room for one control message with an address, of either family.
const controlSize = 64

// Batch reads and writes packets of one socket. It is for one goroutine; several on
// one socket have one each.
type Batch struct {
	raw     syscall.RawConn
	length  int
	control bool

	in, out         []mmsghdr
	inVec, outVec   []unix.Iovec
	inName, outName []unix.RawSockaddrInet6 // large enough for IPv4 too
	inControl       [][controlSize]byte     // where each packet was sent to
	inBuf           []byte
	pending         int

	reads, writes func(fd uintptr) (done bool)
	count, at     int
	errno         syscall.Errno
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// New returns a Batch on c. On a socket that is bound to all addresses it has the
// kernel tell which one each packet was sent to.
func New(c *net.UDPConn, o Options) (*Batch, error) {
	o.defaults()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &Batch{
		raw: raw, length: o.Length, control: everywhere(c),
		in: make([]mmsghdr, o.Packets), out: make([]mmsghdr, o.Packets),
		inVec: make([]unix.Iovec, o.Packets), outVec: make([]unix.Iovec, o.Packets),
		inName: make([]unix.RawSockaddrInet6, o.Packets), outName: make([]unix.RawSockaddrInet6, o.Packets),
		inControl: make([][controlSize]byte, o.Packets),
		inBuf:     make([]byte, o.Packets*o.Length),
		count:     o.Packets, // as if all had been written to
	}
	b.reads, b.writes = b.tryRead, b.tryWrite // once, or each call would allocate
	if b.control {
		if err := tellAddress(raw); err != nil {
			return nil, fmt.Errorf("ask the kernel which address a packet was sent to: %w", err)
		}
	}
	for i := range o.Packets {
		b.inVec[i].Base = &b.inBuf[i*o.Length]
		b.inVec[i].SetLen(o.Length)
		b.in[i].hdr.Iov, b.out[i].hdr.Iov = &b.inVec[i], &b.outVec[i]
		b.in[i].hdr.Iovlen, b.out[i].hdr.Iovlen = 1, 1
		b.in[i].hdr.Name = (*byte)(unsafe.Pointer(&b.inName[i]))
		b.out[i].hdr.Name = (*byte)(unsafe.Pointer(&b.outName[i]))
		if b.control {
			b.in[i].hdr.Control = &b.inControl[i][0]
		}
	}
	return b, nil
}

// tellAddress turns control messages on. An IPv6 socket that takes IPv4 too tells both
// in the same form.
func tellAddress(raw syscall.RawConn) error {
	var err error
	if e := raw.Control(func(fd uintptr) {
		var domain int
		if domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
			return
		}
		if domain == unix.AF_INET {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		}
	}); e != nil {
		return e
	}
	return err
}

func closed(err error) bool { return errors.Is(err, net.ErrClosed) }

// Read waits for at least one packet and returns how many came. They stand until the
// next Read.
func (b *Batch) Read() (int, error) {
	if err := b.raw.Read(b.reads); err != nil {
		return 0, err
	}
	if b.errno != 0 {
		return 0, os.NewSyscallError("recvmmsg", b.errno)
	}
	return b.count, nil
}

func (b *Batch) tryRead(fd uintptr) bool {
	for i := range b.count { // the kernel has overwritten as many
		b.in[i].hdr.Namelen = unix.SizeofSockaddrInet6
		if b.control {
			b.in[i].hdr.SetControllen(controlSize)
		}
	}
	b.count = 0
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&b.in[0])), uintptr(len(b.in)), unix.MSG_DONTWAIT, 0, 0)
	b.errno = errno
	if errno == 0 {
		b.count = int(n)
	}
	return errno != unix.EAGAIN && errno != unix.EINTR
}

// Packet returns the i-th of the packets that came; from is invalid for one that is
// neither IPv4 nor IPv6. An IPv4 address is never mapped into IPv6, and has no zone.
func (b *Batch) Packet(i int) (packet []byte, from netip.AddrPort) {
	packet = b.inBuf[i*b.length:][:min(int(b.in[i].n), b.length):b.length]
	name := &b.inName[i]
	port := portOf(name)
	switch name.Family {
	case unix.AF_INET:
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
		return packet, netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), port)
	case unix.AF_INET6:
		return packet, netip.AddrPortFrom(netip.AddrFrom16(name.Addr).Unmap(), port)
	}
	return packet, netip.AddrPort{}
}

// The port stands at the same place in both families, in network order.
func portOf(name *unix.RawSockaddrInet6) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&name.Port))[:])
}

// Answer puts out into the batch, for the sender of the i-th packet at port. out must
// not be empty, and not change until Flush. At most one answer for each packet.
func (b *Batch) Answer(i int, out []byte, port uint16) {
	k := b.pending
	b.outName[k] = b.inName[i] // with the scope of an IPv6 address
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&b.outName[k].Port))[:], port)
	h := &b.out[k].hdr
	h.Namelen = b.in[i].hdr.Namelen
	b.outVec[k].Base = &out[0]
	b.outVec[k].SetLen(len(out))
	if b.control {
		h.Control = &b.inControl[i][0]
		h.SetControllen(source(&b.inControl[i], &b.in[i].hdr))
	}
	b.pending++
}

// source turns the control message of a packet that came into the one of its answer:
// the same address, now to send from, and whatever interface the kernel routes by. It
// returns the length; 0 leaves the address to the kernel too.
func source(control *[controlSize]byte, h *unix.Msghdr) int {
	c := (*unix.Cmsghdr)(unsafe.Pointer(control))
	length := int(h.Controllen)
	if length < unix.SizeofCmsghdr {
		return 0
	}
	data := unsafe.Pointer(&control[unix.CmsgLen(0)])
	switch {
	case c.Level == unix.IPPROTO_IP && c.Type == unix.IP_PKTINFO && length >= unix.CmsgLen(unix.SizeofInet4Pktinfo):
		(*unix.Inet4Pktinfo)(data).Ifindex = 0 // Spec_dst is the local address already
		return unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	case c.Level == unix.IPPROTO_IPV6 && c.Type == unix.IPV6_PKTINFO && length >= unix.CmsgLen(unix.SizeofInet6Pktinfo):
		(*unix.Inet6Pktinfo)(data).Ifindex = 0
		return unix.CmsgSpace(unix.SizeofInet6Pktinfo)
	}
	return 0
}

// Flush writes the batch. What the kernel does not take is lost, as any packet may be:
// it has no room, or the address cannot be reached.
func (b *Batch) Flush() {
	for b.at = 0; b.at < b.pending; {
		if b.raw.Write(b.writes) != nil {
			break
		}
	}
	b.pending = 0
}

func (b *Batch) tryWrite(fd uintptr) bool {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&b.out[b.at])), uintptr(b.pending-b.at), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		n = 1 // the first of the rest is to blame
	}
	b.at += max(int(n), 1)
	return true
}
