package byname_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh/fixtures/browser"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/softphone"
)

// handset is a real phone that a failure happens to.
type handset struct {
	model     string // "baresip"
	transport string // "udp"
	interval  time.Duration
	user      string

	invites func() int // that began a call, so far

	// dial calls a number and returns when the call was answered, which it ends then, or
	// with the reason why it was not.
	dial  func(ctx context.Context, number string) error
	close func()

	// tail is what the phone said last, for a failing test.
	tail func() string
}

func (h *handset) String() string { return h.model + " " + h.transport }

// lastUser numbers the users: nobody is used twice, because a switch that comes back
// brings the bindings with it that it had.
var lastUser atomic.Int32

func newUser() string { return fmt.Sprint(1100 + lastUser.Add(1)) }

// localAddress is the address of a phone, its alone.
func localAddress(user string) netip.Addr {
	var n int
	_, _ = fmt.Sscan(user, &n)
	return netip.AddrFrom4([4]byte{127, 1, byte(n >> 8), byte(n)})
}

// models are the phones under test, each by the transports that it can be told to use.
// The browser takes part when b is not nil.
func (m *mesh) models(b *browser.Browser) []func(interval time.Duration) (*handset, error) {
	var all []func(time.Duration) (*handset, error)
	for _, kind := range softphone.Kinds {
		if err := softphone.Missing(kind); err != nil {
			m.t.Logf("SKIPPED, NO %s WAS TESTED: %v", kind, err)
			continue
		}
		for _, transport := range []string{"udp", "tcp"} {
			all = append(all, func(interval time.Duration) (*handset, error) {
				return newSoftphone(kind, transport, interval, netip.AddrPortFrom(nameServers[0], 53))
			})
		}
	}
	if b != nil {
		all = append(all, func(interval time.Duration) (*handset, error) { return m.newTab(b, interval) })
	}
	return all
}

func newSoftphone(kind softphone.Kind, transport string, interval time.Duration, server netip.AddrPort) (*handset, error) {
	h := &handset{model: string(kind), transport: transport, interval: interval, user: newUser()}
	p, err := softphone.Start(softphone.Config{
		Kind: kind, User: h.user, Domain: zone, Password: password(h.user), Local: localAddress(h.user),
		DNS: server, Transport: transport, Expires: interval,
	})
	if err != nil {
		return nil, err
	}
	h.close = func() { _ = p.Close() }
	h.tail = func() string {
		lines := strings.Split(p.Log(), "\n")
		return strings.Join(lines[max(0, len(lines)-60):], "\n")
	}
	h.invites = func() int {
		n := 0
		for _, c := range p.Trace().Calls() {
			if !c.Outgoing {
				n++
			}
		}
		return n
	}
	h.dial = func(ctx context.Context, number string) error {
		before := len(p.Trace().Calls())
		if err := p.Call(number); err != nil {
			return err
		}
		var c softphone.Call
		err := p.Wait(ctx, "an answer", func(t softphone.Trace) bool {
			calls := t.Calls()
			if len(calls) <= before {
				return false
			}
			c = calls[len(calls)-1]
			return c.Answered || c.Ended
		})
		if err == nil && !c.Answered {
			err = fmt.Errorf("status %d", c.Status)
		}
		_ = p.Hangup()
		return err
	}
	return h, nil
}

