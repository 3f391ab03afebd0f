package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Each case is the smallest file with one mistake. The error must stand at the
// mistake and tell what is allowed.
func TestMistakes(t *testing.T) {
	t.Parallel()
	const node = "node: {id: a, mesh_address: \"127.0.0.1:5090\"}\nfreeswitch: {event_socket: {password_file: /p}}\n"
	cases := []struct {
		name, src string
		at        string   // line:column
		want      []string // parts of the message
	}{
		{"unknown key at the top", "dsn: {}\n", "1:1", []string{`unknown key "dsn"`, "did you mean dns?", "allowed here: name, site, node, freeswitch"}},
		{"unknown key in a section", "log:\n  levle: info\n", "2:3", []string{"log: unknown key", "did you mean level?", "level, format"}},
		{"unknown key in flow style", "log: {colour: red}\n", "1:7", []string{`"colour"`, "level, format"}},
		{"key twice", "log:\n  level: info\n  level: warn\n", "3:3", []string{"level"}},
		{"section twice", "log: {level: info}\nlog: {level: warn}\n", "2:1", []string{"log"}},
		{"section is a list", "log: [a]\n", "1:6", []string{"a list is found where a section", "level, format"}},
		{"section is a word", "log: info\n", "1:6", []string{`"info" is found where a section`}},
		{"top is a list", "- a\n", "", []string{"a list is found", "name, site, node"}},
		{"list is a word", "dns:\n  services: sip\n", "2:13", []string{`"sip" is found where a list is wanted`, "[a, b]"}},
		{"list is nothing", "dns:\n  services:\n", "2:", []string{"nothing is found where a list is wanted", "[] is an empty list"}},
		{"text is a number", "registry: {username: 12, password_file: /p, url: \"redis://h\"}\n", "1:22", []string{`"12" is found where text is wanted: put it in quotes`}},
		{"text is nothing", "router: {default_domain: }\n", "1:", []string{"nothing is found where text is wanted"}},
		{"bool is text", "failover: {probe: {sip: \"yes\"}}\n", "1:25", []string{"true or false"}},
		{"int is text", "router: {socket: {max_calls: \"many\"}}\n", "1:30", []string{"whole number"}},
		{"int has a fraction", "router: {socket: {max_calls: 1.5}}\n", "1:30", []string{"whole number"}},
		{"port too large", "node:\n  id: a\n  sip: {udp: 65536}\n", "3:14", []string{"0 to 65535"}},
		{"duration without unit", "registry: {lease_ttl: 5}\n", "1:23", []string{"no unit", "write 5s"}},
		{"duration is a word", "registry: {lease_ttl: soon}\n", "1:23", []string{`"soon" is no duration`, "500ms"}},
		{"duration is a list", "registry: {lease_ttl: [5s]}\n", "1:23", []string{"a list is found where a duration"}},
		{"level unknown", "log: {level: verbose}\n", "1:14", []string{"debug, info, warn, error are allowed"}},
		{"level misspelt", "log: {level: inf}\n", "1:14", []string{"did you mean info?"}},
		{"control character", "name: \"a\\nb\"\n", "1:7", []string{"control character"}},
		{"name with space", "name: \"a b\"\n", "1:7", []string{"letters, digits"}},
		{"anchor", "log: &x {level: info}\n", "1:6", []string{"anchors, aliases and tags"}},
		{"alias", "name: *x\n", "1:7", []string{"alias"}},
		{"tag", "name: !!str x\n", "1:7", []string{"anchors, aliases and tags"}},
		{"merge key", "log:\n  <<: {level: info}\n", "2:3", []string{"no plain word", "level, format"}},
		{"number as key", "1: x\n", "1:1", []string{"no plain word"}},
		{"second document", "name: a\n---\nname: b\n", "3:1", []string{"second document"}},
		{"syntax", "log: {level\n", "1:", []string{"no YAML"}},
		{"tab", "log:\n\tlevel: info\n", "2:", []string{"no YAML"}},
		{"not text", "\xff\xfe", "", []string{"UTF-8"}},
		{"too large", strings.Repeat("#", maxFileSize+1), "", []string{"larger than"}},

		{"http for everybody", node + "router: {http: {listen: \"0.0.0.0:8086\"}}\n", "3:25", []string{"can be reached from other machines", "token_file"}},
		{"http without node", "router: {http: {listen: \"127.0.0.1:8086\"}}\n", "1:25", []string{"no node section"}},
		{"http deadline", "router: {http: {deadline: 1m}}\n", "1:27", []string{"10ms to 10s are allowed"}},
		{"http requests", "router: {http: {max_requests: 0}}\n", "1:31", []string{"1 to 10000 are allowed"}},
		{"http context", "router: {http: {contexts: [\"a b\"]}}\n", "1:28", []string{"no dialplan context"}},
		{"http list alone", "router: {http: {acl_list: mesh}}\n", "1:27", []string{"acl_file is not"}},
		{"http file alone", "router: {http: {acl_file: /x}}\n", "1:27", []string{"acl_list is not"}},
		{"http list name", "router: {http: {acl_list: \"a,b\", acl_file: /x}}\n", "1:27", []string{"is no name"}},

		{"site", "site: New York\n", "1:7", []string{"is no site", "letters, digits and '-'"}},
		{"node without id", "node:\n  mesh_address: 127.0.0.1:5090\nfreeswitch: {event_socket: {password_file: /p}}\n", "1:1", []string{"node.id: is missing"}},
		{"node with nothing", "node:\nfreeswitch: {event_socket: {password_file: /p}}\n", "1:", []string{"node.id: is missing"}},
		{"node id", "node: {id: a_b}\n", "1:12", []string{"letters, digits and '-'"}},
		{"node without mesh", "node: {id: a}\nfreeswitch: {event_socket: {password_file: /p}}\n", "1:", []string{"node.mesh_address: is missing", "192.0.2.10:5090"}},
		{"mesh is IPv6", strings.Replace(node, "127.0.0.1:", "[::1]:", 1), "1:", []string{"is no IPv4 address"}},
		{"mesh without port", strings.Replace(node, "127.0.0.1:5090", "127.0.0.1", 1), "1:", []string{"no IP address with port"}},
		{"mesh port 0", strings.Replace(node, "5090", "0", 1), "1:", []string{"nothing other nodes can call"}},
		{"node address is a name", "node: {id: a, addresses: [pbx.example.com]}\n", "1:27", []string{"no IP address"}},
		{"node address twice", strings.Replace(node, "id: a,", "id: a, addresses: [192.0.2.1, 192.0.2.1],", 1), "1:", []string{"twice"}},
		{"node address any", strings.Replace(node, "id: a,", "id: a, addresses: [0.0.0.0],", 1), "1:", []string{"no address that phones"}},
		{"phones without transport", strings.Replace(node, "id: a,", "id: a, addresses: [192.0.2.1], sip: {udp: 0, tcp: 0},", 1), "1:", []string{"offers no transport"}},
		{"node without password", "node: {id: a, mesh_address: \"127.0.0.1:5090\"}\n", "", []string{"freeswitch.event_socket.password_file: is missing"}},
		{"password without node", "freeswitch: {event_socket: {password_file: /p}}\n", "1:", []string{"there is no node section"}},
		{"event socket without port", "freeswitch: {event_socket: {address: localhost}}\n", "1:38", []string{"no host:port"}},
		{"mesh profile published", "freeswitch: {profiles: [internal, mesh]}\n", "1:35", []string{"is the mesh profile"}},
		{"no profile", "freeswitch: {profiles: []}\n", "1:24", []string{"is empty"}},
		{"profile name", "freeswitch: {profiles: [\"a b\"]}\n", "1:25", []string{"no sofia profile"}},
		{"snapshot interval", "freeswitch: {snapshot_interval: 1ms}\n", "1:33", []string{"out of range: 1s to 24h0m0s are allowed"}},

		{"registry scheme", "registry: {url: \"http://h\"}\n", "1:17", []string{"unknown scheme", "rediss://"}},
		{"registry port", "registry: {url: \"redis://h:99999\"}\n", "1:17", []string{"99999"}},
		{"registry database", "registry: {url: \"redis://h/x\"}\n", "1:17", []string{"0 to 1023"}},
		{"registry parameter", "registry: {url: \"redis://h/0?a=b\"}\n", "1:17", []string{"parameters"}},
		{"registry relative socket", "registry: {url: \"unix://run/redis\"}\n", "1:17", []string{"three slashes"}},
		{"url and cluster", "registry: {url: \"redis://h\", addresses: [\"h:1\"]}\n", "1:", []string{"keep one of them"}},
		{"url and sentinel", "registry: {url: \"redis://h\", sentinel: {master: m, addresses: [\"h:1\"]}}\n", "1:", []string{"keep one of them"}},
		{"cluster and sentinel", "registry: {addresses: [\"h:1\"], sentinel: {master: m, addresses: [\"h:1\"]}}\n", "1:", []string{"keep one of them"}},
		{"sentinel without master", "registry: {sentinel: {addresses: [\"h:1\"]}}\n", "1:", []string{"sentinel.master: is missing"}},
		{"sentinel without addresses", "registry: {sentinel: {master: m}}\n", "1:", []string{"sentinel.addresses: is missing"}},
		{"address twice", "registry: {addresses: [\"h:1\", \"h:1\"]}\n", "1:31", []string{"twice"}},
		{"memory with password", "registry: {password_file: /p}\n", "1:", []string{"registry is memory"}},
		{"user without password", "registry: {url: \"redis://h\", username: u}\n", "1:", []string{"password_file: is missing"}},
		{"tls without tls", "registry: {url: \"redis://h\", tls: {ca_file: /c}}\n", "1:", []string{"rediss://"}},
		{"replica in memory", "registry: {url: \"redis://h\", read: memory}\n", "1:36", []string{"in this process only"}},
		{"replica with password", "registry: {url: \"redis://h\", read: \"redis://u:p@n\"}\n", "1:36", []string{"user or password"}},
		{"replica of nothing", "registry: {read: \"redis://n\"}\n", "1:18", []string{"registry is memory"}},
		{"replica of a cluster", "registry: {addresses: [\"h:1\"], read: \"redis://n\"}\n", "1:38", []string{"not offered with a Redis Cluster"}},
		{"replica is the primary", "registry: {url: \"redis://h\", read: \"redis://h\"}\n", "1:36", []string{"the same as registry.url"}},
		{"replica's database", "registry: {url: \"redis://h/2\", read: \"redis://n/3\"}\n", "1:38", []string{"database 3", "primary, 2"}},
		{"half a key pair", "registry: {url: \"rediss://h\", tls: {key_file: /c}}\n", "1:", []string{"belong together"}},
		{"lease too short", "registry: {lease_ttl: 1500ms}\n", "1:23", []string{"at least twice registry.lease_renew, which is 1s"}},
		{"key prefix", "registry: {key_prefix: \"a{b}\"}\n", "1:24", []string{"cannot start a key"}},

		{"hook in the open", "router: {socket: {listen: \"0.0.0.0:8084\"}}\n", "1:27", []string{"only loopback"}},
		{"hook by name", "router: {socket: {listen: \"localhost:8084\"}}\n", "1:27", []string{"no IP address with port"}},
		{"decision above deadline", "router: {socket: {decision_timeout: 2s}}\n", "1:37", []string{"below router.socket.deadline, which is 1s"}},
		{"max calls", "router: {socket: {max_calls: 0}}\n", "1:30", []string{"1 to 100000 are allowed"}},
		{"default domain", "router: {default_domain: \"a b\"}\n", "1:26", []string{"is no domain"}},
		{"timeout not below interval", "failover: {probe: {timeout: 1s}}\n", "1:29", []string{"below failover.probe.interval, which is 1s: at most 900ms"}},
		{"suspect not below down", "failover: {probe: {suspect_after: 3}}\n", "1:35", []string{"down_after, which is 3"}},
		{"down after 0", "failover: {probe: {down_after: 0}}\n", "1:32", []string{"2 to 100"}},

		{"dns without zone", "dns: {listen: [\"127.0.0.1:53\"], nameservers: [{name: ns.test}]}\n", "1:", []string{"dns.zone: is missing"}},
		{"dns without name servers", "dns: {listen: [\"127.0.0.1:53\"], zone: a.test}\n", "1:", []string{"dns.nameservers: is missing"}},
		{"zone is no name", "dns: {zone: \"a..test\"}\n", "1:13", []string{"no host name"}},
		{"zone is an address", "dns: {zone: 192.0.2.1}\n", "1:13", []string{"is an address"}},
		{"service outside", "dns: {zone: a.test, services: [b.test]}\n", "1:32", []string{"not inside the zone a.test", "CNAME"}},
		{"service that only ends alike", "dns: {zone: a.test, services: [aa.test]}\n", "1:32", []string{"not inside the zone"}},
		{"service with wildcard", "dns: {zone: a.test, services: [\"*.a.test\"]}\n", "1:32", []string{"no host name"}},
		{"service is the zone", "dns: {zone: a.test, services: [A.test.]}\n", "1:32", []string{"is the zone, which is a service name itself"}},
		{"service with underscore", "dns: {zone: a.test, services: [_sip.a.test]}\n", "1:32", []string{"no host name"}},
		{"tenant twice", "dns: {zone: a.test, services: [b.a.test], tenants: [B.a.test]}\n", "1:53", []string{"stands in dns.services already"}},
		{"wildcard in the middle", "dns: {zone: a.test, tenants: [\"x.*.a.test\"]}\n", "1:31", []string{"no host name"}},
		{"tenant zone inside", "dns: {zone: a.test, tenant_zones: [b.a.test]}\n", "1:36", []string{"write it into dns.tenants"}},
		{"tenant zone twice", "dns: {zone: a.test, tenant_zones: [b.test, b.test]}\n", "1:44", []string{"already"}},
		{"tenant zone without zone", "dns: {tenant_zones: [b.test]}\n", "1:", []string{"dns.zone: is missing"}},
		{"no transport", "dns: {transports: [tcp, sctp]}\n", "1:25", []string{"no transport: write some of udp, tcp"}},
		{"transport twice", "dns: {transports: [tcp, udp, tcp]}\n", "1:30", []string{"stands there already"}},
		{"tenant in no zone", "dns: {zone: a.test, tenant_zones: [b.test], tenants: [x.b.test, c.test]}\n", "1:65", []string{"not inside the zone"}},
		{"name server is a service", "dns: {zone: a.test, services: [b.a.test], nameservers: [{name: b.a.test, addresses: [192.0.2.1]}]}\n", "1:", []string{"a name of its own"}},
		{"glue missing", "dns: {zone: a.test, nameservers: [{name: ns.a.test}]}\n", "1:", []string{"inside the zone, so nobody else knows"}},
		{"name server without name", "dns: {nameservers: [{addresses: [192.0.2.1]}]}\n", "1:", []string{"nameservers[0].name: is missing"}},
		{"hostmaster", "dns: {hostmaster: root}\n", "1:19", []string{"no mail address"}},
		{"ttl with fraction", "dns: {ttl: {answer: 1500ms}}\n", "1:21", []string{"whole number of seconds"}},
		{"ttl too long", "dns: {ttl: {answer: 1h}}\n", "1:21", []string{"1s to 5m0s are allowed"}},
		{"network with host bits", "dns: {preferences: [{network: 192.0.2.1/24, nodes: [a]}]}\n", "1:31", []string{"write 192.0.2.0/24"}},
		{"network twice", "dns: {preferences: [{network: 192.0.2.0/24, nodes: [a]}, {network: 192.0.2.0/24, nodes: [a]}]}\n", "1:6", []string{"twice"}},
		{"network without nodes", "dns: {preferences: [{network: 192.0.2.0/24}]}\n", "1:", []string{"nodes: is missing"}},
		{"node twice in an order", "dns: {default_order: [a, b, A]}\n", "1:29", []string{"twice"}},
		{"too many entries", "dns: {default_order: [" + strings.Repeat("a,", maxItems) + "a]}\n", "1:", []string{"at most 4096"}},
		{"api in the open", "api: {listen: \"0.0.0.0:8085\"}\n", "1:15", []string{"token_file"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cfg, err := Parse("p.yaml", []byte(tc.src))
			var problems Problems
			if cfg != nil || !errors.As(err, &problems) {
				t.Fatalf("accepted: %v", err)
			}
			var all []string
			for _, p := range problems {
				all = append(all, p.Error())
			}
			found := false
			for _, p := range problems {
				if at := fmt.Sprintf("%d:%d", p.Line, p.Column); strings.HasPrefix(at, tc.at) && containsAll(p.Error(), tc.want) {
					found = true
				}
			}
			if !found {
				t.Errorf("no problem at %q with %q in:\n%s", tc.at, tc.want, strings.Join(all, "\n"))
			}
		})
	}
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

func TestAllMistakesAtOnce(t *testing.T) {
	t.Parallel()
	const src = `nme: x
registry:
  lease_ttl: 1
router:
  socket:
    max_calls: 0
log:
  level: loud
  format: text
api:
  listen: 0.0.0.0:8085
`
	_, err := Parse("p.yaml", []byte(src))
	var problems Problems
	if !errors.As(err, &problems) {
		t.Fatal(err)
	}
	var lines []int
	for _, p := range problems {
		lines = append(lines, p.Line)
	}
	if want := []int{1, 3, 6, 8, 11}; fmt.Sprint(lines) != fmt.Sprint(want) {
		t.Errorf("problems in lines %v, want %v:\n%v", lines, want, err)
	}
}

func TestManyMistakesAreBounded(t *testing.T) {
	t.Parallel()
	_, err := Parse("p.yaml", []byte("dns:\n  preferences:\n"+strings.Repeat("    - {nodes: [a_b]}\n", 20_000)))
	var problems Problems
	if !errors.As(err, &problems) || len(problems) != maxProblems {
		t.Errorf("%d problems", len(problems))
	}
}

func TestProblemMarksTheColumn(t *testing.T) {
	t.Parallel()
	_, err := Parse("p.yaml", []byte("log:\n  level: loud\n"))
	const want = `p.yaml:2:10: log.level: "loud" is not known: debug, info, warn, error are allowed
      level: loud
             ^`
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
}
