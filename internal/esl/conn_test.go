package esl

import (
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestConnCommands(t *testing.T) {
	t.Parallel()
	type seen struct {
		lines []string
		body  string
	}
	commands := make(chan seen, 10)
	sw := newTestSwitch(t, func(w *wire) {
		if !w.greet() {
			return
		}
		for {
			lines, body, err := w.command()
			if err != nil {
				return
			}
			commands <- seen{lines, body}
			switch lines[0] {
			case "api uptime":
				w.api("417\n")
			case "api nosuchcommand":
				w.api("-ERR nosuchcommand Command not found!\n")
			case "api empty":
				w.api("")
			case "event plain NOSUCH":
				w.say("Content-Type: command/reply\nReply-Text: -ERR no keywords supplied\n\n")
			default:
				w.ok()
			}
		}
	})
	c := dialTest(t, Config{Address: sw.addr()})
	ctx := testContext(t)

	if out, err := c.API(ctx, "uptime"); err != nil || out != "417" {
		t.Errorf("API(uptime) = %q, %v", out, err)
	}
	if out, err := c.API(ctx, "empty"); err != nil || out != "" {
		t.Errorf("API(empty) = %q, %v", out, err)
	}
	var refused *ReplyError
	if _, err := c.API(ctx, "nosuchcommand"); !errors.As(err, &refused) || refused.Text != "-ERR nosuchcommand Command not found!" {
		t.Errorf("API(nosuchcommand): %v", err)
	}
	if err := c.Subscribe(ctx, []string{"HEARTBEAT"}, []string{"sofia::register", "sofia::expire"}); err != nil {
		t.Error(err)
	}
	if err := c.Subscribe(ctx, []string{"NOSUCH"}, nil); !errors.As(err, &refused) {
		t.Errorf("a refused subscription: %v", err)
	}
	if err := c.SendEvent(ctx, "CUSTOM", []Header{{"Event-Subclass", "multicast::event"}, {"orig-contact", `"" <sip:1002@pbx.test>`}}, []byte("two\n\nlines")); err != nil {
		t.Error(err)
	}
	want := []seen{
		{[]string{"api uptime"}, ""},
		{[]string{"api empty"}, ""},
		{[]string{"api nosuchcommand"}, ""},
		{[]string{"event plain HEARTBEAT CUSTOM sofia::register sofia::expire"}, ""},
		{[]string{"event plain NOSUCH"}, ""},
		{[]string{"sendevent CUSTOM", "Event-Subclass: multicast::event", `orig-contact: "" <sip:1002@pbx.test>`, "content-length: 10"}, "two\n\nlines"},
	}
	for _, w := range want {
		if got := recv(t, "command", commands); !reflect.DeepEqual(got.lines, w.lines) || got.body != w.body {
			t.Errorf("the switch read %q %q, want %q %q", got.lines, got.body, w.lines, w.body)
		}
	}
	if err := c.Err(); err != nil {
		t.Errorf("Err of a living connection: %v", err)
	}
	c.Close()
	if err := c.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := c.API(ctx, "uptime"); !errors.Is(err, ErrClosed) {
		t.Errorf("API after Close: %v", err)
	}
}

func TestConnConcurrentCommandsGetTheirOwnReplies(t *testing.T) {
	t.Parallel()
	sw := newTestSwitch(t, func(w *wire) {
		if w.greet() {
			w.obey()
		}
	})
	c := dialTest(t, Config{Address: sw.addr()})
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			cmd := "echo " + strings.Repeat("x", i*300+1)
			for range 50 {
				if out, err := c.API(ctx, cmd); err != nil || out != "did "+cmd {
					t.Errorf("API(%d bytes) = %d bytes, %v", len(cmd), len(out), err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestConnLateReplyNeverReachesTheNextCaller(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	sw := newTestSwitch(t, func(w *wire) {
		if !w.greet() {
			return
		}
		if _, _, err := w.command(); err != nil {
			return
		}
		<-release
		w.api("late\n")
		w.obey()
	})
	c := dialTest(t, Config{Address: sw.addr(), CommandTimeout: time.Second})
	ctx := testContext(t)
	if out, err := c.API(ctx, "slow"); !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "slow") {
		t.Errorf("API(slow) = %q, %v; want ErrTimeout naming the command", out, err)
	}
	close(release)
	if out, err := c.API(ctx, "next"); !errors.Is(err, ErrClosed) {
		t.Errorf("API(next) = %q, %v; want ErrClosed", out, err)
	}
	recv(t, "Done", c.Done())
	if err := c.Err(); !errors.Is(err, ErrTimeout) {
		t.Errorf("Err: %v", err)
	}
}

func TestConnCancelledCommand(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{}, 1)
	sw := newTestSwitch(t, func(w *wire) {
		if w.greet() {
			w.command()
			asked <- struct{}{}
			w.hang()
		}
	})
	c := dialTest(t, Config{Address: sw.addr()})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-asked
		cancel()
	}()
	if _, err := c.API(ctx, "slow"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	sw2 := newTestSwitch(t, func(w *wire) {
		if w.greet() {
			w.obey()
		}
	})
	c2 := dialTest(t, Config{Address: sw2.addr()})
	if _, err := c2.API(cancelled, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled before it was sent: %v", err)
	}
	if _, err := c2.API(testContext(t), "x"); err != nil {
		t.Errorf("a command that was never sent must not end the connection: %v", err)
	}
}

func TestConnKeepAlive(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	sw := newTestSwitch(t, func(w *wire) {
		if !w.greet() {
			return
		}
		for range 3 {
			lines, _, err := w.command()
			if err != nil {
				return
			}
			asked <- lines[0]
			w.api("1\n")
		}
		w.hang()
	})
	c := dialTest(t, Config{Address: sw.addr(), KeepAlive: 10 * time.Millisecond, CommandTimeout: time.Second})
	for range 3 {
		if got := recv(t, "sign of life", asked); got != "api uptime" {
			t.Errorf("asked %q", got)
		}
	}
	recv(t, "Done", c.Done())
	if err := c.Err(); !errors.Is(err, ErrTimeout) {
		t.Errorf("Err after the switch hung: %v", err)
	}
}

func TestConnEndsForAnyReadError(t *testing.T) {
	t.Parallel()
	reset := func(w *wire) { w.Conn.(*net.TCPConn).SetLinger(0) }
	for _, tc := range []struct {
		name string
		act  func(*wire)
		want error
	}{
		{"hang up", func(*wire) {}, ErrClosed},
		{"reset", reset, ErrClosed},
		{"reset in a body", func(w *wire) {
			w.say("Content-Type: text/event-plain\nContent-Length: 100\n\nEvent-Name: HE")
			reset(w)
		}, ErrClosed},
		{"hang up in a header", func(w *wire) { w.say("Content-Type: text/ev") }, ErrClosed},
		{"goodbye", func(w *wire) { w.say("Content-Type: text/disconnect-notice\n\n"); w.hang() }, ErrClosed},
		{"rude rejection", func(w *wire) { w.say("Content-Type: text/rude-rejection\n\n"); w.hang() }, ErrACL},
		{"negative length", func(w *wire) { w.say("Content-Type: api/response\nContent-Length: -1\n\n"); w.hang() }, ErrProtocol},
		{"huge length", func(w *wire) { w.say("Content-Length: 9000000000000000000\n\n"); w.hang() }, ErrProtocol},
		{"length over 64 bit", func(w *wire) { w.say("Content-Length: 99999999999999999999999\n\n"); w.hang() }, ErrProtocol},
		{"length over the bound", func(w *wire) { w.say("Content-Length: 100001\n\n"); w.hang() }, ErrProtocol},
		{"garbage length", func(w *wire) { w.say("Content-Length: ten\n\n"); w.hang() }, ErrProtocol},
		{"endless header", func(w *wire) { w.say("%s", strings.Repeat("x", 2*maxHeader)); w.hang() }, ErrProtocol},
		{"half a frame", func(w *wire) { w.say("Content-Type: api/resp"); w.hang() }, ErrClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			sw := newTestSwitch(t, func(w *wire) {
				if w.greet() {
					tc.act(w)
				}
			})
			c := dialTest(t, Config{Address: sw.addr(), MaxFrame: 100000, CommandTimeout: 2 * time.Second})
			recv(t, "Done", c.Done())
			if err := c.Err(); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), sw.addr()) {
				t.Errorf("Err: %v; want %v with the address", err, tc.want)
			}
		})
	}
}

