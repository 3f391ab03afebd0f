package feed

import (
	"encoding/xml"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

func TestParseRows(t *testing.T) {
	t.Parallel()
	const head = `<?xml version="1.0" encoding="ISO-8859-1"?><profile><registrations>`
	for name, tc := range map[string]struct {
		in   string
		want []string
		err  error
	}{
		"empty":             {head + "</registrations></profile>", nil, nil},
		"self-closed":       {"<profile><registrations/></profile>", nil, nil},
		"one":               {head + "<registration><call-id>i</call-id><user>u@d</user></registration></registrations>", []string{"u@d i "}, nil},
		"similar names":     {head + "<registration><sip-auth-user>x</sip-auth-user><user>u@d</user><mwi-user>y</mwi-user></registration></registrations>", []string{"u@d  "}, nil},
		"entities":          {head + "<registration><user>&lt;a&amp;lt;&quot;&#65;&#x42;&nbsp;&</user></registration></registrations>", []string{`<a&lt;"AB&nbsp;&  `}, nil},
		"nested markup":     {head + "<registration><user><b>x</b></user><call-id>i</call-id></registration></registrations>", []string{" i "}, nil},
		"latin 1":           {head + "<registration><user>u</user><agent>caf\xe9</agent></registration></registrations>", []string{"u  caf\xe9"}, nil},
		"a row in a row":    {head + "<registration><agent><registration></agent></registration><registration><user>u</user></registration></registrations>", []string{"  ", "u  "}, nil},
		"early end":         {head + "<registration><agent></registrations></agent></registration><registration><user>u</user></registration></registrations>", []string{"  ", "u  "}, nil},
		"invalid profile":   {"Invalid Profile!\n", nil, ErrProfile},
		"not a list":        {"-ERR no", nil, errSnapshot},
		"nothing":           {"", nil, errSnapshot},
		"cut off":           {head + "<registration><user>u</user></registration>", nil, errSnapshot},
		"row that is open":  {head + "<registration><user>u</user></registrations>", nil, errSnapshot},
		"profile not found": {"Invalid Profile", nil, ErrProfile},
	} {
		var got []string
		err := parseRows(tc.in, "p", func(r xmlRow) { got = append(got, r.user+" "+r.callID+" "+r.agent) })
		if !errors.Is(err, tc.err) || !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, err, tc.want, tc.err)
		}
	}
}

func TestStatusFields(t *testing.T) {
	t.Parallel()
	for status, want := range map[string]struct {
		transport string
		left      time.Duration
		ok        bool
	}{
		"Registered(UDP)(unknown) exp(2026-11-22 15:59:07) expsecs(147)": {"udp", 147 * time.Second, true},
		"Registered(TCP-NAT)(x) exp(2026-11-22 15:59:07) expsecs(-3)":    {"tcp", -3 * time.Second, true},
		"Registered(unknown) exp(2026-11-22 16:01:39) expsecs(299)":      {"", 299 * time.Second, true},
		"Registered(TLS)(expsecs(9)) exp(x) expsecs(5)":                  {"tls", 5 * time.Second, true},
		"Registered(WSS-NAT-2.0)":                                        {"wss", 0, false},
		"Registered(WS)expsecs(99999999999999999999)":                    {"ws", 0, false},
		"Registered(UDP) expsecs(2000000000)":                            {"udp", maxExpires, true},
		"Registered(UDP) expsecs(":                                       {"udp", 0, false},
		"UDP":                                                            {"", 0, false},
		"":                                                               {"", 0, false},
	} {
		left, ok := expsecs(status)
		if got := transport(status); got != want.transport || left != want.left || ok != want.ok {
			t.Errorf("%q: %q %v %v, want %+v", status, got, left, ok, want)
		}
	}
	for in, want := range map[string]string{
		`"" <sip:1001@127.0.4.1:5062>`: "sip:1001@127.0.4.1:5062", `"a b" <sip:x>;expires=3`: "sip:x", "sip:x@y": "sip:x@y",
		"<sip:x": "sip:x", "": "", "*": "*", " sip:x ": "sip:x", "<>": "",
	} {
		if got := bareURI(in); got != want {
			t.Errorf("bareURI(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"<sip:a@b;fs_nat=yes;fs_path=sip%3Aa%4010.0.0.1%3A5060>": "sip:a@b;fs_nat=yes;fs_path=sip:a@10.0.0.1:5060",
		"sip:a%": "sip:a%", "sip:a%4": "sip:a%4", "sip:a%zz%41": "sip:a%zzA", "sip:a%0d%0A%00": "sip:a%0D%0A%00", "sip:a%+1": "sip:a%+1", "": "",
	} {
		if got := contactURI(in); got != want {
			t.Errorf("contactURI(%q) = %q, want %q", in, got, want)
		}
	}
	for _, in := range []struct{ ip, port, want string }{
		{"127.0.4.1", "5062", "127.0.4.1:5062"}, {"::ffff:127.0.4.1", "1", "127.0.4.1:1"}, {"2001:db8::1", "5060", "[2001:db8::1]:5060"},
		{"127.0.4.1", "70000", "invalid AddrPort"}, {"host", "5060", "invalid AddrPort"}, {"fe80::1%eth0", "5060", "invalid AddrPort"}, {"", "", "invalid AddrPort"},
	} {
		if got := source(in.ip, in.port).String(); got != in.want {
			t.Errorf("source(%q, %q) = %s, want %s", in.ip, in.port, got, in.want)
		}
	}
}

func TestUserAgentBounds(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "Yealink SIP-T46U 108.86.0.75", strings.Repeat("é", 100), strings.Repeat("x", 128), strings.Repeat("x", 129), "a\nb\x7f", "\xff\xfe", strings.Repeat("x", 127) + "é"} {
		got := userAgent(in)
		if len(got) > pbxmesh.MaxUserAgentLen || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\x7f") {
			t.Errorf("userAgent(%q) = %q", in, got)
		}
		if len(in) < 100 && utf8.ValidString(in) && !strings.ContainsAny(in, "\n\x7f") && got != in {
			t.Errorf("userAgent(%q) = %q", in, got)
		}
	}
}

