package phones_test

import (
	"context"
	"fmt"
	"strings"
	"time"

	"pbxmesh/fixtures/softphone"
)

// talk is the calls of one pair.
type talk struct {
	x              *matrix
	caller, callee *softphone.Phone
	common         bool // they have a codec in common
	twice          bool // the caller can make a second call
	got, wire      map[string]string
	rung           int
}

// step bounds one thing that a phone is waited for.
const step = 20 * time.Second

// play plays everything but early media.
func (k *talk) play() {
	k.parts([]part{{k.answered, outcomes[:6]}, {k.refused, outcomes[7:8]}, {k.unanswered, outcomes[8:9]}, {k.cancelled, outcomes[9:10]}})
}

// speaking plays early media.
func (k *talk) speaking() { k.parts([]part{{k.early, outcomes[6:7]}}) }

// part is a call, and the outcomes that it shows.
type part struct {
	run   func(context.Context) error
	names []string
}

func (k *talk) parts(all []part) {
	for _, part := range all {
		ctx, cancel := context.WithTimeout(k.x.t.Context(), 3*step)
		k.caller.Forget()
		k.callee.Forget()
		k.rung = 0
		err := part.run(ctx)
		for _, o := range part.names {
			if err != nil && k.got[o] == "" {
				k.got[o] = "FAILED: " + err.Error()
			}
			k.wire[o] = k.messages()
			if strings.Contains(k.got[o], "INCOMPATIBLE") && k.common {
				k.wire[o] += k.x.m.logs()
			}
		}
		cancel()
		ctx, cancel = context.WithTimeout(k.x.t.Context(), step)
		for _, p := range []*softphone.Phone{k.caller, k.callee} {
			if err := p.HangupAll(ctx); err != nil {
				k.got[part.names[0]] += " FAILED to end: " + err.Error()
			}
		}
		cancel()
	}
}

// messages are what both phones sent and received since the part began.
func (k *talk) messages() string {
	var out strings.Builder
	for _, p := range []*softphone.Phone{k.caller, k.callee} {
		for _, m := range p.Trace() {
			way := "got from"
			if m.Sent {
				way = "sent to"
			}
			fmt.Fprintf(&out, "%s %s %s %s: %s, %s, Call-ID %s\n%s\n", m.At.Format("15:04:05.000"), p, way, m.Remote, m.Start, m.Header("CSeq"), m.Header("Call-ID"), m.Body)
		}
	}
	return out.String()
}

// ring dials and returns when the callee rings, once.
func (k *talk) ring(ctx context.Context) error {
	if err := k.caller.Call(k.callee.User()); err != nil {
		return err
	}
	k.rung++
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	if _, err := k.callee.WaitRinging(ctx, k.rung); err != nil {
		calls := k.caller.Trace().Calls()
		return fmt.Errorf("%w; the caller sees %+v", err, calls[max(0, len(calls)-1):])
	}
	return nil
}

// talking waits until both phones hear the other one.
func (k *talk) talking(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	for _, p := range []*softphone.Phone{k.caller, k.callee} {
		if err := k.x.meter.WaitHeard(ctx, p, 10); err != nil {
			return err
		}
	}
	return nil
}

// answered is a call with digits, hold and a second caller's attempt.
func (k *talk) answered(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	early := len(k.caller.Trace().Calls()) > 0 && k.caller.Trace().Calls()[0].Early
	if err := k.callee.Answer(); err != nil {
		return err
	}
	call, err := k.taken(ctx)
	if err != nil {
		return err
	}
	if call.Ended { // no codec in common: one switch does not transcode either
		for _, o := range outcomes[:6] {
			k.got[o] = ended(call)
		}
		return nil
	}
	if err := k.talking(ctx); err != nil {
		return err
	}
	k.got["answer"] = fmt.Sprintf("%d, early %v, both heard, rang %d", call.Status, early, len(k.callee.Trace().Calls()))
	k.got["carried"] = fmt.Sprintf("from the caller by %s, to the callee by %s",
		via(k.caller.Trace().Requests("INVITE", true)), via(k.callee.Trace().Requests("INVITE", false)))
	if err := k.digits(ctx); err != nil {
		k.got["digits"] = "FAILED: " + err.Error()
	}
	for _, h := range []struct {
		name string
		by   *softphone.Phone
	}{{"hold by caller", k.caller}, {"hold by callee", k.callee}} {
		if err := k.held(ctx, h.by, h.name); err != nil {
			k.got[h.name] = "FAILED: " + err.Error()
		}
	}
	return k.second(ctx)
}

// via is the transport of the last request: "UDP".
func via(requests softphone.Trace) string {
	if len(requests) == 0 {
		return "none"
	}
	protocol, _, _ := strings.Cut(requests[len(requests)-1].Header("Via"), " ")
	return strings.TrimPrefix(protocol, "SIP/2.0/")
}

