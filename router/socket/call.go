package socket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/meshcontext"
	"pbxmesh/router"
)

// switchCall is the part of *esl.Call that a call needs.
type switchCall interface {
	UUID() string
	Get(header string) string
	Var(name string) string
	Events(ctx context.Context) error
	API(ctx context.Context, command string) (string, error)
	Execute(ctx context.Context, app, arg string) error
	Wait(ctx context.Context, match func(*esl.Event) bool) (*esl.Event, error)
	Resume(ctx context.Context) error
}

var _ switchCall = (*esl.Call)(nil)

// call is one call while the hook has it.
type call struct {
	h      *Hook
	sw     switchCall
	uuid   string
	start  time.Time
	record Record

	guarded bool // the channel leaves our rows out until the phones have rung
}

// handle is the server's handler. Returning closes the socket, and that is what
// gives the call back: every way out of here is a way on for the caller.
func (h *Hook) handle(ctx context.Context, sw *esl.Call) { h.serve(ctx, sw) }

func (h *Hook) serve(ctx context.Context, sw switchCall) {
	h.counters.calls.Add(1)
	h.counters.active.Add(1)
	defer h.counters.active.Add(^uint64(0))
	c := &call{h: h, sw: sw, uuid: sw.UUID(), start: time.Now()}
	if !validUUID(c.uuid) {
		// No command may name the channel, and no event of it would be known.
		h.counters.unnamed.Add(1)
		h.log.Warn("the channel data has no channel UUID that a command may name, the call goes on without us", "uuid", fmt.Sprintf("%.40q", c.uuid))
		return
	}

	// What is left of the budget when the channel data took its full time.
	early, cancel := context.WithTimeout(ctx, h.opt.Budget-h.opt.ConnectTimeout)
	defer cancel()
	bridging := false
	defer func() {
		if p := recover(); p != nil {
			h.counters.panics.Add(1)
			h.log.Error("routing panicked, the call is given back", "uuid", c.uuid, "panic", p, "stack", string(debug.Stack()))
			if !bridging {
				c.giveBack(early, Unavailable, causeUnavailable)
			}
		}
	}()

	select {
	case h.calls <- struct{}{}:
		defer func() { <-h.calls }()
	default:
		c.giveBack(early, Overloaded, causeOverloaded)
		return
	}
	bridge, ok := c.decide(early)
	if !ok || !c.command(early, bridge) {
		return
	}
	bridging = true
	cancel() // no command of the early part is under way any more
	c.follow(ctx)
}

// decide returns the bridge string, or gives the call back.
func (c *call) decide(ctx context.Context) (bridge string, ok bool) {
	h := c.h
	c.checkMode()
	c.record.FromMesh = h.opt.Bridge.Arrived(c.sw.Var)
	aor, err := c.address()
	if err != nil {
		h.log.Debug("not an address", "uuid", c.uuid, "err", err)
		c.giveBack(ctx, Invalid, causeInvalid)
		return "", false
	}
	c.record.AOR = aor

	// The give-back needs time too: the look-up gets at most half of what is left.
	limit := h.opt.DecisionTimeout
	if deadline, set := ctx.Deadline(); set {
		limit = min(limit, time.Until(deadline)/2)
	}
	lookupCtx, cancel := context.WithTimeout(ctx, limit)
	v, err := h.ask.Look(lookupCtx, aor, h.opt.Directory, h.opt.Nodes.Mesh)
	cancel()
	if err != nil {
		h.log.Warn("the registry cannot be asked, the call is given back", "aor", aor, "err", err)
		c.record.Decision = time.Since(c.start)
		c.giveBack(ctx, Unavailable, causeUnavailable)
		return "", false
	}
	plan := router.Decide(router.Input{
		AOR: aor, Local: h.opt.Local, FromMesh: c.record.FromMesh,
		Registrations: v.Regs, Mesh: v.Mesh, Now: h.opt.Now(), DataAge: v.Age,
	})
	bridge = plan.BridgeString(h.opt.Bridge)
	c.record.Decision = time.Since(c.start)
	if bridge == "" {
		outcome, cause := giveBackFor(plan.Result)
		c.giveBack(ctx, outcome, cause)
		return "", false
	}
	if h.opt.LogCalls || h.opt.Observe != nil {
		c.record.Nodes = slices.Compact(slices.Collect(plan.Nodes))
	}
	return bridge, true
}

