package redirect

import (
	"fmt"
	"net"
	"net/netip"

	"pbxmesh/internal/udpbatch"
)

// batchSize is how many packets one system call reads or writes.
const batchSize = 16

// udpBuffer is the receive buffer asked of the kernel, in bytes: a burst of some
// thousand requests. The kernel gives what net.core.rmem_max allows.
const udpBuffer = 4 << 20

// serveUDP reads, answers and writes one batch after the other until Shutdown. The
// error is that of the reads.
func (s *Server) serveUDP(c *net.UDPConn) error {
	var workers [batchSize]worker // each with the answer that waits to be written
	err := udpbatch.Serve(c, udpbatch.Options{Packets: batchSize}, s.stopping, func(b *udpbatch.Batch, n int) {
		for i := range n {
			packet, from := b.Packet(i)
			if out, to := s.packet(&workers[i], packet, from); out != nil {
				b.Answer(i, out, to.Port())
			}
		}
	})
	if err != nil {
		return fmt.Errorf("read %v: %w", c.LocalAddr(), err)
	}
	return nil
}

// packet answers one packet. Strangers get no answer: their address may be forged,
// and whoever really has it must not hear from us.
func (s *Server) packet(w *worker, packet []byte, from netip.AddrPort) (out []byte, to netip.AddrPort) {
	if !from.IsValid() || from.Port() == 0 || !s.allowed(from.Addr()) {
		s.counters.strangers.Add(1)
		return nil, to
	}
	return s.answer(w, packet, from, UDP)
}
