package fusionpbx

import (
	"net/netip"
	"strings"
	"time"

	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/softphone"
)

// Ring groups whose members are on both nodes, called from each.
func ringGroups(m *mesh) {
	m.ringGroup("8001", "simultaneous", 15, "1011", "1012", "1013")
	m.ringGroup("8002", "sequence", 6, "1011", "1012", "1016")
	m.ringGroup("8003", "rollover", 6, "1012", "1011")
	m.ringGroup("8004", "enterprise", 15, "1011", "1012")
	near, far, both := m.phone("1011", m.a), m.phone("1012", m.b), m.phone("1013", m.b)
	// The same user on the other node too: the switch knows two contacts, and the ring
	// group's script takes them apart itself.
	second, last := m.phone("1013", m.a), m.phone("1016", m.b)
	last.SetBehaviour(phone.RingForever())
	for _, caller := range []*phone.Phone{m.phone("1014", m.a), m.phone("1015", m.b)} {
		for _, p := range []*phone.Phone{near, far, both, second} {
			p.SetBehaviour(phone.RingForever())
		}
		// All at once; each of them can answer.
		for _, chosen := range []*phone.Phone{near, far, both, second} {
			out := m.dial(caller, "8001")
			in := map[*phone.Phone]*phone.Call{}
			for _, p := range []*phone.Phone{near, far, both, second} {
				in[p] = m.rings(p)
			}
			if err := in[chosen].Answer(); err != nil {
				m.Fatal(err)
			}
			m.answered(out, in[chosen])
			for p, c := range in {
				if p == chosen {
					continue
				}
				if _, err := c.WaitEnded(m.ctx()); err != nil {
					m.Errorf("%s goes on ringing: %v", p.User(), err)
				}
			}
			m.hangup(out, in[chosen])
		}
		out := m.dial(caller, "8004")
		one, two := m.rings(near), m.rings(far)
		if err := two.Answer(); err != nil {
			m.Fatal(err)
		}
		m.answered(out, two)
		if _, err := one.WaitEnded(m.ctx()); err != nil {
			m.Errorf("enterprise: %s goes on ringing: %v", near.User(), err)
		}
		m.hangup(out, two)

		// One after the other.
		out = m.dial(caller, "8002")
		for _, p := range []*phone.Phone{near, far} {
			began := time.Now()
			info, err := m.rings(p).WaitEnded(m.ctx())
			if err != nil || info.Status == 200 {
				m.Errorf("sequence: %s rang and ended with %+v, %v", p.User(), info, err)
			}
			m.Logf("sequence from %s: %s rang for %v", caller.User(), p.User(), time.Since(began))
		}
		in := m.rings(last)
		if err := in.Answer(); err != nil {
			m.Fatal(err)
		}
		m.answered(out, in)
		m.hangup(in, out)

		out = m.dial(caller, "8003")
		if _, err := m.rings(far).WaitEnded(m.ctx()); err != nil {
			m.Errorf("rollover: %v", err)
		}
		in = m.rings(near)
		if err := in.Answer(); err != nil {
			m.Fatal(err)
		}
		m.answered(out, in)
		m.hangup(out, in)
		m.silent(near, far, both, second, last)
	}
}

// A simultaneous ring group with a user who has a phone over TLS on one node and one on
// the other. The ring group's script takes the contacts apart by itself, and spoils what
// is not escaped in them.
func ringGroupTLS(m *mesh) {
	m.ringGroup("8185", "simultaneous", 15, "1185", "1186")
	m.towns++
	secure, err := softphone.Start(softphone.Config{
		Kind: softphone.Baresip, User: "1185", Domain: tenants[0], Password: "secret-1185", Transport: "tls", Dir: m.TempDir(),
		Local: netip.AddrFrom4([4]byte{127, 0, 110, byte(m.towns)}), Registrar: netip.AddrPortFrom(m.b.host, 5061),
	})
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() {
		if m.Failed() {
			m.Logf("%s said:\n%s", secure, secure.Log())
		}
		_ = secure.Close()
	})
	if err := secure.WaitRegistered(m.ctx(), 1); err != nil {
		m.Fatal(err)
	}
	plain, other := m.phone("1185", m.a), m.phone("1186", m.a)
	eventually(m.T, "pbx1 knows that 1185 is on pbx2 too", func() bool {
		return strings.Contains(m.a.contacts("1185", tenants[0]), ";fs_path=sip%3A"+m.b.host.String()+"%3A5090")
	})
	for _, n := range m.nodes() {
		m.Logf("%s reaches 1185 by %s", n.name, n.contacts("1185", tenants[0]))
	}
	// A phone over TLS is called on its own connection: the switch notes how.
	if got := m.b.contacts("1185", tenants[0]); !strings.Contains(got, "fs_path=sip%3A") || !strings.Contains(got, "%3Btransport%3Dtls") {
		m.Errorf("pbx2 reaches the phone over TLS by %s", got)
	}
	rang := 0
	for _, caller := range []*phone.Phone{m.phone("1187", m.a), m.phone("1188", m.b)} {
		for _, p := range []*phone.Phone{plain, other} {
			p.SetBehaviour(phone.RingForever())
		}
		out := m.dial(caller, "8185")
		for _, p := range []*phone.Phone{plain, other} {
			m.rings(p)
		}
		rang++
		call, err := secure.WaitRinging(m.ctx(), rang)
		if err != nil {
			m.Fatalf("the phone over TLS does not ring: %v", err)
		}
		if err := secure.Answer(); err != nil {
			m.Fatal(err)
		}
		if _, err := out.WaitAnswered(m.ctx()); err != nil {
			m.Fatal(err)
		}
		if _, err := secure.WaitAnswered(m.ctx()); err != nil {
			m.Fatal(err)
		}
		m.bridged()
		m.Logf("called from %s: the phone over TLS rang through %v and answered", caller.User(), call.Via)
		if err := out.Hangup(m.ctx()); err != nil {
			m.Error(err)
		}
		if _, err := secure.WaitEnded(m.ctx()); err != nil {
			m.Error(err)
		}
		m.idle()
		m.silent(plain, other)
	}
}

