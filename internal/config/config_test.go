package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

const exampleFile = "../../pbxmesh.example.yaml"

// commentedKey finds "#key:" and "#- key:", which are keys without default; prose
// has a space after the "#".
var commentedKey = regexp.MustCompile(`(?m)^(\s*)#((?:- )?[a-z_0-9]+:)`)

func readExample(t testing.TB) string {
	t.Helper()
	src, err := os.ReadFile(exampleFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(src)
}

// filledExample is the example with every commented key set. Where a key stands
// there empty and filled, the empty one goes.
func filledExample(t testing.TB) string {
	t.Helper()
	src := readExample(t)
	for _, empty := range []string{"  nameservers: []\n", "  preferences: []\n"} {
		if !strings.Contains(src, empty) {
			t.Fatalf("the example has no line %q", empty)
		}
		src = strings.Replace(src, empty, "", 1)
	}
	return commentedKey.ReplaceAllString(src, "$1$2")
}

func TestExampleIsDefaults(t *testing.T) {
	t.Parallel()
	got, err := Parse("pbxmesh.example.yaml", []byte(readExample(t)))
	if err != nil {
		t.Fatal(err)
	}
	if want := Defaults(); !reflect.DeepEqual(got, want) {
		t.Errorf("the example and Defaults differ:\n got %+v\nwant %+v", got, want)
	}
}

// With every comment removed, the example is a file that is wrong in exactly one
// place: the username and sentinel keys want a store, and the example has memory.
func TestExampleCommentedKeysAreValid(t *testing.T) {
	t.Parallel()
	src := strings.Replace(filledExample(t), "url: memory", "url: rediss://redis.example.com:6380/0", 1)
	src = strings.Replace(src, "    master: pbxmesh\n", "", 1)
	src = regexp.MustCompile(`(?m)^    (username: sentinel|password_file: /etc/pbxmesh/sentinel.password)\n`).ReplaceAllString(src, "")
	cfg, err := Parse("/etc/pbxmesh/pbxmesh.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Node == nil || cfg.Node.ID != "buffalo" || cfg.Node.MeshAddress.String() != "192.0.2.10:5090" {
		t.Errorf("node = %+v", cfg.Node)
	}
	if len(cfg.DNS.Nameservers) != 1 || len(cfg.DNS.Preferences) != 1 || cfg.DNS.Zone != "sip.example.com" {
		t.Errorf("dns = %+v", cfg.DNS)
	}
	if cfg.Registry.Mode() != ModeSingle || !cfg.Registry.UseTLS() || cfg.Registry.PasswordFile != "/etc/pbxmesh/redis.password" {
		t.Errorf("registry = %+v", cfg.Registry)
	}
}

// TestEveryKeyIsDocumented keeps the example and the reference complete.
func TestEveryKeyIsDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	example := newDecoder("example", nil)
	root := example.document([]byte(filledExample(t)))
	example.section(root, reflect.ValueOf(Defaults()).Elem(), "")
	inExample := make(map[string]bool)
	for path := range example.at {
		inExample[regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "[]")] = true
	}
	for _, key := range Keys() {
		if !inExample[key] {
			t.Errorf("pbxmesh.example.yaml does not show %s", key)
		}
		if !strings.Contains(string(doc), "`"+key+"`") {
			t.Errorf("docs/configuration.md does not describe `%s`", key)
		}
	}
	// The other way round: what the reference describes exists.
	known := make(map[string]bool)
	for _, key := range Keys() {
		known[key] = true
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.\\[\\]0-9]+)` ").FindAllStringSubmatch(string(doc), -1) {
		if !known[m[1]] {
			t.Errorf("docs/configuration.md describes `%s`, which is no key", m[1])
		}
	}
}

func TestEmptyFileIsDefaults(t *testing.T) {
	t.Parallel()
	for _, src := range []string{"", "\n", "# nothing\n", "---\n", "node: null\n", "dns:\n  # zone: x\nlog:\n"} {
		got, err := Parse("empty.yaml", []byte(src))
		if err != nil {
			t.Errorf("%q: %v", src, err)
			continue
		}
		if !reflect.DeepEqual(got, Defaults()) {
			t.Errorf("%q gives %+v", src, got)
		}
	}
}

func TestYAMLReadsBack(t *testing.T) {
	t.Parallel()
	full, err := Parse("/etc/pbxmesh/full.yaml", []byte(nodeFile))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]*Config{"defaults": Defaults(), "node": full} {
		text, err := want.YAML()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse("again.yaml", text)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			continue
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s does not read back:\n%s\n got %+v\nwant %+v", name, text, got, want)
		}
	}
}

const nodeFile = `
node:
  id: Buffalo
  addresses: [192.0.2.10, "2001:db8::10"]
  mesh_address: 192.0.2.10:5090
  sip: {tls: 5061}
freeswitch:
  event_socket:
    password_file: event_socket.password
  profiles: [internal, wss]
registry:
  url: redis://192.0.2.1
  username: pbxmesh
  password_file: /etc/pbxmesh/redis.password
