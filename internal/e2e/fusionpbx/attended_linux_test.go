package fusionpbx

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"pbxmesh/fixtures/phone"
)

// layouts are where the three parties of a transfer are. What happens in the first is
// what is right in the others.
func (m *mesh) layouts() []layout {
	return []layout{
		{"all on one node", m.a, m.a, m.a},
		{"to the caller's node", m.a, m.b, m.a},
		{"to the callee's node", m.a, m.b, m.b},
		{"to another node", m.a, m.a, m.b},
	}
}

type layout struct {
	name                   string
	caller, callee, target *node
}

// voice is phone with audio.
func (m *mesh) voice(user string, at *node) *phone.Phone {
	m.Helper()
	return m.phoneOf(user, tenants[0], at, phone.PCMU)
}

// hear checks that sound and digits of one phone reach the other: that their calls are
// one. The switch throws away what comes before both are connected.
func (m *mesh) hear(from, to *phone.Phone, digit string) {
	m.Helper()
	ctx, stop := context.WithCancel(m.ctx())
	var wg sync.WaitGroup
	wg.Go(func() { from.Talk(ctx) })
	if err := to.WaitHeard(ctx, phone.PCMU, 10); err != nil {
		m.Errorf("%s does not hear %s: %v", to.User(), from.User(), err)
	}
	stop()
	wg.Wait()
	before := len(to.Digits())
	eventually(m.T, to.User()+" gets a digit of "+from.User(), func() bool {
		if !from.Press(m.ctx(), digit) {
			m.Fatalf("%s has no digits", from.User())
		}
		return strings.Contains(to.Digits()[before:], digit)
	})
}

// leaves waits until who transferred is told so and is out of both calls. As phones do,
// it ends what the switch leaves: a switch that has no time to spare may not notice
// that the other side of the held call is gone.
func (m *mesh) leaves(first, consult *phone.Call) {
	m.Helper()
	if _, err := first.Wait(m.ctx(), func(i phone.CallInfo) bool {
		return i.State == phone.Ended || slices.ContainsFunc(i.Transfer, func(s string) bool { return strings.Contains(s, " 200 ") })
	}); err != nil {
		m.Errorf("the transfer is not confirmed: %v, %q", err, first.Info().Transfer)
	}
	for _, c := range []*phone.Call{first, consult} {
		ctx, cancel := context.WithTimeout(m.ctx(), 3*time.Second)
		if _, err := c.WaitEnded(ctx); err != nil {
			m.Logf("the switch leaves a call of who transferred: %v", c.Hangup(m.ctx()))
		}
		cancel()
	}
}

// idle waits until no call is left on any node.
func (m *mesh) idle() {
	m.Helper()
	eventually(m.T, "all calls are over", func() bool {
		for _, n := range m.nodes() {
			if !strings.HasSuffix(n.api("show channels"), "0 total.") {
				return false
			}
		}
		return true
	})
}

