package fusionpbx

import (
	"strings"
	"time"

	"pbxmesh/fixtures/phone"
)

// lamp returns the state that a dialog subscription shows last: "" for none.
func lamp(s *phone.Subscription) string {
	state := ""
	for _, n := range s.Notifies() {
		if _, rest, ok := strings.Cut(string(n.Msg.Body), "<state"); ok {
			_, rest, _ = strings.Cut(rest, ">")
			state, _, _ = strings.Cut(rest, "<")
		}
	}
	return state
}

func (m *mesh) watch(p *phone.Phone, whom string) *phone.Subscription {
	m.Helper()
	s, err := p.Subscribe(m.ctx(), phone.EventDialog, whom)
	if err != nil {
		m.Fatal(err)
	}
	return s
}

// star dials a feature code and waits for its end.
func (m *mesh) star(p *phone.Phone, code string) {
	m.Helper()
	c := m.dial(p, code)
	if _, err := c.WaitEnded(m.ctx()); err != nil {
		m.Fatalf("%s: %v", code, err)
	}
}

// Do not disturb, set on one node: the lamps of both show it, and go on showing it, and
// a caller of the other node is turned away though its node rang the user before.
func doNotDisturb(m *mesh) {
	user := m.phone("1041", m.b)
	near, far := m.phone("1042", m.b), m.phone("1043", m.a)
	nearDND, farDND := m.watch(near, "dnd+1041"), m.watch(far, "dnd+1041")
	nearUser, farUser := m.watch(near, "1041"), m.watch(far, "1041")
	for round := range 2 {
		for _, caller := range []*phone.Phone{near, far} {
			out := m.dial(caller, "1041") // and its node has the user in its cache
			m.answered(out, m.rings(user))
			m.hangup(out, m.rings2(user))
		}
		m.star(user, "*78")
		for where, s := range map[string]*phone.Subscription{m.b.name: nearDND, m.a.name: farDND} {
			took := eventually(m.T, "the lamp dnd+1041 on "+where+" is lit", func() bool { return lamp(s) == "confirmed" })
			m.Logf("round %d: the lamp on %s is lit after %v", round, where, took)
		}
		began := time.Now()
		for _, caller := range []*phone.Phone{near, far} {
			eventually(m.T, caller.User()+" is turned away", func() bool {
				out := m.dial(caller, "1041")
				info, err := out.Wait(m.ctx(), func(i phone.CallInfo) bool { return i.State >= phone.Ringing })
				if err != nil {
					m.Fatal(err)
				}
				if n := len(user.Incoming()); n > m.seen[user] {
					m.Errorf("%s reaches the user %v after do not disturb was set", caller.User(), time.Since(began))
					m.seen[user] = n
				}
				_ = out.Hangup(m.ctx())
				return info.State == phone.Ended || info.State == phone.Answered
			})
		}
		// The switch takes calls that it does not know for over after 12 s at most.
		steady := time.NewTimer(14 * time.Second)
		<-steady.C
		for where, s := range map[string]*phone.Subscription{m.b.name: nearDND, m.a.name: farDND} {
			if got := lamp(s); got != "confirmed" {
				m.Errorf("later the lamp dnd+1041 on %s shows %q", where, got)
			}
		}
		m.star(user, "*79")
		for where, s := range map[string]*phone.Subscription{m.b.name: nearDND, m.a.name: farDND} {
			eventually(m.T, "the lamp dnd+1041 on "+where+" goes out", func() bool { return lamp(s) == "terminated" })
		}
	}
	eventually(m.T, "the user's own lamp is the same on both nodes", func() bool { return lamp(nearUser) == lamp(farUser) })
	m.silent(user)
}

// rings2 is the call that rings returned last.
func (m *mesh) rings2(p *phone.Phone) *phone.Call { return p.Incoming()[m.seen[p]-1] }

