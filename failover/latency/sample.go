package latency

import (
	"net/netip"
	"time"
)

// Sample is one round trip between a node and one of its own clients.
type Sample struct {
	Client netip.Addr
	RTT    time.Duration // 0 is a visit that measured nothing
	At     time.Time     // when it was seen

	// Phone names the account that registered, as the switch found it right: user@domain
	// of its directory. Samples of one account are one phone's. "" takes the address for
	// the phone.
	Phone string

	// Visit says that the client registered just then: it is this node that the network
	// uses. A keep-alive is no visit, and is timed by the switch itself, which is better
	// than from outside.
	Visit bool
}

// Bounds of a sample. Longer ones are no latency but a phone that slept, or a
// password typed by hand.
const maxRTT = 4 * time.Second

// The networks for which estimates are kept.
const (
	bits4, bits6             = 24, 48
	parentBits4, parentBits6 = 16, 32
)

// networkOf returns the network of a client; ok is false for what is no client's
// address.
func networkOf(client netip.Addr) (network netip.Prefix, ok bool) {
	client = client.Unmap().WithZone("")
	if !client.IsValid() || client.IsUnspecified() || client.IsMulticast() {
		return netip.Prefix{}, false
	}
	n := bits6
	if client.Is4() {
		n = bits4
	}
	network, _ = client.Prefix(n)
	return network, true
}

// addressOf returns what stands for one host: an IPv4 address, or the /64 of an IPv6 one, in
// which a host chooses its addresses.
func addressOf(client netip.Addr) netip.Addr {
	client = client.Unmap().WithZone("")
	if client.Is6() {
		p, _ := client.Prefix(64)
		return p.Addr()
	}
	return client
}

// parentOf returns the wider network around one of networkOf.
func parentOf(network netip.Prefix) netip.Prefix {
	n := parentBits6
	if network.Addr().Is4() {
		n = parentBits4
	}
	p, _ := network.Addr().Prefix(n)
	return p
}

// quarters is a time in quarters of a millisecond: what is kept and shared. 0 is none.
type quarters uint16

func quartersOf(d time.Duration) quarters {
	return quarters(max(1, (d+125*time.Microsecond)/(250*time.Microsecond))) //nolint:gosec // at most maxRTT
}

func (q quarters) ms() float64 { return float64(q) / 4 }
