package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDNSGuardMistakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, src, path, want string }{
		{"negative rate", "rate_limit: {answers: -1}", "dns.rate_limit.answers", "0 to"},
		{"slip", "rate_limit: {slip: 101}", "dns.rate_limit.slip", "0 to 100"},
		{"exempt with bits", "rate_limit: {exempt: [192.0.2.1/24]}", "dns.rate_limit.exempt[0]", "write 192.0.2.0/24"},
		{"exempt twice", "rate_limit: {exempt: [192.0.2.0/24, 192.0.2.0/24]}", "dns.rate_limit.exempt[1]", "twice"},
		{"amplification", "amplification: 1", "dns.amplification", "2 to 100"},
		{"accepted alone", "cookie: {accept_file: /x}", "dns.cookie.secret_file", "takes the place"},
	} {
		_, err := Parse("p.yaml", fmt.Appendf(nil, "dns: {%s}\n", c.src))
		var problems Problems
		if !errors.As(err, &problems) || len(problems) != 1 || problems[0].Path != c.path || !strings.Contains(problems[0].Text, c.want) {
			t.Errorf("%s: %v, want one problem of %s with %q", c.name, err, c.path, c.want)
		}
	}
	if _, err := Parse("p.yaml", []byte("dns: {amplification: 0, rate_limit: {answers: 0, nxdomain: 0, errors: 0, slip: 0}}\n")); err != nil {
		t.Errorf("all off: %v", err)
	}
}

func TestReadCookieSecret(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "secret")
	for content, ok := range map[string]bool{
		"e5e973e5a6b2a43f48e7dc849e37bfcf\n": true,
		"e5e973e5a6b2a43f48e7dc849e37bf\n":   false,
		"e5e973e5a6b2a43f48e7dc849e37bfcfcf": false,
		"not hexadecimal, but 32 characters": false,
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadCookieSecret(SecretFile(file))
		if (err == nil) != ok || ok && got[0] != 0xe5 || err != nil && strings.Contains(err.Error(), content) {
			t.Errorf("%q: %x, %v", content, got, err)
		}
	}
}
