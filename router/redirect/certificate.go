package redirect

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"
)

// certificate is the server's, read again when its files change: one that is
// renewed every few weeks must not need a restart.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	seen              [2]fileState // the poller's alone
	current           atomic.Pointer[tls.Certificate]
}

func newCertificate(certFile, keyFile string, log *slog.Logger) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, log: log}
	c.seen = [2]fileState{stat(certFile), stat(keyFile)}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("redirect: certificate %s with key %s: %w", certFile, keyFile, err)
	}
	c.current.Store(&pair)
	return c, nil
}

// poll reads the files when they changed. A pair that cannot be read leaves the
// older one in place, and is told once: the two files change one after the other.
func (c *certificate) poll() {
	now := [2]fileState{stat(c.certFile), stat(c.keyFile)}
	if now == c.seen {
		return
	}
	c.seen = now
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		c.log.Error("the certificate is not read, the older one stays in force", "file", c.certFile, "err", err)
		return
	}
	c.current.Store(&pair)
	c.log.Info("certificate read", "file", c.certFile)
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return c.current.Load(), nil
}
