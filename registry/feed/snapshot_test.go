package feed

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/sofia"
	"pbxmesh/registry"
)

func TestParseRows(t *testing.T) {
	t.Parallel()
	const head = "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>\n<profile>\n  <registrations>\n"
	const tail = "  </registrations>\n</profile>"
	rows := func(bodies ...string) string {
		var b strings.Builder
		for _, body := range bodies {
			b.WriteString("    <registration>\n" + body + "    </registration>\n")
		}
		return head + b.String() + tail
	}
	for name, tc := range map[string]struct {
		in   string
		want []string
		err  error
	}{
		"empty":               {head + tail, nil, nil},
		"self-closed":         {"<profile>\n<registrations/>\n</profile>", nil, nil},
		"one":                 {rows("        <call-id>i</call-id>\n        <user>u@d</user>\n"), []string{"u@d i "}, nil},
		"similar names":       {rows("<sip-auth-user>x</sip-auth-user>\n<user>u@d</user>\n<mwi-user>y</mwi-user>\n"), []string{"u@d  "}, nil},
		"entities of agent":   {rows("<agent>&lt;a&amp;lt;&quot;&apos;&#65;&nbsp;&</agent>\n"), []string{`@  <a&lt;"'&#65;&nbsp;&`}, nil},
		"entities of Call-ID": {rows("<call-id>a&lt;b&amp;</call-id>\n"), []string{"@ a&lt;b&amp; "}, nil},
		"angle brackets":      {rows("<call-id>z97<8df>6d~8g6+7sdg@192.0.2.9</call-id>\n"), []string{"@ z97<8df>6d~8g6+7sdg@192.0.2.9 "}, nil},
		"markup in Call-ID":   {rows("<call-id>x</call-id><user>1@d</user></registration></call-id>\n<user>u@d</user>\n"), []string{"u@d x</call-id><user>1@d</user></registration> "}, nil},
		"a row in Call-ID":    {rows("<call-id><registration></call-id>\n", "<user>u@d</user>\n"), []string{"@ <registration> ", "u@d  "}, nil},
		"the end in Call-ID":  {rows("<call-id></registrations></call-id>\n", "<user>u@d</user>\n"), []string{"@ </registrations> ", "u@d  "}, nil},
		"line break in agent": {rows("<agent>a\n    b</agent>\n<user>u@d</user>\n"), []string{"u@d  a\nb"}, nil},
		"blanks stay":         {rows("<agent> a  </agent>\n"), []string{"@   a  "}, nil},
		"latin 1":             {rows("<agent>caf\xe9</agent>\n"), []string{"@  caf\xe9"}, nil},
		"percent":             {rows("<call-id>%41%4a%zz%</call-id>\n<agent>&quot;%3C%3c</agent>\n"), []string{`@ A%4a%zz% "<%3c`}, nil},
		"invalid profile":     {"Invalid Profile!\n", nil, ErrProfile},
		"not a list":          {"-ERR no", nil, errSnapshot},
		"nothing":             {"", nil, errSnapshot},
		"cut off":             {head + "<registration>\n<user>u</user>\n</registration>\n", nil, errSnapshot},
		"row that is open":    {head + "<registration>\n<user>u</user>\n" + tail, nil, errSnapshot},
		"profile not found":   {"Invalid Profile", nil, ErrProfile},
	} {
		var got []string
		err := parseRows(tc.in, "p", func(r fields, _ string, _ bool) { got = append(got, r.user+"@"+r.host+" "+r.callID+" "+r.agent) })
		if !errors.Is(err, tc.err) || err == nil && !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, %v; want %q, %v", name, got, err, tc.want, tc.err)
		}
	}
}

