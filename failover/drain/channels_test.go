package drain

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// twoLegs is what a switch answers while 1001 talks to the phone at 192.0.2.7:5062,
// which 1002 registered, and 1003 listens to an announcement.
const twoLegs = `{"row_count":3,"rows":[
{"uuid":"a1","direction":"inbound","name":"sofia/internal/1001@PBX.test","state":"CS_EXECUTE","presence_id":"1001@pbx.test","call_uuid":"a1"},
{"uuid":"a2","direction":"outbound","name":"sofia/internal/1002@192.0.2.7:5062","presence_id":"1002@pbx.test","call_uuid":"a1"},
{"uuid":"b1","direction":"inbound","name":"sofia/internal/1003@pbx.test","presence_id":"","call_uuid":""}]}`

func TestParseChannels(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, text string
		calls      int
		listed     []string
		says       string // of the error
	}{
		{"nothing goes on", `{"row_count":0}`, 0, nil, ""},
		{"both legs of one call count once", twoLegs, 2, []string{"1001@pbx.test", "1002@pbx.test", "1002@192.0.2.7:5062", "1003@pbx.test"}, ""},
		{"a channel without a name", `{"row_count":1,"rows":[{"uuid":"a"}]}`, 1, nil, ""},
		{"a name without a part", `{"row_count":1,"rows":[{"uuid":"a","name":"sofia/internal/"}]}`, 1, nil, ""},
		{"nothing", "", 0, nil, "unexpected end of JSON input"},
		{"an error of the switch", "-ERR no reply\n", 0, nil, "invalid character"},
		{"another type", `{"row_count":"1","rows":[]}`, 0, nil, "cannot unmarshal string"},
		{"no count", `{"rows":[]}`, 0, nil, `"{\"rows\":[]}"`},
		{"cut off", `{"row_count":2,"rows":[{"uuid":"a"}]}`, 0, nil, "row_count"},
		{"fewer than there are", `{"row_count":0,"rows":[{"uuid":"a"}]}`, 0, nil, "row_count"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			c, err := parseChannels(tc.text)
			if tc.says != "" {
				if c != nil || !errors.Is(err, errChannels) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("%+v, %v; want an error with %q", c, err, tc.says)
				}
				return
			}
			if err != nil || c.calls != tc.calls || len(c.listed) != len(tc.listed) {
				t.Fatalf("%+v, %v; want %d calls of %q", c, err, tc.calls, tc.listed)
			}
			for _, key := range tc.listed {
				if _, ok := c.listed[key]; !ok {
					t.Errorf("%s is not listed: %v", key, c.listed)
				}
			}
		})
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	c, err := parseChannels(twoLegs)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		n       int // user 1000+n
		contact string
		want    bool
	}{
		{"the caller", 1, "sip:1001@192.0.2.6:5060", true},
		{"another phone of the caller", 1, "sip:1001@203.0.113.9:5060", true},
		{"who is called", 2, "sip:1002@192.0.2.7:5062", true},
		{"a name without presence", 3, "sip:1003@192.0.2.8:5060", true},
		{"by contact alone", 4, "sip:1002@192.0.2.7:5062;transport=tcp?x=y", true},
		{"by a secure contact", 4, "sips:1002@192.0.2.7:5062;fs_nat=yes", true},
		{"somebody else", 4, "sip:1004@192.0.2.9:5060", false},
		{"another port of the same host", 4, "sip:1002@192.0.2.7:5063", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			reg := device(t, tc.n, time.Hour)
			reg.Contact = tc.contact
			if got := c.busy(reg); got != tc.want {
				t.Errorf("busy: %v", got)
			}
		})
	}
}

// A call that began after the switch made its list counts until a list must show it.
func TestFreshCallCounts(t *testing.T) {
	t.Parallel()
	list := func() *callList {
		c, err := parseChannels(`{"row_count":0}`)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	reg := device(t, 1, time.Hour)
	c := list()
	c.follow(nil, start)
	if c.busy(reg) {
		t.Error("busy without a call")
	}
	c.began(start, "sofia/internal/1001@pbx.test", "")
	if !c.busy(reg) {
		t.Error("an event told of the call, and the phone is not busy")
	}
	next := list()
	next.follow(c, start.Add(freshFor-time.Millisecond))
	if !next.busy(reg) {
		t.Error("the next list was made before the call, and the phone is not busy")
	}
	last := list()
	last.follow(next, start.Add(freshFor))
	if last.busy(reg) {
		t.Error("no list shows the call, and the phone is still busy")
	}
}

// FuzzParseChannels: what is accepted has as many rows as it says, and no more calls
// than rows.
func FuzzParseChannels(f *testing.F) {
	f.Add(twoLegs)
	f.Add(`{"row_count":0}`)
	f.Add(`{"row_count":1,"rows":[null]}`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseChannels(text)
		if (err == nil) != (c != nil) || err != nil && !errors.Is(err, errChannels) {
			t.Fatalf("%+v, %v", c, err)
		}
		if c != nil && len(c.listed) > 2*strings.Count(text, "{") {
			t.Fatalf("%d names in %q", len(c.listed), text)
		}
	})
}