router:
  default_domain: PBX.Example.COM.
failover: {probe: {interval: 2s, timeout: 1500ms}}
dns:
  listen: [192.0.2.53:53, "[2001:db8::53]:53"]
  zone: SIP.example.com.
  services: [voip.sip.example.com]
  tenants: ["*.Pbx.sip.example.com", "*.customer.test"]
  tenant_zones: [Customer.test]
  nameservers:
    - name: ns1.sip.example.com
      addresses: [192.0.2.53]
    - {name: ns.elsewhere.test}
  preferences:
    - network: 198.51.100.0/24
      nodes: [london, buffalo]
    - {network: "2001:db8:1::/48", nodes: [buffalo]}
  default_order: [buffalo, london]
`

func TestParseNode(t *testing.T) {
	t.Parallel()
	cfg, err := Parse("/etc/pbxmesh/p.yaml", []byte(nodeFile))
	if err != nil {
		t.Fatal(err)
	}
	ann := cfg.Announcement()
	if ann.ID != "buffalo" || len(ann.Addresses) != 2 || ann.Mesh != cfg.Node.MeshAddress {
		t.Errorf("announcement = %+v", ann)
	}
	// Ports that the section leaves out keep their defaults.
	if want := (pbxmesh.SIPPorts{UDP: 5060, TCP: 5060, TLS: 5061}); ann.Ports != want {
		t.Errorf("ports = %+v, want %+v", ann.Ports, want)
	}
	if got := cfg.FreeSWITCH.EventSocket.PasswordFile; got != "/etc/pbxmesh/event_socket.password" {
		t.Errorf("a relative path became %q", got)
	}
	if cfg.DNS.Zone != "sip.example.com" || cfg.DNS.Tenants[0] != "*.pbx.sip.example.com" || cfg.Router.DefaultDomain != "pbx.example.com" {
		t.Errorf("names are not folded: %+v %q", cfg.DNS, cfg.Router.DefaultDomain)
	}
	if network, address := cfg.Registry.URL.Network(); network != "tcp" || address != "192.0.2.1:6379" {
		t.Errorf("store at %s %s", network, address)
	}
	if cfg.Failover.Probe.Timeout != 1500*time.Millisecond || cfg.Failover.Probe.DownAfter != 3 {
		t.Errorf("probe = %+v", cfg.Failover.Probe)
	}
	if w := strings.Join(cfg.Warnings(), "\n"); !strings.Contains(w, "unencrypted") || !strings.Contains(w, "state_file") {
		t.Errorf("warnings = %s", w)
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // past the umask
			t.Fatal(err)
		}
		return path
	}
	write("good", "ClueCon\n", 0o640)
	write("open", "ClueCon\n", 0o644)
	write("empty", "\n", 0o600)
	write("lines", "a\nb\n", 0o600)
	write("large", strings.Repeat("x", maxSecret+1), 0o600)
	node := "node: {id: london, mesh_address: \"127.0.0.1:5090\"}\nfreeswitch:\n  event_socket:\n    password_file: "
	cases := map[string]string{ // secret file: part of the error, "" for none
		"good": "", "open": "chmod o-rwx", "empty": "is empty", "lines": "more than one line",
		"large": "larger than", "missing": "does not exist", ".": "no regular file",
	}
	for file, want := range cases {
		cfg, err := Load(write("c-"+strings.ReplaceAll(file, ".", "dir")+".yaml", node+file+"\n", 0o644))
		switch {
		case want == "" && err != nil:
			t.Errorf("%s: %v", file, err)
		case want == "":
			secret, err := cfg.FreeSWITCH.EventSocket.PasswordFile.Read()
			if secret != "ClueCon" || err != nil || cfg.Name != "london" {
				t.Errorf("%s: secret %q, %v, name %q", file, secret, err, cfg.Name)
			}
		case err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), ":4:"):
			t.Errorf("%s: error %v, want one at line 4 with %q", file, err, want)
		}
	}
	if _, err := Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
	if cfg, err := Load(write("observer.yaml", "", 0o644)); err != nil || cfg.Name == "" {
		t.Errorf("an observer without name: %+v, %v", cfg, err)
	}
}

func TestSecretNeverShown(t *testing.T) {
	t.Parallel()
	if _, err := Parse("p.yaml", []byte("registry:\n  url: [redis://bob:hunter2@redis.example.com]\n")); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a URL in a list gives %v", err)
	}
	for _, src := range []string{
		"registry:\n  url: redis://bob:hunter2@redis.example.com\n",
		"registry:\n  password: hunter2\n",
		"registry: {username: 5, password: hunter2}\n",
		"api: {token: hunter2}\n",
		"freeswitch: {event_socket: {password_file: [hunter2]}}\n",
	} {
		_, err := Parse("p.yaml", []byte(src))
		if err == nil {
			t.Errorf("%q is accepted", src)
			continue
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error repeats the password: %v", err)
		}
		if !strings.Contains(err.Error(), "_file") {
			t.Errorf("the error does not name the remedy: %v", err)
		}
	}
}
