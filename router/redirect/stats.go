package redirect

import (
	"net/netip"
	"sync/atomic"
	"time"

	"pbxmesh"
)

// Transport is how a request came.
type Transport uint8

// The transports.
const (
	UDP Transport = iota
	TCP
	TLS
)

// String returns "udp", "tcp" or "tls".
func (t Transport) String() string { return [...]string{"udp", "tcp", "tls"}[t] }

// Record describes one answered request to Options.Observe.
type Record struct {
	Method    string
	Status    int
	AOR       pbxmesh.AOR // of an INVITE; zero when it named none
	Nodes     []pbxmesh.NodeID
	From      netip.AddrPort
	Transport Transport
}

// Stats are counters since the server was made.
type Stats struct {
	UDP, TCP, TLS uint64 // requests that could be answered, and ACKs

	// Answers by status. Redirected counts 302 to INVITE, DefaultNode those of them
	// that went to the default node, Registers 302 to REGISTER.
	Redirected, DefaultNode, Registers       uint64
	NotFound, Unreachable, Unavailable       uint64 // 404, 480, 503 to INVITE
	Options, Malformed, Unknown, OtherAnswer uint64 // 200 or 503 to OPTIONS, 400, 405, any other

	Acks      uint64 // ACKs, which are never answered
	Strangers uint64 // packets and connections of sources that are not allowed
	Dropped   uint64 // packets and connections that could not be answered: noise, responses
	Refused   uint64 // connections above a bound
	Panics    uint64

	Conns   int // open now
	Numbers NumbersStats
}

// NumbersStats says how the table of numbers does.
type NumbersStats struct {
	Entries int
	Loaded  time.Time // when the present table was read
	Err     error     // why the file as it is now cannot be read; the older table counts
}

type counters struct {
	transport [3]atomic.Uint64

	redirected, defaultNode, registers, notFound, unreachable, unavailable,
	options, malformed, unknown, other, acks, strangers, dropped, refused, panics atomic.Uint64
}

// Stats returns the counters; each is exact, together they may be a request apart.
func (s *Server) Stats() Stats {
	c := &s.counters
	s.mu.Lock()
	conns := len(s.conns)
	s.mu.Unlock()
	return Stats{
		UDP: c.transport[UDP].Load(), TCP: c.transport[TCP].Load(), TLS: c.transport[TLS].Load(),
		Redirected: c.redirected.Load(), DefaultNode: c.defaultNode.Load(), Registers: c.registers.Load(),
		NotFound: c.notFound.Load(), Unreachable: c.unreachable.Load(), Unavailable: c.unavailable.Load(),
		Options: c.options.Load(), Malformed: c.malformed.Load(), Unknown: c.unknown.Load(), OtherAnswer: c.other.Load(),
		Acks: c.acks.Load(), Strangers: c.strangers.Load(), Dropped: c.dropped.Load(), Refused: c.refused.Load(),
		Panics: c.panics.Load(), Conns: conns, Numbers: s.numbers.stats(),
	}
}
