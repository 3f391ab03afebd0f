package reload_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"pbxmesh/internal/reload"
)

// logged returns a logger, and what says and forgets what was logged: a level and a key a line.
func logged() (*slog.Logger, func() string) {
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key != slog.LevelKey && a.Key != "key" {
			return slog.Attr{}
		}
		return a
	}}))
	return log, func() string {
		defer text.Reset()
		return strings.TrimSpace(text.String())
	}
}

// TestValue: what cannot be read or used changes nothing and is told once, what can is in force at once.
func TestValue(t *testing.T) {
	t.Parallel()
	content, failure, made := "1", error(nil), 0
	log, said := logged()
	v, err := reload.New(reload.Options[string, int]{
		Name: "number", Logger: log,
		Read: func() (string, error) { return content, failure },
		Make: func(s string) (int, error) { made++; return strconv.Atoi(s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	const bad, good = "level=ERROR key=number", "level=INFO key=number"
	for i, step := range []struct {
		content string
		failure error
		want    int
		log     string
	}{
		{content: "1", want: 1},
		{content: "2", want: 2, log: good},
		{content: "x", want: 2, log: bad},
		{content: "x", want: 2},
		{content: "y", want: 2, log: bad}, // another failure
		{content: "2", want: 2, log: good},
		{content: "2", want: 2},
		{content: "3", failure: errors.New("no"), want: 2, log: bad},
		{content: "3", failure: errors.New("no"), want: 2},
		{content: "3", want: 3, log: good},
		{content: "1", want: 1, log: good},
	} {
		content, failure = step.content, step.failure
		if got, last, lines := v.Now(), v.Last(), said(); got != step.want || last != step.want || lines != step.log {
			t.Errorf("step %d: %d, then %d, said %q; want %d and %q", i, got, last, lines, step.want, step.log)
		}
	}
	if made != 7 { // 1, 2, x, x, y, 3, 1
		t.Errorf("made %d times", made)
	}
	for what, o := range map[string]reload.Options[string, int]{
		"not read": {Read: func() (string, error) { return "1", errors.New("no") }, Make: strconv.Atoi},
		"not made": {Read: func() (string, error) { return "x", nil }, Make: strconv.Atoi},
	} {
		if _, err := reload.New(o); err == nil {
			t.Errorf("%s at first: no error", what)
		}
	}
}

// pair returns a certificate and its key, PEM.
func pair(t *testing.T, serial int64) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestKeyPair: between the two files of a renewal the older pair is in force, and a file that has the time and
// the size of its forerunner is a new one all the same.
func TestKeyPair(t *testing.T) {
	t.Parallel()
	cert, key := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	cert1, key1 := pair(t, 1)
	cert2, key2 := pair(t, 2)
	write(t, cert, cert1)
	write(t, key, key1)
	log, said := logged()
	v, err := reload.NewKeyPair("pair", cert, key, log)
	if err != nil {
		t.Fatal(err)
	}
	serial := func() int64 {
		t.Helper()
		c := v.Now()
		if c.Leaf == nil {
			t.Fatal("no certificate")
		}
		return c.Leaf.SerialNumber.Int64()
	}
	info, err := os.Stat(cert)
	if err != nil {
		t.Fatal(err)
	}
	write(t, cert, cert2)
	if err := os.Chtimes(cert, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if got, log := serial(), said(); got != 1 || log != "level=ERROR key=pair" {
		t.Errorf("half renewed: %d, said %q", got, log)
	}
	write(t, key, key2)
	if got, log := serial(), said(); got != 2 || log != "level=INFO key=pair" {
		t.Errorf("renewed: %d, said %q", got, log)
	}
}

// TestPool: a bundle without a certificate, or that is just being written, is none.
func TestPool(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "ca.pem")
	one, _ := pair(t, 1)
	two, _ := pair(t, 2)
	write(t, file, one)
	v, err := reload.NewPool("ca", file, nil)
	if err != nil {
		t.Fatal(err)
	}
	first := v.Now()
	both := append(append([]byte("# ours\n"), one...), two...)
	for what, content := range map[string][]byte{
		"nothing": nil, "no certificate": []byte("x"), "a key": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"the second one cut off": both[:len(both)-40],
	} {
		write(t, file, content)
		if got := v.Now(); !got.Equal(first) {
			t.Errorf("%s is taken", what)
		}
	}
	write(t, file, append(both, "\nno block\n"...))
	want := x509.NewCertPool()
	want.AppendCertsFromPEM(both)
	if got := v.Now(); !got.Equal(want) || got.Equal(first) {
		t.Error("both are not taken")
	}
}

func TestReadFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, pipe := filepath.Join(dir, "file"), filepath.Join(dir, "pipe")
	write(t, file, []byte("12345"))
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := reload.ReadFile(file, 5); err != nil || string(got) != "12345" {
		t.Errorf("%q, %v", got, err)
	}
	for what, c := range map[string]struct {
		file  string
		limit int64
	}{"too large": {file, 4}, "a pipe": {pipe, 5}, "a folder": {dir, 5}, "none": {filepath.Join(dir, "none"), 5}} {
		if _, err := reload.ReadFile(c.file, c.limit); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}
