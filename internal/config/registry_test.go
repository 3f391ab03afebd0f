package config

import (
	"strings"
	"testing"
)

func TestRegistryModes(t *testing.T) {
	t.Parallel()
	cases := []struct {
		src, mode        string
		tls              bool
		network, address string
		database         int
	}{
		{"", "memory", false, "", "", 0},
		{`registry: {url: "redis://redis.example.com"}`, "redis", false, "tcp", "redis.example.com:6379", 0},
		{`registry: {url: "rediss://192.0.2.1:7000/12"}`, "redis", true, "tcp", "192.0.2.1:7000", 12},
		{`registry: {url: "redis://[2001:db8::1]:7000/"}`, "redis", false, "tcp", "[2001:db8::1]:7000", 0},
		{`registry: {url: "unix:///run/redis/redis.sock"}`, "redis", false, "unix", "/run/redis/redis.sock", 0},
		{`registry: {url: "redis://h", tls: {enabled: true, ca_file: /ca}}`, "redis", true, "tcp", "h:6379", 0},
		{`registry: {addresses: ["a:1", "b:1"], tls: {enabled: true}}`, "redis cluster", true, "", "", 0},
		{`registry: {sentinel: {master: m, addresses: ["a:1"]}}`, "redis sentinel", false, "", "", 0},
	}
	for _, tc := range cases {
		cfg, err := Parse("p.yaml", []byte(tc.src+"\n"))
		if err != nil {
			t.Errorf("%s: %v", tc.src, err)
			continue
		}
		r := &cfg.Registry
		network, address := r.URL.Network()
		if r.Mode().String() != tc.mode || r.UseTLS() != tc.tls || network != tc.network || address != tc.address || r.URL.Database() != tc.database {
			t.Errorf("%s: %s, TLS %v, %s %s, database %d", tc.src, r.Mode(), r.UseTLS(), network, address, r.URL.Database())
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	const node = "node: {id: a, mesh_address: \"127.0.0.1:5090\"}\nfreeswitch: {event_socket: {password_file: /p}}\n"
	const state = "state_file: /s"
	for _, tc := range []struct{ src, want string }{
		{"", ""},
		{node, "sees no other node"},
		{"registry: {url: \"redis://h\"}\n", "state_file"},
		{"registry: {url: \"redis://192.0.2.1\", password_file: /p, " + state + "}\n", "unencrypted"},
		{"registry: {url: \"rediss://192.0.2.1\", password_file: /p, " + state + "}\n", ""},
		{"registry: {url: \"redis://127.0.0.1\", password_file: /p, " + state + "}\n", ""},
		{"registry: {url: \"unix:///s\", password_file: /p, " + state + "}\n", ""},
		{"registry: {addresses: [\"127.0.0.1:1\", \"192.0.2.1:1\"], password_file: /p, " + state + "}\n", "unencrypted"},
		{"registry: {sentinel: {master: m, addresses: [\"127.0.0.1:1\"]}, password_file: /p, " + state + "}\n", ""},
		{"registry: {url: \"rediss://192.0.2.1\", read: \"redis://192.0.2.2\", password_file: /p, " + state + "}\n", "registry.read: the password"},
		{"registry: {url: \"rediss://192.0.2.1\", read: \"redis://127.0.0.1\", password_file: /p, " + state + "}\n", ""},
		{"registry: {url: \"rediss://192.0.2.1/3\", read: \"unix:///s\", password_file: /p, " + state + "}\n", ""},
		{"registry: {url: \"redis://127.0.0.1\", read: \"rediss://192.0.2.2\", tls: {ca_file: /c}, password_file: /p, " + state + "}\n", ""},
		{"api: {listen: \"192.0.2.1:8085\", token_file: /t}\n", "token crosses the network"},
		{"api: {listen: \"\"}\n", ""},
	} {
		cfg, err := Parse("p.yaml", []byte(tc.src))
		if err != nil {
			t.Errorf("%s: %v", tc.src, err)
			continue
		}
		got := strings.Join(cfg.Warnings(), "\n")
		if tc.want == "" && got != "" || !strings.Contains(got, tc.want) {
			t.Errorf("%s: warnings %q, want %q", tc.src, got, tc.want)
		}
	}
}
