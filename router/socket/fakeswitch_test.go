package socket

import (
	"bufio"
	"embed"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

//go:embed testdata/*.txt
var recorded embed.FS

func recording(t testing.TB, name string) string {
	t.Helper()
	b, err := recorded.ReadFile("testdata/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// fakeCall is FreeSWITCH's side of one `socket` application, played from the
// recordings: it connects, answers commands and reports events by a script. It
// keeps every byte that the hook sends.
type fakeCall struct {
	uuid string

	// header replaces or adds headers of the channel data ("variable_x" for
	// variables); "" takes one out. Values are encoded as the switch does.
	header map[string]string

	// answer, when set, gives the reply to a command: "" is the ordinary one, silence
	// is none, and ok false closes the connection.
	answer func(command string) (reply string, ok bool)

	// afterBridge are the recorded events that follow the bridge command.
	afterBridge []string

	// change edits an event's headers before it goes out.
	change map[string]string

	conn net.Conn

	mu       sync.Mutex
	sent     strings.Builder // every byte from the hook
	commands []string
	bridged  chan struct{} // closed when the bridge command came
	gone     chan struct{} // closed when the hook closed the socket
}

const testUUID = "2f036e00-7eb9-44a5-9c03-aadb99d87568"

// dial connects a call to the hook at addr and plays it in the background until
// the hook closes the socket. The test fails when that takes more than 20 s.
func (f *fakeCall) dial(t testing.TB, addr string) *fakeCall {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	f.conn = conn
	f.bridged, f.gone = make(chan struct{}), make(chan struct{})
	if f.uuid == "" {
		f.uuid = testUUID
	}
	go f.play(t)
	t.Cleanup(func() { conn.Close(); <-f.gone })
	return f
}

func (f *fakeCall) play(t testing.TB) {
	defer close(f.gone)
	defer f.conn.Close()
	_ = f.conn.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(io.TeeReader(f.conn, writerFunc(func(p []byte) {
		f.mu.Lock()
		f.sent.Write(p)
		f.mu.Unlock()
	})))
	for {
		command, err := readCommand(in)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !strings.Contains(err.Error(), "reset") {
				t.Errorf("the hook's connection: %v", err)
			}
			return
		}
		f.mu.Lock()
		f.commands = append(f.commands, command)
		f.mu.Unlock()
		reply, ok := f.reply(t, command)
		if !ok {
			return
		}
		if _, err := io.WriteString(f.conn, reply); err != nil {
			return
		}
		if strings.Contains(command, "execute-app-name: bridge\n") {
			if reply == "" {
				continue
			}
			select {
			case <-f.bridged:
				t.Error("a second bridge command")
			default:
				close(f.bridged)
			}
			for _, e := range f.afterBridge {
				f.event(t, e)
			}
		}
	}
}

func (f *fakeCall) reply(t testing.TB, command string) (string, bool) {
	if f.answer != nil {
		switch r, ok := f.answer(command); {
		case r == silence:
			return "", ok
		case r != "" || !ok:
			return r, ok
		}
	}
	switch {
	case command == "connect\n":
		return edit(recording(t, "connect-reply"), f.identity(f.header)), true
	case command == "myevents\n":
		return "Content-Type: command/reply\nReply-Text: +OK Events Enabled\n\n", true
	case strings.HasPrefix(command, "api "):
		return apiReply("+OK\n"), true
	default:
		return "Content-Type: command/reply\nReply-Text: +OK\n\n", true
	}
}

func apiReply(body string) string {
	return fmt.Sprintf("Content-Type: api/response\nContent-Length: %d\n\n%s", len(body), body)
}

// silence makes answer say nothing: the switch hangs.
const silence = "\x00"

// identity adds the call's own UUID to a set of changes.
func (f *fakeCall) identity(changes map[string]string) map[string]string {
	m := map[string]string{"Unique-ID": f.uuid}
	for k, v := range changes {
		m[k] = v
	}
	return m
}

// event sends a recorded event as it would be on this channel.
func (f *fakeCall) event(t testing.TB, name string) {
	body := edit(recording(t, name), f.identity(f.change))
	_, _ = fmt.Fprintf(f.conn, "Content-Length: %d\nContent-Type: text/event-plain\n\n%s", len(body), body)
}

// edit replaces headers of a recording; "" takes a header out, a new one is added
// at the front.
func edit(text string, changes map[string]string) string {
	var b strings.Builder
	left := make(map[string]string, len(changes))
	for k, v := range changes {
		left[k] = v
	}
	for line := range strings.Lines(text) {
		name, _, _ := strings.Cut(line, ":")
		v, ok := changes[name]
		switch {
		case !ok:
			b.WriteString(line)
		case v != "":
			b.WriteString(name + ": " + encode(v) + "\n")
		}
		delete(left, name)
	}
	var front strings.Builder
	for k, v := range left {
		if v != "" {
			front.WriteString(k + ": " + encode(v) + "\n")
		}
	}
	return front.String() + b.String()
}

// encode is the switch's percent encoding of header values, but for a "%41" of the
// value itself, which the switch leaves as it is.
func encode(v string) string {
	var b strings.Builder
	for i := range len(v) {
		if c := v[i]; c < ' ' || c > '~' || strings.IndexByte(" #%&+:;<=>?@[\\]^`{|}\"", c) >= 0 {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// readCommand reads up to the blank line, which it leaves out.
func readCommand(in *bufio.Reader) (string, error) {
	var b strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			if b.Len()+len(line) > 0 && errors.Is(err, io.EOF) {
				return "", fmt.Errorf("the hook ended within a command: %q", b.String()+line)
			}
			return "", err
		}
		if line == "\n" {
			return b.String(), nil
		}
		b.WriteString(line)
	}
}

type writerFunc func([]byte)

func (w writerFunc) Write(p []byte) (int, error) { w(p); return len(p), nil }

// wait returns everything the hook sent, once it has closed the socket.
func (f *fakeCall) wait() string {
	<-f.gone
	return f.bytes()
}

func (f *fakeCall) bytes() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sent.String()
}
