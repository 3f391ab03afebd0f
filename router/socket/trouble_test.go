package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// TestRegistryTrouble: whatever the registry does, the call goes back with a result.
func TestRegistryTrouble(t *testing.T) {
	t.Parallel()
	unblock := make(chan struct{})
	t.Cleanup(func() { close(unblock) })
	tests := []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"empty", directory(func(context.Context, pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) { return nil, 0, nil }), wireBack("not-registered", "USER_NOT_REGISTERED")},
		{"says not registered", directory(func(context.Context, pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
			return nil, 0, fmt.Errorf("replica: %w", pbxmesh.ErrNotRegistered)
		}), wireBack("not-registered", "USER_NOT_REGISTERED")},
		{"fails", directory(func(context.Context, pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
			return nil, 0, pbxmesh.ErrUnavailable
		}), wireBack("unavailable", "NORMAL_TEMPORARY_FAILURE")},
		{"slow, but heeds its context", directory(func(ctx context.Context, _ pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
			<-ctx.Done()
			return nil, 0, ctx.Err()
		}), wireBack("unavailable", "NORMAL_TEMPORARY_FAILURE")},
		{"hangs", directory(func(context.Context, pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
			<-unblock
			return nil, 0, nil
		}), wireBack("unavailable", "NORMAL_TEMPORARY_FAILURE")},
		{"panics", directory(func(context.Context, pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) { panic("nil map") }), wireBack("unavailable", "NORMAL_TEMPORARY_FAILURE")},
		{"the node states panic", func(o *Options) { o.Nodes = nodesFunc(func() *pbxmesh.Mesh { panic("nil map") }) }, wireBack("unavailable", "NORMAL_TEMPORARY_FAILURE")},
		{"the clock panics", func(o *Options) { o.Now = func() time.Time { panic("no clock") } }, wireBack("unavailable", "NORMAL_TEMPORARY_FAILURE")},
		{"no node states", func(o *Options) { o.Nodes = nodesFunc(func() *pbxmesh.Mesh { return nil }) }, wireBack("unreachable", "DESTINATION_OUT_OF_ORDER")},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// Not parallel with the group: the cleanup that unblocks runs after it.
			o := Options{Directory: directoryFunc(users), Nodes: nodesFunc(towns), Local: "buffalo", Now: func() time.Time { return now }}
			o.Budget, o.ConnectTimeout, o.DecisionTimeout = 10*time.Second, 5*time.Second, 50*time.Millisecond
			tt.change(&o)
			h, addr := serve(t, o)
			begin := time.Now()
			got := dialling("1002").dial(t, addr).wait()
			if want := wireConnect + tt.want; got != want {
				t.Errorf("the hook sent\n%q\nwant\n%q", got, want)
			}
			if took := time.Since(begin); took > 10*time.Second {
				t.Errorf("took %v, the budget is 10 s", took)
			}
			idle(t, h)
			if s := h.Stats(); s.Unset != 0 || s.Lost != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func directory(f directoryFunc) func(*Options) { return func(o *Options) { o.Directory = f } }

// serve is start without the check at the end, for hooks whose directory hangs.
func serve(t testing.TB, o Options) (*Hook, string) {
	t.Helper()
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		_ = h.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return h, l.Addr().String()
}

// TestSwitchTrouble: a switch that hangs or closes at any step costs no more than
// the deadlines, and the socket is closed.
func TestSwitchTrouble(t *testing.T) {
	t.Parallel()
	steps := []struct{ name, command string }{
		{"connect", "connect\n"}, {"myevents", "myevents\n"}, {"set", "api "}, {"bridge", "sendmsg\n"},
	}
	for _, what := range []string{"hangs", "closes", "says no"} {
		for _, step := range steps {
			t.Run(what+" at "+step.name, func(t *testing.T) {
				t.Parallel()
				var bounds []func(*Options)
				if what == "hangs" { // only then does a deadline end it
					bounds = append(bounds, short)
				}
				h, addr := start(t, bounds...)
				call := dialling("1002", events("execute-complete-failed"))
				hit := 0
				call.answer = func(command string) (string, bool) {
					if !strings.HasPrefix(command, step.command) {
						return "", true
					}
					hit++
					switch what {
					case "hangs":
						return silence, true
					case "closes":
						return "", false
					default:
						if step.command == "api " {
							return apiReply("-ERR no such command\n"), true
						}
						return "Content-Type: command/reply\nReply-Text: -ERR no\n\n", true
					}
				}
				begin := time.Now()
				got := call.dial(t, addr).wait()
				// The deadline is 2 s; the rest is for a machine under load.
				if took := time.Since(begin); took > 10*time.Second {
					t.Errorf("the call was back after %v", took)
				}
				if hit == 0 {
					t.Error("the step was never reached")
				}
				idle(t, h)
				s := h.Stats()
				switch {
				case what == "says no" && step.name == "set":
					// No `full` in the dialplan: the call is bridged all the same.
					if !strings.Contains(got, "execute-app-name: bridge") || s.Unset != 2 || s.Failed != 1 {
						t.Errorf("sent %q, stats %+v", got, s)
					}
				case step.name == "connect":
					if got != wireConnect && got != wireAway || s.Calls != 0 {
						t.Errorf("sent %q, stats %+v", got, s)
					}
				case what == "says no":
					if !strings.HasSuffix(got, wireBack("unavailable", "NORMAL_TEMPORARY_FAILURE")) || s.Unavailable != 1 || s.Lost+s.Routed != 0 {
						t.Errorf("sent %q, stats %+v", got, s)
					}
				default:
					if s.Lost != 1 || s.Routed != 0 {
						t.Errorf("stats %+v", s)
					}
				}
			})
		}
	}
}

