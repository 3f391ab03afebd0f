package fsconf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// The marks of what is ours in a file of somebody else.
const (
	beginMark = "BEGIN pbxmesh"
	endMark   = "END pbxmesh"
)

// marked puts text between our marks, each line behind indent.
func marked(text, indent string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s<!-- %s: written by pbxmesh fsconf, changes here are lost -->\n", indent, beginMark)
	for line := range strings.Lines(text) {
		b.WriteString(indent + line)
	}
	fmt.Fprintf(&b, "%s<!-- %s -->\n", indent, endMark)
	return b.String()
}

const aclFrame = `<configuration name="acl.conf" description="Network Lists">
  <network-lists>
  </network-lists>
</configuration>
`

// MergeACL returns the content of acl.conf.xml with our list: a block between marks,
// replaced when it is there already, else put at the end of <network-lists>. All
// other bytes stay. nil makes a whole new file.
//
// It fails when the file cannot be understood, and when it has a list of the same
// name outside of our marks: which of the two counts would be FreeSWITCH's choice.
func (s *Settings) MergeACL(old []byte) ([]byte, error) {
	if old == nil {
		old = []byte(aclFrame)
	}
	rest, err := withoutBlock(old)
	if err != nil {
		return nil, err
	}
	doc, err := scan(rest, "network-lists")
	if err != nil {
		return nil, err
	}
	for _, e := range doc.elements {
		if e.name == "list" && e.attrs["name"] == s.Profile {
			return nil, fmt.Errorf("line %d has a list %q that is not between our marks: remove it, or move what it allows into another list", e.line, s.Profile)
		}
	}
	return insert(rest, doc.end, s.ACLFragment()), nil
}

const eventSocketFrame = `<configuration name="event_socket.conf" description="Socket Client">
  <settings>
    <param name="nat-map" value="false"/>
  </settings>
</configuration>
`

// MergeEventSocket returns the content of event_socket.conf.xml with our settings.
// Values of parameters that stand there are replaced in place, missing ones come
// between marks at the end of <settings>. nil makes a whole new file.
//
// apply-inbound-acl is only ever added: mod_event_socket wants an address to pass all
// lists that are named, so one more cannot open anything.
func (s *Settings) MergeEventSocket(old []byte) ([]byte, error) {
	if old == nil {
		old = []byte(eventSocketFrame)
	}
	rest, err := withoutBlock(old)
	if err != nil {
		return nil, err
	}
	doc, err := scan(rest, "settings")
	if err != nil {
		return nil, err
	}
	var missing strings.Builder
	type edit struct {
		from, to int
		value    string
	}
	var edits []edit
	for _, p := range s.eventSocketParams() {
		found := false
		for _, e := range doc.elements {
			if e.name != "param" || e.attrs["name"] != p.name {
				continue
			}
			if p.name == "apply-inbound-acl" {
				found = found || e.attrs["value"] == p.value
				continue
			}
			found = true // the last one counts, so all of them are set
			from, to, ok := valueOf(rest[e.from:e.to])
			if !ok {
				return nil, fmt.Errorf("line %d: the parameter %s has no value", e.line, p.name)
			}
			if e.attrs["value"] != p.value {
				edits = append(edits, edit{e.from + from, e.from + to, attr(p.value)})
			}
		}
		if !found {
			fmt.Fprintf(&missing, "<param name=\"%s\" value=\"%s\"/>\n", attr(p.name), attr(p.value))
		}
	}
	out := rest
	if missing.Len() > 0 {
		out = insert(out, doc.end, []byte(marked(missing.String(), "    ")))
	}
	// From the end, so that the places of the others stay.
	slices.SortFunc(edits, func(a, b edit) int { return b.from - a.from })
	for _, e := range edits {
		out = slices.Concat(out[:e.from], []byte(e.value), out[e.to:])
	}
	return out, nil
}

// withoutBlock removes what stands between our marks, with the marks' lines.
func withoutBlock(text []byte) ([]byte, error) {
	from, begins, err := markLine(text, beginMark)
	if err != nil {
		return nil, err
	}
	to, ends, err := markLine(text, endMark)
	switch {
	case err != nil:
		return nil, err
	case begins.to == 0 && ends.to == 0:
		return text, nil
	case begins.to == 0 || ends.to == 0 || to < from:
		return nil, fmt.Errorf("the marks %q and %q do not belong together: remove what is left of our block by hand", beginMark, endMark)
	}
	return slices.Concat(text[:begins.from], text[ends.to:]), nil
}

