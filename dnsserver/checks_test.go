package dnsserver

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"pbxmesh/fixtures"
)

// tool returns the path of a program that checks us from outside. Without it the test
// is skipped, except in CI.
func tool(t *testing.T, name, debian string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	switch {
	case err == nil:
		return path
	case os.Getenv("CI") != "":
		t.Fatalf("%s is missing; install %s", name, debian)
	default:
		t.Skipf("SKIPPED: %s is missing; install %s", name, debian)
	}
	return ""
}

func runTool(t *testing.T, cmd func(context.Context) *exec.Cmd) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := cmd(ctx).CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%v: no end within two minutes:\n%s", err, out)
	}
	return string(out) // what a failure means is in the output
}

// publicKey returns the DNSKEY record of the zone; tampered is another one of the same
// form and name.
func publicKey(t *testing.T, z *Zone, tampered bool) *dns.DNSKEY {
	t.Helper()
	dir := z.opts.KeyDir
	if tampered {
		dir = t.TempDir()
		if _, err := GenerateKey(dir, z.origin, time.Now(), time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := ReadKeys(dir, z.origin)
	if err != nil {
		t.Fatal(err)
	}
	return keys[0].DNSKEY
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// signedQuestions are asked by three validators of three makers.
var signedQuestions = []struct {
	name, qtype string
	denied      bool
}{
	{"pbx.example.com", "A", false},
	{"pbx.example.com", "AAAA", false},
	{"pbx.example.com", "NAPTR", false},
	{"pbx.example.com", "SOA", false},
	{"pbx.example.com", "MX", false},
	{"_sip._udp.pbx.example.com", "SRV", false},
	{"_sips._tcp.tenant.pbx.example.com", "SRV", false},
	{"tenant.pbx.example.com", "A", false},     // a wildcard of the configuration
	{"one.dev.pbx.example.com", "A", false},    // and one of the zone file
	{"phones.pbx.example.com", "A", false},     // a CNAME within the zone
	{"london.pbx.example.com", "A", false},     // a node
	{"tenant.pbx.example.com", "MX", true},     // no such type
	{"x.london.pbx.example.com", "A", true},    // no such name
	{"_udp.pbx.example.com", "TXT", true},      // an empty non-terminal
	{"tenant.pbx.example.com", "DNSKEY", true}, // a type of the apex
}

// TestDelv validates with BIND's validator and our own trust anchor.
func TestDelv(t *testing.T) {
	t.Parallel()
	delv := tool(t, "delv", "bind9-dnsutils")
	z := signedZone(t)
	_, addr := startServer(t, z)
	host, port, _ := net.SplitHostPort(addr)
	anchor := func(k *dns.DNSKEY) string {
		return writeFile(t, "anchor", fmt.Sprintf("trust-anchors { pbx.example.com static-key %d 3 13 %q; };\n", k.Flags, k.PublicKey))
	}
	good, bad := anchor(publicKey(t, z, false)), anchor(publicKey(t, z, true))
	ask := func(anchor, name, qtype string) string {
		return runTool(t, func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, delv, "@"+host, "-p", port, "-a", anchor, "+root=pbx.example.com", name, qtype)
		})
	}
	for _, q := range signedQuestions {
		want := "; fully validated"
		if q.denied {
			want = "; negative response, fully validated"
		}
		if out := ask(good, q.name, q.qtype); !strings.Contains(out, want) {
			t.Errorf("delv %s %s lacks %q:\n%s", q.name, q.qtype, want, out)
		}
	}
	if out := ask(good, "pbx.example.com", "ANY"); !strings.Contains(out, "; fully validated") || !strings.Contains(out, "RFC8482") {
		t.Errorf("ANY: %s", out)
	}
	if out := ask(bad, "pbx.example.com", "A"); strings.Contains(out, "; fully validated") || !strings.Contains(out, "resolution failed") {
		t.Errorf("with another key: %s", out)
	}
}

// TestDrill validates with ldns.
func TestDrill(t *testing.T) {
	t.Parallel()
	drill := tool(t, "drill", "ldnsutils")
	z := signedZone(t)
	_, addr := startServer(t, z)
	host, port, _ := net.SplitHostPort(addr)
	ask := func(key *dns.DNSKEY, name, qtype string) string {
		file := writeFile(t, "key", key.String()+"\n")
		return runTool(t, func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, drill, "-D", "-k", file, "-p", port, "@"+host, name, qtype)
		})
	}
	good := publicKey(t, z, false)
	for _, q := range signedQuestions {
		if q.name == "phones.pbx.example.com" {
			continue // drill does not follow a CNAME when it verifies one answer
		}
		want, not := "; VALIDATED by id = "+fmt.Sprint(good.KeyTag()), "; BOGUS"
		if q.denied {
			want = "; Existence denied for "
		}
		if out := ask(good, q.name, q.qtype); !strings.Contains(out, want) || strings.Contains(out, not) {
			t.Errorf("drill %s %s lacks %q:\n%s", q.name, q.qtype, want, out)
		}
	}
	if out := ask(publicKey(t, z, true), "pbx.example.com", "A"); strings.Contains(out, "VALIDATED") {
		t.Errorf("with another key: %s", out)
	}
}