// address returns whom the caller dialled. Everything that a caller can write is
// judged by NewAOR; nothing is decoded, trimmed or repaired on the way there.
func (c *call) address() (pbxmesh.AOR, error) {
	domain := ""
	if c.record.FromMesh {
		// The sending node put the tenant's domain into the request URI. Nobody
		// authenticated here whose domain_name could say better.
		domain = c.sw.Var("sip_req_host")
	}
	for _, name := range c.h.opt.DomainVariables {
		if domain != "" {
			break
		}
		domain = c.sw.Var(name)
	}
	if domain == "" {
		domain = c.h.opt.Domain
	}
	return pbxmesh.NewAOR(c.sw.Get("Caller-Destination-Number"), domain)
}

// checkMode warns of a dialplan that calls us without `async full`: then API
// commands are refused, or every command waits for the end of the call.
func (c *call) checkMode() {
	mode, control := c.sw.Get("Socket-Mode"), c.sw.Get("Control")
	if mode != "" && mode != "async" || control != "" && control != "full" {
		c.h.log.Error("the dialplan must call `socket HOST:PORT async full`", "uuid", c.uuid,
			"mode", fmt.Sprintf("%.20q", mode), "control", fmt.Sprintf("%.20q", control))
	}
}

// command sends the bridge command and reports whether the switch took it. When it
// did not, the connection is lost or the channel gone, and nothing is left to do.
func (c *call) command(ctx context.Context, bridge string) bool {
	var more []variable
	for _, name := range bridgeDefaults {
		if c.sw.Var(name) == "" {
			more = append(more, variable{name, "true"})
		}
	}
	// A dialplan that leaves out contacts of its own choice keeps it.
	if strings.Contains(bridge, "${sofia_contact(") && c.sw.Var(meshcontext.ExcludeVariable) == "" {
		c.guarded = true
		more = append(more, guard...)
	}
	// Subscribing comes first: the end of the bridge must not be missed.
	err := c.sw.Events(ctx)
	if err == nil {
		// A refusal (the channel has just gone, no `full`) does not keep the call
		// from being bridged.
		if err = c.variables(ctx, Routed, causeNone, more); isRefusal(err) {
			c.unset(err)
			err = nil
		}
	}
	if err == nil {
		err = c.sw.Execute(ctx, "bridge", bridge)
	}
	if isRefusal(err) {
		c.h.log.Error("the switch refuses to bridge, the call is given back", "aor", c.record.AOR, "uuid", c.uuid, "err", err)
		c.giveBack(ctx, Unavailable, causeUnavailable)
		return false
	}
	if err != nil {
		c.h.counters.lost.Add(1)
		c.h.log.Warn("the switch did not answer, the call goes on without us", "aor", c.record.AOR, "uuid", c.uuid, "err", err)
		return false
	}
	c.done(Routed, causeNone)
	return true
}

// follow stays with a bridged call until it is over or failed, sets the variables
// for the dialplan and returns.
func (c *call) follow(ctx context.Context) {
	h := c.h
	outer := ctx
	ctx, cancel := context.WithTimeout(ctx, h.opt.CallLimit)
	defer cancel()
	defer context.AfterFunc(h.release, cancel)()
	parked, answered := false, false
	for {
		ev, err := c.sw.Wait(ctx, c.matters)
		if err != nil {
			switch {
			case h.release.Err() != nil || errors.Is(ctx.Err(), context.DeadlineExceeded):
				h.counters.released.Add(1) // stopped, or over CallLimit: the call goes on
				if !parked {
					c.awaitPark(outer)
				}
			case answered:
				h.counters.count(Answered)
			default:
				// The switch closed the socket, as it does when the channel ends.
				h.counters.count(Abandoned)
			}
			return
		}
		parked = true // every event that matters comes after it
		switch ev.Name() {
		case "CHANNEL_PARK", "CHANNEL_EXECUTE":
		case "CHANNEL_BRIDGE":
			if answered {
				continue
			}
			// Set now and not at the end: after hangup_after_bridge the channel is
			// gone by then, and call records want to know.
			answered = true
			c.set(ctx, Answered, causeSuccess)
		case "CHANNEL_HANGUP":
			if outcome, _ := result(ev, answered); outcome == Answered {
				h.counters.count(Answered)
			} else {
				h.counters.count(Abandoned)
			}
			return
		default:
			outcome, cause := result(ev, answered)
			h.counters.count(outcome)
			if ev.Get("Answer-State") != "hangup" {
				c.set(ctx, outcome, cause)
			}
			h.log.Debug("call ended", "aor", c.record.AOR, "uuid", c.uuid, "outcome", outcome, "cause", cause)
			return
		}
	}
}

// awaitPark keeps the socket of a call that has only just been routed until the
// switch has taken the bridge command up, a tick of 20 ms as a rule: a socket that
// closes earlier leaves the channel parked for ever, see esl.Call.Resume.
func (c *call) awaitPark(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.h.opt.Budget)
	defer cancel()
	_, _ = c.sw.Wait(ctx, c.matters)
}

