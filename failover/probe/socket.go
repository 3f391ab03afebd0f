package probe

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
)

// socket stands between the kernel and sipgo. It hands on nothing but answers of
// addresses that are being probed, and takes ICMP errors out of the way: they
// name the address that refused, and they never reach sipgo, whose read loop
// would end.
type socket struct {
	*net.UDPConn
	awaited func(netip.AddrPort) bool
	refused func(netip.AddrPort)
	sent    func([]byte, netip.AddrPort) // nil, or told of the packets that sipgo sends

	once    sync.Once
	reading chan struct{} // closed at the first read
	last    atomic.Pointer[error]
}

// maxPending errors in a row mean a broken socket, not ICMP: one error comes per
// packet sent at most.
const maxPending = 1000

func listen(local netip.AddrPort, awaited func(netip.AddrPort) bool, refused func(netip.AddrPort)) (*socket, error) {
	var laddr *net.UDPAddr
	if local.IsValid() {
		laddr = net.UDPAddrFromAddrPort(local)
	}
	c, err := net.ListenUDP("udp", laddr)
	if err != nil {
		return nil, err
	}
	// Without it a port that nobody listens on costs the whole timeout.
	// Nothing depends on it, so a kernel that refuses is no error.
	_ = enableICMPErrors(c)
	return &socket{UDPConn: c, awaited: awaited, refused: refused, reading: make(chan struct{})}, nil
}

func (s *socket) addr() netip.AddrPort {
	a := s.UDPConn.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// err returns the error that ended the reading, nil after a close.
func (s *socket) err() error {
	if e := s.last.Load(); e != nil {
		return *e
	}
	return nil
}

// ReadFrom returns the next answer of an address that is being probed.
func (s *socket) ReadFrom(b []byte) (int, net.Addr, error) {
	s.once.Do(func() { close(s.reading) })
	failed := 0
	for {
		n, from, err := s.UDPConn.ReadFromUDPAddrPort(b)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return 0, nil, err
			}
			if failed++; failed > maxPending {
				s.last.Store(&err)
				return 0, nil, err
			}
			s.drain()
			continue
		}
		failed = 0
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if !bytes.HasPrefix(b[:n], []byte("SIP/2.0 ")) || !s.awaited(from) {
			continue
		}
		return n, net.UDPAddrFromAddrPort(from), nil
	}
}

// WriteTo sends b, and shows it to sent.
func (s *socket) WriteTo(b []byte, to net.Addr) (int, error) {
	if addr, ok := to.(*net.UDPAddr); ok && s.sent != nil {
		at := addr.AddrPort()
		s.sent(b, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	}
	return s.write(b, to)
}

// write sends b. The kernel reports pending ICMP errors of earlier packets at the next
// sends to anybody, one each, and more may come in meanwhile: those errors are not this
// packet's. A refusal never is, even when the reader took it off the queue before us.
func (s *socket) write(b []byte, to net.Addr) (int, error) {
	for try := 0; ; try++ {
		n, err := s.UDPConn.WriteTo(b, to)
		if err == nil || errors.Is(err, net.ErrClosed) || try == maxPending {
			return n, err
		}
		if !s.drain() && try > 0 && !errors.Is(err, syscall.ECONNREFUSED) {
			return n, err
		}
	}
}

// drain reads the socket's error queue and reports each refused address. It
// returns whether there was anything.
func (s *socket) drain() bool {
	refused, read := readICMPErrors(s.UDPConn)
	for _, addr := range refused {
		s.refused(addr)
	}
	return read > 0
}
