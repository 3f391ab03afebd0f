package drain

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh/fixtures/simswitch"
	"pbxmesh/internal/sofia"
)

var domains = map[string]struct{}{"pbx.test": {}, "tenant.test": {}}

func TestCommand(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, callID string
		kind         Kind
		want         string // "" is refused
		says         string // of the error
	}{
		{"tell", "84a3-1@192.0.2.7", Tell, "sofia profile internal check_sync 84a3-1@192.0.2.7", ""},
		{"flush", "84a3-1", Flush, "sofia profile internal flush_inbound_reg 84a3-1", ""},
		{"its own address", "1001@pbx.test", Flush, "sofia profile internal flush_inbound_reg 1001@pbx.test", ""},
		{"at a domain that nobody has", "1002@192.0.2.7", Tell, "sofia profile internal check_sync 1002@192.0.2.7", ""},
		{"no Call-ID means everybody", "", Flush, "", `Call-ID ""`},
		{"the word that restarts every phone", "reboot", Tell, "", `Call-ID "reboot"`},
		{"in capitals", "ReBoot", Flush, "", `Call-ID "ReBoot"`},
		{"a tenant", "tenant.test", Flush, "", "the Call-ID tenant.test is a domain"},
		{"a tenant in capitals", "Tenant.TEST", Flush, "", "the Call-ID Tenant.TEST is a domain"},
		{"another user", "1002@pbx.test", Flush, "", "the Call-ID 1002@pbx.test is somebody's address"},
		{"another user in capitals", "1002@PBX.test", Tell, "", "the Call-ID 1002@PBX.test is somebody's address"},
		{"a user that we would not take", "!@pbx.test", Flush, "", "the Call-ID !@pbx.test is somebody's address"},
		{"two words", "a reboot", Tell, "", `Call-ID "a reboot"`},
		{"two lines", "a\n\napi shutdown", Tell, "", `Call-ID "a\n\napi shutdown"`},
		{"a quote", "a'b", Tell, `sofia profile internal check_sync a\'b`, ""},
		{"a double quote", `"a"b`, Tell, `sofia profile internal check_sync \"a\"b`, ""},
		{"a backslash", `a\sb`, Tell, `sofia profile internal check_sync a\\sb`, ""},
		{"a backslash at the end", `a\`, Flush, `sofia profile internal flush_inbound_reg a\\`, ""},
		{"a backquote", "a`b", Tell, "sofia profile internal check_sync a`b", ""},
		{"a DEL", "a\x7fb", Tell, "", "no safe name"},
		{"not ASCII", "a\u00e9", Tell, "sofia profile internal check_sync a\u00e9", ""},
		{"no UTF-8", "x\xff\xfe@h", Flush, "sofia profile internal flush_inbound_reg x\xff\xfe@h", ""},
		{"not ASCII, two words", "a\u00e9 b", Tell, "", `Call-ID "a\u00e9 b"`},
		{"a long one", strings.Repeat(" ", 100), Tell, "", "no safe name"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := device(t, 1, time.Hour)
			reg.CallID = tc.callID
			got, err := sofia.Command(tc.kind.verb(), reg, domains)
			if got != tc.want || (err == nil) != (tc.want != "") {
				t.Fatalf("%q, %v; want %q", got, err, tc.want)
			}
			if err != nil && (!errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("refused with %v, want %q", err, tc.says)
			}
		})
	}
}

// FuzzCommand: whatever a phone chose as its Call-ID, the command names one word behind
// one verb, and never a domain, another user or the word of everybody.
func FuzzCommand(f *testing.F) {
	for _, id := range []string{"84a3-1@192.0.2.7", "reboot", "tenant.test", "1002@pbx.test", "a b", "a\nb", "", `a'b`, `'a"\`} {
		f.Add(id)
	}
	f.Fuzz(func(t *testing.T, id string) {
		reg := device(t, 1, time.Hour)
		reg.CallID = id
		got, err := sofia.Command(Flush.verb(), reg, domains)
		if err != nil {
			if got != "" || !errors.Is(err, ErrUnsafe) {
				t.Fatalf("%q, %v", got, err)
			}
			return
		}
		if words := simswitch.Words(got); !slices.Equal(words, []string{"sofia", "profile", "internal", "flush_inbound_reg", id}) {
			t.Fatalf("%q is read as %q", got, words)
		}
		lower := strings.ToLower(id)
		if _, ok := domains[lower]; ok || lower == "reboot" || strings.ContainsAny(id, "\r\n ") {
			t.Fatalf("%q is sent", got)
		}
		if user, domain, ok := strings.Cut(lower, "@"); ok && domain == "pbx.test" && user != "1001" {
			t.Fatalf("%q means another user", got)
		}
	})
}

