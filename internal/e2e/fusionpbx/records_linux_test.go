package fusionpbx

import (
	"encoding/json"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/sipwire"
)

// Two tenants with the same extensions, the same number on different nodes.
func twoTenants(m *mesh) {
	a1, a2 := m.phoneOf("1071", "a.test", m.a), m.phoneOf("1072", "a.test", m.b)
	b1, b2 := m.phoneOf("1071", "b.test", m.b), m.phoneOf("1072", "b.test", m.a)
	for _, pair := range [][2]*phone.Phone{{a1, a2}, {a2, a1}, {b1, b2}, {b2, b1}} {
		out := m.dial(pair[0], pair[1].User())
		in := m.rings(pair[1])
		m.answered(out, in)
		if got := in.From().URI; got.Host != pair[0].Domain() {
			m.Errorf("%s@%s is shown a caller of %s", pair[1].User(), pair[1].Domain(), got.Host)
		}
		m.hangup(in, out)
		m.silent(a1, a2, b1, b2)
	}
}

// recordings returns the files that both nodes recorded.
func (m *mesh) recordings() []string {
	m.Helper()
	var out []string
	for _, n := range m.nodes() {
		dir := filepath.Join(n.dir, "recordings")
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				out = append(out, n.name+":"+filepath.Base(path))
			}
			return err
		})
		if err != nil {
			m.Fatal(err)
		}
	}
	return out
}

// A call between users that are both recorded is recorded once, on the caller's node.
func recordedOnce(m *mesh) {
	m.set("1081", "user_record = 'all'")
	m.set("1082", "user_record = 'all'")
	one, two := m.phone("1081", m.a), m.phone("1082", m.b)
	for _, pair := range [][2]*phone.Phone{{one, two}, {two, one}} {
		before := m.recordings()
		out := m.dial(pair[0], pair[1].User())
		in := m.rings(pair[1])
		m.answered(out, in)
		stop := m.talk(out)
		eventually(m.T, "something is recorded", func() bool { return len(m.recordings()) > len(before) })
		stop()
		m.hangup(out, in)
		after := slices.DeleteFunc(m.recordings(), func(f string) bool { return slices.Contains(before, f) })
		if len(after) != 1 {
			m.Errorf("%s calls %s: recorded as %v, want one file", pair[0].User(), pair[1].User(), after)
		}
		m.Logf("%s calls %s: %v", pair[0].User(), pair[1].User(), after)
	}
}

// importRecords has FusionPBX read the call records of both nodes, and returns the rows
// since the last call, each as direction, caller, destination, extension, whether the
// extension is known, domain, cause, other leg, seconds, seconds answered and account.
func (m *mesh) importRecords() []string {
	m.Helper()
	for _, n := range m.nodes() {
		m.inst.sql("UPDATE v_default_settings SET default_setting_value = '%s', default_setting_enabled = true WHERE default_setting_category = 'switch' AND default_setting_subcategory = 'log'", filepath.Join(n.dir, "log"))
		m.inst.php(n.dir, "app/xml_cdr/xml_cdr_import.php", "500")
	}
	rows := m.inst.sql(`SELECT coalesce(direction, ''), caller_id_number, caller_destination, destination_number, coalesce(extension_uuid::text, '') <> '', coalesce(domain_name, ''), coalesce(hangup_cause, ''), coalesce(bridge_uuid::text, ''), duration, billsec, coalesce(accountcode, '')
	  FROM v_xml_cdr ORDER BY start_epoch`)
	m.inst.sql("DELETE FROM v_xml_cdr")
	if rows == "" {
		return nil
	}
	return strings.Split(rows, "\n")
}

// legs returns what the channels of both nodes say of who pays, sorted: node, direction,
// profile, account and tenant of each, "-" for what a channel does not know. The leg that
// the callee's node makes to the phone is left out: it has no record, and the leg that
// arrived there stands for it.
func (m *mesh) legs() (out []string) {
	m.Helper()
	for _, n := range m.nodes() {
		var list struct {
			Rows []struct{ UUID, Direction, Name string } `json:"rows"`
		}
		if err := json.Unmarshal([]byte(n.api("show channels as json")), &list); err != nil {
			m.Fatal(err)
		}
		var own []string
		arrived := false
		for _, c := range list.Rows {
			profile, _, _ := strings.Cut(strings.TrimPrefix(c.Name, "sofia/"), "/")
			if profile == n.profile() {
				profile = "mesh"
			}
			arrived = arrived || c.Direction == "inbound" && profile == "mesh"
			line := n.name + " " + c.Direction + " " + profile
			for _, name := range []string{"accountcode", "domain_uuid"} {
				value := n.api("uuid_getvar " + c.UUID + " " + name)
				line += " " + map[bool]string{true: "-", false: value}[value == "" || value == "_undef_"]
			}
			own = append(own, line)
		}
		if arrived {
			own = slices.DeleteFunc(own, func(line string) bool { return strings.HasPrefix(line, n.name+" outbound internal ") })
		}
		out = append(out, own...)
	}
	slices.Sort(out)
	return out
}

