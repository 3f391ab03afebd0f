package probe

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"pbxmesh/failover"
)

// Defaults of Options.
const (
	DefaultInterval    = time.Second
	DefaultTimeout     = 500 * time.Millisecond
	DefaultMaxInFlight = 64
)

// Options configure a Prober.
type Options struct {
	// Local is the address probes leave from; the zero value means any address
	// and a port of the kernel's choice. The nodes' mesh ACL must let it in when
	// Mesh is set.
	Local netip.AddrPort

	// Interval between two probes of one address, 100 ms to 1 h, each jittered by
	// a tenth either way; 0 means DefaultInterval.
	Interval time.Duration

	// Timeout is the longest wait of one probe for an answer; the wait itself follows
	// the measured round trip (see plan). 0 means DefaultTimeout or, with a short
	// interval, four fifths of it. At most nine tenths of Interval, so that two probes
	// of one address never overlap.
	Timeout time.Duration

	// Mesh also probes every node's mesh address. A node without a UDP port for
	// phones is probed there in any case.
	Mesh bool

	// MaxInFlight bounds the probes under way at one time; 0 means
	// DefaultMaxInFlight. Who finds none free waits and is probed late.
	MaxInFlight int

	// OnResult gets every result, from several goroutines at once. It must not
	// block: the next probe of that address waits for it.
	OnResult func(failover.ProbeResult)

	// Logger may be nil.
	Logger *slog.Logger
}

func (o *Options) setDefaults() error {
	if o.Interval == 0 {
		o.Interval = DefaultInterval
	}
	if o.Timeout == 0 {
		o.Timeout = min(DefaultTimeout, o.Interval*4/5)
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = DefaultMaxInFlight
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case o.OnResult == nil:
		return errors.New("probe: no receiver for results; set OnResult")
	case o.Interval < 100*time.Millisecond || o.Interval > time.Hour:
		return fmt.Errorf("probe: interval %v, 100ms to 1h are allowed", o.Interval)
	case o.Timeout < 10*time.Millisecond || o.Timeout > o.Interval*9/10:
		return fmt.Errorf("probe: timeout %v, 10ms to nine tenths of the interval %v are allowed", o.Timeout, o.Interval)
	case o.MaxInFlight < 1:
		return fmt.Errorf("probe: at most %d probes in flight, at least 1 is needed", o.MaxInFlight)
	}
	return nil
}
