package router

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

func TestPlanJSONRoundTrip(t *testing.T) {
	t.Parallel()
	m := towns(observed("london", pbxmesh.ObservedSuspect, "1 of 3 OPTIONS late"))
	for _, p := range []Plan{
		{},
		decide(m),
		decide(m, device("buffalo"), device("london"), device("singapore", expiring(now))),
		Decide(Input{AOR: callee, Local: buffalo, FromMesh: true, Mesh: m, Now: now}),
	} {
		data, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back Plan
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		again, _ := json.Marshal(back)
		if string(again) != string(data) || back.String() != p.String() {
			t.Errorf("round trip\n got %s\nwant %s", again, data)
		}
		if strings.Contains(string(data), "null") {
			t.Errorf("a null in %s", data)
		}
	}
}

func TestPlanJSONGolden(t *testing.T) {
	t.Parallel()
	p := decide(towns(observed("singapore", pbxmesh.ObservedDown, "no answer to 3 OPTIONS")), device("buffalo"), device("london"), device("singapore"))
	data, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	const want = `{
 "aor": "1001@pbx.test",
 "result": "routed",
 "from_mesh": false,
 "data_age_seconds": 4.2,
 "targets": [
  [
   {
    "node": "buffalo",
    "local": true,
    "profile": "internal",
    "devices": 1
   },
   {
    "node": "london",
    "local": false,
    "mesh": "192.0.2.2:5090",
    "devices": 1
   }
  ]
 ],
 "reasons": [
  {
   "node": "buffalo",
   "contact": "sip:1001@192.0.2.7:5062",
   "profile": "internal",
   "what": "rings",
   "why": "local",
   "until": "2026-11-22T15:05:05Z"
  },
  {
   "node": "london",
   "contact": "sip:1001@192.0.2.7:5062",
   "profile": "internal",
   "what": "rings",
   "why": "node-up",
   "until": "2026-11-22T15:05:05Z"
  },
  {
   "node": "singapore",
   "contact": "sip:1001@192.0.2.7:5062",
   "profile": "internal",
   "what": "left-out",
   "why": "node-down",
   "detail": "no answer to 3 OPTIONS",
   "until": "2026-11-22T15:05:05Z"
  }
 ]
}`
	if string(data) != want {
		t.Errorf("got %s", data)
	}
}

// TestWords: every value has a word and a text of its own, and the words come back.
func TestWords(t *testing.T) {
	t.Parallel()
	if len(whyWords) != int(WhyMeshAnswers)+1 || len(whyTexts) != len(whyWords) ||
		len(whatWords) != int(RingsNext)+1 || len(resultWords) != int(ResultUnreachable)+1 {
		t.Fatal("a value without a word")
	}
	for i, w := range whyWords {
		var back Why
		if err := back.UnmarshalText([]byte(w)); err != nil || back != Why(i) || Why(i).String() != w || Why(i).Text() == "" {
			t.Errorf("%q: got %v, %v", w, back, err)
		}
	}
	for i, w := range resultWords {
		var back Result
		if err := back.UnmarshalText([]byte(w)); err != nil || back != Result(i) || Result(i).String() != w {
			t.Errorf("%q: got %v, %v", w, back, err)
		}
	}
	for i, w := range whatWords {
		var back What
		if err := back.UnmarshalText([]byte(w)); err != nil || back != What(i) || What(i).String() != w {
			t.Errorf("%q: got %v, %v", w, back, err)
		}
	}
	var r Result
	if err := r.UnmarshalText([]byte("lost")); err == nil || !strings.Contains(err.Error(), "not-registered") {
		t.Errorf("an unknown word: %v", err)
	}
	if Result(200).String() != "unknown" || Why(200).Text() != "unknown" || What(9).String() != "unknown" {
		t.Error("a value out of range has no word")
	}
}

func TestReasonString(t *testing.T) {
	t.Parallel()
	p := decide(towns(observed("london", pbxmesh.ObservedDown, "no answer to 3 OPTIONS")),
		device("london"), device("buffalo", func(r *pbxmesh.Registration) { r.Contact = "sip:1001@x\x1b[2J\r\nbuffalo: rings" }))
	got := []string{p.Reasons[0].String(), p.Reasons[1].String()}
	want := []string{
		"london sip:1001@192.0.2.7:5062: left out: the node is down (no answer to 3 OPTIONS); registered until 2026-11-22T15:05:05Z",
		"buffalo sip:1001@x?[2J??buffalo: rings: rings: registered on this switch; registered until 2026-11-22T15:05:05Z",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

func TestPlanNodes(t *testing.T) {
	t.Parallel()
	p := decide(towns(observed("london", pbxmesh.ObservedSuspect, "")), device("london"), device("buffalo"), device("singapore"))
	if got := slices.Collect(p.Nodes); !reflect.DeepEqual(got, []pbxmesh.NodeID{"buffalo", "singapore", "london"}) {
		t.Errorf("got %v", got)
	}
	for n := range p.Nodes {
		if n != "buffalo" {
			t.Errorf("first is %s", n)
		}
		break
	}
	if p.DataAge != 4200*time.Millisecond {
		t.Errorf("age %v", p.DataAge)
	}
}