// TestUnbound resolves and validates with a whole resolver, which reaches us also by
// the CNAME of a zone that is somebody else's.
func TestUnbound(t *testing.T) {
	t.Parallel()
	unbound := tool(t, "unbound-host", "unbound-host")
	z := signedZone(t)
	_, addr := startServer(t, z)
	foreign := foreignServer(t, "customer.test.", map[string]string{"phones.customer.test.": "tenant.pbx.example.com."})
	conf := func(key *dns.DNSKEY) string {
		stub := func(zone, addr string) string {
			return fmt.Sprintf("stub-zone:\n  name: %q\n  stub-addr: %s\n", zone, strings.Replace(addr, ":", "@", 1))
		}
		return writeFile(t, "unbound.conf", "server:\n  do-not-query-localhost: no\n  use-syslog: no\n  chroot: \"\"\n  domain-insecure: customer.test\n"+
			"  module-config: \"validator iterator\"\n  local-zone: test. nodefault\n"+
			"  trust-anchor: "+fmt.Sprintf("%q", strings.ReplaceAll(key.String(), "\t", " "))+"\n"+
			stub("pbx.example.com", addr)+stub("customer.test", foreign))
	}
	good := conf(publicKey(t, z, false))
	ask := func(conf, name, qtype string) string {
		return runTool(t, func(ctx context.Context) *exec.Cmd {
			return exec.CommandContext(ctx, unbound, "-v", "-C", conf, "-t", qtype, name)
		})
	}
	for _, q := range signedQuestions {
		out := ask(good, q.name, q.qtype)
		if !strings.Contains(out, "(secure)") || strings.Contains(out, "(insecure)") || strings.Contains(out, "BOGUS") || q.denied != strings.Contains(out, " has no ") {
			t.Errorf("unbound-host %s %s:\n%s", q.name, q.qtype, out)
		}
	}
	if out := ask(conf(publicKey(t, z, true)), "pbx.example.com", "A"); !strings.Contains(out, "SERVFAIL") && !strings.Contains(out, "BOGUS") {
		t.Errorf("with another key: %s", out)
	}
	out := ask(good, "phones.customer.test", "A")
	if !strings.Contains(out, "phones.customer.test is an alias for tenant.pbx.example.com.") || !strings.Contains(out, "tenant.pbx.example.com has address 192.0.2.1") {
		t.Errorf("by a foreign CNAME:\n%s", out)
	}
}

