package esl

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// waitLong bounds what tests wait for; only a failing test waits that long.
const waitLong = 20 * time.Second

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLong)
	t.Cleanup(cancel)
	return ctx
}

// testSwitch is the switch's end of the event socket: a listener that runs script
// on every connection.
type testSwitch struct {
	ln     net.Listener
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	closed bool
}

func newTestSwitch(t testing.TB, script func(*wire)) *testSwitch {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &testSwitch{ln: ln, conns: map[net.Conn]struct{}{}}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			if s.closed {
				c.Close()
			}
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				script(&wire{Conn: c, r: bufio.NewReader(c)})
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			}()
		}
	}()
	t.Cleanup(s.close)
	return s
}

func (s *testSwitch) addr() string { return s.ln.Addr().String() }

func (s *testSwitch) close() {
	s.ln.Close()
	s.mu.Lock()
	s.closed = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// wire is one connection at the switch's end.
type wire struct {
	net.Conn
	r *bufio.Reader
}

func (w *wire) say(format string, args ...any) {
	_, _ = fmt.Fprintf(w.Conn, format, args...)
}

// command reads one command: its lines, and its body when it announces one. It
// takes line breaks only as the switch writes them, so a stray CR is seen.
func (w *wire) command() (lines []string, body string, err error) {
	length := 0
	for {
		line, err := w.r.ReadString('\n')
		if err != nil {
			return nil, "", err
		}
		if line == "\n" {
			break
		}
		line = strings.TrimSuffix(line, "\n")
		if v, ok := strings.CutPrefix(line, "content-length: "); ok {
			length, _ = strconv.Atoi(v)
		}
		lines = append(lines, line)
	}
	b := make([]byte, length)
	_, err = io.ReadFull(w.r, b)
	return lines, string(b), err
}

// greet asks for the password and accepts it; false when it was wrong or the
// client left.
func (w *wire) greet() bool {
	w.say("Content-Type: auth/request\n\n")
	lines, _, err := w.command()
	if err != nil {
		return false
	}
	if lines[0] != "auth secret" {
		w.say("Content-Type: command/reply\nReply-Text: -ERR invalid\n\n")
		w.say("Content-Type: text/disconnect-notice\nContent-Length: 67\n\nDisconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n")
		return false
	}
	w.say("Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
	return true
}

func (w *wire) api(body string) {
	w.say("Content-Type: api/response\nContent-Length: %d\n\n%s", len(body), body)
}

func (w *wire) ok() { w.say("Content-Type: command/reply\nReply-Text: +OK\n\n") }

func (w *wire) event(text string) { w.say("%s", eventFrame(text)) }

func eventFrame(text string) string {
	return fmt.Sprintf("Content-Length: %d\nContent-Type: text/event-plain\n\n%s", len(text), text)
}

// hang reads and answers nothing until the client leaves.
func (w *wire) hang() { _, _ = io.Copy(io.Discard, w.r) }

// obey answers every command: api with its own text, the rest with +OK.
func (w *wire) obey() {
	for {
		lines, _, err := w.command()
		if err != nil {
			return
		}
		if cmd, ok := strings.CutPrefix(lines[0], "api "); ok {
			w.api("did " + cmd + "\n")
			continue
		}
		w.ok()
	}
}

func dialTest(t testing.TB, cfg Config) *Conn {
	t.Helper()
	if cfg.Password == "" {
		cfg.Password = "secret"
	}
	c, err := Dial(testContext(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(waitLong)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after %v", what, waitLong)
		}
		runtime.Gosched()
		time.Sleep(time.Millisecond)
	}
}

// descriptors counts the process's open files.
func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc/self/fd here")
	}
	return len(entries)
}

func recv[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(waitLong):
		t.Fatalf("%s: nothing after %v", what, waitLong)
		panic("unreachable")
	}
}
