package redirect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"pbxmesh"
	"pbxmesh/internal/udpbatch"
)

// Directory says who is registered. Lookup returns all records of an address,
// expired ones included, and how old that view may be. It is called on the goroutine
// that reads packets and must return within microseconds: from memory. Nobody there
// is an empty slice or pbxmesh.ErrNotRegistered; any other error means that nothing
// is known, and the request is answered with 503.
type Directory interface {
	Lookup(ctx context.Context, aor pbxmesh.AOR) (regs []*pbxmesh.Registration, age time.Duration, err error)
}

// Nodes says which nodes there are and how they do: an immutable picture. It must
// not block.
type Nodes interface {
	Mesh() *pbxmesh.Mesh
}

// Chooser says which nodes a phone at client should register at, best first. It
// must not block.
type Chooser interface {
	Choose(client netip.Addr) []pbxmesh.NodeID
}

// Defaults of Options.
const (
	DefaultMaxConns          = 1024
	DefaultMaxConnsPerClient = 64
	DefaultMessageTimeout    = 5 * time.Second
	DefaultIdleTimeout       = 5 * time.Minute
	DefaultPoll              = 2 * time.Second
	DefaultGrace             = 3 * time.Second
)

// Options configure a Server. Directory, Nodes and at least one listener are
// required.
type Options struct {
	Directory Directory
	Nodes     Nodes

	// UDP, TCP and TLS are the addresses to listen at; port 0 lets the kernel
	// choose. 0.0.0.0 and :: are refused: an answer has to leave from the address
	// that was asked. TLS needs CertFile and KeyFile, PEM, which are read again
	// when they change.
	UDP, TCP, TLS     []netip.AddrPort
	CertFile, KeyFile string

	// Allow are the networks whose requests are answered; empty is this machine
	// alone. Everybody else gets no answer at all.
	Allow []netip.Prefix

	// Domain is the domain of a callee when the request names an IP address in its
	// place and nobody is registered there. "" leaves that to 404.
	Domain string

	// DefaultNode gets the calls to valid addresses that nobody is registered for;
	// "" answers them with 404.
	DefaultNode pbxmesh.NodeID

	// NumbersFile is the table from dialled numbers to addresses of record, see
	// ParseNumbers; "" is none. It is looked at every Poll and read when it changed.
	NumbersFile string
	Poll        time.Duration

	// Chooser turns redirecting REGISTER on; nil answers REGISTER with 405.
	Chooser Chooser

	// Ready is asked for each OPTIONS: nil is 200, an error 503. It must not block.
	// nil is always ready.
	Ready func() error

	// Readers is the number of goroutines per UDP socket; 0 means one for two
	// processors, as the kernel's half of the work is done on the others. Each reads,
	// answers and writes a batch, so that the kernel's receive buffer is the only
	// queue: when it is full, the newest packets are lost.
	Readers int

	// MaxConns and MaxConnsPerClient bound the connections, all and from one
	// address; what comes above is closed at once. MessageTimeout bounds a TLS
	// handshake, the arrival of a request that has begun and the writing of its
	// answer; IdleTimeout the wait for the next one.
	MaxConns, MaxConnsPerClient int
	MessageTimeout, IdleTimeout time.Duration

	// Observe is called for every request that was answered, on the goroutine that
	// answers. It must not block. nil is none.
	Observe func(Record)

	// Now is the clock that expiry is judged by; nil is time.Now.
	Now func() time.Time

	// Logger may be nil. Each answered INVITE and REGISTER is a line at level debug,
	// when that is on at New.
	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	switch {
	case o.Directory == nil || o.Nodes == nil:
		return o, errors.New("redirect: a Directory and Nodes are needed")
	case len(o.UDP)+len(o.TCP)+len(o.TLS) == 0:
		return o, errors.New("redirect: no address to listen at")
	case len(o.TLS) > 0 && (o.CertFile == "" || o.KeyFile == ""):
		return o, errors.New("redirect: TLS needs a certificate file and a key file")
	case o.Readers < 0 || o.MaxConns < 0 || o.MaxConnsPerClient < 0 || o.MessageTimeout < 0 || o.IdleTimeout < 0 || o.Poll < 0:
		return o, errors.New("redirect: a negative bound; leave it 0 for the default")
	}
	for _, list := range [][]netip.AddrPort{o.UDP, o.TCP, o.TLS} {
		for _, a := range list {
			if !a.IsValid() || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
				return o, fmt.Errorf("redirect: %v is no address of this machine: name each address to listen at", a)
			}
			if !a.Addr().IsLoopback() && len(o.Allow) == 0 {
				return o, fmt.Errorf("redirect: %v can be reached from other machines: name the networks that are answered", a)
			}
		}
	}
	for _, p := range o.Allow {
		if !p.IsValid() || p != p.Masked() {
			return o, fmt.Errorf("redirect: %v is no network", p)
		}
	}
	if o.DefaultNode != "" {
		if id, err := pbxmesh.ParseNodeID(string(o.DefaultNode)); err != nil || id != o.DefaultNode {
			return o, fmt.Errorf("redirect: the default node's name: %w: %.40q", pbxmesh.ErrInvalidNodeID, o.DefaultNode)
		}
	}
	if o.Domain != "" {
		if _, err := pbxmesh.NewAOR("1", o.Domain); err != nil {
			return o, fmt.Errorf("redirect: the default domain: %w", err)
		}
	}
	if len(o.Allow) == 0 {
		o.Allow = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	o.Readers = orDefault(o.Readers, udpbatch.Readers())
	o.MaxConns = orDefault(o.MaxConns, DefaultMaxConns)
	o.MaxConnsPerClient = orDefault(o.MaxConnsPerClient, DefaultMaxConnsPerClient)
	o.MessageTimeout = orDefault(o.MessageTimeout, DefaultMessageTimeout)
	o.IdleTimeout = orDefault(o.IdleTimeout, DefaultIdleTimeout)
	o.Poll = orDefault(o.Poll, DefaultPoll)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}
