package app

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"

	"pbxmesh/internal/config"
	"pbxmesh/internal/reload"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/redisstore"
)

// storeFiles are the files of the section registry that may be replaced while the daemon
// runs. Each stands for itself: one that cannot be used keeps no other one old.
type storeFiles struct {
	password, sentinelPassword *reload.Value[string, string]

	tls        bool // with the store
	readTLS    bool // with the replica that is read
	serverName string
	ca         *reload.Pool    // nil: the system's, which are read once
	pair       *reload.KeyPair // nil: no client certificate
}

func openStoreFiles(cfg *config.Registry, log *slog.Logger) (*storeFiles, error) {
	f := &storeFiles{tls: cfg.UseTLS(), readTLS: cfg.ReadTLS(), serverName: cfg.TLS.ServerName}
	for _, s := range []struct {
		to   **reload.Value[string, string]
		name string
		file config.SecretFile
	}{
		{&f.password, "registry.password_file", cfg.PasswordFile},
		{&f.sentinelPassword, "registry.sentinel.password_file", cfg.Sentinel.PasswordFile},
	} {
		var err error
		*s.to, err = reload.New(reload.Options[string, string]{Name: s.name, Read: s.file.Read, Make: reload.As[string], Logger: log})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if !f.tls && !f.readTLS {
		return f, nil
	}
	var err error
	if cfg.TLS.CAFile != "" {
		if f.ca, err = reload.NewPool("registry.tls.ca_file", string(cfg.TLS.CAFile), log); err != nil {
			return nil, fmt.Errorf("registry.tls.ca_file: %w", err)
		}
	}
	if cfg.TLS.CertFile != "" {
		if f.pair, err = reload.NewKeyPair("registry.tls.cert_file", string(cfg.TLS.CertFile), string(cfg.TLS.KeyFile), log); err != nil {
			return nil, fmt.Errorf("registry.tls.cert_file: %w", err)
		}
	}
	return f, nil
}

// now reads the files and returns what a connection that is made now uses.
func (f *storeFiles) now() redisstore.Secrets {
	s := redisstore.Secrets{Password: f.password.Now(), SentinelPassword: f.sentinelPassword.Now()}
	if !f.tls && !f.readTLS {
		return s
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: f.serverName}
	if f.ca != nil {
		c.RootCAs = f.ca.Now()
	}
	if f.pair != nil {
		c.Certificates = []tls.Certificate{f.pair.Now()}
	}
	s.ReadTLS = c
	if f.tls {
		s.TLS = c
	}
	return s
}

// watch reads the files now and then until ctx ends, for the log alone: connections last,
// and an operator who replaced a file wants to know whether it will do.
func (f *storeFiles) watch(ctx context.Context) error {
	return every(ctx, pollSecrets, func() { f.now() })
}

// OpenStore returns the backend that cfg names. It connects to nothing: a store
// that is away is found away by its users, who retry. It reads the primary.
func OpenStore(cfg *config.Registry) (registry.Backend, error) {
	once := *cfg
	once.Read = "" // nobody waits for a replica to show that it follows
	backend, _, err := openStore(&once, nil)
	return backend, err
}

// OpenStoreAndReplica is OpenStore for who reads as a daemon does.
func OpenStoreAndReplica(cfg *config.Registry) (registry.Backend, error) {
	backend, _, err := openStore(cfg, nil)
	return backend, err
}

// openStore is OpenStoreAndReplica for who logs what becomes of the files; they are nil when the
// store has none.
func openStore(cfg *config.Registry, log *slog.Logger) (registry.Backend, *storeFiles, error) {
	if cfg.Mode() == config.ModeMemory {
		return memory.New(memory.Options{}), nil, nil
	}
	files, err := openStoreFiles(cfg, log)
	if err != nil {
		return nil, nil, err
	}
	o := redisstore.Options{
		Addresses: addresses(cfg.Addresses), SentinelAddresses: addresses(cfg.Sentinel.Addresses),
		SentinelMaster: cfg.Sentinel.Master, SentinelUsername: cfg.Sentinel.Username,
		Read: string(cfg.Read), Behind: cfg.LeaseRenew,
		Username: cfg.Username, Prefix: cfg.KeyPrefix, Secrets: files.now,
	}
	if cfg.Mode() == config.ModeSingle {
		o.URL = string(cfg.URL)
	}
	store, err := redisstore.New(o)
	if err != nil {
		return nil, nil, err
	}
	return store, files, nil
}

func addresses(list []config.HostPort) []string {
	var out []string
	for _, a := range list {
		out = append(out, string(a))
	}
	return out
}
