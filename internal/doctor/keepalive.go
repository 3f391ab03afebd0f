package doctor

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// pingInterval is mod_sofia's time between two OPTIONS to one phone, in seconds, unless
// ping-mean-interval says otherwise.
const pingInterval = 30

// keepAlives looks whether the profiles with the phones time OPTIONS of their own: latency
// to client networks is known sooner and better with them. values are the settings by
// profile; a profile that is not there is another check's matter.
func (p *patient) keepAlives(ctx context.Context, values map[string]map[string][]string) {
	l := p.cfg.Failover.Latency
	if !l.Enabled || l.KeepAliveInterval == 0 {
		return
	}
	for _, name := range p.cfg.FreeSWITCH.Profiles {
		set, there := values[name]
		if !there {
			continue
		}
		start := time.Now()
		p.say("keep-alives", "keep-alives of "+name, start, judgeKeepAlives(name, set, p.phones(ctx, name)))
	}
}

// phones counts the registrations on a profile; -1 when the switch does not tell.
func (p *patient) phones(ctx context.Context, profile string) int {
	text, bad := p.ask(ctx, "sofia xmlstatus profile "+profile)
	detail := struct {
		Registrations int `xml:"profile-info>registrations"`
	}{-1}
	if bad != nil || decode(text, &detail) != nil || detail.Registrations < 0 {
		return -1
	}
	return detail.Registrations
}

// judgeKeepAlives says whom a profile sends OPTIONS, and what all phones cost; phones is
// their number, below 0 when it is not known.
func judgeKeepAlives(profile string, set map[string][]string, phones int) Result {
	interval := pingInterval
	if v := set["ping-mean-interval"]; len(v) > 0 {
		if n, err := strconv.Atoi(v[len(v)-1]); err == nil && n > 0 {
			interval = n
		}
	}
	cost := fmt.Sprintf("one OPTIONS to each phone every %d s, %.1f a second for 1000 phones", interval, 1000/float64(interval))
	if phones >= 0 {
		cost = fmt.Sprintf("one OPTIONS to each phone every %d s, %.1f a second for the %d that are registered now", interval, float64(phones)/float64(interval), phones)
	}
	on, nat := truth(true), set["nat-options-ping"]
	switch {
	case on(set["all-reg-options-ping"]):
		return ok("the switch sends %s", cost)
	case len(nat) > 0 && strings.EqualFold(nat[len(nat)-1], "udp-only"):
		return ok("the switch sends OPTIONS to phones behind NAT on UDP only; latency to the others comes from their registrations")
	case on(nat):
		return ok("the switch sends OPTIONS to phones behind NAT only; latency to the others comes from their registrations")
	}
	return warn("the switch sends phones no OPTIONS: latency comes from registrations alone, and is off by up to 20 ms",
		fmt.Sprintf("set all-reg-options-ping to true in the profile %s (its file in sip_profiles; on FusionPBX Advanced, SIP Profiles) and restart the profile when no calls run: %s. Or set failover.latency.keepalive_interval to 0s", profile, cost))
}