// matters selects the events of this channel that follow decides on. An
// application that was bound to a key may run as well: only bridge counts.
func (c *call) matters(ev *esl.Event) bool {
	switch ev.Name() {
	case "CHANNEL_PARK", "CHANNEL_EXECUTE", "CHANNEL_BRIDGE", "CHANNEL_HANGUP":
	case "CHANNEL_EXECUTE_COMPLETE":
		if ev.Get("Application") != "bridge" {
			return false
		}
	default:
		return false
	}
	return ev.UniqueID() == c.uuid
}

// result reads how a bridge ended. originate_disposition is SUCCESS once somebody
// answered, else the cause of the last group that was tried; on a channel that has
// bridged before it can be the word of an attempt that never started ("failure").
func result(ev *esl.Event, answered bool) (Outcome, string) {
	disposition := ev.Var("originate_disposition")
	if answered || disposition == causeSuccess {
		return Answered, firstCause(ev.Var("bridge_hangup_cause"), ev.Get("Hangup-Cause"), causeSuccess)
	}
	return Failed, firstCause(disposition, ev.Var("originate_failed_cause"), ev.Var("last_bridge_hangup_cause"), ev.Get("Hangup-Cause"), causeUnspecified)
}

func firstCause(causes ...string) string {
	for _, c := range causes {
		if validCause(c) {
			return c
		}
	}
	return causeUnspecified
}

// giveBack tells the dialplan why it gets the call back. The socket closes after it.
//
// We are often done before the session has parked; see esl.Call.Resume.
func (c *call) giveBack(ctx context.Context, o Outcome, cause string) {
	if c.set(ctx, o, cause) {
		// Without it an early close would leave the channel parked for ever.
		if err := c.sw.Resume(ctx); err != nil {
			c.h.log.Error("resume failed: the call may stay parked", "aor", c.record.AOR, "uuid", c.uuid, "err", err)
		}
		c.done(o, cause)
		return
	}
	c.h.counters.lost.Add(1)
	c.observe(o, cause)
}

// set sets our variables and reports whether the switch answered at all.
func (c *call) set(ctx context.Context, o Outcome, cause string) bool {
	var more []variable
	if c.guarded {
		more = unguard
	}
	err := c.variables(ctx, o, cause, more)
	if err != nil {
		c.unset(err)
	}
	return err == nil || isRefusal(err)
}

// errUnnamed refuses a channel whose UUID no API command can carry.
var errUnnamed = errors.New("no API command can name this channel")

// variables sets them, or returns the first error.
func (c *call) variables(ctx context.Context, o Outcome, cause string, more []variable) error {
	cmds := setCommands(c.uuid, o, cause, more)
	if cmds == nil {
		return errUnnamed
	}
	for _, cmd := range cmds {
		if _, err := c.sw.API(ctx, cmd); err != nil {
			return err
		}
	}
	return nil
}

func (c *call) unset(err error) {
	c.h.counters.unset.Add(1)
	c.h.log.Warn("pbxmesh_result is not set: the channel is gone, its UUID has blanks and quotes, or the dialplan calls us without `full`",
		"aor", c.record.AOR, "uuid", c.uuid, "err", err)
}

// isRefusal reports whether the answer was no and the connection is well.
func isRefusal(err error) bool {
	var refused *esl.ReplyError
	return errors.As(err, &refused) || errors.Is(err, errUnnamed)
}

// done counts and reports the call: routed, or given back.
func (c *call) done(o Outcome, cause string) {
	c.h.counters.count(o)
	c.observe(o, cause)
}

func (c *call) observe(o Outcome, cause string) {
	r := &c.record
	r.Outcome, r.Cause, r.Total = o, cause, time.Since(c.start)
	if c.h.opt.Observe != nil {
		c.h.opt.Observe(*r)
	}
	if !c.h.opt.LogCalls {
		return
	}
	var nodes strings.Builder
	for i, n := range r.Nodes {
		if i > 0 {
			nodes.WriteByte(',')
		}
		nodes.WriteString(string(n))
	}
	c.h.log.LogAttrs(context.Background(), slog.LevelInfo, "call",
		slog.String("aor", r.AOR.String()), slog.String("result", string(o)), slog.String("cause", cause),
		slog.String("nodes", nodes.String()), slog.Bool("from_mesh", r.FromMesh),
		slog.Int64("decision_us", r.Decision.Microseconds()), slog.Int64("total_us", r.Total.Microseconds()))
}