// FuzzParseRows: no reply panics; of a reply that the XML decoder finds well
// formed, the same rows come out.
func FuzzParseRows(f *testing.F) {
	f.Add("<profile><registrations><registration><call-id>i</call-id><user>1001@pbx.test</user></registration></registrations></profile>")
	f.Fuzz(func(t *testing.T, reply string) {
		var got []xmlRow
		err := parseRows(reply, "internal", func(r xmlRow) { got = append(got, r) })
		feed := New(Options{Node: "buffalo", Profiles: []string{"internal"}, Sink: newBooks()})
		for _, r := range got {
			if reg, ok := feed.fromRow(r, "internal", testNow); ok {
				if err := reg.Validate(); err != nil {
					t.Fatalf("row %+v became an invalid record: %v", r, err)
				}
			}
		}
		// What only holds text and the five entities, in the switch's own layout,
		// means the same to the XML decoder.
		if err != nil || strings.ContainsAny(reply, "![]?'\r/=") || !utf8.ValidString(reply) {
			return
		}
		var doc struct {
			Rows []struct {
				CallID string `xml:"call-id"`
				User   string `xml:"user"`
			} `xml:"registrations>registration"`
		}
		if xml.Unmarshal([]byte(reply), &doc) != nil || len(doc.Rows) == 0 {
			return
		}
		if len(doc.Rows) != len(got) {
			t.Fatalf("%d rows, the XML decoder finds %d", len(got), len(doc.Rows))
		}
	})
}

// FuzzEvents: whatever an event says, what reaches the Sink is valid, and its
// address is one that NewAOR takes.
func FuzzEvents(f *testing.F) {
	f.Add("sofia::register", "1001", "pbx.test", `"" <sip:1001@127.0.4.1:5062>`, "call-1", "120", "Registered(UDP)", "unknown")
	f.Add("sofia::unregister", "1001", "pbx.test", "*", "", "0", "", "")
	f.Fuzz(func(t *testing.T, subclass, user, host, contact, call, expires, status, agent string) {
		s := newScriptedFeed(t)
		s.fire(custom("core-1", 1, subclass, "from-user", user, "from-host", host, "user", user, "host", host, "contact", contact,
			"call-id", call, "expires", expires, "status", status, "user-agent", agent, "network-ip", "192.0.2.1", "network-port", "5060"))
		for _, reg := range s.sink.regs {
			if err := reg.Validate(); err != nil {
				t.Fatal(err)
			}
			if aor, err := pbxmesh.NewAOR(user, host); err != nil || aor != reg.AOR {
				t.Fatalf("%q@%q became %v", user, host, reg.AOR)
			}
			if reg.Expires.After(testNow.Add(maxExpires + DefaultLateMargin)) {
				t.Fatalf("expires %v", reg.Expires)
			}
		}
		if len(s.sink.regs) > 1 {
			t.Fatal("one event, two registrations")
		}
	})
}

// scriptedFeed is a feed without a connection.
type scriptedFeed struct {
	*Feed
	sink *books
}

func newScriptedFeed(testing.TB) *scriptedFeed {
	sink := newBooks()
	f := New(Options{Node: "buffalo", Profiles: []string{"internal"}, Sink: sink, Now: func() time.Time { return testNow }})
	f.mu.Lock()
	f.adopt("core-1")
	f.table.snapshot(nil, 0)
	f.mu.Unlock()
	return &scriptedFeed{f, sink}
}

func (s *scriptedFeed) fire(text string) { s.onEvent(esl.ParseEvent(text)) }

func ExampleStatus() {
	f := New(Options{Node: "buffalo", Profiles: []string{"internal"}})
	fmt.Println(f.Status().Connected)
	// Output: false
}
