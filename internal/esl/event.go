package esl

import (
	"iter"
	"net/url"
	"strconv"
	"strings"
)

// Header is one line of an event: the name as written, the value not encoded.
type Header struct{ Name, Value string }

// maxEventHeaders bounds the lines of one event that are looked at; a call has
// some 300. What comes after is left out.
const maxEventHeaders = 8192

// Event is one event of the switch, or the channel data of a call. It is
// immutable; strings it returns may share its memory (clone what you keep long).
// Header names are compared without case, as the switch does.
type Event struct {
	text string // header block, then body
	line []headerLine
	body int // offset of the body in text
}

// headerLine locates "name: value" in text.
type headerLine struct{ start, colon, value, end int32 }

// ParseEvent reads an event as it stands in a text/event-plain frame: for tests and
// for recordings.
func ParseEvent(text string) *Event { return newEvent(text) }

// newEvent indexes an event's text: header lines, a blank line, and a body when a
// Content-Length line announces one. Lines that are no header are left out; a body
// shorter than announced is taken as it is.
func newEvent(text string) *Event {
	e := &Event{text: text, body: len(text), line: make([]headerLine, 0, min(strings.Count(text, "\n")+1, maxEventHeaders))}
	for at := 0; at < len(text); {
		end, next := len(text), len(text)
		if i := strings.IndexByte(text[at:], '\n'); i >= 0 {
			end, next = at+i, at+i+1
		}
		if end > at && text[end-1] == '\r' {
			end--
		}
		if end == at {
			e.setBody(next)
			break
		}
		if i := strings.IndexByte(text[at:end], ':'); i > 0 && len(e.line) < maxEventHeaders {
			value := at + i + 1
			for value < end && text[value] == ' ' {
				value++
			}
			e.line = append(e.line, headerLine{int32(at), int32(at + i), int32(value), int32(end)})
		}
		at = next
	}
	return e
}

// setBody takes what follows the blank line, cut to Content-Length when there is
// a sound one; without one an event has no body.
func (e *Event) setBody(at int) {
	n, err := strconv.ParseUint(e.raw("Content-Length"), 10, 31)
	if err != nil || n == 0 {
		return
	}
	e.body = at
	e.text = e.text[:min(len(e.text), at+int(n))]
}

// raw returns the first value of header as it came, "" without one.
func (e *Event) raw(header string) string {
	for i := range e.line {
		if l := &e.line[i]; int(l.colon-l.start) == len(header) && strings.EqualFold(e.text[l.start:l.colon], header) {
			return e.text[l.value:l.end]
		}
	}
	return ""
}

// Get returns the value of header, percent-decoded, the first one when there are
// several, "" when there is none.
func (e *Event) Get(header string) string { return decode(e.raw(header)) }

// Has reports whether the header is there at all.
func (e *Event) Has(header string) bool {
	for i := range e.line {
		if l := &e.line[i]; strings.EqualFold(e.text[l.start:l.colon], header) {
			return true
		}
	}
	return false
}

// Values returns all values of header: repeated lines in order, and what the
// switch packs as "ARRAY::a|:b" taken apart.
func (e *Event) Values(header string) []string {
	var out []string
	for i := range e.line {
		l := &e.line[i]
		if !strings.EqualFold(e.text[l.start:l.colon], header) {
			continue
		}
		value := decode(e.text[l.value:l.end])
		if packed, ok := strings.CutPrefix(value, "ARRAY::"); ok {
			out = append(out, strings.Split(packed, "|:")...)
			continue
		}
		out = append(out, value)
	}
	return out
}

// Headers yields every header in the order of the wire, values decoded.
func (e *Event) Headers() iter.Seq[Header] {
	return func(yield func(Header) bool) {
		for i := range e.line {
			l := &e.line[i]
			if !yield(Header{e.text[l.start:l.colon], decode(e.text[l.value:l.end])}) {
				return
			}
		}
	}
}

// Name returns Event-Name: "CUSTOM", "HEARTBEAT".
func (e *Event) Name() string { return e.Get("Event-Name") }

// Subclass returns Event-Subclass of a CUSTOM event: "sofia::register".
func (e *Event) Subclass() string { return e.Get("Event-Subclass") }

// Var returns a channel variable of an event or a call's data.
func (e *Event) Var(name string) string { return e.Get("variable_" + name) }

// Sequence returns Event-Sequence, 0 when it is missing or no number. It counts
// all events of one core, so a subscriber sees gaps; compare only within one
// CoreUUID.
func (e *Event) Sequence() uint64 {
	n, err := strconv.ParseUint(e.raw("Event-Sequence"), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// CoreUUID returns Core-UUID, which changes when the switch restarts.
func (e *Event) CoreUUID() string { return e.Get("Core-UUID") }

// UniqueID returns the UUID of the event's channel as the switch itself writes it. A
// UUID may be a phone's Call-ID, and the switch does not encode a "%41" in it once
// more: only what it does encode is decoded here, so that a command finds the
// channel. A literal "%40" cannot be told from an encoded "@" and is taken for it.
func (e *Event) UniqueID() string { return decodeEncoded(e.raw("Unique-ID")) }

// encodedBySwitch are the printable characters that the switch encodes (SWITCH_URL_UNSAFE).
const encodedBySwitch = " #%&+:;<=>?@[\\]^`{|}\""

func decodeEncoded(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+3], 16, 8); err == nil {
				if c := byte(n); c < ' ' || c > '~' || strings.IndexByte(encodedBySwitch, c) >= 0 {
					b.WriteByte(c)
					i += 2
					continue
				}
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// Body returns a copy of the event's body, nil without one.
func (e *Event) Body() []byte {
	if e.body >= len(e.text) {
		return nil
	}
	return []byte(e.text[e.body:])
}

// decode undoes the switch's percent encoding. "+" stands for itself, so it is
// PathUnescape; a value that does not decode is returned as it came.
func decode(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	if d, err := url.PathUnescape(s); err == nil {
		return d
	}
	return s
}
