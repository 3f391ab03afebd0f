package esl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// startServer serves on a free port of the loopback.
func startServer(t testing.TB, cfg ServerConfig) (*Server, string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(cfg)
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx)
		if err := recv(t, "Serve", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, ln.Addr().String()
}

// channel plays the switch's `socket` application towards addr.
func channel(t testing.TB, addr string) *wire {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(waitLong))
	return &wire{Conn: c, r: bufio.NewReader(c)}
}

func (w *wire) expect(t testing.TB, want ...string) {
	t.Helper()
	lines, _, err := w.command()
	if err != nil || strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("the switch read %q, %v; want %q", lines, err, want)
	}
}

// recording returns what the switch said in a recording of an outbound socket:
// the connect reply, and everything after the last command.
func recording(t testing.TB, name string) (connect, rest string) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	connect, ok := strings.CutPrefix(text[:strings.Index(text, ">>> linger")], ">>> connect\n\n")
	i := strings.Index(text, "execute-app-name: bridge")
	if !ok || i < 0 {
		t.Fatalf("%s is not what this test knows", name)
	}
	return connect, text[i+strings.Index(text[i:], "\n\n")+2:]
}

func TestCallAsRecorded(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		file, uuid, bridge, cause string
		lingers                   bool
	}{
		{"outbound-socket-answered.txt", "98275589-8e44-4d25-868a-ef883ba41c22", "SUCCESS", "NORMAL_CLEARING", true},
		{"outbound-socket-failover.txt", "d3497922-18e0-4a6b-b31f-a95b7a88becd", "SUCCESS", "NORMAL_CLEARING", true},
		{"outbound-socket-notregistered.txt", "2f036e00-7eb9-44a5-9c03-aadb99d87568", "NO_USER_RESPONSE", "", false},
	} {
		t.Run(tc.file, func(t *testing.T) {
			t.Parallel()
			connect, rest := recording(t, tc.file)
			done := make(chan struct{})
			_, addr := startServer(t, ServerConfig{Handler: func(ctx context.Context, c *Call) {
				defer close(done)
				for name, want := range map[string]string{
					"Unique-ID": tc.uuid, "Caller-Destination-Number": "1002", "channel-name": "sofia/internal/1003@pbx.test", "Socket-Mode": "async",
				} {
					if got := c.Get(name); got != want {
						t.Errorf("Get(%s) = %q, want %q", name, got, want)
					}
				}
				if got := c.Var("sip_req_host"); c.UUID() != tc.uuid || got != "pbx.test" {
					t.Errorf("UUID %q, sip_req_host %q", c.UUID(), got)
				}
				if got := c.Data().Values("variable_DP_MATCH"); len(got) != 2 || got[0] != "1002" || got[1] != "1002" {
					t.Errorf("DP_MATCH = %q", got)
				}
				if sdp := c.Var("switch_r_sdp"); strings.Count(sdp, "\r\n") < 8 {
					t.Errorf("switch_r_sdp = %q", sdp)
				}
				for _, err := range []error{c.Linger(ctx, 5), c.Events(ctx), c.Execute(ctx, "set", "hangup_after_bridge=true"), c.Execute(ctx, "bridge", "sofia/mesh/x")} {
					if err != nil {
						t.Error(err)
					}
				}
				e, err := c.Wait(ctx, func(e *Event) bool {
					return e.Name() == "CHANNEL_EXECUTE_COMPLETE" && e.Get("Application") == "bridge"
				})
				if err != nil {
					t.Fatal(err)
				}
				if got := e.Var("originate_disposition"); got != tc.bridge {
					t.Errorf("bridge ended with %q, want %q", got, tc.bridge)
				}
				if !tc.lingers {
					return
				}
				e, err = c.Wait(ctx, func(e *Event) bool { return e.Name() == "CHANNEL_HANGUP_COMPLETE" })
				if err != nil {
					t.Fatal(err)
				}
				if got := e.Get("Hangup-Cause"); got != tc.cause {
					t.Errorf("Hangup-Cause %q, want %q", got, tc.cause)
				}
				recv(t, "Done", c.Done())
			}})
			w := channel(t, addr)
			w.expect(t, "connect")
			w.say("%s", connect)
			w.expect(t, "linger 5")
			w.say("Content-Type: command/reply\nReply-Text: +OK will linger 5 seconds\n\n")
			w.expect(t, "myevents")
			w.say("Content-Type: command/reply\nReply-Text: +OK Events Enabled\n\n")
			w.expect(t, "sendmsg", "call-command: execute", "execute-app-name: set", "execute-app-arg: hangup_after_bridge=true")
			w.ok()
			w.expect(t, "sendmsg", "call-command: execute", "execute-app-name: bridge", "execute-app-arg: sofia/mesh/x")
			// The recording holds the answers to all four commands, three of them said.
			w.say("%s", rest[strings.LastIndex(rest, "Reply-Text: +OK\n\n")-len("Content-Type: command/reply\n"):])
			if tc.file == "outbound-socket-failover.txt" {
				w.Close()
			}
			recv(t, "handler", done)
			if _, err := w.r.ReadString(0); tc.lingers == false && err == nil {
				t.Error("the socket stays open after the handler")
			}
		})
	}
}

