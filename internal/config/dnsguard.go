package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// RateLimit bounds the UDP responses to one client network, /24 or /56, that has no
// valid cookie. Rates are responses per second; 0 is without limit.
type RateLimit struct {
	Answers  int `yaml:"answers"`
	NXDomain int `yaml:"nxdomain"`
	Errors   int `yaml:"errors"`

	// Slip sends every Slip-th limited response cut to nothing; 0 is none.
	Slip int `yaml:"slip"`

	Exempt []netip.Prefix `yaml:"exempt"`
}

// Cookie names the files with the secrets that DNS cookies are made with. Without one
// the daemon makes a secret of its own at each start.
type Cookie struct {
	SecretFile SecretFile `yaml:"secret_file"`

	// AcceptFile is another secret whose cookies are taken: the next one or the last
	// one, while the secret is replaced on all name servers.
	AcceptFile SecretFile `yaml:"accept_file"`
}

// maxRate is above what a machine answers.
const maxRate = 10_000_000

func (d *decoder) validateGuards(z *DNS) {
	inRange(d, "dns.rate_limit.answers", z.RateLimit.Answers, 0, maxRate)
	inRange(d, "dns.rate_limit.nxdomain", z.RateLimit.NXDomain, 0, maxRate)
	inRange(d, "dns.rate_limit.errors", z.RateLimit.Errors, 0, maxRate)
	inRange(d, "dns.rate_limit.slip", z.RateLimit.Slip, 0, 100)
	for i, p := range z.RateLimit.Exempt {
		if slices.Contains(z.RateLimit.Exempt[:i], p) {
			d.check(fmt.Sprintf("dns.rate_limit.exempt[%d]", i), "%s stands in the list twice: remove one", p)
		}
	}
	if z.Amplification != 0 {
		inRange(d, "dns.amplification", z.Amplification, 2, 100)
	}
	if z.Cookie.AcceptFile != "" && z.Cookie.SecretFile == "" {
		d.check("dns.cookie.secret_file", "is missing: accept_file is for a secret that takes the place of another one")
	}
}

func (d *decoder) checkCookieSecrets(c *Cookie) {
	for path, file := range map[string]SecretFile{"dns.cookie.secret_file": c.SecretFile, "dns.cookie.accept_file": c.AcceptFile} {
		if file == "" {
			continue
		}
		if _, err := ReadCookieSecret(file); err != nil {
			d.check(path, "%s", err)
		}
	}
}

// ReadCookieSecret returns the 16 bytes that file holds as 32 hexadecimal digits, the
// form in which other makes of name servers keep them.
func ReadCookieSecret(file SecretFile) (secret [16]byte, err error) {
	text, err := file.Read()
	if err != nil {
		return secret, err
	}
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(secret) { // the content is not shown
		return secret, errors.New("holds no cookie secret: write 32 hexadecimal digits, such as `openssl rand -hex 16` makes")
	}
	return [16]byte(raw), nil
}
