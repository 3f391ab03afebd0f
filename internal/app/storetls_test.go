package app

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"testing"
	"time"

	"pbxmesh/internal/config"
	"pbxmesh/registry/registrytest"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{}
	a.cert = &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	var der []byte
	a.pem, _, der, a.key = signed(t, a.cert, a.cert, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return a
}

// issue returns a certificate for names, which are addresses or host names, and its key.
func (a *authority) issue(t *testing.T, change func(*x509.Certificate), names ...string) (cert, key string) {
	t.Helper()
	c := &x509.Certificate{
		Subject: pkix.Name{CommonName: "of the test"}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, name)
		}
	}
	if change != nil {
		change(c)
	}
	cert, key, _, _ = signed(t, c, a.cert, a.key)
	return cert, key
}

// signed makes a certificate of template, by its own key when there is no other.
func signed(t *testing.T, template, parent *x509.Certificate, by *ecdsa.PrivateKey) (cert, key string, der []byte, private *ecdsa.PrivateKey) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by == nil {
		by = private
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62)); err != nil {
		t.Fatal(err)
	}
	if template.NotAfter.IsZero() {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	}
	if der, err = x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, by); err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return text("CERTIFICATE", der), text("PRIVATE KEY", raw), der, private
}

// tlsServer is a Redis that speaks TLS on a second port.
type tlsServer struct {
	*rotation
	port    string
	files   int    // how many it was given
	trusted string // by Sentinels
}