const shortConnect = "Event-Name: CHANNEL_DATA\nUnique-ID: u-1\nvariable_odd name(s): x%%20y\nContent-Type: command/reply\nReply-Text: %%2BOK%%0A\nControl: full\n\n"

func TestCallLingerNoticeDoesNotClose(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	_, addr := startServer(t, ServerConfig{Handler: func(ctx context.Context, c *Call) {
		defer close(done)
		if got := c.Var("odd name(s)"); got != "x y" {
			t.Errorf("a variable with a name that MIME forbids: %q", got)
		}
		if _, err := c.Wait(ctx, func(e *Event) bool { return e.Name() == "LAST" }); err != nil {
			t.Errorf("after the linger notice: %v", err)
		}
		if c.Err() != nil {
			t.Errorf("closed by the linger notice: %v", c.Err())
		}
		// Linger-Time is over a second later although the switch stays.
		if _, err := c.Wait(ctx, func(*Event) bool { return false }); !errors.Is(err, ErrClosed) {
			t.Errorf("after Linger-Time: %v", err)
		}
	}})
	w := channel(t, addr)
	w.expect(t, "connect")
	w.say(shortConnect)
	w.say("Content-Type: text/disconnect-notice\nContent-Disposition: linger\nLinger-Time: 0\nContent-Length: 0\n\n")
	w.event("Event-Name: LAST\n\n")
	recv(t, "handler", done)
}

func TestCallKeepsTheNewestEvents(t *testing.T) {
	t.Parallel()
	done := make(chan struct{})
	_, addr := startServer(t, ServerConfig{Handler: func(ctx context.Context, c *Call) {
		defer close(done)
		if _, err := c.API(ctx, "sync"); err != nil {
			t.Error(err)
		}
		eventually(t, "all events in", func() bool { return c.Lost() == 1000-maxCallEvents })
		first, err := c.Wait(ctx, func(*Event) bool { return true })
		if err != nil || first.Sequence() != 1000-maxCallEvents {
			t.Errorf("first kept event: %v, %v", first, err)
		}
		if last, err := c.Wait(ctx, func(e *Event) bool { return e.Sequence() == 999 }); err != nil {
			t.Errorf("last event: %v, %v", last, err)
		}
	}})
	w := channel(t, addr)
	w.expect(t, "connect")
	w.say(shortConnect)
	for i := range 1000 {
		w.event(fmt.Sprintf("Event-Name: E\nEvent-Sequence: %d\n\n", i))
	}
	w.expect(t, "api sync")
	w.api("ok")
	recv(t, "handler", done)
}

func TestServerRefusesWhatIsNoCall(t *testing.T) {
	t.Parallel()
	var handled atomic.Int32
	_, addr := startServer(t, ServerConfig{ConnectTimeout: 50 * time.Millisecond, Handler: func(context.Context, *Call) { handled.Add(1) }})
	for name, say := range map[string]string{
		"silence":     "",
		"no channel":  "Content-Type: command/reply\nReply-Text: +OK\n\n",
		"another one": "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
		"bad length":  "Content-Length: -1\n\n",
		"auth":        "Content-Type: auth/request\n\n",
	} {
		w := channel(t, addr)
		w.expect(t, "connect")
		w.say("%s", say)
		// A channel that only was too slow must not stay parked for ever.
		if rest, err := w.r.ReadString(0); err == nil || rest != "" && rest != "resume\n\n" {
			t.Errorf("%s: the server goes on with %q", name, rest)
		}
	}
	if n := handled.Load(); n != 0 {
		t.Errorf("%d calls handled", n)
	}
}

