package config

import (
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// YAML returns c as a file that Parse reads back to the same Config. It holds no
// secret, because c holds none.
func (c *Config) YAML() ([]byte, error) {
	text, err := yaml.MarshalWithOptions(c, yaml.CustomMarshaler(marshalDuration), yaml.IndentSequence(true))
	if err != nil {
		return nil, fmt.Errorf("write the configuration as YAML: %w", err)
	}
	return text, nil
}

// marshalDuration writes "5m" where the standard library says "5m0s".
func marshalDuration(d time.Duration) ([]byte, error) {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return []byte(s), nil
}

// ParseURL returns s as a registry URL; its error tells the forms there are.
func ParseURL(s string) (URL, error) {
	u, err := parseURL(s)
	if err != nil {
		return "", fmt.Errorf("the registry %w", err)
	}
	return u, nil
}

// Warnings tells what is allowed and yet seldom meant, one sentence each.
func (c *Config) Warnings() []string {
	var out []string
	r := &c.Registry
	if c.Node != nil && r.Mode() == ModeMemory {
		out = append(out, "registry.url is memory: this node sees no other node; name the Redis they share")
	}
	if r.Mode() != ModeMemory && !r.UseTLS() && r.PasswordFile != "" && !r.isLocal() {
		out = append(out, "registry: the password and all registrations cross the network unencrypted; use TLS unless a tunnel protects them")
	}
	if network, address := URL(r.Read).Network(); network == "tcp" && !r.ReadTLS() && r.PasswordFile != "" && !HostPort(address).isLocal() {
		out = append(out, "registry.read: the password and all registrations cross the network unencrypted; write rediss:// unless a tunnel protects them")
	}
	if c.API.Listen.IsValid() && !c.API.Listen.Addr().IsLoopback() {
		out = append(out, "api.listen: the token crosses the network unencrypted; use a tunnel or 127.0.0.1")
	}
	if r.Mode() != ModeMemory && r.StateFile == "" {
		out = append(out, "registry.state_file is not set: after a restart while the registry is away no node is known, and after a crash a node waits until its lease ends")
	}
	return out
}

// isLocal reports whether every address of the store is on this machine.
func (r *Registry) isLocal() bool {
	switch r.Mode() {
	case ModeSingle:
		network, address := r.URL.Network()
		return network == "unix" || HostPort(address).isLocal()
	case ModeCluster:
		return allLocal(r.Addresses)
	case ModeSentinel:
		return allLocal(r.Sentinel.Addresses)
	default:
		return true
	}
}

func allLocal(list []HostPort) bool {
	for _, h := range list {
		if !h.isLocal() {
			return false
		}
	}
	return true
}

// Parts returns host and port of h.
func (h HostPort) Parts() (host, port string) {
	host, port, err := net.SplitHostPort(string(h))
	if err != nil {
		return string(h), ""
	}
	return host, port
}
