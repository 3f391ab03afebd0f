package registry

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"pbxmesh"
)

// wireVersion is the version of every value that the package writes. A field
// may be added under it; a change that an older reader would misread needs a new
// one, and readers skip and count what is newer than they are.
const wireVersion = 1

// maxUnixMilli is the end of the year 9999, beyond which no expiry is meant.
const maxUnixMilli = 253402300799999

// wireRegistration is the value of a registration record. The AOR stands in the
// key and the node in the name of the store's key: neither is written twice.
type wireRegistration struct {
	Version   int    `json:"v"`
	CallID    string `json:"i"`
	Contact   string `json:"c,omitempty"`
	Profile   string `json:"p,omitempty"`
	Source    string `json:"s,omitempty"`
	Transport string `json:"t,omitempty"`
	UserAgent string `json:"a,omitempty"`

	// Since is a pbxmesh.Stamp; a daemon that writes none claims nothing.
	Since   int64 `json:"b,omitempty"`
	Expires int64 `json:"x"` // Unix milliseconds; the last field, see sameButExpiry
}

// RegistrationKey is the key of a registration record: the AOR, "|", and a
// digest of the Call-ID, which may hold any character and be 256 bytes long.
func RegistrationKey(id pbxmesh.RegistrationID) string {
	sum := sha256.Sum256([]byte(id.CallID))
	var tail [16]byte
	base64.RawURLEncoding.Encode(tail[:], sum[:12])
	return id.AOR.String() + "|" + string(tail[:])
}

// keyAOR returns the AOR of a registration key.
func keyAOR(key string) (pbxmesh.AOR, error) {
	addr, tail, ok := strings.Cut(key, "|")
	if !ok || len(tail) != 16 {
		return pbxmesh.AOR{}, fmt.Errorf("%w: key %s", pbxmesh.ErrInvalidRecord, show(key))
	}
	aor, err := pbxmesh.ParseAOR(addr)
	if err != nil || aor.String() != addr {
		return pbxmesh.AOR{}, fmt.Errorf("%w: key %s", pbxmesh.ErrInvalidRecord, show(key))
	}
	return aor, nil
}

// EncodeRegistration returns r as a record without a sequence. What it takes, every
// reader of this version reads as it was; pbxmesh.ErrInvalidRecord for all else.
func EncodeRegistration(r *pbxmesh.Registration) (Record, error) {
	if err := validate(r); err != nil {
		return Record{}, err
	}
	w := wireRegistration{
		Version: wireVersion, CallID: r.CallID, Contact: r.Contact, Profile: r.Profile,
		Transport: r.Transport, UserAgent: r.UserAgent, Since: int64(r.Since), Expires: r.Expires.UnixMilli(),
	}
	if r.Source.IsValid() {
		w.Source = r.Source.String()
	}
	value, err := json.Marshal(&w)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %w", pbxmesh.ErrInvalidRecord, err)
	}
	rec := Record{Kind: KindRegistration, Key: RegistrationKey(r.ID()), Value: string(value)}
	return rec, rec.Validate()
}

// DecodeRegistration reads a registration that node published, for whoever reads
// a store without a replica. pbxmesh.ErrInvalidRecord when it is none of ours.
func DecodeRegistration(node pbxmesh.NodeID, rec Record) (pbxmesh.Registration, error) {
	if rec.Kind != KindRegistration || rec.Tombstone() {
		return pbxmesh.Registration{}, fmt.Errorf("%w: a record of kind %s", pbxmesh.ErrInvalidRecord, show(string(rec.Kind)))
	}
	return decodeRegistration(node, &rec)
}

// decodeRegistration reads what anyone may have written: every field is checked,
// and the key must be the one that the value asks for.
func decodeRegistration(node pbxmesh.NodeID, rec *Record) (pbxmesh.Registration, error) {
	var none pbxmesh.Registration
	if err := rec.Validate(); err != nil {
		return none, err
	}
	aor, err := keyAOR(rec.Key)
	if err != nil {
		return none, err
	}
	var w wireRegistration
	if err := json.Unmarshal([]byte(rec.Value), &w); err != nil {
		return none, fmt.Errorf("%w: registration of %s: %w", pbxmesh.ErrInvalidRecord, aor, err)
	}
	if w.Version != wireVersion {
		return none, fmt.Errorf("%w: registration of %s has version %d, this daemon reads %d",
			pbxmesh.ErrInvalidRecord, aor, w.Version, wireVersion)
	}
	if w.Expires <= 0 || w.Expires > maxUnixMilli {
		return none, fmt.Errorf("%w: registration of %s expires at %d", pbxmesh.ErrInvalidRecord, aor, w.Expires)
	}
	r := pbxmesh.Registration{
		AOR: aor, Node: node, CallID: w.CallID, Contact: w.Contact, Profile: w.Profile,
		Transport: w.Transport, UserAgent: w.UserAgent, Since: pbxmesh.Stamp(w.Since), Expires: time.UnixMilli(w.Expires).UTC(),
	}
	if w.Source != "" {
		if r.Source, err = netip.ParseAddrPort(w.Source); err != nil {
			return none, fmt.Errorf("%w: registration of %s came from %s", pbxmesh.ErrInvalidRecord, aor, show(w.Source))
		}
	}
	if err := validate(&r); err != nil {
		return none, err
	}
	if RegistrationKey(r.ID()) != rec.Key {
		return none, fmt.Errorf("%w: registration of %s stands under another key", pbxmesh.ErrInvalidRecord, aor)
	}
	return r, nil
}

// validate adds to Registration.Validate what keeps a replica small and its
// values readable: text that JSON can hold, known transports, no IPv6 zones, an
// expiry within the years that are meant. Writers and readers apply the same, so
// that nothing can be published that a reader of this version refuses.
func validate(r *pbxmesh.Registration) error {
	if err := r.Validate(); err != nil {
		return err
	}
	// JSON has no other bytes: what is written would not be what is read.
	for _, s := range [...]string{r.CallID, r.Contact, r.UserAgent} {
		if !utf8.ValidString(s) {
			return fmt.Errorf("%w: %s is no UTF-8", pbxmesh.ErrInvalidRecord, show(s))
		}
	}
	switch r.Transport {
	case "", "udp", "tcp", "tls", "ws", "wss":
	default:
		return fmt.Errorf("%w: transport %s", pbxmesh.ErrInvalidRecord, show(r.Transport))
	}
	if r.Source.Addr().Zone() != "" {
		return fmt.Errorf("%w: source %s has a zone", pbxmesh.ErrInvalidRecord, show(r.Source.String()))
	}
	if r.Since < 0 || r.Since > maxUnixMilli {
		return fmt.Errorf("%w: it began at %d", pbxmesh.ErrInvalidRecord, r.Since)
	}
	if ms := r.Expires.UnixMilli(); ms <= 0 || ms > maxUnixMilli {
		return fmt.Errorf("%w: expiry %s is out of range", pbxmesh.ErrInvalidRecord, r.Expires)
	}
	return nil
}
