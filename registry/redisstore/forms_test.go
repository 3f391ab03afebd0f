package redisstore_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// contract runs the suite with a prefix of its own per case.
func contract(t *testing.T, o redisstore.Options) {
	var n atomic.Int64
	registrytest.TestBackend(t, func(t testing.TB) registry.Backend {
		o := o
		o.Prefix = fmt.Sprintf("test%d", n.Add(1))
		return open(t, o)
	})
}

func client(t testing.TB, addr string) *redis.Client {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: addr})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// certificate writes a self-signed certificate for 127.0.0.1.
func certificate(t *testing.T) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "redis"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		var text bytes.Buffer
		file := filepath.Join(t.TempDir(), name)
		if err := errors.Join(pem.Encode(&text, &pem.Block{Type: kind, Bytes: der}), os.WriteFile(file, text.Bytes(), 0o600)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return write("cert.pem", "CERTIFICATE", cert), write("key.pem", "EC PRIVATE KEY", private), pool
}

// setUser makes a user with the password "secret" and the given rights alone.
func setUser(t *testing.T, admin *redis.Client, name, rights string) {
	t.Helper()
	args := []any{"ACL", "SETUSER", name, "reset", "on", ">secret"}
	for f := range strings.FieldsSeq(rights) {
		args = append(args, f)
	}
	if err := admin.Do(t.Context(), args...).Err(); err != nil {
		t.Fatal(err)
	}
}

