package fusionpbx

import (
	"encoding/json"
	"net/netip"
	"strings"

	"pbxmesh/fixtures/phone"
	"pbxmesh/internal/doctor"
)

// examine runs pbxmesh doctor on the node and returns one of its checks.
func (n *node) examine(check string) doctor.Result {
	n.t.Helper()
	out, code := n.pbxmesh("doctor", "-c", n.config, "-o", "json")
	var report doctor.Report
	if err := json.Unmarshal([]byte(out), &report); err != nil {
		n.t.Fatalf("doctor: exit code %d, %v:\n%s", code, err, out)
	}
	for _, c := range report.Checks {
		if c.Check == check {
			return c
		}
	}
	n.t.Fatalf("doctor does not look at %s:\n%s", check, out)
	return doctor.Result{}
}

// rescan has the switch read the mesh profile's settings again. What is in force then is
// what they say; a setting that is not there any more stays in force until a restart.
func (n *node) rescan() {
	n.t.Helper()
	n.forget("*.configuration.sofia.conf")
	n.api("sofia profile " + n.profile() + " rescan")
}

// FusionPBX answers for any of its users when a caller authenticates: without
// auth-calls-acl-only a stranger with one extension's password calls whom it likes.
// doctor is content with what fsconf wrote, tells of the setting that somebody turned
// off, and what it says to do helps.
func doctorStrangers(m *mesh) {
	caller, callee := m.phone("1190", m.a), m.phone("1191", m.b)
	stranger, err := phone.New(phone.Config{User: "1190", Domain: tenants[0], Password: "secret-1190", Local: netip.MustParseAddr("127.0.120.2"), Registrar: netip.AddrPortFrom(m.b.host, 5090)})
	if err != nil {
		m.Fatal(err)
	}
	stranger.Start()
	m.Cleanup(func() { _ = stranger.Close() })
	content := func(when string) {
		m.Helper()
		for _, check := range []string{"mesh settings", "mesh strangers", "mesh list"} {
			c := m.b.examine(check)
			m.Logf("%s: %s %s: %s", when, c.Status, c.Check, c.Seen)
			if c.Status != doctor.OK {
				m.Errorf("%s: %+v", when, c)
			}
		}
		if status := m.refused(m.dial(stranger, "1191")); status != 403 {
			m.Errorf("%s: a stranger gets %d", when, status)
		}
	}
	content("as fsconf wrote it")

	// doctor waits for the switch, which reads its settings a moment later.
	turn := func(assignment string, want map[string]doctor.Result) {
		m.Helper()
		m.inst.sql("UPDATE v_sip_profile_settings SET %s WHERE sip_profile_setting_name = 'auth-calls-acl-only' AND sip_profile_uuid = (SELECT sip_profile_uuid FROM v_sip_profiles WHERE sip_profile_name = '%s')", assignment, m.b.profile())
		m.b.rescan()
		for check, w := range want {
			var c doctor.Result
			eventually(m.T, assignment+": "+check+" says "+w.Seen, func() bool {
				c = m.b.examine(check)
				return c.Status == w.Status && strings.Contains(c.Seen, w.Seen)
			})
			m.Logf("%s: %s %s: %s (%s)", assignment, c.Status, c.Check, c.Seen, c.Do)
			if c.Status == doctor.Fail && (!strings.Contains(c.Do, "pbxmesh fsconf") || !strings.Contains(c.Do, "restart the profile")) {
				m.Errorf("%s: %+v", assignment, c)
			}
		}
	}
	turn("sip_profile_setting_enabled = false", map[string]doctor.Result{
		"mesh settings": {Status: doctor.Fail, Seen: "auth-calls-acl-only is not set, not true"}, "mesh strangers": {Status: doctor.OK}, // still in force
	})
	turn("sip_profile_setting_enabled = true, sip_profile_setting_value = 'false'", map[string]doctor.Result{
		"mesh settings": {Status: doctor.Fail, Seen: "auth-calls-acl-only is false, not true"}, "mesh strangers": {Status: doctor.Fail, Seen: "asks strangers for a password (407)"},
	})
	// It is so: the stranger talks to the phone.
	out := m.dial(stranger, "1191")
	in := m.rings(callee)
	m.answered(out, in)
	m.hangup(out, in)
	m.idle()

	script, code := m.b.pbxmesh("fsconf", "-c", m.b.config, "--flavor", "fusionpbx", "--hostname", m.b.name, "--peer", m.a.name+"="+m.a.host.String())
	if code != 0 {
		m.Fatalf("fsconf: exit code %d:\n%s", code, script)
	}
	m.inst.run("fusionpbx", script)
	m.b.rescan()
	eventually(m.T, "the switch has its settings", func() bool { return m.b.examine("mesh strangers").Status == doctor.OK })
	content("fsconf again")
	for _, pair := range [][2]*phone.Phone{{caller, callee}, {callee, caller}} {
		out := m.dial(pair[0], pair[1].User())
		in := m.rings(pair[1])
		m.answered(out, in)
		m.hangup(out, in)
	}
	m.silent(caller, callee)
}