// digits tells what arrives. Digits can be lost on one node too: Linphone sends them at
// the rate of opus, which baresip does not hear.
func (k *talk) digits(ctx context.Context) error {
	for _, way := range []struct {
		from, to *softphone.Phone
		digits   string
	}{{k.caller, k.callee, "12#"}, {k.callee, k.caller, "*90"}} {
		if err := way.from.Digits(ctx, way.digits); err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, step/4)
		_ = way.to.WaitDigits(short, way.digits)
		cancel()
	}
	k.got["digits"] = fmt.Sprintf("callee hears %q, caller hears %q", k.callee.Received(), k.caller.Received())
	return nil
}

func (k *talk) held(ctx context.Context, by *softphone.Phone, name string) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	if err := by.Hold(true); err != nil {
		return err
	}
	call, err := by.WaitCall(ctx, "its hold", func(c softphone.Call) bool {
		return c.Mine != "sendrecv" && c.Theirs != "sendrecv" || c.Ended
	})
	if err != nil {
		return err
	}
	if err := by.Hold(false); err != nil {
		return err
	}
	_, err = by.WaitCall(ctx, "the end of its hold", func(c softphone.Call) bool {
		return c.Mine == "sendrecv" && c.Theirs == "sendrecv" || c.Ended
	})
	if err != nil {
		return err
	}
	if err := k.talking(ctx); err != nil {
		return err
	}
	k.got[name] = call.Mine + " answered " + call.Theirs + ", both heard afterwards"
	return nil
}

// taken waits until the call is answered, or over.
func (k *talk) taken(ctx context.Context) (softphone.Call, error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	return k.caller.WaitCall(ctx, "an answer", func(c softphone.Call) bool { return c.Answered || c.Ended })
}

// second calls again, while the callee talks and takes one call only.
func (k *talk) second(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	if !k.twice {
		k.got["busy"] = "not tried: Linphone's limit of one call holds for calls that it makes too"
		return nil
	}
	if err := k.caller.Call(k.callee.User()); err != nil {
		return err
	}
	err := k.caller.Wait(ctx, "the end of the second call", func(t softphone.Trace) bool {
		calls := t.Calls()
		return len(calls) == 2 && calls[1].Ended
	})
	if err != nil {
		return err
	}
	k.got["busy"] = ended(k.caller.Trace().Calls()[1])
	return nil
}

// ended tells how a call ended that was not answered.
func ended(c softphone.Call) string {
	if c.Answered {
		return "FAILED: it was answered"
	}
	return strings.TrimSpace(fmt.Sprint(c.Status, " ", c.Reason))
}

func (k *talk) early(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, step/4)
	defer cancel()
	call, err := k.caller.WaitCall(short, "early media", func(c softphone.Call) bool { return c.Early || c.Ended })
	switch {
	case err != nil:
		return err
	case call.Ended:
		k.got["early media"] = ended(call)
		return nil
	}
	heard := k.x.meter.WaitHeard(short, k.callee, 10) == nil
	spoke := k.callee.Kind() == softphone.Linphone // baresip 1.0 announces it and says nothing
	if spoke {
		spoke = k.x.meter.WaitHeard(short, k.caller, 10) == nil
	}
	if err := k.callee.Answer(); err != nil {
		return err
	}
	if call, err = k.taken(ctx); err != nil {
		return err
	}
	if err := k.talking(ctx); err != nil {
		return err
	}
	k.got["early media"] = fmt.Sprintf("183, caller heard %v, callee heard %v, then %d, both heard", spoke, heard, call.Status)
	return k.caller.HangupAll(ctx)
}

func (k *talk) refused(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	if err := k.callee.Hangup(); err != nil {
		return err
	}
	call, err := k.caller.WaitEnded(ctx)
	k.set("refuse", call, err)
	return err
}

func (k *talk) unanswered(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	call, err := k.caller.WaitEnded(ctx)
	if err != nil {
		return err
	}
	k.set("no answer", call, err)
	there, err := k.callee.WaitEnded(ctx)
	k.got["no answer"] += fmt.Sprint(", callee ", there.Status)
	return err
}

func (k *talk) cancelled(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	// A phone that says no by itself has nothing to be cancelled.
	if calls := k.callee.Trace().Calls(); calls[len(calls)-1].Status < 300 {
		if err := k.caller.HangupAll(ctx); err != nil {
			return err
		}
	}
	call, err := k.caller.WaitEnded(ctx)
	if err != nil {
		return err
	}
	k.set("cancel", call, err)
	there, err := k.callee.WaitEnded(ctx)
	k.got["cancel"] += fmt.Sprint(", callee ", there.Status)
	return err
}

func (k *talk) set(outcome string, c softphone.Call, err error) {
	if err == nil {
		k.got[outcome] = ended(c)
	}
}