func TestServerBoundsCalls(t *testing.T) {
	t.Parallel()
	started, release := make(chan struct{}, 2), make(chan struct{})
	_, addr := startServer(t, ServerConfig{MaxCalls: 2, Handler: func(context.Context, *Call) {
		started <- struct{}{}
		<-release
	}})
	for range 2 {
		w := channel(t, addr)
		w.expect(t, "connect")
		w.say(shortConnect)
		recv(t, "handler", started)
	}
	third := channel(t, addr)
	if all, err := io.ReadAll(third.r); err != nil || string(all) != "resume\n\n" {
		t.Errorf("the third call was told %q, %v; it stays parked for ever unless it is told to resume", all, err)
	}
	close(release)
	eventually(t, "a place is free again", func() bool {
		w := channel(t, addr)
		defer w.Close()
		_, _, err := w.command()
		return err == nil
	})
}

func TestServerShutdown(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const calls = 20
	started, ended := make(chan struct{}, calls), make(chan error, calls)
	s := NewServer(ServerConfig{Handler: func(ctx context.Context, c *Call) {
		started <- struct{}{}
		_, err := c.API(ctx, "never answered")
		<-ctx.Done()
		ended <- err
	}})
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln) }()
	var open []*wire
	for range calls {
		w := channel(t, ln.Addr().String())
		w.expect(t, "connect")
		w.say(shortConnect)
		open = append(open, w)
		recv(t, "handler", started)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown with open calls: %v", err)
	}
	if err := recv(t, "Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
	for range calls {
		if err := recv(t, "handler's end", ended); err == nil {
			t.Error("a command went on after Shutdown")
		}
	}
	for _, w := range open {
		if _, err := w.r.ReadString(0); err == nil {
			t.Error("a call's socket stays open after Shutdown")
		}
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
	if _, err := net.Dial("tcp", ln.Addr().String()); err == nil {
		t.Error("the listener still accepts")
	}
	if ln2, err := net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Error(err)
	} else if err := s.Serve(ln2); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

// faultyListener fails a few times before it works.
type faultyListener struct {
	net.Listener
	left atomic.Int32
}

func (l *faultyListener) Accept() (net.Conn, error) {
	if l.left.Add(-1) >= 0 {
		return nil, errors.New("accept: too many open files")
	}
	return l.Listener.Accept()
}

func TestServerRetriesAccept(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &faultyListener{Listener: inner}
	l.left.Store(3)
	handled := make(chan string, 1)
	s := NewServer(ServerConfig{Handler: func(_ context.Context, c *Call) { handled <- c.UUID() }})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	w := channel(t, inner.Addr().String())
	w.expect(t, "connect")
	w.say(shortConnect)
	if got := recv(t, "call", handled); got != "u-1" {
		t.Errorf("UUID %q", got)
	}
	inner.Close()
	if err := recv(t, "Serve", served); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve after somebody closed its listener: %v", err)
	}
	if err := s.Shutdown(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := NewServer(ServerConfig{}).Serve(inner); err == nil {
		t.Error("Serve without a handler")
	}
}

// TestServerLeaksNothing must not run in parallel: it counts what the whole
// process holds.
func TestServerLeaksNothing(t *testing.T) {
	s, addr := startServer(t, ServerConfig{Handler: func(ctx context.Context, c *Call) {
		_ = c.Execute(ctx, "set", "a=b")
	}})
	once := func(answer bool) {
		w := channel(t, addr)
		defer w.Close()
		w.expect(t, "connect")
		w.say(shortConnect)
		_, _, _ = w.command()
		if answer {
			w.ok()
			_, _ = w.r.ReadString(0)
		}
	}
	once(true)
	once(false)
	eventually(t, "nothing open", func() bool { return len(s.places) == 0 })
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	for i := range 200 {
		once(i%2 == 0)
	}
	eventually(t, "descriptors and goroutines back", func() bool {
		return descriptors(t) <= fds && runtime.NumGoroutine() <= goroutines
	})
}

// TestServerFarewell: a call on which nothing was started is told to resume however
// its connection ends; one with an application under way is not.
func TestServerFarewell(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		handle func(context.Context, *Call)
		want   string
	}{
		"nothing done": {func(context.Context, *Call) {}, "resume\n\n"},
		"a command that is never answered": {func(_ context.Context, c *Call) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			_, _ = c.API(ctx, "status")
		}, "api status\n\nresume\n\n"},
		"an application under way": {func(_ context.Context, c *Call) {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
			defer cancel()
			_ = c.Execute(ctx, "bridge", "user/1001")
		}, "sendmsg\ncall-command: execute\nexecute-app-name: bridge\nexecute-app-arg: user/1001\n\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, addr := startServer(t, ServerConfig{Handler: tt.handle})
			w := channel(t, addr)
			w.expect(t, "connect")
			w.say(shortConnect)
			if all, err := io.ReadAll(w.r); err != nil || string(all) != tt.want {
				t.Errorf("the switch was told %q, %v; want %q", all, err, tt.want)
			}
		})
	}
}
