package native

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// TestScanSnapshotRecorded reads what a real switch printed.
func TestScanSnapshotRecorded(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/xmlstatus-mesh-reg.xml")
	if err != nil {
		t.Fatal(err)
	}
	var got []switchRow
	if err := scanSnapshot(string(text), func(r switchRow) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	want := switchRow{
		callID: "inj-1002", user: "1002@pbx.test", contact: `"" <sip:1002@pbx.test;fs_path=sip:127.0.2.1:5090>`,
		agent: "pbxmesh", host: "buffalo", left: 299 * time.Second,
	}
	if len(got) != 1 || got[0] != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// A Call-ID is not escaped: what a phone puts there is neither the end of it nor another
// field.
func TestScanSnapshotMarkup(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/xmlstatus-mesh-reg.xml")
	if err != nil {
		t.Fatal(err)
	}
	const odd = "a</call-id><contact>x</contact></registration></registrations>b"
	var got []switchRow
	if err := scanSnapshot(strings.Replace(string(text), "inj-1002", odd, 1), func(r switchRow) { got = append(got, r) }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].callID != odd || got[0].contact != `"" <sip:1002@pbx.test;fs_path=sip:127.0.2.1:5090>` || got[0].host != "buffalo" {
		t.Errorf("got %+v", got)
	}
}

func TestScanSnapshotRefuses(t *testing.T) {
	t.Parallel()
	none := "<profile>\n<registrations>\n</registrations>\n</profile>\n"
	cases := []struct {
		name, text string
		rows       int
		err        error
	}{
		{"empty profile", none, 0, nil},
		{"no profile", "Invalid Profile!\n", 0, errNoProfile},
		{"nothing", "", 0, errSnapshot},
		{"cut off in a row", "<registrations>\n<registration>\n<call-id>a</call-id>\n", 0, errSnapshot},
		{"cut off between rows", "<registrations>\n<registration>\n</registration>\n", 0, errSnapshot},
		{"a row that does not end", "<registrations>\n<registration>\n<call-id>a</call-id>\n</registrations>", 0, errSnapshot},
		{"a row without anything", "<registrations>\n<registration>\n</registration>\n</registrations>", 1, nil},
		{"no expiry", "<registrations>\n<registration>\n<status>Registered expsecs(-5)</status>\n</registration>\n</registrations>", 1, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rows := 0
			err := scanSnapshot(c.text, func(r switchRow) {
				rows++
				if r.left != 0 {
					t.Errorf("left %s", r.left)
				}
			})
			if !errors.Is(err, c.err) || rows != c.rows {
				t.Errorf("%d rows, error %v; want %d, %v", rows, err, c.rows, c.err)
			}
		})
	}
}

// FuzzScanSnapshot: never more rows than blocks, and no field with what was escaped.
func FuzzScanSnapshot(f *testing.F) {
	text, err := os.ReadFile("testdata/xmlstatus-mesh-reg.xml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	f.Add("Invalid Profile!")
	f.Add("<registrations>\n<registration>\n<contact>&lt;&amp;lt;&gt;</contact>\n</registration>\n</registrations>")
	f.Fuzz(func(t *testing.T, text string) {
		rows := 0
		err := scanSnapshot(text, func(r switchRow) {
			rows++
			if len(r.callID)+len(r.user)+len(r.contact)+len(r.agent)+len(r.host) > len(text) {
				t.Errorf("row %+v is longer than the text", r)
			}
			if r.left < 0 {
				t.Errorf("negative time %s", r.left)
			}
		})
		if most := strings.Count(text, "</registration>"); rows > most {
			t.Errorf("%d rows from %d blocks", rows, most)
		}
		if err == nil && !strings.Contains(text, "</registrations>") {
			t.Error("a list without an end was taken")
		}
	})
}
