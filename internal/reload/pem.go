package reload

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
)

// maxPEM bounds a file of certificates: the bundle of a whole system has some 250 kB.
const maxPEM = 4 << 20

// KeyPair is a certificate, with its chain, and its key, PEM.
type KeyPair = Value[[2]string, tls.Certificate]

// NewKeyPair reads both files. They change one after the other: between the two the
// older pair stays in force.
func NewKeyPair(name, certFile, keyFile string, log *slog.Logger) (*KeyPair, error) {
	return New(Options[[2]string, tls.Certificate]{
		Name: name, Logger: log,
		Read: func() (content [2]string, err error) {
			for i, file := range []string{certFile, keyFile} {
				src, err := ReadFile(file, maxPEM)
				if err != nil {
					return content, err
				}
				content[i] = string(src)
			}
			return content, nil
		},
		Make: func(content [2]string) (tls.Certificate, error) {
			pair, err := tls.X509KeyPair([]byte(content[0]), []byte(content[1]))
			if err != nil {
				err = fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
			}
			return pair, err
		},
	})
}

// Pool is a set of certificates to trust.
type Pool = Value[string, *x509.CertPool]

// NewPool reads file, PEM. It must hold a certificate, and no beginning of one without
// its end, which is a file that is just being written.
func NewPool(name, file string, log *slog.Logger) (*Pool, error) {
	return New(Options[string, *x509.CertPool]{
		Name: name, Logger: log,
		Read: func() (string, error) {
			src, err := ReadFile(file, maxPEM)
			return string(src), err
		},
		Make: func(content string) (*x509.CertPool, error) {
			pool := x509.NewCertPool()
			if !pool.AppendCertsFromPEM([]byte(content)) {
				return nil, errors.New("no certificate in " + file)
			}
			if cutOff([]byte(content)) {
				return nil, errors.New("the last certificate in " + file + " has no end")
			}
			return pool, nil
		},
	})
}

// cutOff reports whether a block begins and does not end after the last whole one.
func cutOff(src []byte) bool {
	for {
		block, rest := pem.Decode(src)
		if block == nil {
			return bytes.Contains(src, []byte("-----BEGIN "))
		}
		src = rest
	}
}
