package pbxmesh

import (
	"fmt"
	"net/netip"
	"time"
)

// Bounds of a registration's free-text fields, in bytes. Longer values are
// refused by Validate; who writes a record cuts the user agent instead.
const (
	MaxContactLen   = 1024
	MaxCallIDLen    = 256
	MaxProfileLen   = 64
	MaxUserAgentLen = 128
)

// Registration is one device of an AOR on one node: a binding in the words of
// RFC 3261 section 10. A published Registration is never written to again.
type Registration struct {
	// What a decision reads comes first: among a million records each cache line
	// is a wait for memory.

	AOR  AOR
	Node NodeID

	// Expires is when the registration ends by itself.
	Expires time.Time

	// Profile is the sofia profile that holds the registration: "internal".
	Profile string

	// Since orders the registrations that one device has on several nodes: see Stamp and
	// Superseded. A refresh keeps it.
	Since Stamp

	// Contact is the bare contact URI, "sip:1001@192.0.2.7:5062". It is shown and
	// compared, and never put into a bridge string: the switch knows its own.
	Contact string

	// CallID is the Call-ID of the REGISTER, unique per device on its node. With
	// AOR and Node it identifies the registration.
	CallID string

	// Source is where the REGISTER came from; the zero value when unknown.
	Source netip.AddrPort

	// Transport is "udp", "tcp", "tls", "ws" or "wss", "" when unknown.
	Transport string

	// UserAgent is what the phone calls itself, cut to MaxUserAgentLen.
	UserAgent string
}

// RegistrationID identifies a registration within its node.
type RegistrationID struct {
	AOR    AOR
	CallID string
}

// ID returns what identifies r within its node.
func (r *Registration) ID() RegistrationID { return RegistrationID{AOR: r.AOR, CallID: r.CallID} }

// Live is the one expiry predicate of the mesh: r counts until Expires, and not
// at that instant any more.
func (r *Registration) Live(now time.Time) bool { return now.Before(r.Expires) }

// Validate returns ErrInvalidRecord when a field is missing or out of bounds.
// It is the gate for records that come from a store anyone may have written to.
func (r *Registration) Validate() error {
	if r.AOR.IsZero() {
		return fmt.Errorf("%w: no address of record", ErrInvalidRecord)
	}
	if id, err := ParseNodeID(string(r.Node)); err != nil || id != r.Node {
		return fmt.Errorf("%w: node %s", ErrInvalidRecord, quote(string(r.Node)))
	}
	if r.CallID == "" {
		return fmt.Errorf("%w: no Call-ID", ErrInvalidRecord)
	}
	if r.Expires.IsZero() {
		return fmt.Errorf("%w: no expiry", ErrInvalidRecord)
	}
	for _, f := range [...]struct {
		name, value string
		limit       int
	}{
		{"Call-ID", r.CallID, MaxCallIDLen},
		{"contact", r.Contact, MaxContactLen},
		{"profile", r.Profile, MaxProfileLen},
		{"transport", r.Transport, len("wss")},
		{"user agent", r.UserAgent, MaxUserAgentLen},
	} {
		if len(f.value) > f.limit {
			return fmt.Errorf("%w: %s of %d bytes, at most %d are allowed", ErrInvalidRecord, f.name, len(f.value), f.limit)
		}
		for i := range len(f.value) {
			if c := f.value[i]; c < ' ' || c == 0x7f {
				return fmt.Errorf("%w: %s has a control character", ErrInvalidRecord, f.name)
			}
		}
	}
	for i := range len(r.Profile) {
		if c := r.Profile[i]; !isAlnum(c) && c != '-' && c != '_' && c != '.' {
			return fmt.Errorf("%w: profile %s", ErrInvalidRecord, quote(r.Profile))
		}
	}
	return nil
}