// answering is an event socket that gives one answer and keeps what it was asked.
type answering struct {
	reply string
	err   error
	asked []string
}

func (a *answering) API(_ context.Context, command string) (string, error) {
	a.asked = append(a.asked, command)
	return a.reply, a.err
}

func TestDo(t *testing.T) {
	t.Parallel()
	away := errors.New("the switch is away")
	for _, tc := range []struct {
		name, callID string
		conn         answering
		asked        int
		want         error
		says         string
	}{
		{"done", "c1", answering{reply: "+OK flushing all registrations matching specified call_id\n"}, 1, nil, ""},
		{"not safe: nothing is sent", "reboot", answering{}, 0, ErrUnsafe, ""},
		{"away", "c1", answering{err: away}, 1, away, ""},
		{"refused", "c1", answering{reply: "Invalid Profile!\x1b[2J\n"}, 1, nil, `the switch says "Invalid Profile!\x1b[2J\n" to ` + "`sofia profile internal`"},
		{"no answer", "c1", answering{}, 1, nil, `the switch says ""`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := device(t, 1, time.Hour)
			reg.CallID = tc.callID
			err := do(t.Context(), &tc.conn, Action{Kind: Flush, Reg: reg}, domains)
			if len(tc.conn.asked) != tc.asked || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("asked %q: %v", tc.conn.asked, err)
			}
			if bad := tc.want != nil || tc.says != ""; bad != (err != nil) || bad && !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want %q", err, tc.says)
			}
		})
	}
}

// TestDoAgain: what a flush left is looked up in the switch's table, where the Call-ID may
// be another than events show.
func TestDoAgain(t *testing.T) {
	t.Parallel()
	const ask, flush = "sofia xmlstatus profile internal reg 192.0.0.1:5060", "sofia profile internal flush_inbound_reg "
	row := func(callID, user string) string {
		return "<registrations>\n<registration>\n<call-id>" + callID + "</call-id>\n<user>" + user + "@pbx.test</user>\n" +
			"<contact>&quot;&quot; &lt;sip:" + user + "@192.0.0.1:5060&gt;</contact>\n</registration>\n</registrations>\n"
	}
	for name, tc := range map[string]struct {
		rows string
		want []string
	}{
		"as the phone wrote it": {row("%41'b@h", "1001"), []string{ask, flush + `%41\'b@h`}},
		"another user's":        {row("%41'b@h", "1002"), []string{ask, flush + `A\'b@h`}},
		"gone":                  {"<registrations/>\n", []string{ask, flush + `A\'b@h`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			reg := device(t, 1, time.Hour)
			reg.CallID, reg.Contact = "A'b@h", "sip:1001@192.0.0.1:5060"
			sw := &table{rows: tc.rows}
			if err := do(t.Context(), sw, Action{Kind: Flush, Reg: reg, Again: true}, domains); err != nil || !slices.Equal(sw.asked, tc.want) {
				t.Errorf("asked %q: %v; want %q", sw.asked, err, tc.want)
			}
			if reg.CallID != "A'b@h" {
				t.Errorf("the registry's record became %q", reg.CallID)
			}
		})
	}
	away := &answering{err: errors.New("the switch is away")}
	if err := do(t.Context(), away, Action{Kind: Flush, Reg: device(t, 1, time.Hour), Again: true}, domains); !errors.Is(err, away.err) || len(away.asked) != 1 {
		t.Errorf("asked %q: %v", away.asked, err)
	}
}

// table is an event socket that lists rows and flushes.
type table struct {
	rows  string
	asked []string
}

func (s *table) API(_ context.Context, command string) (string, error) {
	s.asked = append(s.asked, command)
	if strings.HasPrefix(command, "sofia xmlstatus") {
		return s.rows, nil
	}
	return "+OK flushing all registrations matching specified call_id\n", nil
}

func TestChannels(t *testing.T) {
	t.Parallel()
	conn := &answering{reply: twoLegs}
	if c, err := channels(t.Context(), conn); err != nil || c.calls != 2 || !slices.Equal(conn.asked, []string{"show channels as json"}) {
		t.Errorf("%+v, %v; asked %q", c, err, conn.asked)
	}
	conn.err = errors.New("the switch is away")
	if c, err := channels(t.Context(), conn); c != nil || !errors.Is(err, conn.err) {
		t.Errorf("%+v, %v", c, err)
	}
}