// Follow-me to phones of both nodes, called from both.
func followMe(m *mesh) {
	m.followMe("1021", "1022", "1023")
	first, second := m.phone("1022", m.a), m.phone("1023", m.b)
	for _, at := range m.nodes() {
		own := m.phone("1021", at)
		for _, caller := range []*phone.Phone{m.phone("1024", m.a), m.phone("1025", m.b)} {
			for _, p := range []*phone.Phone{own, first, second} {
				p.SetBehaviour(phone.RingForever())
			}
			for _, chosen := range []*phone.Phone{first, second} {
				out := m.dial(caller, "1021")
				in := map[*phone.Phone]*phone.Call{first: m.rings(first), second: m.rings(second)}
				if err := in[chosen].Answer(); err != nil {
					m.Fatal(err)
				}
				m.answered(out, in[chosen])
				for _, c := range in {
					if c == in[chosen] {
						continue
					}
					if _, err := c.WaitEnded(m.ctx()); err != nil {
						m.Errorf("the other one goes on ringing: %v", err)
					}
				}
				m.hangup(out, in[chosen])
			}
		}
		// The destinations ring in its place.
		m.silent(own, first, second)
		if err := own.Unregister(m.ctx(), phone.KeepCallID); err != nil {
			m.Error(err)
		}
	}
}

// followMe makes an extension of a.test ring others, all at once.
func (m *mesh) followMe(extension string, destinations ...string) {
	m.Helper()
	id := m.inst.sql("SELECT gen_random_uuid()")
	m.inst.sql("INSERT INTO v_follow_me (domain_uuid, follow_me_uuid, follow_me_enabled, follow_me_ignore_busy) VALUES ('%s', '%s', true, false)", domainID(0), id)
	for i, d := range destinations {
		m.inst.sql(`INSERT INTO v_follow_me_destinations (domain_uuid, follow_me_uuid, follow_me_destination_uuid, follow_me_destination, follow_me_delay, follow_me_timeout, follow_me_order)
		  VALUES ('%s', '%s', gen_random_uuid(), '%s', 0, 20, %d)`, domainID(0), id, d, i)
	}
	m.set(extension, "follow_me_uuid = '"+id+"', follow_me_enabled = true")
}

// Call forward: always, on busy, on no answer, when not registered. The callee and the
// one it is forwarded to are on different nodes, and the caller on either.
func forwards(m *mesh) {
	for i, at := range m.nodes() {
		target := m.phone([]string{"1031", "1032"}[i], m.other(at))
		callee := m.phone([]string{"1033", "1034"}[i], at)
		absent := []string{"1035", "1036"}[i]
		for _, caller := range []*phone.Phone{m.phone("1037", m.a), m.phone("1038", m.b)} {
			for _, tc := range []struct {
				name, set string
				behaviour phone.Behaviour
				number    string
				rings     bool
			}{
				{"always", "forward_all_enabled = true, forward_all_destination", phone.RingForever(), callee.User(), false},
				{"on busy", "forward_busy_enabled = true, forward_busy_destination", phone.Refuse(486), callee.User(), true},
				{"on no answer", "call_timeout = 3, forward_no_answer_enabled = true, forward_no_answer_destination", phone.RingForever(), callee.User(), true},
				{"not registered", "forward_user_not_registered_enabled = true, forward_user_not_registered_destination", phone.RingForever(), absent, false},
			} {
				const none = "forward_all_enabled = false, forward_busy_enabled = false, forward_no_answer_enabled = false, forward_user_not_registered_enabled = false, call_timeout = 10"
				m.set(tc.number, none)
				m.set(tc.number, tc.set+" = '"+target.User()+"'")
				callee.SetBehaviour(tc.behaviour)
				out := m.dial(caller, tc.number)
				if tc.rings {
					if _, err := m.rings(callee).WaitEnded(m.ctx()); err != nil {
						m.Error(err)
					}
				}
				in := m.rings(target)
				m.answered(out, in)
				m.Logf("%s, callee on %s, caller %s: forwarded after %v", tc.name, at.name, caller.User(), in.Info().StartedAt.Sub(out.Info().StartedAt))
				m.hangup(out, in)
				m.set(tc.number, none)
				m.silent(callee, target)
			}
		}
	}
}
