package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestZoneMistakes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, src, path, want string }{
		{"zone file without zone", "zone_file: z", "dns.zone_file", "dns.zone is not"},
		{"keys nowhere", "zone: a.test, dnssec: {generate: true}", "dns.dnssec.generate", "key_dir is not set"},
		{"hosts for ever", "keep_hosts: 1000h", "dns.keep_hosts", "out of range"},
		{"PowerDNS without zone", "pdns: {listen: \"127.0.0.1:8087\"}, nameservers: [{name: ns.test}]", "dns.zone", "is missing"},
		{"PowerDNS without name servers", "pdns: {listen: \"127.0.0.1:8087\"}, zone: a.test", "dns.nameservers", "is missing"},
		{"PowerDNS open to the world", "pdns: {listen: \"192.0.2.1:8087\"}, zone: a.test, nameservers: [{name: ns.test}]", "dns.pdns.listen", "dns.pdns.allow"},
		{"network twice", "pdns: {allow: [192.0.2.0/24, 192.0.2.0/24]}", "dns.pdns.allow[1]", "twice"},
	} {
		_, err := Parse("p.yaml", fmt.Appendf(nil, "dns: {%s}\n", c.src))
		var problems Problems
		if !errors.As(err, &problems) || len(problems) != 1 || problems[0].Path != c.path || !strings.Contains(problems[0].Text, c.want) {
			t.Errorf("%s: %v, want one problem of %s with %q", c.name, err, c.path, c.want)
		}
	}
	cfg, err := Parse("/etc/p.yaml", []byte("dns: {zone: a.test, nameservers: [{name: ns.test}], pdns: {listen: \"192.0.2.1:8087\", allow: [192.0.2.0/24]}, dnssec: {key_dir: keys}}\n"))
	if err != nil || !cfg.DNS.On() || cfg.DNS.DNSSEC.KeyDir != "/etc/keys" || Defaults().DNS.On() {
		t.Errorf("%+v, %v", cfg, err)
	}
}
