package esl

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
)

func isInvalid(err error) bool { return errors.Is(err, ErrInvalidCommand) }

// collect reads all frames and returns them as text.
func collect(r io.Reader, maxFrame int) (kinds []kind, frames []string, err error) {
	in := newFrameReader(r, maxFrame, 16)
	for {
		f, err := in.next()
		if err != nil {
			return kinds, frames, err
		}
		kinds = append(kinds, f.kind)
		frames = append(frames, string(f.header)+"|"+string(f.body))
	}
}

// TestFrameRecordings reads the outbound recordings, commands left out, whole and
// byte by byte.
func TestFrameRecordings(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]map[kind]int{
		"outbound-socket-answered.txt":      {kindReply: 5, kindEvent: 15, kindDisconnect: 2},
		"outbound-socket-failover.txt":      {kindReply: 5, kindEvent: 15, kindDisconnect: 1},
		"outbound-socket-notregistered.txt": {kindReply: 5, kindEvent: 5},
	} {
		b, err := os.ReadFile("testdata/" + file)
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		for _, part := range strings.SplitAfter(string(b), "\n\n") {
			if !strings.HasPrefix(part, ">>> ") {
				said.WriteString(part)
			}
		}
		for name, r := range map[string]io.Reader{
			"whole": strings.NewReader(said.String()), "bytes": iotest.OneByteReader(strings.NewReader(said.String())),
		} {
			kinds, frames, err := collect(r, 0)
			got := map[kind]int{}
			for i, k := range kinds {
				got[k]++
				if k == kindEvent && !strings.Contains(frames[i], "|Event-Name: CHANNEL_") {
					t.Errorf("%s: event frame %.80q", file, frames[i])
				}
			}
			for k, n := range want {
				if got[k] != n {
					t.Errorf("%s, %s: %d frames of kind %d, want %d", file, name, got[k], k, n)
				}
			}
			// A recording that was cut off in a frame ends with an error that says so.
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Errorf("%s, %s: %v", file, name, err)
			}
		}
	}
}

func TestFrames(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		in    string
		want  []string
		kinds []kind
		err   error
	}{
		"several":            {"Content-Type: auth/request\n\nContent-Type: api/response\nContent-Length: 3\n\nabcA: b\n\n", []string{"Content-Type: auth/request\n|", "Content-Type: api/response\nContent-Length: 3\n|abc", "A: b\n|"}, []kind{kindAuth, kindAPI, kindOther}, io.EOF},
		"CRLF":               {"content-TYPE:text/event-plain\r\nCONTENT-length: 2 \r\n\r\nhi", []string{"content-TYPE:text/event-plain\r\nCONTENT-length: 2 \r\n|hi"}, []kind{kindEvent}, io.EOF},
		"blank lines":        {"\n\r\n\nContent-Type: text/rude-rejection\n\n\n\n", []string{"Content-Type: text/rude-rejection\n|"}, []kind{kindRude}, io.EOF},
		"same length twice":  {"Content-Length: 1\nContent-Length: 1\n\nx", []string{"Content-Length: 1\nContent-Length: 1\n|x"}, []kind{kindOther}, io.EOF},
		"two lengths":        {"Content-Length: 1\nContent-Length: 2\n\nxy", nil, nil, ErrProtocol},
		"zero":               {"Content-Length: 0\n\n", []string{"Content-Length: 0\n|"}, []kind{kindOther}, io.EOF},
		"plus sign":          {"Content-Length: +1\n\nx", nil, nil, ErrProtocol},
		"minus sign":         {"Content-Length: -1\n\nx", nil, nil, ErrProtocol},
		"hex":                {"Content-Length: 0x1\n\nx", nil, nil, ErrProtocol},
		"empty length":       {"Content-Length:\n\nx", nil, nil, ErrProtocol},
		"over the bound":     {"Content-Length: 101\n\n", nil, nil, ErrProtocol},
		"at the bound":       {"Content-Length: 100\n\n" + strings.Repeat("z", 100), []string{"Content-Length: 100\n|" + strings.Repeat("z", 100)}, []kind{kindOther}, io.EOF},
		"9e18":               {"Content-Length: 9000000000000000000\n\n", nil, nil, ErrProtocol},
		"wraps to 1":         {"Content-Length: 18446744073709551617\n\n", nil, nil, ErrProtocol},
		"half header":        {"Content-Le", nil, nil, io.ErrUnexpectedEOF},
		"half body":          {"Content-Length: 5\n\nabc", nil, nil, io.ErrUnexpectedEOF},
		"endless header":     {strings.Repeat("a: b\n", maxHeader/5+1), nil, nil, ErrProtocol},
		"endless line":       {strings.Repeat("a", maxHeader+17), nil, nil, ErrProtocol},
		"nothing":            {"", nil, nil, io.EOF},
		"length in the body": {"Content-Length: 21\n\nContent-Length: -1\n\n\n", []string{"Content-Length: 21\n|Content-Length: -1\n\n\n"}, []kind{kindOther}, io.EOF},
	} {
		for _, r := range []io.Reader{strings.NewReader(tc.in), iotest.HalfReader(strings.NewReader(tc.in))} {
			kinds, frames, err := collect(r, 100)
			if !errors.Is(err, tc.err) {
				t.Errorf("%s: %v, want %v", name, err, tc.err)
			}
			if strings.Join(frames, "#") != strings.Join(tc.want, "#") || string(kindBytes(kinds)) != string(kindBytes(tc.kinds)) {
				t.Errorf("%s: %q %v, want %q %v", name, frames, kinds, tc.want, tc.kinds)
			}
		}
	}
}

