package doctor

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"pbxmesh/internal/esl"
)

// call rings a user from this node as a dialplan would, and hangs up as soon as it
// rings.
func (p *patient) call(ctx context.Context) {
	start := time.Now()
	aor := p.o.Call
	say := func(r Result) { p.say("call", "call to "+aor.String(), start, r) }
	ctx, cancel := context.WithTimeout(ctx, 2*p.o.Timeout)
	defer cancel()
	if p.cfg.Node == nil {
		say(skip("this daemon has no switch"))
		return
	}
	leg, how, bad := p.leg(ctx)
	if bad != nil {
		say(*bad)
		return
	}
	// One leg: only then the switch takes ringing for an answer.
	seconds := max(1, int(p.o.Timeout/time.Second))
	text, err := p.sw.API(ctx, fmt.Sprintf("originate {return_ring_ready=true,originate_timeout=%d,origination_caller_id_name=pbxmesh,origination_caller_id_number=doctor,presence_id=%s,sip_invite_domain=%s}%s &park",
		seconds, aor, aor.Domain(), leg))
	took := time.Since(start)
	var reply *esl.ReplyError
	switch {
	case errors.As(err, &reply):
		say(callFailure(reply.Text, how))
		return
	case err != nil:
		say(fail(plain(err), "look at the switch's log"))
		return
	}
	uuid := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(text), "+OK"))
	if !validUUID.MatchString(uuid) {
		say(fail("the switch says "+oneLine(text), "look at its log"))
		return
	}
	// The phone must not go on ringing, whatever became of ctx.
	end, stop := context.WithTimeout(context.WithoutCancel(ctx), p.o.Timeout)
	defer stop()
	if _, err := p.sw.API(end, "uuid_kill "+uuid); err != nil && !errors.As(err, &reply) {
		say(fail("it rings, and could not be ended: "+plain(err), "fs_cli -x 'uuid_kill "+uuid+"'"))
		return
	}
	say(ok("it rings after %s, %s", ms(took), how))
}

var validUUID = regexp.MustCompile(`^[0-9a-fA-F-]{36}$`)

// validLeg is what a switch's own contact or the daemon's plan may look like. It goes
// into a command.
var validLeg = regexp.MustCompile(`^sofia/[A-Za-z0-9._-]+/[^\s,|{}\[\]<>'"\\$^]+$`)

// leg finds one way to the user: what every dialplan of this switch would dial, else
// what the daemon would tell a dialplan that asks it.
func (p *patient) leg(ctx context.Context) (leg, how string, bad *Result) {
	aor := p.o.Call
	text, bad := p.ask(ctx, "sofia_contact */"+aor.String())
	if bad != nil {
		return "", "", bad
	}
	if leg, ok := firstLeg(text); ok {
		return leg, "by the switch's own registrations", nil
	}
	none := warn(aor.String()+" is registered nowhere", "register a phone, or name another user")
	if p.daemon == nil {
		return "", "", &none
	}
	plan, err := p.daemon.Explain(ctx, aor, false)
	if err != nil {
		r := fail("the daemon gives no plan: "+plain(err), "see the check of the control API")
		return "", "", &r
	}
	if leg, ok := firstLeg(plan.Bridge); ok {
		return leg, "by the daemon's plan", nil
	}
	return "", "", &none
}

// firstLeg cuts the first target out of a dial string.
func firstLeg(dial string) (string, bool) {
	dial = strings.TrimSpace(dial)
	for strings.HasPrefix(dial, "{") || strings.HasPrefix(dial, "[") {
		end := strings.IndexAny(dial, "}]")
		if end < 0 {
			return "", false
		}
		dial = dial[end+1:]
	}
	if end := strings.IndexAny(dial, ",|"); end >= 0 {
		dial = dial[:end]
	}
	return dial, validLeg.MatchString(dial)
}

// callFailure is the one table from causes to remedies.
func callFailure(text, how string) Result {
	cause := strings.TrimSpace(strings.TrimPrefix(text, "-ERR"))
	seen := fmt.Sprintf("%s, %s", cause, how)
	switch cause {
	case "USER_NOT_REGISTERED", "NO_USER_RESPONSE", "SUBSCRIBER_ABSENT":
		return fail(seen, "the node that should have the phone does not: pbxmesh lookup; is the phone's profile in freeswitch.profiles there?")
	case "CALL_REJECTED":
		return fail(seen, "the other node refuses this one: add it to its list (pbxmesh fsconf there), then fs_cli -x reloadacl")
	case "RECOVERY_ON_TIMER_EXPIRE", "NORMAL_TEMPORARY_FAILURE", "GATEWAY_DOWN", "DESTINATION_OUT_OF_ORDER":
		return fail(seen, "the other node does not answer: see the checks of the mesh ports")
	case "NO_ANSWER", "ORIGINATOR_CANCEL":
		return fail(seen, "nothing rang in time: look at the far switch's log")
	case "USER_BUSY":
		return warn(seen, "the phone is busy: the way to it works")
	default:
		return fail(seen, "look at the logs of both switches")
	}
}
