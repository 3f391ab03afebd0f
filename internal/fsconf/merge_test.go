package fsconf

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

// Whatever was done before, the same settings give the same file, and the block can
// be taken out again without a trace.
func TestMergeIsIdempotent(t *testing.T) {
	t.Parallel()
	one, other := buffalo(), buffalo()
	other.Peers = append(other.Peers, Peer{"singapore", netip.MustParseAddr("203.0.113.30")})
	other.EventSocket.Password = "changed"
	for name, old := range map[string]string{
		"stock":       string(stock(t, "acl.conf.xml")),
		"one line":    `<configuration name="acl.conf"><network-lists><list name="lan" default="deny"/></network-lists></configuration>`,
		"CRLF":        "<configuration>\r\n<network-lists>\r\n</network-lists>\r\n</configuration>\r\n",
		"lax":         "<configuration>\n<network-lists>\n<list name=lan default=\"a&b\"/>\n</network-lists>\n</configuration>",
		"declaration": "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>\n<configuration>\n<network-lists>\n<!-- \xe4 -->\n</network-lists>\n</configuration>\n",
	} {
		first, err := one.MergeACL([]byte(old))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Contains(first, []byte("198.51.100.20/32")) || bytes.Contains(first, []byte("203.0.113.30")) {
			t.Errorf("%s gives\n%s", name, first)
		}
		second, err := other.MergeACL(first)
		if err != nil || !bytes.Contains(second, []byte("203.0.113.30/32")) {
			t.Errorf("%s, with a new node: %v\n%s", name, err, second)
		}
		again, err := one.MergeACL(second)
		if err != nil || !bytes.Equal(again, first) {
			t.Errorf("%s, back again: %v\n%s", name, err, Diff("first", "again", first, again))
		}
		bare, err := withoutBlock(first)
		if err != nil || strings.ReplaceAll(string(bare), "\n", "") != strings.ReplaceAll(old, "\n", "") {
			t.Errorf("%s: something else was touched: %v\n%s", name, err, bare)
		}
	}
	first, err := one.MergeEventSocket(stock(t, "event_socket.conf.xml"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := other.MergeEventSocket(first)
	if err != nil || !bytes.Contains(second, []byte(`value="changed"`)) {
		t.Errorf("%v\n%s", err, second)
	}
	again, err := one.MergeEventSocket(second)
	if err != nil || !bytes.Equal(again, first) {
		t.Errorf("%v\n%s", err, Diff("first", "again", first, again))
	}
}

func TestMergeRefuses(t *testing.T) {
	t.Parallel()
	const frame = "<configuration>\n<network-lists>\n%</network-lists>\n</configuration>\n"
	for name, tc := range map[string]struct{ old, want string }{
		"no XML":               {"<configuration><network-lists", "it is no XML"},
		"another file":         {"<configuration/>\n", "it has no <network-lists>"},
		"empty":                {"", "it has no <network-lists>"},
		"no inside":            {"<configuration><network-lists/></configuration>", "is empty"},
		"twice":                {"<a><network-lists></network-lists><network-lists></network-lists></a>", "more than one"},
		"their own list":       {strings.Replace(frame, "%", "<list name=\"mesh\" default=\"allow\"/>\n", 1), "line 3 has a list \"mesh\""},
		"half a block":         {strings.Replace(frame, "%", "<!-- BEGIN pbxmesh: x -->\n", 1), "do not belong together"},
		"block upside down":    {strings.Replace(frame, "%", "<!-- END pbxmesh -->\n<!-- BEGIN pbxmesh -->\n", 1), "do not belong together"},
		"two blocks":           {strings.Replace(frame, "%", strings.Repeat("<!-- BEGIN pbxmesh -->\n<!-- END pbxmesh -->\n", 2), 1), "2 times"},
		"never ends":           {"<configuration>\n<network-lists>\n", "it has no <network-lists>"},
		"ends and never began": {"</network-lists>", "it has no <network-lists>"},
	} {
		if got, err := buffalo().MergeACL([]byte(tc.old)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v\n%s", name, err, got)
		}
	}
	if _, err := buffalo().MergeEventSocket([]byte(`<settings><param name="password"/></settings>`)); err == nil || !strings.Contains(err.Error(), "has no value") {
		t.Errorf("a parameter without value: %v", err)
	}
}

// A list that the operator named stays: mod_event_socket wants all of them to agree.
func TestEventSocketKeepsOtherLists(t *testing.T) {
	t.Parallel()
	old := "<settings>\n<param value='x' name='password' />\n<param name=\"apply-inbound-acl\" value=\"lan\"/>\n</settings>\n"
	got, err := buffalo().MergeEventSocket([]byte(old))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`<param name="apply-inbound-acl" value="lan"/>`, `<param name="apply-inbound-acl" value="loopback.auto"/>`,
		`<param value='a&amp;b&lt;&quot;c&apos;$' name='password' />`, `<param name="listen-ip" value="127.0.0.1"/>`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is missing in\n%s", want, got)
		}
	}
}

// What is merged can be read, and merging it again changes nothing; what is not ours
// stays byte for byte.
func FuzzMergeACL(f *testing.F) {
	f.Add([]byte("<configuration>\n<network-lists>\n</network-lists>\n</configuration>\n"))
	f.Add([]byte("<a><network-lists><!-- BEGIN pbxmesh -->\n<!-- END pbxmesh -->\n</network-lists>"))
	f.Add([]byte("<network-lists><!-- BEGIN pbxmesh -->\n<!-- END pbxmesh --> </network-lists>"))
	f.Add([]byte("<network-lists><list name='mesh'/></network-lists>"))
	f.Fuzz(func(t *testing.T, old []byte) {
		s := buffalo()
		first, err := s.MergeACL(old)
		if err != nil {
			return
		}
		if !bytes.Contains(first, s.ACLFragment()) {
			t.Fatalf("%q gives %q without our block", old, first)
		}
		second, err := s.MergeACL(first)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%q gives %q, then %q, %v", old, first, second, err)
		}
	})
}

func FuzzMergeEventSocket(f *testing.F) {
	f.Add([]byte("<settings>\n<param name=\"password\" value='x'/>\n</settings>\n"))
	f.Add([]byte("<settings><param value='1' name=\"listen-port\"/><param name='listen-ip' value=\"::\"/></settings>"))
	f.Fuzz(func(t *testing.T, old []byte) {
		s := buffalo()
		first, err := s.MergeEventSocket(old)
		if err != nil {
			return
		}
		second, err := s.MergeEventSocket(first)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%q gives %q, then %q, %v", old, first, second, err)
		}
	})
}
