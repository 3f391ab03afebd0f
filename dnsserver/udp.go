package dnsserver

import (
	"fmt"
	"net"
	"time"

	"pbxmesh/internal/udpbatch"
)

// maxUDPQuery is the longest query read, in bytes. The rest of a longer one is cut
// off by the kernel and the query is then malformed.
const maxUDPQuery = 4096

// udpPackets is how many packets one system call reads or writes.
const udpPackets = 32

// udpBuffer is the receive buffer asked of the kernel, in bytes: a burst of some
// thousand queries. The kernel gives what net.core.rmem_max allows.
const udpBuffer = 4 << 20

// serveUDP reads, answers and writes one batch after the other until Shutdown.
func (s *Server) serveUDP(c *net.UDPConn) error {
	w := newWorker(&s.responder, s.log)
	if s.opts.Asked != nil {
		w.asked = newAskedLog(s.opts.Asked)
	}
	var replies [udpPackets][MaxUDPSize]byte // each waits to be written with its batch
	err := udpbatch.Serve(c, udpbatch.Options{Packets: udpPackets, Length: maxUDPQuery}, s.stopping, func(b *udpbatch.Batch, n int) {
		now := time.Now()
		for i := range n {
			packet, from := b.Packet(i)
			if from.Port() == 0 {
				w.counts.packets++
				continue // nobody can be there: forged
			}
			if reply := w.respond(replies[i][:0], packet, from.Addr(), now); reply != nil {
				b.Answer(i, reply, from.Port())
			}
		}
		w.flush()
	})
	if err != nil {
		return fmt.Errorf("dnsserver: read %v: %w", c.LocalAddr(), err)
	}
	return nil
}
