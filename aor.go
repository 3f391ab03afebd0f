package pbxmesh

import (
	"fmt"
	"strings"
)

// Bounds of an address of record, in bytes.
const (
	MaxUserLen   = 64  // longer than any number plan and any FusionPBX extension
	MaxDomainLen = 253 // RFC 1035 section 2.3.4, without the root dot
	maxLabelLen  = 63  // RFC 1035 section 2.3.4
)

// AOR is an address of record (RFC 3261 section 6): user@domain, both folded
// to ASCII lower case. FreeSWITCH compares users without case, DNS compares
// domains without case, so two AORs are the same phone exactly when they are ==.
//
// A non-zero AOR is always valid: the only ways to get one are NewAOR, ParseAOR
// and UnmarshalText. What stands in it can therefore go into a bridge string, an
// event socket command, a SIP URI, a Redis hash field or an XML document with no
// escaping at all. That is why the accepted alphabet is smaller than RFC 3261's.
type AOR struct {
	addr string // "user@domain"; one string keeps a million of them small
}

// NewAOR returns the AOR of user and domain.
//
// user: 1 to MaxUserLen bytes of [A-Za-z0-9._+-]. domain: a host name of LDH
// labels (underscore allowed, as tenants use it) or a dotted IPv4 address, up to
// MaxDomainLen bytes, no trailing dot, no port, no IPv6 literal. Anything else
// is ErrInvalidAOR. Percent encodings are not decoded: a "%" is refused.
func NewAOR(user, domain string) (AOR, error) {
	if err := checkUser(user); err != nil {
		return AOR{}, err
	}
	if err := checkDomain(domain); err != nil {
		return AOR{}, err
	}
	return AOR{addr: lowerASCII(user) + "@" + lowerASCII(domain)}, nil
}

// ParseAOR reads "user@domain", with or without a leading "sip:" or "sips:".
// Parameters, ports and display names are refused; see NewAOR for the bounds.
func ParseAOR(s string) (AOR, error) {
	rest := s
	if i := strings.IndexByte(rest, ':'); i >= 0 && i <= len("sips") {
		switch lowerASCII(rest[:i]) {
		case "sip", "sips":
			rest = rest[i+1:]
		}
	}
	user, domain, ok := strings.Cut(rest, "@")
	if !ok {
		return AOR{}, fmt.Errorf("%w: %s has no '@'; write user@domain", ErrInvalidAOR, quote(s))
	}
	return NewAOR(user, domain)
}

// User returns the part before the '@', lower case; "" for the zero AOR.
func (a AOR) User() string {
	if i := strings.IndexByte(a.addr, '@'); i >= 0 {
		return a.addr[:i]
	}
	return ""
}

// Domain returns the part after the '@', lower case; "" for the zero AOR.
func (a AOR) Domain() string {
	if i := strings.IndexByte(a.addr, '@'); i >= 0 {
		return a.addr[i+1:]
	}
	return ""
}

// String returns "user@domain", or "" for the zero AOR.
func (a AOR) String() string { return a.addr }

// IsZero reports whether a is the zero AOR, which names nobody.
func (a AOR) IsZero() bool { return a.addr == "" }

// MarshalText implements encoding.TextMarshaler.
func (a AOR) MarshalText() ([]byte, error) { return []byte(a.addr), nil }

// UnmarshalText implements encoding.TextUnmarshaler with ParseAOR's rules.
func (a *AOR) UnmarshalText(text []byte) error {
	v, err := ParseAOR(string(text))
	if err != nil {
		return err
	}
	*a = v
	return nil
}

func checkUser(user string) error {
	switch {
	case user == "":
		return fmt.Errorf("%w: the user is empty", ErrInvalidAOR)
	case len(user) > MaxUserLen:
		return fmt.Errorf("%w: the user has %d bytes, at most %d are allowed", ErrInvalidAOR, len(user), MaxUserLen)
	}
	for i := range len(user) {
		if c := user[i]; !isAlnum(c) && c != '.' && c != '_' && c != '+' && c != '-' {
			return fmt.Errorf("%w: the user %s has %s at byte %d; letters, digits and . _ + - are allowed",
				ErrInvalidAOR, quote(user), quote(user[i:i+1]), i)
		}
	}
	return nil
}

func checkDomain(domain string) error {
	switch {
	case domain == "":
		return fmt.Errorf("%w: the domain is empty", ErrInvalidAOR)
	case len(domain) > MaxDomainLen:
		return fmt.Errorf("%w: the domain has %d bytes, at most %d are allowed", ErrInvalidAOR, len(domain), MaxDomainLen)
	}
	for label := range strings.SplitSeq(domain, ".") {
		if label == "" || len(label) > maxLabelLen {
			return fmt.Errorf("%w: the domain %s has a label of %d bytes, 1 to %d are allowed",
				ErrInvalidAOR, quote(domain), len(label), maxLabelLen)
		}
		if label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%w: the domain %s has a label that starts or ends with '-'", ErrInvalidAOR, quote(domain))
		}
		for i := range len(label) {
			if c := label[i]; !isAlnum(c) && c != '-' && c != '_' {
				return fmt.Errorf("%w: the domain %s has %s; letters, digits, '-', '_' and dots are allowed",
					ErrInvalidAOR, quote(domain), quote(label[i:i+1]))
			}
		}
	}
	return nil
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// lowerASCII folds A-Z only. strings.ToLower would also fold letters such as the
// Kelvin sign into ASCII, which would make two spellings one user.
func lowerASCII(s string) string {
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				if b[j] >= 'A' && b[j] <= 'Z' {
					b[j] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// quote shows hostile input in an error: ASCII only, at most 40 bytes of it.
func quote(s string) string {
	const limit = 40
	if len(s) > limit {
		return fmt.Sprintf("%+q...", s[:limit])
	}
	return fmt.Sprintf("%+q", s)
}