// TestBudgetIsForAllSteps: a switch that answers each command just in time must not
// add the deadlines up: the budget is one for all of them.
func TestBudgetIsForAllSteps(t *testing.T) {
	t.Parallel()
	h, addr := start(t, short) // 500 ms for what follows connect
	call := dialling("1002")
	call.answer = func(command string) (string, bool) {
		if command != "connect\n" {
			<-time.After(300 * time.Millisecond)
		}
		return "", true
	}
	if got := call.dial(t, addr).wait(); strings.Contains(got, "execute") {
		t.Errorf("a bridge command after the budget: %q", got)
	}
	idle(t, h)
	if s := h.Stats(); s.Lost != 1 || s.Routed != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestSwitchHangsInGiveBack: the last command of a call has a deadline as well.
func TestSwitchHangsInGiveBack(t *testing.T) {
	t.Parallel()
	for _, number := range []string{"1009", "1002"} {
		h, addr := start(t, short)
		call := dialling(number, events("execute-complete-failed"))
		call.answer = func(command string) (string, bool) {
			if strings.Contains(command, "=routed") || !strings.HasPrefix(command, "api ") {
				return "", true
			}
			return silence, true
		}
		begin := time.Now()
		call.dial(t, addr).wait()
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: the call was back after %v", number, took)
		}
		idle(t, h)
		if s := h.Stats(); s.Unset != 1 {
			t.Errorf("%s: stats %+v", number, s)
		}
	}
}

func TestOverload(t *testing.T) {
	t.Parallel()
	h, addr := start(t, func(o *Options) { o.MaxCalls = 2 })
	first, second := dialling("1001").dial(t, addr), dialling("1002").dial(t, addr)
	<-first.bridged
	<-second.bridged
	eventually(t, "two routed calls", func() bool { return h.Stats().Routed == 2 })
	if got, want := dialling("1001").dial(t, addr).wait(), wireConnect+wireBack("overloaded", "SWITCH_CONGESTION"); got != want {
		t.Errorf("the third call got %q, want %q", got, want)
	}
	first.event(t, "execute-complete-failed")
	first.wait()
	eventually(t, "a place", func() bool { return h.Stats().Active == 1 })
	third := dialling("1001", events("execute-complete-failed")).dial(t, addr)
	if got := third.wait(); !strings.Contains(got, "=failed") {
		t.Errorf("after a place was free: %q", got)
	}
	if s := h.Stats(); s.Overloaded != 1 || s.Routed != 3 {
		t.Errorf("stats %+v", s)
	}
}

// TestLookupsAreBounded: a directory that hangs for good does not collect more
// look-ups than MaxCalls, and what it costs ends with it.
func TestLookupsAreBounded(t *testing.T) {
	t.Parallel()
	unblock := make(chan struct{})
	h, addr := start(t, short, func(o *Options) {
		o.Budget, o.ConnectTimeout = 8*time.Second, 4*time.Second
		o.MaxCalls = 3
		o.Directory = directoryFunc(func(context.Context, pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
			<-unblock
			return nil, 0, nil
		})
	})
	for range 6 {
		if got, want := dialling("1001").dial(t, addr).wait(), wireConnect+wireBack("unavailable", "NORMAL_TEMPORARY_FAILURE"); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	idle(t, h)
	if s := h.Stats(); s.Lookups != 3 || s.Unavailable != 6 {
		t.Errorf("stats %+v", s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := h.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "3 look-ups") {
		t.Errorf("Shutdown with a hanging directory: %v", err)
	}
	close(unblock) // start's cleanup shuts down once more and must succeed
}
