package pbxmesh

import (
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"testing"
)

func TestParseAOR(t *testing.T) {
	t.Parallel()
	label63 := strings.Repeat("a", 63)
	domain253 := strings.Join([]string{label63, label63, label63, strings.Repeat("b", 61)}, ".")
	tests := []struct{ in, user, domain string }{
		{"1001@pbx.test", "1001", "pbx.test"},
		{"sip:1001@pbx.test", "1001", "pbx.test"},
		{"SIPS:1001@pbx.test", "1001", "pbx.test"},
		{"Alice.B@PBX.Example.COM", "alice.b", "pbx.example.com"},
		{"+1-716_555.0100@pbx.test", "+1-716_555.0100", "pbx.test"},
		{"1001@192.0.2.1", "1001", "192.0.2.1"},
		{"1001@localhost", "1001", "localhost"},
		{"1001@tenant_1.pbx.test", "1001", "tenant_1.pbx.test"},
		{"1001@_sip.test", "1001", "_sip.test"},
		{"sip@sip.test", "sip", "sip.test"},
		{strings.Repeat("9", MaxUserLen) + "@pbx.test", strings.Repeat("9", MaxUserLen), "pbx.test"},
		{"1001@" + domain253, "1001", domain253},
	}
	for _, tt := range tests {
		a, err := ParseAOR(tt.in)
		if err != nil || a.User() != tt.user || a.Domain() != tt.domain || a.String() != tt.user+"@"+tt.domain || a.IsZero() {
			t.Errorf("%q: got %q of %q (%q), %v", tt.in, a.User(), a.Domain(), a, err)
		}
	}
}

// TestAORIdentity: two spellings of one phone are one key of a map.
func TestAORIdentity(t *testing.T) {
	t.Parallel()
	a, _ := ParseAOR("Alice@PBX.test")
	b, _ := NewAOR("alice", "pbx.TEST")
	c, _ := NewAOR("alice", "pbx2.test")
	if a != b || a == c {
		t.Errorf("%s and %s must be one, %s another", a, b, c)
	}
	var zero AOR
	if !zero.IsZero() || zero.User() != "" || zero.Domain() != "" || zero.String() != "" {
		t.Errorf("the zero AOR is %q", zero)
	}
}

// hostileParts are what neither a user nor a domain may be: FreeSWITCH's dial
// string syntax, its expressions, what ends a line or a command, what a Redis key
// or XML could misread, encodings, and letters that only look like ASCII.
var hostileParts = []string{
	"", "1001,sofia/gateway/x", "1001|y", "${system(id)}", "$1", "[a=b]1", "{x}", "<x>", "1001@other", "@", "^^:1", "a:b", ":_:",
	"1;fs_path=sip:192.0.2.66", "a b", " 1001", "1001 ", "\t", "1001\r\n", "1001\n", "1001\n\napi x", "\x00", "1\x001", "\x1b[2J", "\x7f", "'", `"`, `\`, "/", "*",
	"?", "#", "%", "%31%30", "%2531", "%0a", "１００１", "\u212a", "\u017f", "а", "1\u202e1", "1\u200b1", "\ufeff1", "\xff", "é", "=", "&", "!", "(", ")", "~", "`",
	strings.Repeat("1", 4096),
}

