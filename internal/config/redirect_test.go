package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestRedirectMistakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, src, path, want string }{
		{"open to the world", "udp: [\"192.0.2.1:5070\"]", "router.redirect.udp[0]", "router.redirect.allow"},
		{"everywhere", "udp: [\"0.0.0.0:5070\"], allow: [192.0.2.0/24]", "router.redirect.udp[0]", "each address"},
		{"no port", "tcp: [127.0.0.1]", "router.redirect.tcp[0]", "no IP address with port"},
		{"empty", "tcp: [\"\"]", "router.redirect.tcp[0]", "is empty"},
		{"twice", "udp: [\"127.0.0.1:5070\", \"127.0.0.1:5070\"]", "router.redirect.udp[1]", "twice"},
		{"TLS on TCP's port", "tcp: [\"127.0.0.1:5070\"], tls: [\"127.0.0.1:5070\"], cert_file: /c, key_file: /k", "router.redirect.tls[0]", "port of its own"},
		{"TLS without certificate", "tls: [\"127.0.0.1:5071\"]", "router.redirect.cert_file", "is missing"},
		{"certificate without key", "cert_file: /c", "router.redirect.key_file", "together"},
		{"network with bits", "allow: [192.0.2.1/24]", "router.redirect.allow[0]", "write 192.0.2.0/24"},
		{"network twice", "allow: [192.0.2.0/24, 192.0.2.0/24]", "router.redirect.allow[1]", "twice"},
		{"node", "default_node: a_b", "router.redirect.default_node", "letters, digits"},
		{"unknown key", "numbers: x", "router.redirect", "did_file"},
		{"register", "register: \"yes\"", "router.redirect.register", "true or false"},
	} {
		_, err := Parse("p.yaml", fmt.Appendf(nil, "router: {redirect: {%s}}\n", c.src))
		var problems Problems
		if !errors.As(err, &problems) || len(problems) != 1 || problems[0].Path != c.path ||
			!strings.Contains(problems[0].Text, c.want) || problems[0].Line != 1 {
			t.Errorf("%s: %v, want one problem of %s with %q", c.name, err, c.path, c.want)
		}
	}
	cfg, err := Parse("/etc/p.yaml", []byte("router: {redirect: {udp: [\"192.0.2.1:5070\", \"[2001:db8::1]:5070\"], tcp: [\"192.0.2.1:5070\"], allow: [203.0.113.0/28], default_node: Buffalo, did_file: numbers}}\n"))
	if err != nil || !cfg.Router.Redirect.On() || cfg.Router.Redirect.DefaultNode != "buffalo" || cfg.Router.Redirect.DIDFile != "/etc/numbers" {
		t.Errorf("%+v, %v", cfg, err)
	}
	if Defaults().Router.Redirect.On() {
		t.Error("the redirect server is on by default")
	}
}
