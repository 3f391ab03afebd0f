package fsconf

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
)

// page returns a page of the documentation.
func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// block returns the fenced XML of a page that begins so.
func block(t *testing.T, page, begin string) string {
	t.Helper()
	_, text, ok := strings.Cut(page, "```xml\n"+begin)
	if !ok {
		t.Fatalf("no XML block begins with %s", begin)
	}
	text, _, _ = strings.Cut(text, "```")
	return begin + text
}

// steps lists what an XML text sets and does, in order: parameters, conditions, actions
// and the entries of lists.
func steps(t *testing.T, text string) (out []string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if !ok || !slices.Contains([]string{"param", "condition", "action", "node"}, e.Name.Local) {
			continue
		}
		line := e.Name.Local
		for _, a := range e.Attr {
			line += " " + a.Value
		}
		out = append(out, line)
	}
}

// rows returns the table of a page whose head has these cells, without code marks.
func rows(t *testing.T, page string, head ...string) (out [][]string) {
	t.Helper()
	begin := "| " + strings.Join(head, " | ") + " |\n"
	_, rest, ok := strings.Cut(page, begin)
	if !ok {
		t.Fatalf("there is no table %q", begin)
	}
	for line := range strings.Lines(rest) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			break
		}
		if strings.HasPrefix(line, "|---") {
			continue
		}
		var cells []string
		for part := range strings.SplitSeq(strings.Trim(line, "| "), " | ") {
			cells = append(cells, strings.Trim(part, "`"))
		}
		out = append(out, cells)
	}
	return out
}

func same(t *testing.T, where string, shown, written []string) {
	t.Helper()
	if d := Diff(where, "what fsconf writes", []byte(strings.Join(shown, "\n")+"\n"), []byte(strings.Join(written, "\n")+"\n")); d != "" {
		t.Errorf("the page shows something else than fsconf writes:\n%s", d)
	}
}

// TestReadmeShowsWhatIsWritten: the README shows every setting and step, and no other.
func TestReadmeShowsWhatIsWritten(t *testing.T) {
	t.Parallel()
	s, readme := buffalo(), page(t, "README.md")
	shown := strings.ReplaceAll(block(t, readme, "<profile"), "$${local_ip_v4}", s.Mesh.Addr().String())
	same(t, "mesh.xml of the profile", steps(t, shown), steps(t, string(s.ProfileXML())))
	same(t, "mesh.xml of the dialplan", steps(t, block(t, readme, "<include>\n  <context name=\"mesh\">")), steps(t, string(s.DialplanXML())))
	same(t, "the list", steps(t, block(t, readme, "<list")), steps(t, string(s.ACLFragment())))
}

// TestClicksMakeWhatIsWritten: the tables of docs/fusionpbx.md are what the SQL writes.
func TestClicksMakeWhatIsWritten(t *testing.T) {
	t.Parallel()
	f, text := &FusionPBX{Settings: *buffalo()}, page(t, "docs/fusionpbx.md")
	var shown, written []string
	for _, r := range rows(t, text, "name", "value") {
		shown = append(shown, strings.Join(r, " "))
	}
	for _, p := range f.profileSettings() {
		written = append(written, p.Name+" "+p.Value)
	}
	// Two in one row, and an address that each node has of its own.
	address := f.Mesh.Addr().String()
	if len(written) < 2 || written[0] != "sip-ip "+address || written[1] != "rtp-ip "+address {
		t.Fatalf("the settings begin with %q", written)
	}
	written = append([]string{"sip-ip`, `rtp-ip the address of `node.mesh_address"}, written[2:]...)
	same(t, "the profile", shown, written)

	shown = nil
	for _, r := range rows(t, text, "tag", "type", "data") {
		shown = append(shown, strings.Join(r, " "))
	}
	same(t, "the dialplan", shown, steps(t, f.extension("")))
}
