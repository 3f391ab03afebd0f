package fsconf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func buffalo() *Settings {
	return &Settings{
		Mesh: netip.MustParseAddrPort("192.0.2.10:5090"), Profile: "mesh", Profiles: []string{"internal"},
		Peers: []Peer{
			{"london", netip.MustParseAddr("198.51.100.20")},
			{"buffalo", netip.MustParseAddr("192.0.2.10")},
			{"london", netip.MustParseAddr("::ffff:198.51.100.20")}, // the same once more
		},
		EventSocket: EventSocket{
			Listen: netip.MustParseAddrPort("127.0.0.1:8021"), Password: `a&b<"c'$`, PasswordFile: "/etc/pbxmesh/event_socket.password",
		},
		Hook: netip.MustParseAddrPort("127.0.0.1:8084"),
	}
}

// nat is a node behind a router, with two profiles and another mesh profile.
func nat() *Settings {
	s := buffalo()
	s.Bind = netip.MustParseAddr("10.0.0.5")
	s.Profile, s.Profiles = "far", []string{"internal", "internal-ipv6"}
	s.Peers = append(s.Peers, Peer{"singapore", netip.MustParseAddr("2001:db8::30")})
	return s
}

func stock(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "stock", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func must(t *testing.T, text []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	goldenAt(t, filepath.Join("testdata", "golden", name), got)
}

func goldenAt(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := Diff(path, "got", want, got); d != "" {
		t.Errorf("run with -update when this is meant:\n%s", d)
	}
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]*Settings{"plain": buffalo(), "nat": nat()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := s.Check(); err != nil {
				t.Fatal(err)
			}
			acl, err := s.MergeACL(stock(t, "acl.conf.xml"))
			es, err2 := s.MergeEventSocket(stock(t, "event_socket.conf.xml"))
			acl, es = must(t, acl, err), must(t, es, err2)
			fresh, err := s.MergeACL(nil)
			freshES, err2 := s.MergeEventSocket(nil)
			fusion := &FusionPBX{Settings: *s}
			if name == "nat" {
				fusion.Hostname = "pbx-1.example.com"
			}
			for file, got := range map[string][]byte{
				"profile.xml": s.ProfileXML(), "dialplan.xml": s.DialplanXML(), "example.xml": s.ExampleXML(),
				"acl.xml": acl, "event_socket.xml": es,
				"acl_new.xml": must(t, fresh, err), "event_socket_new.xml": must(t, freshES, err2),
				"apply.sql": fusion.ApplySQL(), "undo.sql": fusion.UndoSQL(),
			} {
				golden(t, name+"_"+file, got)
				if strings.HasSuffix(file, ".xml") {
					wellFormed(t, file, got)
				}
			}
		})
	}
}

// The real switches of all tests take calls between nodes with what fsconf writes.
func TestRealSwitchFixture(t *testing.T) {
	t.Parallel()
	s := buffalo()
	fill := strings.NewReplacer(s.Mesh.Addr().String(), "{{.Host}}", strconv.Itoa(int(s.Mesh.Port())), "{{.MeshPort}}")
	dir := filepath.Join("..", "..", "fixtures", "realswitch")
	goldenAt(t, filepath.Join(dir, "mesh-profile.xml.tmpl"), []byte(fill.Replace(string(s.ProfileXML()))))
	_, context, _ := strings.Cut(string(s.DialplanXML()), "<include>\n")
	context, _, _ = strings.Cut(context, "</include>")
	goldenAt(t, filepath.Join(dir, "mesh-context.xml"), []byte(context))
}

func wellFormed(t *testing.T, name string, text []byte) {
	t.Helper()
	dec := xml.NewDecoder(bytes.NewReader(text))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, text)
		}
	}
}

// The order in which nodes become known does not show.
func TestOrderOfPeersDoesNotMatter(t *testing.T) {
	t.Parallel()
	a, b := nat(), nat()
	slices.Reverse(b.Peers)
	if !bytes.Equal(a.ACLFragment(), b.ACLFragment()) {
		t.Errorf("%s\n%s", a.ACLFragment(), b.ACLFragment())
	}
	fa, fb := &FusionPBX{Settings: *a}, &FusionPBX{Settings: *b}
	if !bytes.Equal(fa.ApplySQL(), fb.ApplySQL()) {
		t.Error("the SQL differs")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*Settings)
		want   string
	}{
		"no mesh address":       {func(s *Settings) { s.Mesh = netip.AddrPort{} }, "no IPv4 address"},
		"IPv6 mesh address":     {func(s *Settings) { s.Mesh = netip.MustParseAddrPort("[2001:db8::1]:5090") }, "no IPv4 address"},
		"bind everything":       {func(s *Settings) { s.Bind = netip.IPv4Unspecified() }, "address to bind"},
		"profile with a quote":  {func(s *Settings) { s.Profile = `me"sh` }, "cannot be written"},
		"profile with a path":   {func(s *Settings) { s.Profile = "../x" }, "cannot be written"},
		"profile with a dollar": {func(s *Settings) { s.Profiles = []string{"${x}"} }, "cannot be written"},
		"no profile":            {func(s *Settings) { s.Profiles = nil }, "no profile"},
		"one profile for both":  {func(s *Settings) { s.Profiles = []string{"internal", "mesh"} }, "cannot hold phones"},
		"event socket outside":  {func(s *Settings) { s.EventSocket.Listen = netip.MustParseAddrPort("192.0.2.10:8021") }, "loopback"},
		"password with a line":  {func(s *Settings) { s.EventSocket.Password = "a\nb" }, "control character"},
		"everybody":             {func(s *Settings) { s.Peers[0].Address = netip.IPv4Unspecified() }, "no address that calls"},
		"node without name":     {func(s *Settings) { s.Peers[0].Name = "" }, "node"},
		"too many":              {func(s *Settings) { s.Peers = make([]Peer, MaxPeers+1) }, "at most 1024"},
	} {
		s := buffalo()
		tc.change(s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := &FusionPBX{Settings: *buffalo(), Hostname: "a';DROP"}
	if err := f.Check(); err == nil {
		t.Error("a host name with a quote passes")
	}
}