// A lamp that FusionPBX lights without a call (proto sip, an id that is no channel), and
// the same while the user talks: the other node shows what this one shows.
func lampsWithoutCall(m *mesh) {
	user, peer := m.phone("1044", m.b), m.phone("1045", m.b)
	near, far := m.watch(m.phone("1046", m.b), "1044"), m.watch(m.phone("1047", m.a), "1044")
	turn := func(on string) {
		m.b.api(`lua ~require("resources.functions.presence_in").turn_lamp(` + on + `,"1044@a.test") stream:write("+OK")`)
	}
	both := func(what, state string) {
		m.Helper()
		eventually(m.T, what+": "+state+" on both nodes", func() bool { return lamp(near) == state && lamp(far) == state })
	}
	turn("true")
	both("lit by a script", "confirmed")
	steady := time.NewTimer(14 * time.Second)
	<-steady.C
	both("14 s later", "confirmed")
	turn("false")
	both("put out by a script", "terminated")
	out := m.dial(user, peer.User())
	in := m.rings(peer)
	m.answered(out, in)
	both("in a call", "confirmed")
	m.hangup(out, in)
	both("after the call", "terminated")
}

// A forward by star code on one node lights its lamp on both, and its end puts it out.
func forwardLamp(m *mesh) {
	user := m.phone("1151", m.b)
	watchers := map[string]*phone.Phone{m.b.name: m.phone("1152", m.b), m.a.name: m.phone("1153", m.a)}
	lamps := map[string]*phone.Subscription{}
	for _, whom := range []string{"forward+1151", "forward+1151/1154"} {
		for where, p := range watchers {
			lamps[whom+" on "+where] = m.watch(p, whom)
		}
	}
	for range 2 {
		m.star(user, "*721154")
		for what, s := range lamps {
			took := eventually(m.T, "the lamp "+what+" is lit", func() bool { return lamp(s) == "confirmed" })
			m.Logf("the lamp %s is lit after %v", what, took)
		}
		m.star(user, "*73")
		for what, s := range lamps {
			eventually(m.T, "the lamp "+what+" goes out", func() bool { return lamp(s) == "terminated" })
		}
	}
}

// The lamps of a ring group's number, and of a member that it rings on the other node.
func ringGroupLamps(m *mesh) {
	m.ringGroup("8141", "simultaneous", 15, "1141", "1142")
	// FusionPBX lights the group's own lamp when a variable asks for it.
	m.inst.sql(`UPDATE v_dialplans SET dialplan_xml = replace(dialplan_xml, '<action application="lua"', '<action application="set" data="ring_group_send_presence=true"/><action application="lua"') WHERE dialplan_name = 'test-8141'`)
	for _, n := range m.nodes() {
		n.forget("dialplan." + tenants[0])
	}
	members := []*phone.Phone{m.phone("1141", m.a), m.phone("1142", m.b)}
	near, far := m.phone("1143", m.a), m.phone("1144", m.b)
	lamps := map[string][2]*phone.Subscription{}
	for _, whom := range []string{"8141", "1141", "1142"} {
		lamps[whom] = [2]*phone.Subscription{m.watch(near, whom), m.watch(far, whom)}
	}
	shows := func(when, whom, state string) {
		m.Helper()
		both := lamps[whom]
		eventually(m.T, when+": the lamp "+whom+" shows "+state+" on both nodes, not "+lamp(both[0])+" and "+lamp(both[1]), func() bool {
			return lamp(both[0]) == state && lamp(both[1]) == state
		})
	}
	for _, caller := range []*phone.Phone{m.phone("1146", m.a), m.phone("1147", m.b)} {
		for i, chosen := range members {
			for _, p := range members {
				p.SetBehaviour(phone.RingForever())
			}
			out := m.dial(caller, "8141")
			calls := []*phone.Call{m.rings(members[0]), m.rings(members[1])}
			for _, whom := range []string{"1141", "1142", "8141"} {
				shows("ringing", whom, "early")
			}
			if err := calls[i].Answer(); err != nil {
				m.Fatal(err)
			}
			m.answered(out, calls[i])
			shows("answered", chosen.User(), "confirmed")
			shows("answered", members[1-i].User(), "terminated")
			shows("answered", "8141", "confirmed")
			m.hangup(out, calls[i])
			shows("after the call", chosen.User(), "terminated")
			shows("after the call", "8141", "terminated")
			m.idle()
		}
	}
}
