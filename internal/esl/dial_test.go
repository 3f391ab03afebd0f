package esl

import (
	"context"
	"errors"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestDialFailuresLeakNothing must not run in parallel: it counts what the whole
// process holds.
func TestDialFailuresLeakNothing(t *testing.T) {
	const retries = 200
	rude := func(w *wire) {
		w.say("Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n")
		w.say("Content-Type: text/disconnect-notice\nContent-Length: 67\n\nDisconnected, goodbye.\nSee you at ClueCon! http://www.cluecon.com/\n")
	}
	for _, tc := range []struct {
		name   string
		script func(*wire)
		want   error
		words  []string
	}{
		{"refused by ACL", rude, ErrACL, []string{"ACL", "apply-inbound-acl", "event_socket.conf.xml", "reloadacl"}},
		{"silent", (*wire).hang, ErrNoGreeting, []string{"greeting", "listen-port", "hung"}},
		{"wrong password", func(w *wire) { w.greet() }, ErrAuth, []string{"password", "event_socket.conf.xml", "-ERR invalid"}},
		{"another protocol", func(w *wire) { w.say("220 mail ESMTP\r\n\r\n"); w.hang() }, ErrNoGreeting, []string{"220 mail"}},
		{"hangs up", func(*wire) {}, ErrNoGreeting, []string{"EOF"}},
		{"silent after the password", func(w *wire) { w.say("Content-Type: auth/request\n\n"); w.hang() }, ErrTimeout, []string{"password"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sw := newTestSwitch(t, tc.script)
			dial := func(timeout time.Duration) error {
				c, err := Dial(testContext(t), Config{Address: sw.addr(), Password: "wrong", DialTimeout: timeout})
				if err == nil {
					c.Close()
				}
				return err
			}
			// Where the error is the clock's, a busy machine may be slow at any step:
			// what it says is tested once, with time enough.
			silent := strings.HasPrefix(tc.name, "silent")
			check := func(err error) {
				if !errors.Is(err, tc.want) {
					t.Errorf("Dial: %v; want %v", err, tc.want)
				}
				for _, word := range append(tc.words, sw.addr()) {
					if !strings.Contains(err.Error(), word) {
						t.Errorf("the error does not say %q: %v", word, err)
					}
				}
			}
			if silent {
				check(dial(2 * time.Second))
			} else {
				check(dial(waitLong))
			}
			idle := func() (int, int) { runtime.GC(); return descriptors(t), runtime.NumGoroutine() }
			eventually(t, "first connection gone", func() bool { sw.mu.Lock(); defer sw.mu.Unlock(); return len(sw.conns) == 0 })
			fds, goroutines := idle()
			var retriers sync.WaitGroup
			for range 10 {
				retriers.Go(func() {
					for range retries / 10 {
						if !silent {
							check(dial(waitLong))
						} else if dial(15*time.Millisecond) == nil {
							t.Error("no error")
						}
					}
				})
			}
			retriers.Wait()
			eventually(t, "descriptors and goroutines back", func() bool {
				f, g := idle()
				return f <= fds && g <= goroutines
			})
		})
	}
}

// TestDialAndCloseLeaksNothing counts too: eslgo's sockets and loops must be gone
// when Close returns, for connections that we end and for lost ones.
func TestDialAndCloseLeaksNothing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		after func(*wire)
	}{
		{"we close", (*wire).obey},
		{"the switch closes", func(*wire) {}},
		{"the switch resets in a burst", func(w *wire) {
			w.say("%s", strings.Repeat(eventFrame("Event-Name: X\n\n"), 500))
			w.Conn.(*net.TCPConn).SetLinger(0)
		}},
		{"a command is in flight", (*wire).hang},
	} {
		t.Run(tc.name, func(t *testing.T) {
			sw := newTestSwitch(t, func(w *wire) {
				if w.greet() {
					tc.after(w)
				}
			})
			once := func() {
				c := dialTest(t, Config{Address: sw.addr()})
				asked := make(chan struct{})
				go func() {
					_, _ = c.API(context.Background(), "uptime")
					close(asked)
				}()
				if tc.name == "the switch closes" {
					recv(t, "Done", c.Done())
				}
				c.Close()
				recv(t, "command", asked)
			}
			once()
			eventually(t, "first connection gone", func() bool { sw.mu.Lock(); defer sw.mu.Unlock(); return len(sw.conns) == 0 })
			fds, goroutines := descriptors(t), runtime.NumGoroutine()
			for range 200 {
				once()
			}
			eventually(t, "descriptors and goroutines back", func() bool {
				return descriptors(t) <= fds && runtime.NumGoroutine() <= goroutines
			})
		})
	}
}

func TestDialErrors(t *testing.T) {
	t.Parallel()
	const addr = "127.0.0.1:1" // not one that the kernel gives to somebody else
	if _, err := Dial(testContext(t), Config{Address: addr}); err == nil || !strings.Contains(err.Error(), "mod_event_socket") {
		t.Errorf("nobody listens: %v", err)
	}
	for _, password := range []string{"a\nexit", "a\r\n\r\napi shutdown", "a\x00"} {
		if _, err := Dial(testContext(t), Config{Address: addr, Password: password}); !errors.Is(err, ErrInvalidCommand) {
			t.Errorf("password %q: %v", password, err)
		}
	}
	sw := newTestSwitch(t, (*wire).hang)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(10*time.Millisecond, cancel)
	if _, err := Dial(ctx, Config{Address: sw.addr(), DialTimeout: waitLong}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
