package udpbatch

import (
	"net"
	"runtime"
)

// Options of New.
type Options struct {
	// Packets is how many packets one read may bring, 1 to 1024; 0 means 16. A burst
	// then costs as many times fewer system calls, a single packet nothing more.
	Packets int

	// Length is the longest packet in bytes, 1 to 65535; 0 means 65535. The rest of
	// a longer one is cut off.
	Length int
}

func (o *Options) defaults() {
	if o.Packets == 0 {
		o.Packets = 16
	}
	if o.Length == 0 {
		o.Length = 65535
	}
}

// Readers is how many goroutines should read one socket, each with a Batch of its
// own: one for two processors.
func Readers() int { return (runtime.GOMAXPROCS(0) + 1) / 2 }

// maxReadErrors in a row mean a broken socket. Linux reports ICMP errors of earlier
// answers at a read now and then.
const maxReadErrors = 1000

// everywhere reports whether c is bound to all addresses. Answers then have to name
// the address that was asked, or the kernel chooses another one on a machine that has
// several.
func everywhere(c *net.UDPConn) bool {
	a, ok := c.LocalAddr().(*net.UDPAddr)
	return ok && a.IP.IsUnspecified()
}

// Serve reads c until stopping reports true or c is closed, and has each batch
// answered by answer, which calls Packet and Answer for the packets 0 to n-1. It is
// stopped by a read deadline on c, after stopping has become true.
//
// The error is that of reads that failed many times in a row; answers that cannot be
// sent are lost, as any packet may be.
func Serve(c *net.UDPConn, o Options, stopping func() bool, answer func(b *Batch, n int)) error {
	b, err := New(c, o)
	if err != nil {
		return err
	}
	failed := 0
	for !stopping() {
		n, err := b.Read()
		if err != nil {
			if closed(err) {
				return nil
			}
			if failed++; failed > maxReadErrors {
				return err
			}
			continue
		}
		failed = 0
		answer(b, n)
		b.Flush()
	}
	return nil
}