// TestRowsInTheFormOfEvents: of what the table holds an event shows the percent-encoded
// bytes, and those once.
func TestRowsInTheFormOfEvents(t *testing.T) {
	t.Parallel()
	const reply = "<registrations>\n<registration>\n<call-id>%2541%26amp;</call-id>\n<user>%41lice@d</user>\n" +
		"<contact>&quot;%26lt;&quot; &lt;sip:a%26lt;@h;x=%3C&amp;lt;&gt;</contact>\n<agent>%26lt;</agent>\n</registration>\n</registrations>\n"
	want := fields{user: "Alice", host: "d", callID: "%41&amp;", contact: `"&lt;" <sip:a&lt;@h;x=<&lt;>`, agent: "&lt;"}
	var got fields
	if err := parseRows(reply, "internal", func(row fields, _ string, _ bool) { got = row }); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
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
	for in, want := range map[string][2]string{
		`"" <sip:1001@127.0.4.1:5062>`: {"", "sip:1001@127.0.4.1:5062"}, `"a b" <sip:x>;expires=3`: {`"a b"`, "sip:x"},
		"sip:x@y": {"", "sip:x@y"}, "<sip:x": {"", "sip:x"}, "": {"", ""}, "*": {"", "*"}, " sip:x ": {"", "sip:x"}, "<>": {"", ""},
		`"" <sip:a@b;fs_path=<sip:192.0.2.7:5080;lr>>`: {"", "sip:a@b;fs_path=<sip:192.0.2.7:5080;lr>"},
		`"<sip:x> \" <" <sip:y>`:                       {`"<sip:x> \" <"`, "sip:y"},
		`"a <sip:y>`:                                   {`"a`, "sip:y"},
		"<sip:caf\xe9@h;a=\x00%41>":                    {"", "sip:caf%E9@h;a=%00%41"},
		"\"\xe9\" <sip:é@h>":                           {`"%E9"`, "sip:é@h"},
	} {
		if name, uri := parseContact(in); name != want[0] || uri != want[1] {
			t.Errorf("parseContact(%q) = %q, %q, want %q", in, name, uri, want)
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

// FuzzParseRows: no reply panics, and what comes out is valid.
func FuzzParseRows(f *testing.F) {
	f.Add("<profile>\n<registrations>\n<registration>\n<call-id>i</call-id>\n<user>1001@pbx.test</user>\n</registration>\n</registrations>\n</profile>")
	f.Fuzz(func(t *testing.T, reply string) {
		feed := New(Options{Node: "buffalo", Profiles: []string{"internal"}, Sink: newBooks()})
		_ = parseRows(reply, "internal", func(row fields, host string, cut bool) {
			b, ok := feed.fromRow(row, host, cut, readAt{"internal", testNow})
			if !ok {
				return
			}
			readable(t, b.reg)
		})
	})
}

// readable fails unless reg can be published and is read elsewhere as it was.
func readable(t *testing.T, reg pbxmesh.Registration) {
	t.Helper()
	if !utf8.ValidString(reg.CallID) { // the writer keeps it to itself
		if err := reg.Validate(); err != nil {
			t.Fatal(err)
		}
		return
	}
	reg.Expires = reg.Expires.Truncate(time.Millisecond).UTC()
	rec, err := registry.EncodeRegistration(&reg)
	if err != nil {
		t.Fatalf("%+v cannot be published: %v", reg, err)
	}
	if got, err := registry.DecodeRegistration(reg.Node, rec); err != nil || !reflect.DeepEqual(got, reg) {
		t.Fatalf("%+v is read elsewhere as %+v, err %v", reg, got, err)
	}
}

// switchEncoding encodes as the switch's events do: not again what looks encoded with
// upper-case digits.
func switchEncoding(s string) string {
	const unsafe, digits = "\r\n #%&+:;<=>?@[\\]^`{|}\"", "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		encoded := c == '%' && len(s)-1-i > 1 && strings.IndexByte(digits, s[i+1]) >= 0 && strings.IndexByte(digits, s[i+2]) >= 0
		if !encoded && (c < ' ' || c > '~' || strings.IndexByte(unsafe, c) >= 0) {
			fmt.Fprintf(&b, "%%%02X", c)
			continue
		}
		b.WriteByte(c)
	}
	return b.String()
}

// FuzzOneForm: whatever a phone sends and the switch keeps, an event and a row say the
// same of it, and it is taken back by the event of its end.
func FuzzOneForm(f *testing.F) {
	f.Add("z97<8df>6d~8g6+7sdg@192.0.2.9", `"" <sip:1001@192.0.2.7;fs_path=%3Csip%3A192.0.2.7%3A5080%3Blr%3E>`, "unknown")
	f.Add("a&amp;b</call-id><x>%41%4a%%", `"a \" <b>" <sip:%22@[2001:db8::1]:5060;transport=tcp;x="<>&'">`, "</agent> & \xff %20 %2")
	f.Add("x@h", `<sip:caf%E9@h`, "&lt;%C3%A9&#65;")
	f.Fuzz(func(t *testing.T, call, contact, agent string) {
		for _, s := range []string{call, contact, agent} {
			if strings.ContainsAny(s, "\n\x00") || len(s) > 1023 {
				return // the switch's parser ends a header there, and cuts a contact
			}
		}
		event := func(name string) string {
			return fmt.Sprintf("Event-Subclass: sofia%%3A%%3A%s\nEvent-Name: CUSTOM\nCore-UUID: core-1\nEvent-Sequence: 1\nprofile-name: internal\n"+
				"from-user: 1001\nfrom-host: pbx.test\nuser: 1001\nhost: pbx.test\ncontact: %s\ncall-id: %s\nexpires: 120\nstatus: Registered(UDP)\n"+
				"user-agent: %s\nnetwork-ip: 192.0.2.1\nnetwork-port: 5060\n\n", name, switchEncoding(contact), switchEncoding(call), switchEncoding(agent))
		}
		if contact == "" || call == "" || sofia.Shown(agent) == "pbxmesh" || sofia.Shown(contact) == "*" || strings.Contains(sofia.Shown(contact), "(null)") {
			return
		}
		s := newScriptedFeed(t)
		s.opts.LateMargin = 0
		s.fire(event("register"))
		esc := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;")
		reply := "<profile>\n  <registrations>\n    <registration>\n        <call-id>" + call + "</call-id>\n        <user>1001@pbx.test</user>\n" +
			"        <contact>" + esc.Replace(contact) + "</contact>\n        <agent>" + esc.Replace(agent) + "</agent>\n" +
			"        <status>Registered(UDP)(unknown) exp(2026-11-22 15:59:07) expsecs(120)</status>\n        <network-ip>192.0.2.1</network-ip>\n" +
			"        <network-port>5060</network-port>\n    </registration>\n  </registrations>\n</profile>"
		var rows []binding
		if err := parseRows(reply, "internal", func(row fields, host string, cut bool) {
			if b, ok := s.fromRow(row, host, cut, readAt{"internal", testNow}); ok {
				rows = append(rows, b)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if len(rows) != len(s.sink.regs) {
			t.Fatalf("%d rows, %d registrations", len(rows), len(s.sink.regs))
		}
		for _, reg := range s.sink.regs {
			readable(t, reg)
		}
		puts := s.sink.puts
		if r, _ := s.table.snapshot(rows, 1, testNow); r.total() != 0 || s.sink.puts != puts {
			t.Fatalf("repairs %+v\nevent %+v\nrow   %+v", r, s.sink.regs, rows)
		}
		s.fire(strings.Replace(event("expire"), "Event-Sequence: 1", "Event-Sequence: 2", 1))
		if len(s.sink.regs) != 0 {
			t.Fatalf("its end was not understood: %+v", s.sink.regs)
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
			readable(t, reg)
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
	f.table.snapshot(nil, 0, testNow)
	f.mu.Unlock()
	return &scriptedFeed{f, sink}
}

func (s *scriptedFeed) fire(text string) { s.onEvent(esl.ParseEvent(text)) }

func ExampleStatus() {
	f := New(Options{Node: "buffalo", Profiles: []string{"internal"}})
	fmt.Println(f.Status().Connected)
	// Output: false
}
