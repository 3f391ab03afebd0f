package redirect

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// answerOf reads one answer from a stream.
func answerOf(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("after %q: %v", b.String(), err)
		}
		b.WriteString(line)
		if line == "\r\n" {
			return b.String()
		}
	}
}

func dialTCP(t *testing.T, s *Server) (net.Conn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", s.Addrs(TCP)[0].String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	return c, bufio.NewReader(c)
}

func streamOptions(w *world) Options {
	o := w.options()
	o.UDP, o.TCP = nil, []netip.AddrPort{loopback}
	return o
}

func TestStream(t *testing.T) {
	t.Parallel()
	w := newWorld()
	w.register(t, "1002", domain, "london")
	s := newServer(t, streamOptions(w))
	c, r := dialTCP(t, s)
	body := strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "Content-Length: 0\r\n\r\n", "Content-Length: 5\r\n\r\nv=0\r\n", 1)
	// Two requests in one write, one of them with a body; an ACK between; keep-alives.
	_, _ = io.WriteString(c, "\r\n"+body+invite("ACK", "sip:1002@pbx.test")+invite("OPTIONS", "sip:x@pbx.test")+"\r\n\r\n")
	for _, want := range []string{"SIP/2.0 302 ", "SIP/2.0 200 "} {
		if got := answerOf(t, r); !strings.HasPrefix(got, want) {
			t.Errorf("got %s", got)
		}
	}
	if pong := answerOf(t, r); pong != "\r\n" {
		t.Errorf("keep-alive answered with %q", pong)
	}
	// Byte by byte, folded header included.
	slow := strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "Max-Forwards: 70", "Max-Forwards:\r\n 70", 1)
	for i := range len(slow) {
		if _, err := c.Write([]byte{slow[i]}); err != nil {
			t.Fatal(err)
		}
	}
	if got := answerOf(t, r); !strings.HasPrefix(got, "SIP/2.0 302 ") {
		t.Errorf("got %s", got)
	}
	// Without a length nobody knows where the next request starts.
	_, _ = io.WriteString(c, strings.Replace(slow, "Content-Length: 0\r\n", "", 1))
	if got := answerOf(t, r); !strings.HasPrefix(got, "SIP/2.0 400 ") {
		t.Errorf("got %s", got)
	}
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("the connection is still there: %v", err)
	}
}

func TestStreamEnds(t *testing.T) {
	t.Parallel()
	w := newWorld()
	o := streamOptions(w)
	o.MessageTimeout, o.IdleTimeout = 100*time.Millisecond, 200*time.Millisecond
	s := newServer(t, o)
	good := invite("OPTIONS", "sip:x@pbx.test")
	for name, send := range map[string]string{
		"idle":                     "",
		"slow":                     good[:40],
		"slow body":                strings.Replace(good, "Content-Length: 0", "Content-Length: 100", 1),
		"another protocol":         "GET / HTTP/1.1\r\n\r\n",
		"a TLS hello":              "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\r\n",
		"a response":               "SIP/2.0 200 OK\r\n\r\n",
		"bare line feeds":          strings.ReplaceAll(good, "\r\n", "\n"),
		"a header without end":     good[:len(good)-4] + "\r\nX: " + strings.Repeat("x", maxStreamRequest),
		"a body beyond the bounds": strings.Replace(good, "Content-Length: 0", "Content-Length: 900000", 1),
	} {
		c, r := dialTCP(t, s)
		_, _ = io.WriteString(c, send)
		if b, err := r.ReadByte(); err == nil {
			t.Errorf("%s is answered: %q", name, b)
		}
	}
	eventually(t, "no connection is left", func() bool { return s.Stats().Conns == 0 })
}

func TestStreamBounds(t *testing.T) {
	t.Parallel()
	w := newWorld()
	o := streamOptions(w)
	o.MaxConns, o.MaxConnsPerClient = 10, 2
	s := newServer(t, o)
	for range 2 {
		c, r := dialTCP(t, s)
		_, _ = io.WriteString(c, invite("OPTIONS", "sip:x@pbx.test"))
		answerOf(t, r)
	}
	_, r := dialTCP(t, s)
	if _, err := r.ReadByte(); err == nil {
		t.Error("a third connection is served")
	}
	if st := s.Stats(); st.Refused != 1 || st.Conns != 2 {
		t.Errorf("stats %+v", st)
	}
}

// Shutdown ends with idle, slow and busy clients there.
func TestShutdownWithClients(t *testing.T) {
	t.Parallel()
	w := newWorld()
	o := streamOptions(w)
	o.UDP = []netip.AddrPort{loopback}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	dialTCP(t, s)
	c, _ := dialTCP(t, s)
	_, _ = io.WriteString(c, "INVITE ")
	newClient(t, s.Addrs(UDP)[0]).ask(invite("OPTIONS", "sip:x@pbx.test"))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for range 2 {
		if err := s.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	writePair(t, cert, key, 1)
	w := newWorld()
	w.register(t, "1002", domain, "london")
	o := w.options()
	o.TLS, o.CertFile, o.KeyFile, o.Poll = []netip.AddrPort{loopback}, cert, key, 5*time.Millisecond
	s := newServer(t, o)
	dial := func() (*tls.Conn, int64) {
		t.Helper()
		c, err := tls.Dial("tcp", s.Addrs(TLS)[0].String(), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c, c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
	}
	c, serial := dial()
	_, _ = io.WriteString(c, strings.Replace(invite("INVITE", "sip:1002@pbx.test"), "SIP/2.0/UDP", "SIP/2.0/TLS", 1))
	if got := answerOf(t, bufio.NewReader(c)); serial != 1 || !strings.HasPrefix(got, "SIP/2.0 302 ") || s.Stats().TLS != 1 {
		t.Errorf("serial %d, got %s", serial, got)
	}
	if err := os.WriteFile(cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, serial = dial(); serial != 1 {
		t.Errorf("with a broken file the certificate is number %d", serial)
	}
	writePair(t, cert, key, 2)
	eventually(t, "the new certificate is served", func() bool { _, serial := dial(); return serial == 2 })
}

func writePair(t *testing.T, cert, key string, serial int64) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"pbx.test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
