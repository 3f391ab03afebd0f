package fsconf

import (
	"strings"
	"testing"
)

const stockVars = `<include>
  <X-PRE-PROCESS cmd="set" data="default_password=secret"/>
  <!-- the domain -->
  <X-PRE-PROCESS cmd="set" data="domain=$${local_ip_v4}"/>
  <X-PRE-PROCESS cmd="set" data="domain_name=$${domain}"/>
</include>
`

func TestMergeDomain(t *testing.T) {
	t.Parallel()
	s := buffalo()
	s.Domain = "sip.example.com"
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	const line = `<X-PRE-PROCESS cmd="set" data="domain=$${local_ip_v4}"/>` + "\n"
	want := strings.Replace(stockVars, "  "+line, string(s.DomainFragment()), 1)
	for name, old := range map[string]string{
		"stock":                 stockVars,
		"written before":        want,
		"for another domain":    strings.ReplaceAll(want, "sip.example.com", "old.example.com"),
		"a second line":         strings.Replace(stockVars, "</include>", line+"</include>", 1),
		"edited behind our own": strings.Replace(want, "</include>", line+"</include>", 1),
	} {
		got, err := s.MergeDomain([]byte(old))
		if err != nil || string(got) != want {
			t.Errorf("%s (%v):\n%s", name, err, Diff("want", "got", []byte(want), got))
		}
		if is, own := OwnAddressDomain(got); is != s.Domain || own {
			t.Errorf("%s: afterwards the domain is %q, own address %v", name, is, own)
		}
	}
	for name, old := range map[string][]byte{"no file": nil, "no such line": []byte("<include/>\n")} {
		if got, err := s.MergeDomain(old); err == nil || !strings.Contains(err.Error(), s.Domain) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	for value, want := range map[string]bool{
		"$${local_ip_v4}": true, "192.0.2.10": true, "$${external_sip_ip}": true, "$${external_rtp_ip}": true, "$${local_ip_v6}": true, "sip.example.com": false, "$${my_domain}": false,
	} {
		if _, own := OwnAddressDomain([]byte(strings.Replace(stockVars, "$${local_ip_v4}", value, 1))); own != want {
			t.Errorf("domain=%s is the switch's own address: %v", value, own)
		}
	}
	const named = `<X-PRE-PROCESS cmd="set" data="domain=sip.example.com"/>` + "\n"
	if is, own := OwnAddressDomain([]byte(named + line)); is != "$${local_ip_v4}" || !own {
		t.Errorf("the last line counts: %q, %v", is, own)
	}
	if is, own := OwnAddressDomain([]byte(line + named)); is != "sip.example.com" || own {
		t.Errorf("the last line counts: %q, %v", is, own)
	}
	for _, bad := range []string{"192.0.2.10", "a b", `x"/>`} {
		s.Domain = bad
		if err := s.Check(); err == nil {
			t.Errorf("the domain %q is taken", bad)
		}
	}
}