func TestConnSurvivesOddFrames(t *testing.T) {
	t.Parallel()
	events := make(chan *Event, 10)
	sw := newTestSwitch(t, func(w *wire) {
		if !w.greet() {
			return
		}
		w.say("Content-Type: log/data\nContent-Length: 5\n\nhello")
		w.say("Content-Type: application/x-future\nContent-Length: 3\n\nabc")
		w.say("no colon in here\n\n")
		w.say("Content-Type: command/reply\nReply-Text: +OK nobody asked\n\n")
		w.event("Event-Name: ODD\nbad name (with) [brackets]: 1\n starts with a blank: 2\nno colon\nNul: a\x00b\nvariable_x: 3\n\n")
		w.event("")
		w.event("\n")
		w.obey()
	})
	c := dialTest(t, Config{Address: sw.addr(), OnEvent: func(e *Event) { events <- e }})
	e := recv(t, "event", events)
	for name, want := range map[string]string{"Event-Name": "ODD", "bad name (with) [brackets]": "1", "variable_x": "3", "nul": "a\x00b"} {
		if got := e.Get(name); got != want {
			t.Errorf("Get(%q) = %q, want %q", name, got, want)
		}
	}
	for range 2 {
		if e := recv(t, "empty event", events); e.Name() != "" {
			t.Errorf("name of an empty event: %q", e.Name())
		}
	}
	// All of it has been read by now, and nothing of it is taken for an answer.
	if out, err := c.API(testContext(t), "uptime"); err != nil || out != "did uptime" {
		t.Errorf("API = %q, %v", out, err)
	}
}
