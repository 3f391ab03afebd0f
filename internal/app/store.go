package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"pbxmesh/internal/config"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/redisstore"
)

// tlsConfig reads the files of cfg; nil when connections are made without TLS.
func tlsConfig(cfg *config.Registry) (*tls.Config, error) {
	if !cfg.UseTLS() {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cfg.TLS.ServerName}
	if cfg.TLS.CAFile != "" {
		pem, err := os.ReadFile(string(cfg.TLS.CAFile))
		if err != nil {
			return nil, fmt.Errorf("read the registry's CA: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read the registry's CA: %w", errors.New("no certificate in "+string(cfg.TLS.CAFile)))
		}
	}
	if cfg.TLS.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(string(cfg.TLS.CertFile), string(cfg.TLS.KeyFile))
		if err != nil {
			return nil, fmt.Errorf("read the registry's client certificate: %w", err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// OpenStore returns the backend that cfg names. It connects to nothing: a store
// that is away is found away by its users, who retry.
func OpenStore(cfg *config.Registry) (registry.Backend, error) {
	if cfg.Mode() == config.ModeMemory {
		return memory.New(memory.Options{}), nil
	}
	o := redisstore.Options{
		Addresses: addresses(cfg.Addresses), SentinelAddresses: addresses(cfg.Sentinel.Addresses),
		SentinelMaster: cfg.Sentinel.Master, SentinelUsername: cfg.Sentinel.Username,
		Username: cfg.Username, Prefix: cfg.KeyPrefix,
	}
	if cfg.Mode() == config.ModeSingle {
		o.URL = string(cfg.URL)
	}
	var err error
	if o.Password, err = cfg.PasswordFile.Read(); err != nil {
		return nil, fmt.Errorf("registry.password_file: %w", err)
	}
	if o.SentinelPassword, err = cfg.Sentinel.PasswordFile.Read(); err != nil {
		return nil, fmt.Errorf("registry.sentinel.password_file: %w", err)
	}
	if o.TLS, err = tlsConfig(cfg); err != nil {
		return nil, err
	}
	return redisstore.New(o)
}

func addresses(list []config.HostPort) []string {
	var out []string
	for _, a := range list {
		out = append(out, string(a))
	}
	return out
}
