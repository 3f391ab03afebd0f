package redisstore

import (
	"strings"
	"testing"

	"pbxmesh"
	"pbxmesh/registry"
)

// Whatever stands in a stream: an entry is broken, or its frame and every record
// of it are valid.
func FuzzParseEntry(f *testing.F) {
	f.Add("5-6", "1", "5", `{"registration":"1:ff"}`, "", "+registration|1001@pbx.test|AAAAAAAAAAAAAAAA", `{"v":1}`)
	f.Add("5-6", "1", "5", `{}`, "", "-registration|1001@pbx.test|AAAAAAAAAAAAAAAA", "")
	f.Add("5-1", "1", "0", `{}`, "reset", "x", "y")
	f.Add("5-6", "2", "5", `{}`, "", "", "")
	f.Add("18446744073709551615-0", "1", "-1", `[`, "", "+", "")
	f.Add("5-6", "1", "5", `{"a b":"1:1"}`, "", "+registration|\x00", "x")
	f.Fuzz(func(t *testing.T, id, v, p, d, k, name, value string) {
		b := parseEntry("london", id, map[string]any{"v": v, "p": p, "d": d, "k": k, name: value, "n": 5})
		if b.Node != "london" {
			t.Fatalf("entry of london read as %q", b.Node)
		}
		if b.Broken {
			if len(b.Records) != 0 || b.Bad == 0 {
				t.Fatalf("broken, but %+v", b)
			}
			return
		}
		if b.Term > registry.MaxNumber || b.Seq > registry.MaxNumber || b.Prev >= b.Seq || len(b.Digests) > registry.MaxKinds {
			t.Fatalf("accepted %+v", b)
		}
		for _, r := range b.Records {
			if err := r.Validate(); err != nil || r.Seq != b.Seq {
				t.Fatalf("accepted %+v: %v", r, err)
			}
			if r.Tombstone() != strings.HasPrefix(name, "-") {
				t.Fatalf("%q became %+v", name, r)
			}
		}
	})
}

func FuzzParseStored(f *testing.F) {
	f.Add("registration|1001@pbx.test|AAAAAAAAAAAAAAAA", `7 {"v":1}`)
	f.Add("registration|1001@pbx.test|AAAAAAAAAAAAAAAA", `{"v":1}`)
	f.Add("|", " ")
	f.Add("UPPER|x", "1 x")
	f.Add("registration|a\r\nb", "99999999999999999999 x")
	f.Fuzz(func(t *testing.T, field, value string) {
		rec, err := parseStored(field, value)
		if err != nil {
			return
		}
		if err := rec.Validate(); err != nil || rec.Tombstone() {
			t.Fatalf("accepted %+v: %v", rec, err)
		}
		if fieldOf(&rec) != field || !strings.HasSuffix(value, " "+rec.Value) {
			t.Fatalf("%q %q became %+v", field, value, rec)
		}
	})
}

// Whatever stands on the board: every note of a page is valid and live.
func FuzzParsePage(f *testing.F) {
	f.Add("9", "9", "0", "0", "london", "9", "5000", "12", "1")
	f.Add("9", "5", "1", "2", "a b", "5", "0", "0", "1")
	f.Add("-1", "x", "", "", "", "9007199254740993", "-5", "-1", "")
	f.Fuzz(func(t *testing.T, head, next, more, bad, key, revision, left, age, value string) {
		p, err := parsePage("votes", []string{"OK", head, next, more, bad, key, revision, left, age, value})
		if err != nil {
			return
		}
		if p.head > registry.MaxNumber || p.next > registry.MaxNumber || p.bad < 0 || len(p.notes)+p.bad == 0 {
			t.Fatalf("accepted %+v", p)
		}
		for _, n := range p.notes {
			if err := n.Validate(); err != nil || n.Age < 0 || n.Value == "" || n.Key != key || n.Value != value {
				t.Fatalf("accepted %+v: %v", n, err)
			}
		}
		if _, err := parsePage("votes", []string{"OK", head, next, more, bad, key, revision, left, age}); err == nil {
			t.Fatal("accepted a note without a value")
		}
	})
}

// However what is told of a batch is spoilt, what is read of it is a batch of a node.
func FuzzParseTold(f *testing.F) {
	f.Add("6:london,3:5-7,1:v,1:1,1:p,1:6,1:d,2:{},1:e,1:x,15:+registration|a,1:1,15:-registration|b,0:,")
	f.Add("6:london,3:5-1,1:v,1:1,1:p,1:0,1:k,5:reset,1:d,2:{},1:e,1:x,")
	f.Add("6:london,3:5-7,99999999999:v,")
	f.Add("1:x")
	f.Fuzz(func(t *testing.T, payload string) {
		b, err := parseTold(payload)
		if err != nil {
			return
		}
		if id, err := pbxmesh.ParseNodeID(string(b.Node)); err != nil || id != b.Node {
			t.Fatalf("a batch of %q", b.Node)
		}
		if b.Broken {
			return
		}
		for i := range b.Records {
			if err := b.Records[i].Validate(); err != nil || b.Records[i].Seq != b.Seq {
				t.Fatalf("record %+v: %v", b.Records[i], err)
			}
		}
	})
}