// An ACL user with no more rights than Rights, over TLS.
func TestTLSAndACL(t *testing.T) {
	t.Parallel()
	port, err := freePort()
	if err != nil {
		t.Fatal(err)
	}
	cert, key, pool := certificate(t)
	r := registrytest.StartRedis(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key,
		"--tls-auth-clients", "no", "--tls-ca-cert-file", cert)
	admin := client(t, r.Addr())
	setUser(t, admin, "mesh", redisstore.ACL("test*", false)) // the contract has a prefix for each of its tests
	o := redisstore.Options{URL: "rediss://127.0.0.1:" + port, Username: "mesh", Password: "secret", TLS: &tls.Config{RootCAs: pool}}
	t.Run("contract", func(t *testing.T) { contract(t, o) })
	t.Run("without the channel", func(t *testing.T) {
		setUser(t, admin, "deaf", redisstore.ACL("test-deaf", false)+" resetchannels")
		o := o
		o.Username, o.Prefix = "deaf", "test-deaf"
		s := open(t, o)
		if err := s.Post(t.Context(), registry.Note{Kind: registry.NoteVotes, Key: "london", Value: "1", Tell: true}); err != nil {
			t.Errorf("post: %v", err)
		}
		if notes, _, _, err := s.Notes(t.Context(), registry.NoteVotes, 0); err != nil || len(notes) != 1 {
			t.Errorf("on the board: %v, %v", notes, err)
		}
		if err := s.Watch(t.Context(), registry.NoteVotes, func() { t.Error("told") }); err == nil || !strings.Contains(err.Error(), "NOPERM") {
			t.Errorf("watch: %v", err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for name, change := range map[string]func(*redisstore.Options){
			"wrong password":    func(o *redisstore.Options) { o.Password = "wrong" },
			"no user":           func(o *redisstore.Options) { o.Username, o.Password = "nobody", "x" },
			"unknown authority": func(o *redisstore.Options) { o.TLS = &tls.Config{RootCAs: x509.NewCertPool()} },
			"keys of others":    func(o *redisstore.Options) { o.Prefix = "other" },
		} {
			o := o
			change(&o)
			s := open(t, o)
			if _, _, err := s.Members(context.Background()); !errors.Is(err, pbxmesh.ErrUnavailable) {
				t.Errorf("%s: got error %v, want %v", name, err, pbxmesh.ErrUnavailable)
			}
		}
	})
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// Every key of a node must be on one server, and scripts must name what they
// touch.
func TestCluster(t *testing.T) {
	t.Parallel()
	contract(t, redisstore.Options{Addresses: registrytest.StartCluster(t)[:1]})
}

func TestSentinel(t *testing.T) {
	t.Parallel()
	primary := registrytest.StartRedis(t)
	_, port, err := net.SplitHostPort(primary.Addr())
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	if err := os.WriteFile(config, []byte("sentinel monitor mesh 127.0.0.1 "+port+" 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := registrytest.StartSentinel(t, config)
	contract(t, redisstore.Options{SentinelAddresses: []string{sentinel.Addr()}, SentinelMaster: "mesh"})
}

// Whatever keeps Redis from answering or writing is unavailable, in bounded time.
func TestUnavailable(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	for name, harm := range map[string]func(t *testing.T, r *registrytest.Redis) error{
		"killed": func(_ *testing.T, r *registrytest.Redis) error { return r.Kill() },
		"paused": func(_ *testing.T, r *registrytest.Redis) error { return r.Pause() },
		"read only": func(t *testing.T, r *registrytest.Redis) error {
			return client(t, r.Addr()).ReplicaOf(t.Context(), "127.0.0.1", "1").Err()
		},
		"out of memory": func(t *testing.T, r *registrytest.Redis) error {
			return client(t, r.Addr()).ConfigSet(t.Context(), "maxmemory", "1").Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := registrytest.StartRedis(t)
			s := open(t, redisstore.Options{URL: r.URL(), Timeout: timeout})
			p := registry.Publication{Node: "buffalo", Owner: "o", Instance: "i", Term: 1, Digests: registry.Digests{}}
			term, err := s.Publish(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			if err := harm(t, r); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_, err = s.Publish(context.Background(), p)
			reg := registry.Record{Kind: registry.KindRegistration, Key: "k", Value: "v", Seq: 2}
			for what, err := range map[string]error{
				"publish": err,
				"append":  s.Append(context.Background(), registry.Batch{Node: "buffalo", Term: term, Seq: 2, Prev: 1, Records: []registry.Record{reg}}),
				"renew":   s.Renew(context.Background(), registry.Lease{Node: "buffalo", Owner: "o", Instance: "i", TTL: time.Second}),
			} {
				if !errors.Is(err, pbxmesh.ErrUnavailable) {
					t.Errorf("%s: got error %v, want %v", what, err, pbxmesh.ErrUnavailable)
				}
			}
			if took := time.Since(began); took > 10*timeout {
				t.Errorf("three calls took %s with a timeout of %s", took, timeout)
			}
			if name == "killed" || name == "paused" {
				began = time.Now()
				_, err = s.Changes(context.Background(), []registry.Cursor{{Node: "buffalo"}})
				if !errors.Is(err, pbxmesh.ErrUnavailable) || time.Since(began) > 10*timeout {
					t.Errorf("changes: got error %v after %s", err, time.Since(began))
				}
			}
		})
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]redisstore.Options{
		"nothing":            {},
		"two stores":         {URL: "redis://127.0.0.1:1", Addresses: []string{"127.0.0.1:1"}},
		"no name of primary": {SentinelAddresses: []string{"127.0.0.1:1"}},
		"no scheme":          {URL: "127.0.0.1:6379"},
		"other scheme":       {URL: "http://127.0.0.1:6379"},
		"prefix with braces": {URL: "redis://127.0.0.1:1", Prefix: "a{b"},
		"prefix with space":  {URL: "redis://127.0.0.1:1", Prefix: "a b"},
	} {
		if s, err := redisstore.New(o); err == nil {
			_ = s.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// What a node published is collected when nobody renews it.
func TestGarbage(t *testing.T) {
	t.Parallel()
	r := registrytest.StartRedis(t)
	c := client(t, r.Addr())
	s := open(t, redisstore.Options{URL: r.URL(), GarbageTTL: time.Hour, StreamLength: 10})
	rec := registry.Record{Kind: registry.KindRegistration, Key: "k", Value: "v", Seq: 1}
	d := registry.Digests{registry.KindRegistration: {Count: 1}}
	var term uint64
	for range 3 {
		var err error
		if term, err = s.Publish(t.Context(), registry.Publication{Node: "buffalo", Term: 1, Records: []registry.Record{rec}, Digests: d}); err != nil {
			t.Fatal(err)
		}
	}
	for seq := uint64(2); seq < 1000; seq++ {
		rec.Seq = seq
		if err := s.Append(t.Context(), registry.Batch{Node: "buffalo", Term: term, Seq: seq, Prev: seq - 1, Records: []registry.Record{rec}, Digests: d}); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := c.Keys(t.Context(), "*").Result()
	if err != nil || len(keys) != 3 {
		t.Errorf("keys %v, err %v; want meta, log and one hash of records", keys, err)
	}
	for _, key := range keys {
		if ttl := c.TTL(t.Context(), key).Val(); ttl <= 0 || ttl > time.Hour {
			t.Errorf("%s lives for %s", key, ttl)
		}
	}
	if n := c.XLen(t.Context(), "pbxmesh:{buffalo}:log").Val(); n > 200 {
		t.Errorf("%d entries in a stream of about 10", n)
	}
}
