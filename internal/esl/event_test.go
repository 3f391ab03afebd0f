package esl

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
)

// recordedEvents returns the event texts of every recording.
func recordedEvents(t testing.TB) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for _, name := range []string{"events-register-unregister.txt", "events-register-expire-heartbeat.txt", "events-presence-mwi-during-call.txt"} {
		b, err := os.ReadFile("testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		for text := range strings.SplitSeq(string(b), "\n--\n") {
			if strings.TrimSpace(text) != "" {
				out[name] = append(out[name], text+"\n")
			}
		}
	}
	return out
}

func TestEventRecordings(t *testing.T) {
	t.Parallel()
	want := map[string][]string{
		"events-register-unregister.txt": {
			"488 CUSTOM sofia::pre_register", "490 CUSTOM sofia::register_attempt", "491 CUSTOM sofia::register",
			"495 CUSTOM sofia::pre_register", "497 CUSTOM sofia::register_attempt", "498 CUSTOM sofia::unregister",
		},
	}
	for name, texts := range recordedEvents(t) {
		var got []string
		for _, text := range texts {
			e := newEvent(text)
			got = append(got, strings.TrimSpace(fmt.Sprintf("%d %s %s", e.Sequence(), e.Name(), e.Subclass())))
			if len(e.CoreUUID()) != 36 || e.Sequence() == 0 || e.Name() == "" {
				t.Errorf("%s: event without its common headers: %s", name, got[len(got)-1])
			}
			// Every line of the recording comes back, decoded as the switch encoded it.
			var lines []string
			for line := range strings.Lines(text) {
				if line = strings.TrimSuffix(line, "\n"); line == "" {
					break
				}
				lines = append(lines, line)
			}
			i := 0
			for h := range e.Headers() {
				n, v, _ := strings.Cut(lines[i], ": ")
				if h.Name != n || h.Value != decode(v) || !e.Has(n) {
					t.Errorf("%s: header %d is %q, want %q", name, i, h, lines[i])
				}
				i++
			}
			if i != len(lines) {
				t.Errorf("%s: %d headers of %d", name, i, len(lines))
			}
		}
		if w := want[name]; w != nil && !reflect.DeepEqual(got, w) {
			t.Errorf("%s:\n got %q\nwant %q", name, got, w)
		}
	}
}

// TestEventRecordedFields looks at what registry and hooks will read.
func TestEventRecordedFields(t *testing.T) {
	t.Parallel()
	texts := recordedEvents(t)
	find := func(file, subclass string) *Event {
		for _, text := range texts[file] {
			if e := newEvent(text); e.Subclass() == subclass || e.Name() == subclass {
				return e
			}
		}
		t.Fatalf("%s has no %s", file, subclass)
		return nil
	}
	for _, tc := range []struct {
		file, subclass string
		want           map[string]string
	}{
		{"events-register-unregister.txt", "sofia::register", map[string]string{
			"contact": `"" <sip:1001@127.0.4.1:5062>`, "status": "Registered(UDP)", "expires": "120", "from-user": "1001", "FROM-HOST": "pbx.test",
			"FreeSWITCH-IPv6": "fd00::2", "missing": "", "Event-Date-GMT": "Sun, 22 Nov 2026 15:35:09 GMT",
		}},
		{"events-register-expire-heartbeat.txt", "sofia::expire", map[string]string{"user": "1007", "host": "pbx.test", "from-user": "", "expires": "1795362279"}},
		{"events-register-expire-heartbeat.txt", "HEARTBEAT", map[string]string{"Session-Count": "0", "Max-Sessions": "2000", "Idle-CPU": "96.533333", "FreeSWITCH-Version": "1.11.1-release~64bit"}},
	} {
		e := find(tc.file, tc.subclass)
		for name, want := range tc.want {
			if got := e.Get(name); got != want {
				t.Errorf("%s: Get(%q) = %q, want %q", tc.subclass, name, got, want)
			}
		}
	}
}

func TestEventOddities(t *testing.T) {
	t.Parallel()
	e := newEvent("A: 1\nA: 2\narr: ARRAY%3A%3Ax%7C%3Ay%20z\nbad: 100%\nbad2: %zz%20\nplus: a+b\nblank:\nnospace:v\nutf: %C3%A9\nContent-Length: 11\n\nline\n\nline\nignored")
	for name, want := range map[string]string{
		"a": "1", "arr": "ARRAY::x|:y z", "bad": "100%", "bad2": "%zz%20", "plus": "a+b", "blank": "", "nospace": "v", "utf": "é",
	} {
		if got := e.Get(name); got != want {
			t.Errorf("Get(%q) = %q, want %q", name, got, want)
		}
	}
	if got := e.Values("a"); !reflect.DeepEqual(got, []string{"1", "2"}) {
		t.Errorf("Values(a) = %q", got)
	}
	if got := e.Values("arr"); !reflect.DeepEqual(got, []string{"x", "y z"}) {
		t.Errorf("Values(arr) = %q", got)
	}
	if !e.Has("blank") || e.Has("none") {
		t.Error("Has mixes up empty and missing")
	}
	if got := string(e.Body()); got != "line\n\nline\n" {
		t.Errorf("Body = %q", got)
	}
	for text, body := range map[string]string{
		"A: 1\n\nrest":                             "",
		"Content-Length: 99\n\nshort":              "short",
		"Content-Length: -1\n\nx":                  "",
		"Content-Length: 9223372036854775807\n\nx": "",
		"Content-Length: 3\r\n\r\nabc":             "abc",
		"":                                         "",
		":\n:":                                     "",
	} {
		if got := string(newEvent(text).Body()); got != body {
			t.Errorf("body of %q = %q, want %q", text, got, body)
		}
	}
}

