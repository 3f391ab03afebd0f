package redirect

import (
	"crypto/tls"
	"fmt"
	"log/slog"

	"pbxmesh/internal/reload"
)

// certificate is the server's, read again when its files change: one that is
// renewed every few weeks must not need a restart.
type certificate struct{ pair *reload.KeyPair }

func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	pair, err := reload.NewKeyPair("router.redirect.cert_file", certFile, keyFile, log)
	if err != nil {
		return nil, fmt.Errorf("redirect: %w", err)
	}
	return &certificate{pair}, nil
}

// poll reads the files. A pair that cannot be read leaves the older one in place.
func (c *certificate) poll() { c.pair.Now() }

// get reads nothing: strangers ask it.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair := c.pair.Last()
	return &pair, nil
}
