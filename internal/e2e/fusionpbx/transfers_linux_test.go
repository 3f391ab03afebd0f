package fusionpbx

import (
	"slices"
	"strconv"
	"strings"

	"pbxmesh/fixtures/phone"
)

// Blind transfers of a call on one node and of one between nodes, by the callee and by
// the caller: to an extension of either node, a ring group, a follow-me extension and a
// mailbox. What the callee transfers is known, on the callee's node, as a call of the
// tenant and with an account: on one node the caller's, between nodes the callee's.
func transfers(m *mesh) {
	m.ringGroup("8061", "simultaneous", 15, "1061", "1062")
	m.followMe("1063", "1061", "1062")
	m.mailbox("1064")
	m.speedDial("5", "1061")
	one, two := m.voice("1061", m.a), m.voice("1062", m.b)
	caller, near, far := m.voice("1065", m.a), m.voice("1067", m.a), m.voice("1066", m.b)
	for _, l := range []struct {
		by     string
		callee *phone.Phone
		leg    string // the one that goes on
	}{
		{"callee", near, "pbx1 inbound internal account-1065 "},
		{"callee", far, "pbx2 inbound mesh account-1066 "},
		{"caller", far, "pbx1 outbound mesh account-1066 "},
	} {
		by, callee := l.by, l.callee
		for _, tc := range []struct {
			name, target string
			rings        []*phone.Phone
		}{
			{"to an extension of the caller's node", "1061", []*phone.Phone{one}},
			{"to an extension of the other node", "1062", []*phone.Phone{two}},
			{"to a ring group", "8061", []*phone.Phone{one, two}},
			{"to a follow-me extension", "1063", []*phone.Phone{one, two}},
			{"to a speed dial", "*05", []*phone.Phone{one}},
			{"to a mailbox", "*991064", nil},
		} {
			for _, p := range []*phone.Phone{one, two} {
				p.SetBehaviour(phone.RingForever())
			}
			out := m.dial(caller, callee.User())
			in := m.rings(callee)
			m.answered(out, in)
			transferrer, stays, other := in, out, caller
			if by == "caller" {
				transferrer, stays, other = out, in, callee
			}
			if err := transferrer.Refer(m.ctx(), "sip:"+tc.target+"@"+tenants[0], nil); err != nil {
				m.Errorf("%s, by the %s %s: %v", callee.User(), by, tc.name, err)
				m.hangup(out, in)
				continue
			}
			if tc.rings == nil {
				m.leave(stays, "1064")
				m.idle()
				continue
			}
			var calls []*phone.Call
			for _, p := range tc.rings {
				calls = append(calls, m.rings(p))
			}
			last := calls[len(calls)-1]
			if err := last.Answer(); err != nil {
				m.Fatal(err)
			}
			if _, err := last.WaitAnswered(m.ctx()); err != nil {
				m.Fatal(err)
			}
			m.hear(other, tc.rings[len(tc.rings)-1], "5")
			if info := stays.Info(); info.State != phone.Answered {
				m.Errorf("%s, by the %s %s: the other side is %v", callee.User(), by, tc.name, info.State)
			}
			if legs := m.legs(); !slices.Contains(legs, l.leg+domainID(0)) {
				m.Errorf("%s, by the %s %s: no leg is\n  %s\namong\n  %s", callee.User(), by, tc.name, l.leg+domainID(0), strings.Join(legs, "\n  "))
			}
			m.Logf("%s, by the %s %s: connected", callee.User(), by, tc.name)
			m.hangup(last, stays)
			m.idle()
			m.silent(one, two, caller, callee)
		}
	}
}

// A forward in the phone itself: it answers 302 with another extension in Contact.
// Whoever is where, that one rings and nobody else, as on one node. For the records it
// is a transfer by the callee.
func redirects(m *mesh) {
	m.importRecords()
	for i, l := range m.layouts() {
		user := func(n int) string { return strconv.Itoa(1170 + 3*i + n) }
		caller, callee, target := m.voice(user(0), l.caller), m.voice(user(1), l.callee), m.voice(user(2), l.target)
		callee.SetBehaviour(phone.Redirect("sip:" + target.User() + "@" + tenants[0]))
		out := m.dial(caller, callee.User())
		in := m.rings(target)
		m.answered(out, in)
		m.hear(caller, target, "6")
		m.hear(target, caller, "7")
		m.hangup(out, in)
		m.idle()
		m.seen[callee]++ // the call that it redirected
		m.silent(caller, callee, target)
		want := []string{row(user(0), user(1), user(2), user(0))}
		if l.caller != l.callee {
			want = []string{row(user(0), user(1), user(1), user(0)), row(user(0), user(2), user(2), user(1))}
		}
		m.recordsAre(l.name, want...)
		m.Logf("%s: redirected, the call to %s came %v after the one to %s was dialled", l.name, target.User(), in.Info().StartedAt.Sub(out.Info().StartedAt), callee.User())
	}
}

// speedDial gives a number of a.test's address book a short one.
func (m *mesh) speedDial(short, number string) {
	m.Helper()
	id := m.inst.sql("SELECT gen_random_uuid()")
	m.inst.sql("INSERT INTO v_contacts (contact_uuid, domain_uuid) VALUES ('%s', '%s')", id, domainID(0))
	m.inst.sql("INSERT INTO v_contact_phones (contact_phone_uuid, contact_uuid, domain_uuid, phone_number, phone_speed_dial) VALUES (gen_random_uuid(), '%s', '%s', '%s', '%s')",
		id, domainID(0), number, short)
}
