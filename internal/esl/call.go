package esl

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
)

// maxCallEvents bounds the events of a call that nobody has waited for; beyond it
// the oldest is lost.
const maxCallEvents = 128

// Call is one call that the dialplan's `socket` application handed to us. The
// switch goes on with its dialplan when the socket closes: when the handler
// returns, Close is called or the connection is lost. Its methods may be called
// from several goroutines.
type Call struct {
	s    *session
	data *Event

	settled atomic.Bool // an application was started, or the switch was told to resume

	mu     sync.Mutex
	events []*Event
	lost   int
	wake   chan struct{} // a token when events has grown
}

func newCall() *Call { return &Call{wake: make(chan struct{}, 1)} }

// push is the session's event handler.
func (c *Call) push(e *Event) {
	c.mu.Lock()
	if len(c.events) >= maxCallEvents {
		copy(c.events, c.events[1:])
		c.events = c.events[:len(c.events)-1]
		c.lost++
	}
	c.events = append(c.events, e)
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Call) pop() *Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.events) == 0 {
		return nil
	}
	e := c.events[0]
	c.events[0] = nil
	c.events = c.events[1:]
	return e
}

// UUID returns the channel's Unique-ID. See Event.UniqueID.
func (c *Call) UUID() string { return c.data.UniqueID() }

// Get returns a header of the channel data that came with the call, decoded:
// Get("Caller-Destination-Number"). It does not change afterwards.
func (c *Call) Get(header string) string { return c.data.Get(header) }

// Var returns a channel variable of that data: Var("sip_req_host").
func (c *Call) Var(name string) string { return c.data.Var(name) }

// Data returns the whole channel data.
func (c *Call) Data() *Event { return c.data }

// API runs an API command on the call's connection (`full` mode). See Conn.API.
func (c *Call) API(ctx context.Context, command string) (string, error) {
	return c.s.api(ctx, command)
}

// Execute starts a dialplan application on the channel and returns with the
// switch's reply to the command. In async mode the application has then been
// queued; its end is the event CHANNEL_EXECUTE_COMPLETE (see Events, Wait).
func (c *Call) Execute(ctx context.Context, app, arg string) error {
	if err := checkWord("application", app, "-."); err != nil {
		return err
	}
	headers := []Header{{"call-command", "execute"}, {"execute-app-name", app}}
	if arg != "" {
		headers = append(headers, Header{"execute-app-arg", arg})
	}
	m, err := headerMessage("sendmsg", headers, nil)
	if err != nil {
		return err
	}
	c.settled.Store(true) // it may run even when we never hear so
	return c.s.simple(ctx, m)
}

// Events subscribes to the events of this channel. Call it before what causes the
// events, then Wait.
func (c *Call) Events(ctx context.Context) error { return c.s.simple(ctx, "myevents\n\n") }

// Linger asks the switch to keep the socket open for so many seconds (1 to 600)
// after the channel is gone, so that its last events still arrive.
func (c *Call) Linger(ctx context.Context, seconds int) error {
	if seconds < 1 || seconds > 600 {
		return fmt.Errorf("%w: linger %d, 1 to 600 seconds are allowed", ErrInvalidCommand, seconds)
	}
	return c.s.simple(ctx, message("linger "+strconv.Itoa(seconds)+"\n\n"))
}

// Resume asks the switch to go on with the dialplan when the socket closes, however
// early that is. A socket that closes before the session has parked (the switch
// does that up to a tick after it connected to us) leaves the channel parked for
// ever otherwise, seen on 1.11.1. Not for a call with an application under way: the
// close would end it. A call on which neither Resume nor Execute was called is told
// to resume whenever its connection ends.
func (c *Call) Resume(ctx context.Context) error {
	err := c.s.simple(ctx, message(resumeCommand))
	if err == nil {
		c.settled.Store(true)
	}
	return err
}

const resumeCommand = "resume\n\n"

// farewell is what a call that was never settled is told last.
func (c *Call) farewell() string {
	if c.settled.Load() {
		return ""
	}
	return resumeCommand
}

// Wait returns the first event for which match is true, in the order of the wire;
// the ones before it are consumed. Events that came before Wait count as long as
// there are at most 128 of them; then the oldest are lost. Its error is ctx's, or
// why the connection ended once all events before the end were looked at.
func (c *Call) Wait(ctx context.Context, match func(*Event) bool) (*Event, error) {
	var end error
	for {
		for e := c.pop(); e != nil; e = c.pop() {
			if match(e) {
				return e, nil
			}
		}
		if end != nil {
			return nil, end
		}
		select {
		case <-c.wake:
		case <-c.s.finished:
			end = c.s.closedError() // and look once more: the last event and the end race
		case <-ctx.Done():
			end = fmt.Errorf("wait for an event: %w", context.Cause(ctx))
		}
	}
}

// Lost returns how many events were dropped because nobody waited for them.
func (c *Call) Lost() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}

// Done is closed as soon as the connection is lost or closed: the channel is gone
// or the dialplan goes on.
func (c *Call) Done() <-chan struct{} { return c.s.closing }

// Err returns nil before Done is closed, then why. See Conn.Err.
func (c *Call) Err() error { return c.s.cause() }

// Close gives the call back to the dialplan and waits until nothing of the
// connection runs. It may be called often.
func (c *Call) Close() { c.s.close() }