// foreignServer serves a zone that holds CNAME records only.
func foreignServer(t *testing.T, zone string, cnames map[string]string) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: c, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, req *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(req)
		m.Authoritative = true
		name := strings.ToLower(req.Question[0].Name)
		if target := cnames[name]; target != "" {
			m.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: req.Question[0].Name, Rrtype: dns.TypeCNAME, Class: 1, Ttl: 60}, Target: target}}
		} else {
			m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: zone, Rrtype: dns.TypeSOA, Class: 1, Ttl: 60}, Ns: "ns." + zone, Mbox: "x." + zone}}
		}
		_ = w.WriteMsg(m)
	})}
	started, ended := make(chan struct{}), make(chan error, 1)
	s.NotifyStartedFunc = func() { close(started) }
	go func() { ended <- s.ActivateAndServe() }()
	<-started
	t.Cleanup(func() {
		_ = s.Shutdown()
		<-ended
	})
	return c.LocalAddr().String()
}

// zonemasterExceptions are what Zonemaster thinks of values that are chosen on purpose.
var zonemasterExceptions = map[string]string{
	"REFRESH_MINIMUM_VALUE_LOWER":         "nobody transfers the zone",
	"RETRY_MINIMUM_VALUE_LOWER":           "nobody transfers the zone",
	"SOA_DEFAULT_TTL_MAXIMUM_VALUE_LOWER": "negative answers must not outlive a failover",
	"NO_MX_RECORD":                        "",
	"Z09_MISSING_MAIL_TARGET":             "mail is an operator's choice (zone file)",
}

// TestZonemaster lets Zonemaster look at a delegated, signed zone with two name
// servers, in a network of their own with a root server.
func TestZonemaster(t *testing.T) {
	t.Parallel()
	zonemaster := tool(t, "zonemaster-cli", "zonemaster-cli")
	// Inside, all addresses are ours; these count as public ones.
	const root = "198.41.0.4"
	servers := []NameServer{{"losangeles", fixtures.Addresses("77.80.0.1", "2a0a:1::1")}, {"jacksonville", fixtures.Addresses("78.90.0.1", "2a0b:1::1")}}
	n := newNamespace(t, root, "77.80.0.1", "2a0a:1::1", "78.90.0.1", "2a0b:1::1")
	z := signedZone(t, func(o *ZoneOptions) { o.TenantZones, o.NameServers = nil, servers; o.ZoneFile = "" })
	rootServer(t, n, z, root)
	n.do(t, func() {
		for _, s := range servers {
			startServer(t, z, func(o *Options) {
				o.Listen = nil
				for _, a := range s.Addresses {
					o.Listen = append(o.Listen, net.JoinHostPort(a.String(), "53"))
				}
			})
		}
	})
	hints := writeFile(t, "hints", ". 3600 NS a.root-servers.net.\na.root-servers.net. 3600 A "+root+"\n")
	out := runTool(t, func(ctx context.Context) *exec.Cmd {
		return n.command(ctx, zonemaster, "--json", "--raw", "--no-progress", "--level", "INFO", "--hints", hints, "pbx.example.com")
	})
	var results []struct {
		Level, Module, Tag, Testcase string
		Args                         map[string]any
	}
	if i := strings.IndexByte(out, '['); i < 0 || json.Unmarshal([]byte(out[i:]), &results) != nil {
		t.Fatalf("no result in\n%s", out)
	}
	seen := make(map[string]bool)
	for _, r := range results {
		seen[r.Tag] = true
		if _, known := zonemasterExceptions[r.Tag]; r.Level != "INFO" && r.Level != "DEBUG" && !known {
			t.Errorf("%s %s %v", r.Level, r.Tag, r.Args)
		}
	}
	// That it looked at all.
	for _, tag := range []string{"ALGORITHM_OK", "AXFR_FAILURE", "CASE_QUERIES_RESULTS_OK", "ENOUGH_NS_DEL"} {
		if !seen[tag] {
			t.Errorf("not among the results: %s", tag)
		}
	}
	if len(results) < 40 {
		t.Errorf("only %d results:\n%s", len(results), out)
	}
}
