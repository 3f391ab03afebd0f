package native

import (
	"os"
	"strings"
	"testing"

	"pbxmesh/internal/esl"
)

// FuzzCallEvent: whatever a switch says, what we pass on names a valid user and
// holds nothing that an event socket could misread.
func FuzzCallEvent(f *testing.F) {
	text, err := os.ReadFile("testdata/events-presence-mwi-during-call.txt")
	if err != nil {
		f.Fatal(err)
	}
	for part := range strings.SplitSeq(string(text), "\n--\n") {
		f.Add(strings.TrimLeft(part, "\n"))
	}
	for _, channel := range []string{"", "Channel-Name: sofia/internal/a\n"} {
		f.Add(channel + "from: a%0A%0Aapi system id@a.test\nUnique-ID: u\nproto: any")
		f.Add(channel + "from: a@a.test\nUnique-ID: u%0Ax\nproto: any")
		f.Add(channel + "from: a@a.test\nUnique-ID: u\nproto: any\nCaller-Caller-ID-Name: a%0A%0Aapi system id")
	}
	f.Add("from: flow+*31@a.test\nUnique-ID: u\nproto: flow\nanswer-state: confirmed")
	f.Add("from: a/b@a.test/internal\nUnique-ID: u")
	f.Add("from: flow+b+c@a.test\nUnique-ID: u")
	f.Add("from: a@a.test%0A\nUnique-ID: u\nproto: x%0Ay\nanswer-state: confirmed")
	f.Fuzz(func(t *testing.T, text string) {
		var st State
		if c, ok := parseCallEvent(esl.ParseEvent(text)); ok {
			st = State{Kind: KindCall, From: c.from, Fields: c.fields}
			if c.aor.IsZero() || !validUUID(c.uuid) || uuidOf(c.key) != c.uuid || bare(c.from) == "" {
				t.Errorf("taken: %+v", c)
			}
		} else if s, ok := parseStatus(esl.ParseEvent(text)); ok {
			st = State{Kind: KindStatus, From: s.from, Fields: s.fields}
			if back, ok := watched(s.key.proto, bare(s.from)); !ok || back != s.key {
				t.Errorf("taken: %+v", s)
			}
		} else {
			return
		}
		for _, ended := range []bool{false, true} {
			st.Ended = ended
			for _, h := range presenceEvent(st, bare(st.From)) {
				if strings.ContainsFunc(h.Name+h.Value, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(h.Value) > maxField {
					t.Errorf("header %q: %q", h.Name, h.Value)
				}
			}
		}
	})
}

func TestChannelRows(t *testing.T) {
	t.Parallel()
	rows, err := parseChannels(`{"row_count":3,"rows":[
		{"uuid":"u1","direction":"outbound","state":"CS_EXCHANGE_MEDIA","callstate":"ACTIVE","presence_id":"1002@pbx.test","cid_num":"1005"},
		{"uuid":"u2","direction":"inbound","state":"CS_EXECUTE","callstate":"RINGING","presence_id":"1005@pbx.test"},
		{"uuid":"u3","direction":"outbound","state":"CS_EXECUTE","callstate":"HELD","presence_id":"1003@pbx.test"},
		{"uuid":"u4","direction":"inbound","state":"CS_EXECUTE","callstate":"ACTIVE","presence_id":""},
		{"uuid":"u5","direction":"inbound","state":"CS_HANGUP","callstate":"HANGUP","presence_id":"1003@pbx.test"}]}`)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		if c, ok := r.event(); ok {
			got = append(got, c.key+" "+c.fields["answer-state"]+" "+c.fields["presence-call-info-state"])
		}
	}
	want := "u1/1002@pbx.test answered active, u2/1005@pbx.test ringing alerting, u3/1003@pbx.test answered held"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, ", "), want)
	}
	if rows, err := parseChannels(`{"row_count": 0}`); err != nil || len(rows) != 0 {
		t.Errorf("an empty list: %v, %v", rows, err)
	}
	if _, err := parseChannels("-ERR"); err == nil {
		t.Error("nonsense was taken")
	}
}