func (m *mesh) newTab(b *browser.Browser, interval time.Duration) (*handset, error) {
	h := &handset{model: "JsSIP in Chromium", transport: "wss", interval: interval, user: newUser()}
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	p, err := b.Phone(ctx, browser.Config{
		User: h.user, Domain: zone, Password: password(h.user), URL: fmt.Sprintf("wss://%s:%d", zone, wssPort), Expires: interval,
	})
	if err != nil {
		return nil, err
	}
	h.close = func() {
		ctx, cancel := context.WithTimeout(context.Background(), soon)
		defer cancel()
		_ = p.Close(ctx)
	}
	h.invites = func() int { return len(p.Invites()) }
	h.tail = func() string { return fmt.Sprintf("%+v", p.Events()) }
	h.dial = func(ctx context.Context, number string) error {
		c, err := p.Call(ctx, number)
		if err != nil {
			return err
		}
		ended := false
		_, err = p.Wait(ctx, "an answer", 0, func(e browser.Event) bool {
			if e.Call != c.ID() {
				return false
			}
			ended = ended || e.Name == "ended"
			return ended || e.Name == "confirmed"
		})
		if err == nil && ended {
			err = fmt.Errorf("the call ended unanswered")
		}
		if !ended {
			_ = c.HangUp(context.Background())
		}
		return err
	}
	return h, nil
}

// outcome is how long a phone was out of reach after a failure.
type outcome struct {
	*handset
	dialled bool          // it was to call; else it was to be called
	took    time.Duration // until that worked; 0: not within the time
	rang    int           // INVITEs of the call that reached it
}

// redial is how long a user waits for an answer before dialling again.
const redial = 10 * time.Second

// observe watches what becomes of the phones after a failure at began, for at most
// patience: passive ones are called once they are known on a living node, active ones dial
// until they are answered.
func (m *mesh) observe(began time.Time, patience time.Duration, dead string, passive, active []*handset, other *phone.Phone) []outcome {
	ctx, cancel := context.WithDeadline(context.Background(), began.Add(patience))
	defer cancel()
	out := make([]outcome, len(passive)+len(active))
	var wait sync.WaitGroup
	for i, h := range append(append([]*handset{}, passive...), active...) {
		out[i].handset = h
		wait.Go(func() {
			if out[i].dialled = i >= len(passive); out[i].dialled {
				out[i].took = m.awaitCalls(ctx, began, h, other)
			} else {
				out[i].took, out[i].rang = m.awaitCalled(ctx, began, dead, h, other)
			}
		})
	}
	wait.Wait()
	return out
}

// awaitCalled waits until a phone is known on a living node, and has it called then, again
// and again: it may be known a moment before its row stands in the caller's switch.
func (m *mesh) awaitCalled(ctx context.Context, began time.Time, dead string, h *handset, other *phone.Phone) (took time.Duration, rang int) {
	alive := func() bool {
		return slices.ContainsFunc(m.where(m.nodes["singapore"].app, h.user), func(at string) bool { return at != dead })
	}
	for before := h.invites(); ; {
		if !await(ctx, alive) {
			return 0, 0
		}
		call, err := other.Call(ctx, h.user)
		if err != nil {
			return 0, 0
		}
		// Who answers without the phone is the caller's dialplan, which found nobody.
		await(ctx, func() bool { return h.invites() > before || call.Info().State >= phone.Answered })
		if h.invites() > before {
			took = time.Since(began)
			// A second INVITE of the same call would come with the first one.
			settled, cancel := context.WithTimeout(ctx, time.Second)
			await(settled, func() bool { return h.invites() > before+1 })
			cancel()
			_ = call.Hangup(ctx)
			return took, h.invites() - before
		}
		if ctx.Err() != nil {
			return 0, 0
		}
		_ = call.Hangup(ctx)
	}
}

// await polls until cond holds, or ctx ends, which it says.
func await(ctx context.Context, cond func() bool) bool {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// awaitCalls dials again and again, as a user does, until somebody answers.
func (m *mesh) awaitCalls(ctx context.Context, began time.Time, h *handset, other *phone.Phone) time.Duration {
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, redial)
		err := h.dial(attempt, other.User())
		if err == nil {
			cancel()
			return time.Since(began)
		}
		m.t.Logf("%v dials after %s: %v", h, time.Since(began).Round(100*time.Millisecond), err)
		// What is refused at once is dialled again a moment later.
		pause := time.NewTimer(time.Second)
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
		pause.Stop()
		cancel()
	}
	return 0
}
