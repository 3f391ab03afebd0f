package socket

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestOtherChannelsDoNotCount: the end of another channel's bridge is not ours.
func TestOtherChannelsDoNotCount(t *testing.T) {
	t.Parallel()
	h, addr := start(t)
	call := dialling("1002").dial(t, addr)
	<-call.bridged
	call.change["Unique-ID"] = strings.ToUpper(testUUID[:8]) + testUUID[8:35] + "0"
	call.event(t, "execute-complete-failed")
	call.event(t, "channel-hangup")
	delete(call.change, "Unique-ID")
	call.change["variable_originate_disposition"] = "USER_BUSY"
	call.event(t, "execute-complete-failed")
	if got, want := call.wait(), wireSet("failed", "USER_BUSY"); !strings.HasSuffix(got, want) || strings.Count(got, "=failed") != 1 {
		t.Errorf("sent %q", got)
	}
	idle(t, h)
	if s := h.Stats(); s.Failed != 1 || s.Answered != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestShutdownReleasesCalls: a call that talks loses its socket and nothing else:
// the hook sends it no hangup.
func TestShutdownReleasesCalls(t *testing.T) {
	t.Parallel()
	h, addr := start(t)
	talking := dialling("1001", events("channel-bridge")).dial(t, addr)
	ringing := dialling("1002", events("channel-execute-bridge")).dial(t, addr)
	<-talking.bridged
	<-ringing.bridged
	eventually(t, "both calls", func() bool {
		return h.Stats().Routed == 2 && strings.Contains(talking.bytes(), "=answered")
	})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for range 3 { // from several goroutines, and often
		wg.Go(func() {
			if err := h.Shutdown(ctx); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
	wg.Wait()
	for _, c := range []*fakeCall{talking, ringing} {
		if got := c.wait(); !wireGrammar.MatchString(got) {
			t.Errorf("sent %q", got)
		}
	}
	if s := h.Stats(); s.Released != 2 || s.Active != 0 {
		t.Errorf("stats %+v", s)
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("the listener is still open")
	}
}

// TestShutdownWaitsForPark: a call that was routed a moment ago keeps its socket
// until the switch has parked the channel, or it would stay parked for ever.
func TestShutdownWaitsForPark(t *testing.T) {
	t.Parallel()
	h, addr := start(t)
	call := dialling("1001").dial(t, addr)
	<-call.bridged
	eventually(t, "a routed call", func() bool { return h.Stats().Routed == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	stopped := make(chan error, 1)
	go func() { stopped <- h.Shutdown(ctx) }()
	eventually(t, "the call to be let go", func() bool { return h.Stats().Released == 1 })
	select {
	case <-call.gone:
		t.Error("the socket closed before the channel had parked")
	case <-time.After(50 * time.Millisecond):
	}
	call.event(t, "channel-execute-bridge")
	call.wait()
	if err := <-stopped; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestCallLimit(t *testing.T) {
	t.Parallel()
	h, addr := start(t, func(o *Options) { o.CallLimit = 30 * time.Millisecond })
	dialling("1001", events("channel-execute-bridge")).dial(t, addr).wait()
	idle(t, h)
	if s := h.Stats(); s.Released != 1 || s.Abandoned != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestSwitchDiesInCall: the switch is killed while a call rings and another talks.
func TestSwitchDiesInCall(t *testing.T) {
	t.Parallel()
	h, addr := start(t)
	talking := dialling("1001", events("channel-bridge")).dial(t, addr)
	ringing := dialling("1002").dial(t, addr)
	<-ringing.bridged
	eventually(t, "an answer", func() bool { return strings.Contains(talking.bytes(), "=answered") && h.Stats().Routed == 2 })
	talking.conn.Close()
	ringing.conn.Close()
	idle(t, h)
	if s := h.Stats(); s.Answered != 1 || s.Abandoned != 1 || s.Released != 0 {
		t.Errorf("stats %+v", s)
	}
}

// TestConcurrentCalls: 200 calls at once, each gets its own answer.
func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	const calls = 200
	h, addr := start(t)
	var wg sync.WaitGroup
	for i := range calls {
		number := 1001 + i%4
		uuid := fmt.Sprintf("2f036e00-7eb9-44a5-9c03-%012x", i)
		f := dialling(fmt.Sprint(number), events("channel-execute-bridge", "execute-complete-failed"))
		f.uuid = uuid
		f.dial(t, addr)
		wg.Go(func() {
			got := f.wait()
			want := "=failed;pbxmesh_cause=NO_USER_RESPONSE"
			if number == 1004 {
				want = "=unreachable;"
			} else if !strings.Contains(got, fmt.Sprintf("%d@pbx.test", number)) {
				t.Errorf("call %d to %d got %q", i, number, got)
			}
			if !strings.Contains(got, want) || strings.Count(got, uuid) != strings.Count(got, "uuid_setvar_multi") {
				t.Errorf("call %d to %d got %q", i, number, got)
			}
		})
	}
	wg.Wait()
	idle(t, h)
	if s := h.Stats(); s.Calls != calls || s.Routed != calls*3/4 || s.Failed != calls*3/4 || s.Unreachable != calls/4 {
		t.Errorf("stats %+v", s)
	}
}