func kindBytes(kinds []kind) []byte {
	var b []byte
	for _, k := range kinds {
		b = append(b, byte(k))
	}
	return b
}

// TestFrameReaderMemory: an announced length costs nothing, and a buffer that one
// frame made large does not stay.
func TestFrameReaderMemory(t *testing.T) {
	t.Parallel()
	in := newFrameReader(strings.NewReader("Content-Length: 50000000\n\nx"), 0, readBuffer)
	if _, err := in.next(); err != io.ErrUnexpectedEOF || len(in.buf) != readBuffer {
		t.Errorf("%v with a buffer of %d bytes", err, len(in.buf))
	}
	big := "Content-Length: 5000000\n\n" + strings.Repeat("x", 5000000)
	in = newFrameReader(strings.NewReader(big), 0, readBuffer)
	if f, err := in.next(); err != nil || len(f.body) != 5000000 {
		t.Fatal(err)
	}
	if _, err := in.next(); err != io.EOF || len(in.buf) != readBuffer {
		t.Errorf("%v with a buffer of %d bytes", err, len(in.buf))
	}
	if _, err := newFrameReader(iotest.ErrReader(io.ErrNoProgress), 0, 16).next(); !errors.Is(err, io.ErrNoProgress) {
		t.Error(err)
	}
}

// FuzzFrames: however the bytes arrive, the frames are the same, and frames put
// together again give the same frames.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("Content-Type: auth/request\n\nContent-Type: command/reply\nReply-Text: +OK accepted\n\n"), uint8(3))
	f.Add([]byte("Content-Length: 24\nContent-Type: text/rude-rejection\n\nAccess Denied, go away.\n"), uint8(1))
	f.Fuzz(func(t *testing.T, data []byte, chunk uint8) {
		const bound = 1 << 16
		kinds, frames, err := collect(bytes.NewReader(data), bound)
		again, pieces, err2 := collect(&chunked{data: data, n: int(chunk) + 1}, bound)
		if strings.Join(frames, "\x00") != strings.Join(pieces, "\x00") || !bytes.Equal(kindBytes(kinds), kindBytes(again)) {
			t.Fatalf("whole: %q, in pieces: %q", frames, pieces)
		}
		if (err == io.EOF) != (err2 == io.EOF) || errors.Is(err, ErrProtocol) != errors.Is(err2, ErrProtocol) {
			t.Fatalf("whole: %v, in pieces: %v", err, err2)
		}
		total := 0
		for _, fr := range frames {
			total += len(fr) - 1
		}
		if total > len(data) {
			t.Fatalf("%d bytes of frames from %d bytes", total, len(data))
		}
	})
}

// chunked gives n bytes at a time.
type chunked struct {
	data []byte
	n    int
}

func (c *chunked) Read(p []byte) (int, error) {
	if len(c.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.n)], c.data)
	c.data = c.data[n:]
	return n, nil
}

// FuzzEvent: reading an event never panics, its parts lie within the text, and
// what Headers yields is what Get and Values find.
func FuzzEvent(f *testing.F) {
	f.Add("Event-Name: CUSTOM\nEvent-Subclass: sofia%3A%3Aregister\nEvent-Sequence: 7\n\n")
	f.Add("A: 1\nA: 2\nContent-Length: 3\n\nabc")
	f.Add("arr: ARRAY%3A%3Aa%7C%3Ab\n: x\n%\n")
	f.Fuzz(func(t *testing.T, text string) {
		e := newEvent(text)
		first := map[string]string{}
		for h := range e.Headers() {
			key := h.Name
			if _, seen := first[key]; !seen {
				first[key] = h.Value
			}
			if !e.Has(h.Name) || len(e.Values(h.Name)) == 0 {
				t.Fatalf("header %q is yielded and not found", h.Name)
			}
			if strings.ContainsAny(h.Name, ":\n") || len(h.Name)+len(h.Value) > len(text) {
				t.Fatalf("header %q: %q", h.Name, h.Value)
			}
		}
		if len(e.Body()) > len(text) {
			t.Fatal("a body larger than the event")
		}
		_, _, _, _ = e.Name(), e.Subclass(), e.Sequence(), e.CoreUUID()
	})
}