// startTLS starts one with a certificate; ca are who may issue its clients' certificates,
// "" for no client certificates.
func startTLS(t *testing.T, cert, key, ca string) *tlsServer {
	t.Helper()
	server := registrytest.StartRedis(t)
	s := &tlsServer{rotation: newRotation(t, server.Addr())}
	s.shows(t, cert, key, ca)
	var err error
	for range 5 { // somebody else may take the port first
		s.port = freePort(t)
		if err = s.servers[0].ConfigSet(t.Context(), "tls-port", s.port).Err(); err == nil {
			return s
		}
	}
	t.Fatal(err)
	return nil
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// shows gives the server another certificate, and other issuers of its clients', for new connections.
func (s *tlsServer) shows(t *testing.T, cert, key, ca string) {
	t.Helper()
	s.files++ // a file of the same name is not read again by Redis
	name := func(what string) string { return fmt.Sprintf("server-%d-%s", s.files, what) }
	auth := "no"
	if ca != "" {
		auth = "yes"
	} else {
		ca = cert // Redis wants one
	}
	err := s.servers[0].Do(t.Context(), "CONFIG", "SET", "tls-cert-file", s.file(t, name("cert"), cert), "tls-key-file", s.file(t, name("key"), key),
		"tls-ca-cert-file", s.file(t, name("ca"), ca), "tls-auth-clients", auth).Err()
	if err != nil {
		t.Fatal(err)
	}
}

// What a refusal says.
const (
	unknown = "x509: certificate signed by unknown authority"
	other   = "x509: certificate is"
)

// Who issues the server's certificates is replaced: what the file holds is trusted by the next connection, and
// nothing that it held before. A file that will not do neither shuts out nor lets in anybody.
func TestStoreAuthorityRotated(t *testing.T) {
	t.Parallel()
	one, two, three := newAuthority(t, "one"), newAuthority(t, "two"), newAuthority(t, "three")
	cert1, key1 := one.issue(t, nil, "127.0.0.1")
	cert2, key2 := two.issue(t, nil, "127.0.0.1")
	cert3, key3 := three.issue(t, nil, "127.0.0.1")
	s := startTLS(t, cert1, key1, "")
	cfg := config.Defaults().Registry
	cfg.URL, cfg.TLS.CAFile = config.URL("rediss://127.0.0.1:"+s.port), config.File(s.file(t, "ca", one.pem))
	const key = "registry.tls.ca_file"
	s.open(t, &cfg)
	s.takes(t, "at first")
	s.file(t, "ca", one.pem+two.pem)
	s.shows(t, cert2, key2, "")
	s.goesOn(t, "after the rotation")
	s.takes(t, "after the rotation")
	s.file(t, "ca", two.pem)
	s.takes(t, "without the former authority")
	s.tells(t, "after the rotation", key, 0, 2)

	s.shows(t, cert3, key3, "") // Redis first, the file later
	s.refused(t, "an authority that is not in the file yet", unknown)
	path := s.file(t, "ca", three.pem)
	s.takes(t, "after a refusal")
	s.tells(t, "after a refusal", key, 0, 1)
	s.shows(t, cert2, key2, "")
	s.refused(t, "an authority that is not in the file any more", unknown)

	for what, content := range map[string]string{"without a certificate": "nothing\n", "empty": "", "half written": two.pem + three.pem[:len(three.pem)-60]} {
		s.file(t, "ca", content)
		s.refused(t, "a stranger, the file "+what, unknown)
		s.shows(t, cert3, key3, "")
		s.takes(t, what)
		s.tells(t, what, key, 1, 0)
		s.file(t, "ca", three.pem)
		s.takes(t, "with the file again")
		s.tells(t, "with the file again", key, 0, 1)
		s.shows(t, cert2, key2, "")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.refused(t, "a stranger, without the file", unknown)
}

// The client's certificate is replaced at a Redis that wants one. Certificate and key are written one after the
// other, and between the two the former pair is shown.
func TestStoreClientCertificateRotated(t *testing.T) {
	t.Parallel()
	server, one, two := newAuthority(t, "server"), newAuthority(t, "one"), newAuthority(t, "two")
	cert, certKey := server.issue(t, nil, "127.0.0.1")
	cert1, key1 := one.issue(t, nil, "london")
	cert2, key2 := two.issue(t, nil, "london")
	s := startTLS(t, cert, certKey, one.pem)
	cfg := config.Defaults().Registry
	cfg.URL = config.URL("rediss://127.0.0.1:" + s.port)
	cfg.TLS.CAFile = config.File(s.file(t, "ca", server.pem))
	cfg.TLS.CertFile, cfg.TLS.KeyFile = config.File(s.file(t, "cert", cert1)), config.File(s.file(t, "key", key1))
	const key = "registry.tls.cert_file"
	s.open(t, &cfg)
	s.takes(t, "at first")

	s.shows(t, cert, certKey, two.pem) // Redis first, the files later
	s.goesOn(t, "with a certificate that is good for nothing new")
	s.refused(t, "with the former certificate", "")
	s.file(t, "cert", cert2)
	s.refused(t, "with half a pair", "")
	path := s.file(t, "key", key2)
	s.takes(t, "with the new pair")
	s.tells(t, "with the new pair", key, 1, 1)

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s.takes(t, "without the key")
	s.takes(t, "without the key")
	s.tells(t, "without the key", key, 1, 0)
	s.file(t, "ca", one.pem) // files stand for themselves: this one is taken
	s.refused(t, "a server of another authority", unknown)
}

// A server is who its certificate says, before and after a rotation: the name in the configuration, else the
// one in the URL, which may be an address.
func TestStoreServerName(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		host, serverName string
		names            []string // in the certificate
		change           func(*x509.Certificate)
		refused          string
	}{
		"address":                 {host: "127.0.0.1", names: []string{"127.0.0.1"}},
		"another address":         {host: "127.0.0.1", names: []string{"127.0.0.2"}, refused: other},
		"address with a name":     {host: "127.0.0.1", names: []string{"localhost"}, refused: "x509: cannot validate certificate for 127.0.0.1"},
		"address, name expected":  {host: "127.0.0.1", serverName: "redis.test", names: []string{"redis.test"}},
		"another name expected":   {host: "127.0.0.1", serverName: "redis.test", names: []string{"127.0.0.1", "other.test"}, refused: other},
		"name":                    {host: "localhost", names: []string{"localhost"}},
		"another name":            {host: "localhost", names: []string{"127.0.0.1", "redis.test"}, refused: other},
		"name, another expected":  {host: "localhost", serverName: "redis.test", names: []string{"localhost"}, refused: other},
		"no names":                {host: "127.0.0.1", refused: "x509: cannot validate certificate for 127.0.0.1"},
		"certificate of a client": {host: "127.0.0.1", names: []string{"127.0.0.1"}, refused: "x509: certificate specifies an incompatible key usage", change: func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }},
		"expired": {host: "127.0.0.1", names: []string{"127.0.0.1"}, refused: "x509: certificate has expired", change: func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			former, now := newAuthority(t, "former"), newAuthority(t, "now")
			cert, key := now.issue(t, c.change, c.names...)
			s := startTLS(t, cert, key, "")
			cfg := config.Defaults().Registry
			cfg.URL, cfg.TLS.ServerName = config.URL("rediss://"+net.JoinHostPort(c.host, s.port)), c.serverName
			cfg.TLS.CAFile = config.File(s.file(t, "ca", former.pem))
			s.open(t, &cfg)
			s.refused(t, "of an authority that is not trusted", "x509: ")
			s.file(t, "ca", now.pem)
			if c.refused != "" {
				s.refused(t, "after a rotation", c.refused)
				return
			}
			s.takes(t, "after a rotation")
		})
	}
}

