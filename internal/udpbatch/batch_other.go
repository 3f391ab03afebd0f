//go:build !linux

package udpbatch

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// writeTimeout bounds the wait for room in the kernel's send buffer.
const writeTimeout = time.Second

// Batch reads and writes packets of one socket, one at a time. It is for one
// goroutine; several on one socket have one each.
type Batch struct {
	c       *net.UDPConn
	control bool
	buf     []byte
	n       int
	from    netip.AddrPort
	oob     [128]byte
	oobn    int
}

// New returns a Batch on c. On a socket that is bound to all addresses it has the
// kernel tell which one each packet was sent to.
func New(c *net.UDPConn, o Options) (*Batch, error) {
	o.defaults()
	b := &Batch{c: c, buf: make([]byte, o.Length)}
	if everywhere(c) {
		err6 := ipv6.NewPacketConn(c).SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true)
		err4 := ipv4.NewPacketConn(c).SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true)
		b.control = err4 == nil || err6 == nil
	}
	return b, nil
}

func closed(err error) bool { return errors.Is(err, net.ErrClosed) }

// Read waits for a packet and returns how many came: one. It stands until the next
// Read.
func (b *Batch) Read() (n int, err error) {
	if b.control {
		b.n, b.oobn, _, b.from, err = b.c.ReadMsgUDPAddrPort(b.buf, b.oob[:])
	} else {
		b.n, b.from, err = b.c.ReadFromUDPAddrPort(b.buf)
	}
	if err != nil {
		return 0, err
	}
	return 1, nil
}

// Packet returns the packet that came. An IPv4 address is never mapped into IPv6, and
// neither has a zone.
func (b *Batch) Packet(int) (packet []byte, from netip.AddrPort) {
	return b.buf[:b.n], netip.AddrPortFrom(b.from.Addr().Unmap().WithZone(""), b.from.Port())
}

// Answer writes out to the sender of the packet, at port. out must not be empty.
func (b *Batch) Answer(_ int, out []byte, port uint16) {
	_ = b.c.SetWriteDeadline(time.Now().Add(writeTimeout))
	to := netip.AddrPortFrom(b.from.Addr(), port)
	if b.control {
		_, _, _ = b.c.WriteMsgUDPAddrPort(out, source(b.oob[:b.oobn]), to)
		return
	}
	_, _ = b.c.WriteToUDPAddrPort(out, to)
}

// source turns the control message of a packet that came into the one of its answer.
func source(oob []byte) []byte {
	var c6 ipv6.ControlMessage
	if c6.Parse(oob) == nil && c6.Dst != nil && c6.Dst.To4() == nil {
		return (&ipv6.ControlMessage{Src: c6.Dst}).Marshal()
	}
	var c4 ipv4.ControlMessage
	if c4.Parse(oob) == nil && c4.Dst != nil {
		return (&ipv4.ControlMessage{Src: c4.Dst}).Marshal()
	}
	return nil
}

// Flush is for systems with batches.
func (b *Batch) Flush() {}