// Attended transfers by callee and by caller: hold, a second call, REFER with Replaces.
// The other two talk, and nobody else rings.
func attendedTransfers(m *mesh) {
	m.importRecords()
	right := map[string][]string{}
	for i, l := range m.layouts() {
		user := func(n int) string {
			return []string{"1100", "1101", "1102", "1103", "1104", "1105", "1106", "1107", "1108", "1109", "1110", "1111"}[3*i+n]
		}
		caller, callee, target := m.voice(user(0), l.caller), m.voice(user(1), l.callee), m.voice(user(2), l.target)
		for _, by := range []string{"callee", "caller"} {
			out := m.dial(caller, callee.User())
			in := m.rings(callee)
			m.answered(out, in)
			who, first, stays, other := callee, in, out, caller
			if by == "caller" {
				who, first, stays, other = caller, out, in, callee
			}
			if err := first.Hold(m.ctx()); err != nil {
				m.Error(err)
			}
			consult := m.dial(who, target.User())
			asked := m.rings(target)
			for _, c := range []*phone.Call{consult, asked} {
				if _, err := c.WaitAnswered(m.ctx()); err != nil {
					m.Fatal(err)
				}
			}
			m.hear(who, target, "1")
			if err := first.Refer(m.ctx(), "", consult); err != nil {
				m.Fatalf("%s, by the %s: %v", l.name, by, err)
			}
			m.leaves(first, consult)
			m.hear(other, target, "2")
			m.hear(target, other, "3")
			for _, c := range []*phone.Call{stays, asked} {
				if info := c.Info(); info.State != phone.Answered {
					m.Errorf("%s, by the %s: a call is %v", l.name, by, info.State)
				}
			}
			m.hangup(asked, stays)
			m.silent(caller, callee, target)
			m.idle()
			rows := m.importRecords()
			m.Logf("%s, by the %s: connected; records\n  %s", l.name, by, strings.Join(rows, "\n  "))
			if i == 0 {
				right[by] = rows
			} else if len(rows) != len(right[by]) {
				m.Errorf("%s, by the %s: %d records, on one node %d", l.name, by, len(rows), len(right[by]))
			}
		}
	}
}

// The records of a call that is transferred, on one node and between nodes.
func transferRecords(m *mesh) {
	m.mailbox("1145")
	for i, l := range m.layouts() {
		user := func(n int) string {
			return []string{"1120", "1121", "1122", "1123", "1124", "1125", "1126", "1127", "1128", "1129", "1130", "1131"}[3*i+n]
		}
		group := []string{"8121", "8122", "8123", "8124"}[i]
		caller, callee, target := m.voice(user(0), l.caller), m.voice(user(1), l.callee), m.voice(user(2), l.target)
		m.ringGroup(group, "simultaneous", 15, target.User())
		m.importRecords()
		for _, by := range []string{"callee", "caller"} {
			for _, to := range []string{target.User(), group, "*991145"} {
				out := m.dial(caller, callee.User())
				in := m.rings(callee)
				m.answered(out, in)
				transferrer, stays, other := in, out, caller
				if by == "caller" {
					transferrer, stays, other = out, in, callee
				}
				if err := transferrer.Refer(m.ctx(), "sip:"+to+"@"+tenants[0], nil); err != nil {
					m.Fatal(err)
				}
				if to == "*991145" {
					m.leave(stays, "1145")
				} else {
					last := m.rings(target)
					if _, err := last.WaitAnswered(m.ctx()); err != nil {
						m.Fatal(err)
					}
					m.hear(target, other, "4")
					m.hangup(last, stays)
				}
				m.idle()
				// One node has one record of a call that the callee transfers. Between
				// nodes the caller's node keeps its own, and the callee's node adds
				// where the call went. What the caller transfers begins anew on one
				// node too.
				// The account is that of who called; where the call went from the callee's
				// node or phone, it is the callee's.
				want := []string{row(user(0), user(1), to, user(0))}
				if by == "caller" {
					want = []string{row(user(0), user(1), user(1), user(0)), row(user(1), to, to, user(1))}
				} else if l.caller != l.callee {
					want = []string{row(user(0), user(1), user(1), user(0)), row(user(0), to, to, user(1))}
				}
				m.recordsAre(l.name+", by the "+by+" to "+to, want...)
			}
		}
	}
}

// row is what a record says of who called what number, where that went and who pays.
func row(caller, number, destination, account string) string {
	return strings.Join([]string{"local", caller, number, destination, "account-" + account}, "|")
}

// recordsAre checks the records of what was played since the last time, in any order.
func (m *mesh) recordsAre(what string, want ...string) {
	m.Helper()
	rows := m.importRecords()
	got := make([]string, len(rows))
	for i, r := range rows {
		fields := strings.Split(r, "|")
		got[i] = strings.Join(append(fields[:4:4], fields[len(fields)-1]), "|")
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		m.Errorf("%s: records\n  %s\nwant\n  %s", what, strings.Join(rows, "\n  "), strings.Join(want, "\n  "))
	}
}