// startTLSSentinel starts a Sentinel for the server that speaks TLS on the second of its ports.
func startTLSSentinel(t *testing.T, s *tlsServer, cert, key string) (plain, withTLS string) {
	t.Helper()
	s.files++
	name := func(what string) string { return fmt.Sprintf("sentinel-%d-%s", s.files, what) }
	cert, key = s.file(t, name("cert"), cert), s.file(t, name("key"), key)
	var err error
	for range 5 { // somebody else may take the port first
		port := freePort(t)
		conf := s.file(t, name("conf"), fmt.Sprintf("tls-port %s\ntls-cert-file %s\ntls-key-file %s\ntls-ca-cert-file %s\ntls-auth-clients no\n"+
			"tls-replication yes\nsentinel monitor mesh 127.0.0.1 %s 1\n", port, cert, key, s.file(t, name("ca"), s.trusted), s.port))
		var sentinel *registrytest.Redis
		if sentinel, err = registrytest.NewRedis(t.Context(), conf, "--sentinel"); err == nil {
			t.Cleanup(func() { _ = sentinel.Close() })
			return sentinel.Addr(), "127.0.0.1:" + port
		}
	}
	t.Fatal(err)
	return "", ""
}

// With Sentinel the addresses that are dialled must stand in the certificates, its own and the one of the
// primary that it names. Passwords are said to whom the certificate shows.
func TestStoreSentinelTLS(t *testing.T) {
	t.Parallel()
	former, now := newAuthority(t, "former"), newAuthority(t, "now")
	cert, key := now.issue(t, nil, "127.0.0.1")
	otherCert, otherKey := now.issue(t, nil, "127.0.0.2")
	s := startTLS(t, cert, key, "")
	s.trusted = now.pem
	plain, address := startTLSSentinel(t, s, cert, key)
	user(t, s.rule(t, plain), "default", "resetpass", ">secret")
	cfg := config.Defaults().Registry
	cfg.TLS.Enabled, cfg.TLS.CAFile = true, config.File(s.file(t, "ca", former.pem))
	cfg.Sentinel.Master, cfg.Sentinel.Addresses = "mesh", []config.HostPort{config.HostPort(address)}
	cfg.Sentinel.PasswordFile = config.SecretFile(s.file(t, "password", "secret"))
	s.open(t, &cfg)
	s.refused(t, "an authority that is not in the file yet", unknown)
	s.file(t, "ca", now.pem)
	s.takes(t, "with the authority in the file")
	s.shows(t, otherCert, otherKey, "")
	s.refused(t, "a primary of another address", other)

	s.shows(t, cert, key, "")
	s.takes(t, "the right primary again")
	plain, address = startTLSSentinel(t, s, otherCert, otherKey)
	user(t, s.rule(t, plain), "default", "resetpass", ">secret")
	cfg.Sentinel.Addresses = []config.HostPort{config.HostPort(address)}
	s.open(t, &cfg)
	s.refused(t, "a Sentinel of another address", other)
}
