package dnsserver

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/dchest/siphash"
)

// Lengths of the parts of a cookie option (RFC 7873 section 4, RFC 9018 section 4).
const (
	clientCookieSize = 8
	serverCookieSize = 16
	cookieSize       = clientCookieSize + serverCookieSize
	cookieVersion    = 1
)

// A server cookie is good for an hour, and half an hour after its time a new one is
// given; clocks of name servers may differ by five minutes (RFC 9018 section 4.3).
const (
	cookieLife   = 3600
	cookieRenew  = 1800
	cookieFuture = 300
)

// CookieSecret makes server cookies. All servers that answer at one address, and
// better all of one zone, have the same.
type CookieSecret [16]byte

// Cookies make and check DNS cookies (RFC 7873) in the form that servers of other
// makes know too (RFC 9018: SipHash-2-4). A client with a valid cookie is really at
// its address. It is for concurrent use.
type Cookies struct {
	secrets atomic.Pointer[[]CookieSecret]
}

// NewCookies returns Cookies that are made with current; those made with one of
// accepted are good too, which is how a secret is replaced (RFC 9018 section 5): add
// the new one to accepted on all servers, make it current on all, and drop the old
// one an hour later.
func NewCookies(current CookieSecret, accepted ...CookieSecret) *Cookies {
	c := new(Cookies)
	c.Set(current, accepted...)
	return c
}

// RandomCookies returns Cookies with a secret of their own: good for one server.
func RandomCookies() *Cookies {
	var s CookieSecret
	_, _ = rand.Read(s[:]) // never fails
	return NewCookies(s)
}

// Set replaces the secrets for all queries from now on.
func (c *Cookies) Set(current CookieSecret, accepted ...CookieSecret) {
	all := append([]CookieSecret{current}, accepted...)
	c.secrets.Store(&all)
}

// cookieLength reports whether a cookie option may have this many bytes (RFC 7873
// section 5.2.2): a client cookie, alone or with 8 to 32 bytes of a server cookie.
func cookieLength(n int) bool { return n == clientCookieSize || n >= 16 && n <= 40 }

// cookieState is what the cookie of a query says about its sender.
type cookieState uint8

const (
	cookieNone  cookieState = iota // no cookie option
	cookieNew                      // a client cookie alone
	cookieBad                      // a server cookie that is not ours, or too old
	cookieValid                    // the client got our cookie at its address
)

// answer checks option, a cookie option of a good length, and returns the option of
// the reply.
func (c *Cookies) answer(option []byte, client netip.Addr, now time.Time) (reply [cookieSize]byte, state cookieState) {
	copy(reply[:], option[:clientCookieSize])
	secrets, sec := *c.secrets.Load(), uint32(now.Unix())
	state = cookieNew
	if len(option) > clientCookieSize {
		state = cookieBad
		if len(option) == cookieSize && option[8] == cookieVersion {
			made := binary.BigEndian.Uint32(option[12:])
			// Serial number arithmetic (RFC 1982): the clock runs over in 2106.
			if age := int32(sec - made); age <= cookieLife && age >= -cookieFuture {
				for i := range secrets {
					if sum := cookieHash(&secrets[i], option[:16], client); subtle.ConstantTimeCompare(sum[:], option[16:]) == 1 {
						state = cookieValid
						if i == 0 && age <= cookieRenew {
							copy(reply[8:], option[8:])
							return reply, state
						}
						break
					}
				}
			}
		}
	}
	reply[8], reply[9], reply[10], reply[11] = cookieVersion, 0, 0, 0
	binary.BigEndian.PutUint32(reply[12:], sec)
	sum := cookieHash(&secrets[0], reply[:16], client)
	copy(reply[16:], sum[:])
	return reply, state
}

// cookieHash is the hash of RFC 9018 section 4.4. head is the client cookie, version,
// reserved bytes and time stamp.
func cookieHash(secret *CookieSecret, head []byte, client netip.Addr) (sum [8]byte) {
	var in [32]byte
	n := copy(in[:], head)
	if client.Is4() {
		a := client.As4()
		n += copy(in[n:], a[:])
	} else {
		a := client.As16()
		n += copy(in[n:], a[:])
	}
	h := siphash.Hash(binary.LittleEndian.Uint64(secret[:]), binary.LittleEndian.Uint64(secret[8:]), in[:n])
	binary.LittleEndian.PutUint64(sum[:], h)
	return sum
}
