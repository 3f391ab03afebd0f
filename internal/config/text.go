package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
)

// HostPort is "host:port": where something else listens. The host may be a name.
type HostPort string

// URL is where the registry is: "memory", redis://, rediss:// or unix://.
type URL string

// ReplicaURL is where a replica of the registry is read: redis://, rediss:// or unix://, or "".
type ReplicaURL string

// File is a path; relative ones start at the configuration file's folder.
type File string

// scalars read the types that stand in one YAML scalar. Each error says what is
// allowed, and starts with the value.
var scalars = map[reflect.Type]func(string) (any, error){
	reflect.TypeFor[time.Duration]():  anyOf(parseDuration),
	reflect.TypeFor[netip.Addr]():     anyOf(parseAddr),
	reflect.TypeFor[netip.AddrPort](): anyOf(parseListen),
	reflect.TypeFor[netip.Prefix]():   anyOf(parsePrefix),
	reflect.TypeFor[pbxmesh.NodeID](): anyOf(pbxmesh.ParseNodeID),
	reflect.TypeFor[HostPort]():       anyOf(parseHostPort),
	reflect.TypeFor[URL]():            anyOf(parseURL),
	reflect.TypeFor[ReplicaURL]():     anyOf(parseReplicaURL),
	reflect.TypeFor[Degrees]():        anyOf(parseDegrees),
}

func anyOf[T any](f func(string) (T, error)) func(string) (any, error) {
	return func(s string) (any, error) { return f(s) }
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err == nil {
		return d, nil
	}
	if _, numErr := strconv.ParseFloat(s, 64); numErr == nil {
		return 0, fmt.Errorf("%s has no unit: write %ss, or a duration such as 500ms, 5s, 1m30s, 24h", show(s), s)
	}
	return 0, fmt.Errorf("%s is no duration: write a number and a unit such as 500ms, 5s, 1m30s, 24h", show(s))
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() {
		return netip.Addr{}, fmt.Errorf("%s is no IP address: write one such as 192.0.2.10 or \"2001:db8::10\", no name and no port", show(s))
	}
	return a, nil
}

// parseListen reads an address of our own; "" is off. Names are refused: what a
// name means can change, and then a loopback listener stands open.
func parseListen(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Addr().Zone() != "" || ap.Addr().Is4In6() {
		return netip.AddrPort{}, fmt.Errorf("%s is no IP address with port: write one such as 127.0.0.1:8085 or \"[::1]:8085\"", show(s))
	}
	return ap, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%s is no network: write one such as 192.0.2.0/24 or \"2001:db8::/32\"", show(s))
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%s has bits beyond its length: write %s", show(s), p.Masked())
	}
	return p, nil
}

func parseHostPort(s string) (HostPort, error) {
	host, port, err := net.SplitHostPort(s)
	n, numErr := strconv.ParseUint(port, 10, 16)
	if err != nil || numErr != nil || n == 0 || host == "" || strings.ContainsFunc(host, notHost) {
		return "", fmt.Errorf("%s is no host:port: write one such as 127.0.0.1:8021 or redis.example.com:6379", show(s))
	}
	return HostPort(s), nil
}

func notHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(".-_:", r)
}

// parseReplicaURL is parseURL for one that may be missing.
func parseReplicaURL(s string) (ReplicaURL, error) {
	if s == "" {
		return "", nil
	}
	u, err := parseURL(s)
	if err == nil && u == MemoryURL {
		err = errors.New("memory is in this process only: write the URL of a replica near this daemon, such as redis://127.0.0.1:6379")
	}
	return ReplicaURL(u), err
}

const urlForms = "write memory, redis://host:6379/0, rediss://host:6380/0 (TLS) or unix:///run/redis/redis.sock"

// parseURL never repeats a URL in its error: one with a password in it would then
// stand in a log.
func parseURL(s string) (URL, error) {
	if s == string(MemoryURL) {
		return MemoryURL, nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", errors.New("is no URL: " + urlForms)
	}
	switch {
	case u.User != nil:
		return "", errors.New("holds a user or password: use the keys username and password_file beside it")
	case u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return "", errors.New("has parameters, which are not read: " + urlForms)
	}
	switch u.Scheme {
	case "redis", "rediss":
		if u.Hostname() == "" || strings.ContainsFunc(u.Hostname(), notHost) {
			return "", errors.New("names no host: " + urlForms)
		}
		if p := u.Port(); p != "" {
			if n, err := strconv.ParseUint(p, 10, 16); err != nil || n == 0 {
				return "", fmt.Errorf("has the port %s: 1 to 65535 are allowed", show(p))
			}
		}
		if db := strings.Trim(u.Path, "/"); db != "" {
			if n, err := strconv.ParseUint(db, 10, 16); err != nil || n > 1023 {
				return "", fmt.Errorf("has the database %s: 0 to 1023 are allowed", show(db))
			}
		}
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return "", errors.New("needs three slashes and an absolute path: write unix:///run/redis/redis.sock")
		}
	default:
		return "", errors.New("has an unknown scheme: " + urlForms)
	}
	return URL(s), nil
}