func TestMessagesRefuseInjection(t *testing.T) {
	t.Parallel()
	sw := newTestSwitch(t, func(w *wire) {
		if !w.greet() {
			return
		}
		if lines, _, err := w.command(); err == nil {
			t.Errorf("the switch was sent %q", lines)
		}
	})
	c := dialTest(t, Config{Address: sw.addr()})
	ctx := testContext(t)
	call := &Call{s: c.s}
	for _, bad := range []string{"a\nb", "a\rb", "a\r\n\r\nexit", "a\n\napi shutdown", "a\x00b", "a\x7fb", "\x1b[0m", "tab\tbed", " lead", "trail ", "", strings.Repeat("9", maxCommand+1)} {
		if _, err := c.API(ctx, bad); !isInvalid(err) {
			t.Errorf("API(%.20q): %v", bad, err)
		}
		if err := c.Subscribe(ctx, []string{bad}, nil); !isInvalid(err) {
			t.Errorf("Subscribe(%.20q): %v", bad, err)
		}
		if err := c.Subscribe(ctx, nil, []string{bad}); !isInvalid(err) && len(bad) < maxCommand {
			t.Errorf("Subscribe subclass(%.20q): %v", bad, err)
		}
		if err := c.SendEvent(ctx, bad, nil, nil); !isInvalid(err) {
			t.Errorf("SendEvent(%.20q): %v", bad, err)
		}
		if err := c.SendEvent(ctx, "CUSTOM", []Header{{bad, "v"}}, nil); !isInvalid(err) {
			t.Errorf("header name %.20q: %v", bad, err)
		}
		if err := call.Execute(ctx, bad, "x"); !isInvalid(err) {
			t.Errorf("Execute(%.20q): %v", bad, err)
		}
		if strings.TrimSpace(bad) != bad || bad == "" {
			continue // harmless in a value
		}
		if err := c.SendEvent(ctx, "CUSTOM", []Header{{"a", bad}}, nil); !isInvalid(err) {
			t.Errorf("header value %.20q: %v", bad, err)
		}
		if err := call.Execute(ctx, "bridge", bad); !isInvalid(err) {
			t.Errorf("Execute(bridge, %.20q): %v", bad, err)
		}
	}
	for name, err := range map[string]error{
		"no event at all":   c.Subscribe(ctx, nil, nil),
		"CUSTOM as a name":  c.Subscribe(ctx, []string{"custom"}, []string{"a::b"}),
		"a second length":   c.SendEvent(ctx, "CUSTOM", []Header{{"content-length", "0"}}, []byte("x")),
		"two words":         c.SendEvent(ctx, "CUSTOM exit", nil, nil),
		"header with colon": c.SendEvent(ctx, "CUSTOM", []Header{{"a:b", "v"}}, nil),
		"linger 0":          call.Linger(ctx, 0),
	} {
		if !isInvalid(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c.Err() != nil {
		t.Errorf("the connection ended: %v", c.Err())
	}
}

// TestUniqueID reads what the switch writes for UUIDs that are Call-IDs.
func TestUniqueID(t *testing.T) {
	t.Parallel()
	for wire, want := range map[string]string{
		"2f036e00-7eb9-44a5-9c03-aadb99d87568": "2f036e00-7eb9-44a5-9c03-aadb99d87568",
		"5ea7a1dd-e7932921%40192.0.2.10":       "5ea7a1dd-e7932921@192.0.2.10",
		"z97%3C8df%3E6d~8g6%2B7%26%25%3D%20x":  "z97<8df>6d~8g6+7&%= x",
		"a%41%40h":                             "a%41@h", // the switch writes a literal %41 as it is
		"%FF%C3%A9%0A":                         "\xff\u00e9\n",
		"a%":                                   "a%",
		"a%4":                                  "a%4",
		"a%zz":                                 "a%zz",
	} {
		if got := ParseEvent("Unique-ID: " + wire + "\n").UniqueID(); got != want {
			t.Errorf("%s: %q, want %q", wire, got, want)
		}
	}
}