// One call, one row, with the caller's account. Who is called has an account too, which
// the legs to that phone have on whatever node: it pays for where they are sent on.
func callRecords(m *mesh) {
	one, two, three := m.phone("1091", m.a), m.phone("1092", m.b), m.phone("1093", m.a)
	m.ringGroup("8091", "simultaneous", 15, "1092", "1093")
	m.importRecords()
	tenant := " " + domainID(0)
	caller := "pbx1 inbound internal account-1091" + tenant
	for _, tc := range []struct {
		name, number string
		rings        []*phone.Phone
		legs         []string // nil for the first of a ring group: its script makes the legs
	}{
		{"on one node", "1093", []*phone.Phone{three}, []string{caller, "pbx1 outbound internal account-1093" + tenant}},
		{"between the nodes", "1092", []*phone.Phone{two}, []string{caller, "pbx1 outbound mesh account-1092" + tenant, "pbx2 inbound mesh account-1092" + tenant}},
		{"a ring group on one node", "8091", []*phone.Phone{two, three}, []string{caller, "pbx1 outbound internal -" + tenant}},
		{"a ring group between the nodes", "8091", []*phone.Phone{three, two}, []string{caller, "pbx1 outbound mesh -" + tenant, "pbx2 inbound mesh account-1092" + tenant}},
	} {
		for _, p := range tc.rings {
			p.SetBehaviour(phone.RingForever())
		}
		out := m.dial(one, tc.number)
		var in *phone.Call
		for _, p := range tc.rings {
			in = m.rings(p)
		}
		if err := in.Answer(); err != nil {
			m.Fatal(err)
		}
		m.answered(out, in)
		var legs []string
		eventually(m.T, tc.name+": the others have stopped ringing", func() bool {
			legs = m.legs()
			return len(legs) == len(tc.legs)
		})
		if !slices.Equal(legs, tc.legs) {
			m.Errorf("%s: the legs are\n  %s\nwant\n  %s", tc.name, strings.Join(legs, "\n  "), strings.Join(tc.legs, "\n  "))
		}
		m.hangup(out, in)
		m.idle() // a record is written before its channel is gone
		rows := m.importRecords()
		m.Logf("%s:\n  %s\n  %s", tc.name, strings.Join(legs, "\n  "), strings.Join(rows, "\n  "))
		if len(rows) != 1 {
			m.Errorf("%s: %d rows, want one:\n  %s", tc.name, len(rows), strings.Join(rows, "\n  "))
		}
		for _, row := range rows {
			if !strings.HasPrefix(row, "local|1091|"+tc.number+"|"+tc.number+"|t|a.test|NORMAL_CLEARING|") || !strings.HasSuffix(row, "|account-1091") {
				m.Errorf("%s: the row is %s", tc.name, row)
			}
		}
	}
}

// A stranger at the mesh profile, with an extension's password or without.
func strangers(m *mesh) {
	callee := m.phone("1001", m.b)
	for _, password := range []string{"", "secret-1001", "secret-1002"} {
		for _, user := range []string{"1001", "1002"} {
			p, err := phone.New(phone.Config{User: user, Domain: tenants[0], Password: password, Local: netip.MustParseAddr("127.0.120.1"), Registrar: netip.AddrPortFrom(m.b.host, 5090)})
			if err != nil {
				m.Fatal(err)
			}
			p.Start()
			m.Cleanup(func() { _ = p.Close() })
			c := m.dial(p, "1001")
			if got := m.refused(c); got != 403 {
				m.Errorf("%s with the password %q gets %d, want 403", user, password, got)
			}
			if final := c.Info().Final; final != nil && final.Get("Proxy-Authenticate")+final.Get("WWW-Authenticate") != "" {
				m.Errorf("%s with the password %q is challenged", user, password)
			}
		}
	}
	m.silent(callee)
}

// *69 calls back whoever called last, over the mesh too; *67 hides the caller.
func starCodes(m *mesh) {
	one, two := m.phone("1003", m.a), m.phone("1004", m.b)
	local := m.phone("1005", m.b)
	for _, from := range []*phone.Phone{local, one} {
		out := m.dial(from, "1004")
		in := m.rings(two)
		m.answered(out, in)
		m.hangup(out, in)
		back := m.dial(two, "*69")
		in = m.rings(from)
		m.answered(back, in)
		m.hangup(back, in)
	}
	for _, from := range []*phone.Phone{local, one} {
		out := m.dial(from, "*671004")
		in := m.rings(two)
		m.answered(out, in)
		invite := in.Invite()
		m.Logf("hidden caller %s: From %s, Privacy %q", from.User(), invite.Get("From"), invite.Get("Privacy"))
		if !strings.Contains(invite.Get("Privacy"), "id") {
			m.Errorf("the call of %s with *67 arrives without Privacy: %v", from.User(), privacyOf(invite))
		}
		m.hangup(out, in)
	}
	m.silent(one, two, local)
}

func privacyOf(msg *sipwire.Message) []string {
	var out []string
	for _, h := range msg.Headers {
		if strings.Contains(h.Name, "ivacy") || strings.Contains(h.Name, "dentity") || strings.Contains(h.Name, "arty") || h.Name == "From" {
			out = append(out, h.Name+": "+h.Value)
		}
	}
	return out
}