type span struct{ from, to int }

// markLine finds the one line with a mark; the zero span when there is none. A mark that shares its
// line is an error: what is inserted there would make a line of it.
func markLine(text []byte, mark string) (line int, at span, err error) {
	found, pos := 0, 0
	for n, l := range slices.Collect(bytes.Lines(text)) {
		if t := strings.TrimSpace(string(l)); strings.HasPrefix(t, "<!-- "+mark) && strings.HasSuffix(t, "-->") {
			line, at = n+1, span{pos, pos + len(l)}
			found++
		}
		pos += len(l)
	}
	if found > 1 {
		return 0, span{}, fmt.Errorf("the mark %q stands there %d times: remove all blocks but one", mark, found)
	}
	if bytes.Count(text, []byte("<!-- "+mark)) != found {
		return 0, span{}, fmt.Errorf("the mark %q shares its line with something else: give it a line of its own, or remove our block by hand", mark)
	}
	return line, at, nil
}

// document is what matters of a configuration file.
type document struct {
	elements []element
	end      int // where the closing tag of the container begins
}

type element struct {
	name     string
	attrs    map[string]string
	line     int
	from, to int // its start tag
}

// scan reads the children of the one container element. It reads as FreeSWITCH does:
// no DTD is needed and unknown entities pass.
func scan(text []byte, container string) (*document, error) {
	dec := xml.NewDecoder(bytes.NewReader(text))
	dec.Strict = false
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil }
	doc := &document{end: -1}
	depth := 0
	for {
		from := int(dec.InputOffset())
		token, err := dec.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("it is no XML: %w", err)
		}
		switch t := token.(type) {
		case xml.StartElement:
			if t.Name.Local == container {
				if depth > 0 || doc.end >= 0 {
					return nil, fmt.Errorf("it has more than one <%s>", container)
				}
				depth++
				continue
			}
			if depth == 0 {
				continue
			}
			e := element{name: t.Name.Local, attrs: map[string]string{}, from: from, to: int(dec.InputOffset())}
			e.line = 1 + bytes.Count(text[:from], []byte("\n"))
			for _, a := range t.Attr {
				e.attrs[a.Name.Local] = a.Value
			}
			doc.elements = append(doc.elements, e)
		case xml.EndElement:
			if t.Name.Local == container && depth > 0 {
				depth--
				doc.end = from
				if int(dec.InputOffset()) == from { // <settings/>: there is no inside
					return nil, fmt.Errorf("its <%s/> is empty: write <%s></%s>", container, container, container)
				}
			}
		}
	}
	if doc.end < 0 {
		return nil, fmt.Errorf("it has no <%s>", container)
	}
	return doc, nil
}

// insert puts block in front of the line that position at is on, or right there when
// something else stands before it on that line.
func insert(text []byte, at int, block []byte) []byte {
	start := bytes.LastIndexByte(text[:at], '\n') + 1
	if len(bytes.TrimSpace(text[start:at])) == 0 {
		return slices.Concat(text[:start], block, text[start:])
	}
	return slices.Concat(text[:at], []byte("\n"), block, text[at:])
}

// valueOf finds the text between the quotes of a tag's value attribute.
func valueOf(tag []byte) (from, to int, ok bool) {
	quote := byte(0)
	name := 0 // where the present attribute name begins
	for i := 1; i < len(tag); i++ {
		c := tag[i]
		switch {
		case quote != 0 && c == quote:
			if ok {
				return from, i, true
			}
			quote, name = 0, i+1
		case quote != 0:
		case c == '"' || c == '\'':
			quote = c
			attribute := bytes.TrimSpace(bytes.TrimRight(tag[name:i], "= \t\r\n"))
			if fields := bytes.Fields(attribute); len(fields) > 0 && string(fields[len(fields)-1]) == "value" {
				from, ok = i+1, true
			}
		}
	}
	return 0, 0, false
}