func TestHostileAOR(t *testing.T) {
	t.Parallel()
	for _, s := range hostileParts {
		for _, try := range []struct {
			what string
			err  error
		}{
			{"user", second(NewAOR(s, "pbx.test"))},
			{"domain", second(NewAOR("1001", s))},
			{"user parsed", second(ParseAOR(s + "@pbx.test"))},
			{"domain parsed", second(ParseAOR("1001@" + s))},
		} {
			if !errors.Is(try.err, ErrInvalidAOR) {
				t.Errorf("%.40q as %s: %v", s, try.what, try.err)
				continue
			}
			if msg := try.err.Error(); len(msg) > 400 || strings.ContainsFunc(msg, func(r rune) bool { return r < ' ' || r > '~' }) {
				t.Errorf("%.40q as %s: an error of %d bytes: %.100q", s, try.what, len(msg), msg)
			}
		}
	}
	for _, d := range []string{".", "pbx.", ".test", "a..b", "-a.test", "a-.test", "a.test:5060", "[::1]", "2001:db8::1", strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a"} {
		if _, err := NewAOR("1001", d); !errors.Is(err, ErrInvalidAOR) {
			t.Errorf("domain %.40q: %v", d, err)
		}
	}
	for _, s := range []string{"1001", "sip:1001", "tel:1001", "sip:sip:1001@pbx.test", "sips:@pbx.test", "http:1001@pbx.test", "<sip:1001@pbx.test>", "1001@pbx.test;transport=udp", "1001:secret@pbx.test"} {
		if _, err := ParseAOR(s); !errors.Is(err, ErrInvalidAOR) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if _, err := NewAOR(strings.Repeat("1", MaxUserLen+1), "pbx.test"); !errors.Is(err, ErrInvalidAOR) {
		t.Errorf("a user that is one byte too long: %v", err)
	}
}

func second(_ AOR, err error) error { return err }

func TestAORText(t *testing.T) {
	t.Parallel()
	type doc struct {
		AOR AOR            `json:"aor"`
		Map map[AOR]string `json:"map"`
	}
	a, _ := NewAOR("1001", "pbx.test")
	data, err := json.Marshal(doc{a, map[AOR]string{a: "x"}})
	if want := `{"aor":"1001@pbx.test","map":{"1001@pbx.test":"x"}}`; err != nil || string(data) != want {
		t.Fatalf("got %s, %v", data, err)
	}
	var back doc
	if err := json.Unmarshal(data, &back); err != nil || back.AOR != a || back.Map[a] != "x" {
		t.Errorf("got %+v, %v", back, err)
	}
	kept := back.AOR
	if err := json.Unmarshal([]byte(`{"aor":"1001,x@pbx.test"}`), &back); !errors.Is(err, ErrInvalidAOR) || back.AOR != kept {
		t.Errorf("a hostile text gave %q, %v", back.AOR, err)
	}
}

// validAOR is the promise of AOR's comment, written by hand from it.
var validAOR = regexp.MustCompile(`\A[a-z0-9._+-]{1,64}@[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*\z`)

// FuzzAOR: what is accepted keeps the promise, is a fixed point, and is the input
// in lower case; what is refused yields the zero AOR and a short, plain error.
func FuzzAOR(f *testing.F) {
	f.Add("1001", "pbx.test")
	for _, s := range hostileParts {
		f.Add(s, "pbx.test")
		f.Add("1001", s)
	}
	f.Fuzz(func(t *testing.T, user, domain string) {
		a, err := NewAOR(user, domain)
		if err != nil {
			if !a.IsZero() || !errors.Is(err, ErrInvalidAOR) || len(err.Error()) > 400 || strings.ContainsAny(err.Error(), "\r\n\x1b\x00") {
				t.Fatalf("%q@%q: %q, %q", user, domain, a, err)
			}
		} else {
			if !validAOR.MatchString(a.String()) || len(a.Domain()) > MaxDomainLen {
				t.Fatalf("%q@%q: accepted as %q", user, domain, a)
			}
			if !strings.EqualFold(a.String(), user+"@"+domain) || len(a.String()) != len(user)+1+len(domain) || a.User()+"@"+a.Domain() != a.String() {
				t.Fatalf("%q@%q: became %q", user, domain, a)
			}
			if again, err := ParseAOR(a.String()); err != nil || again != a {
				t.Fatalf("%q read again: %q, %v", a, again, err)
			}
		}
		// Parsing must not accept more than NewAOR does for the same two parts.
		if p, perr := ParseAOR("sip:" + user + "@" + domain); perr == nil && (err != nil || p != a) {
			t.Fatalf("ParseAOR accepts %q@%q as %q, NewAOR says %q, %v", user, domain, p, a, err)
		}
	})
}
