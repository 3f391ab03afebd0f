package config

import (
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

// Mode is the form of the store.
type Mode uint8

// The forms of the store.
const (
	ModeMemory   Mode = iota // this process only
	ModeSingle               // one Redis, by URL
	ModeCluster              // Redis Cluster, by Addresses
	ModeSentinel             // a primary found by Sentinel
)

// String returns the word that listings and logs use.
func (m Mode) String() string {
	switch m {
	case ModeSingle:
		return "redis"
	case ModeCluster:
		return "redis cluster"
	case ModeSentinel:
		return "redis sentinel"
	default:
		return "memory"
	}
}

// Mode tells which of URL, Addresses and Sentinel names the store. Checks see to
// it that only one of them does.
func (r *Registry) Mode() Mode {
	switch {
	case len(r.Sentinel.Addresses) > 0:
		return ModeSentinel
	case len(r.Addresses) > 0:
		return ModeCluster
	case r.URL != MemoryURL && r.URL != "":
		return ModeSingle
	default:
		return ModeMemory
	}
}

// UseTLS reports whether connections to the store are made with TLS.
func (r *Registry) UseTLS() bool {
	return r.TLS.Enabled || strings.HasPrefix(string(r.URL), "rediss:")
}

// ReadTLS reports whether connections to the replica are made with TLS.
func (r *Registry) ReadTLS() bool { return strings.HasPrefix(string(r.Read), "rediss:") }

// Network returns what to dial: "tcp" and host:port with the default port filled
// in, or "unix" and a path; "", "" for memory.
func (u URL) Network() (network, address string) {
	p, err := url.Parse(string(u))
	switch {
	case err != nil || u == MemoryURL || u == "":
		return "", ""
	case p.Scheme == "unix":
		return "unix", p.Path
	}
	port := p.Port()
	if port == "" {
		port = "6379"
	}
	return "tcp", net.JoinHostPort(p.Hostname(), port)
}

// Database returns the Redis database number of u, 0 when it names none.
func (u URL) Database() int {
	p, err := url.Parse(string(u))
	if err != nil || p.Scheme == "unix" {
		return 0
	}
	var n int
	if _, err := fmt.Sscanf(strings.Trim(p.Path, "/"), "%d", &n); err != nil {
		return 0
	}
	return n
}

func (d *decoder) validateRegistry(r *Registry) {
	d.validateStore(r)
	inRange(d, "registry.lease_renew", r.LeaseRenew, 100*time.Millisecond, time.Minute)
	inRange(d, "registry.lease_ttl", r.LeaseTTL, 500*time.Millisecond, 10*time.Minute)
	// One lost renewal must not look like a dead node.
	if r.LeaseTTL < 2*r.LeaseRenew && !d.isBad("registry.lease_renew") {
		d.check("registry.lease_ttl", "%v must be at least twice registry.lease_renew, which is %v", r.LeaseTTL, r.LeaseRenew)
	}
	if !validName(r.KeyPrefix) {
		d.check("registry.key_prefix", "%s cannot start a key: 1 to 63 letters, digits, '.', '-' and '_' are allowed", show(r.KeyPrefix))
	}
}

// validateStore sees to it that exactly one form of the store is described.
func (d *decoder) validateStore(r *Registry) {
	byURL := r.URL != MemoryURL
	s := &r.Sentinel
	switch {
	case byURL && len(r.Addresses) > 0:
		d.check("registry.addresses", "names a cluster, but registry.url names a store too: keep one of them")
	case byURL && len(s.Addresses) > 0:
		d.check("registry.sentinel", "names sentinels, but registry.url names a store too: keep one of them")
	case len(r.Addresses) > 0 && len(s.Addresses) > 0:
		d.check("registry.sentinel", "names sentinels, but registry.addresses names a cluster: keep one of them")
	case len(s.Addresses) > 0 && s.Master == "":
		d.check("registry.sentinel.master", "is missing: write the name of the primary that the sentinels watch")
	case len(s.Addresses) == 0 && (s.Master != "" || s.Username != "" || s.PasswordFile != ""):
		d.check("registry.sentinel.addresses", "is missing: write host:port of the sentinels")
	}
	for _, list := range []struct {
		path string
		of   []HostPort
	}{{"registry.addresses", r.Addresses}, {"registry.sentinel.addresses", s.Addresses}} {
		seen := map[HostPort]bool{}
		for i, a := range list.of {
			if seen[a] && a != "" {
				d.check(fmt.Sprintf("%s[%d]", list.path, i), "%s stands in the list twice: remove one", a)
			}
			seen[a] = true
		}
	}
	if r.Mode() == ModeMemory && !d.isBad("registry.url") && !d.isBad("registry.addresses") && !d.isBad("registry.sentinel") {
		const memory = "is set, but the registry is memory and asks for none: name a store with registry.url, or remove this"
		if r.Username != "" {
			d.check("registry.username", memory)
		}
		if r.PasswordFile != "" {
			d.check("registry.password_file", memory)
		}
		if r.Read != "" {
			d.check("registry.read", memory)
		}
	}
	if r.Username != "" && r.PasswordFile == "" {
		d.check("registry.password_file", "is missing: a username needs one")
	}
	d.validateRead(r)
	t := &r.TLS
	if (t.CAFile != "" || t.CertFile != "" || t.KeyFile != "" || t.ServerName != "") && !r.UseTLS() && !r.ReadTLS() && !d.isBad("registry.url") {
		d.check("registry.tls", "is set, but connections are made without TLS: write rediss:// in registry.url, or registry.tls.enabled: true")
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		d.check("registry.tls.cert_file", "cert_file and key_file belong together: set both or neither")
	}
}

// validateRead sees to it that a replica can follow what the store is.
func (d *decoder) validateRead(r *Registry) {
	if r.Read == "" {
		return
	}
	switch near, database := URL(r.Read), r.URL.Database(); {
	case r.Mode() == ModeCluster:
		d.check("registry.read", "is not offered with a Redis Cluster: remove it, or let one server with replicas hold the registry")
	case near == r.URL:
		d.check("registry.read", "is the same as registry.url: remove it, or name a replica near this daemon")
	case near.Database() != 0 && near.Database() != database:
		d.check("registry.read", "names database %d, but a replica holds this mesh in the one of the primary, %d: leave it out", near.Database(), database)
	}
}
