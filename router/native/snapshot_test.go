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
		{"cut off in a row", "<registrations><registration><call-id>a</call-id>", 0, errSnapshot},
		{"cut off between rows", "<registrations><registration></registration>", 0, errSnapshot},
		{"a row that does not end", "<registrations><registration><call-id>a</call-id></registrations>", 0, errSnapshot},
		{"a row without anything", "<registrations><registration></registration></registrations>", 1, nil},
		{"no expiry", "<registrations><registration><status>Registered expsecs(-5)</status></registration></registrations>", 1, nil},
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
	f.Add("<registrations><registration><contact>&lt;&amp;lt;&gt;</contact></registration></registrations>")
	f.Fuzz(func(t *testing.T, text string) {
		rows := 0
		err := scanSnapshot(text, func(r switchRow) {
			rows++
			// In a spoilt text one field may hold another.
			for _, field := range []string{r.callID, r.user, r.contact, r.agent, r.host} {
				if len(field) > len(text) {
					t.Errorf("row %+v is longer than the text", r)
				}
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
