package fusionpbx

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"pbxmesh/fixtures/phone"
)

// registrations runs FusionPBX's page Status, Registrations on a node and returns what
// it lists of a.test.
func (m *mesh) registrations(n *node) []map[string]string {
	m.Helper()
	script := filepath.Join(n.dir, "registrations.php")
	text := `<?php require "` + m.inst.checkout + `/resources/require.php";
$r = new registrations(["domain_name" => "` + tenants[0] + `", "domain_uuid" => "` + domainID(0) + `"]);
echo "JSON", json_encode(array_values($r->get("all") ?? []));`
	if err := os.WriteFile(script, []byte(text), 0o600); err != nil {
		m.Fatal(err)
	}
	out := m.inst.runPHP(n.dir, script)
	_, out, _ = strings.Cut(out, "JSON")
	var rows []map[string]any
	if err := json.Unmarshal([]byte(out), &rows); err != nil {
		m.Fatalf("%v: %s", err, out)
	}
	var list []map[string]string
	for _, row := range rows {
		one := map[string]string{}
		for k, v := range row {
			if s, ok := v.(string); ok {
				one[k] = s
			}
		}
		list = append(list, one)
	}
	return list
}

// Status, Registrations lists a user once, on whichever node; its button Unregister on a
// user of another node does no harm for long.
func registrationsPage(m *mesh) {
	user, caller := m.phone("1006", m.b), m.phone("1007", m.a)
	for _, n := range m.nodes() {
		var found []map[string]string
		for _, row := range m.registrations(n) {
			if row["user"] == "1006@a.test" {
				found = append(found, row)
			}
		}
		if len(found) != 1 {
			m.Errorf("%s lists 1006 %d times: %v", n.name, len(found), found)
		}
	}
	// What the button sends for the row that pbx1 shows.
	m.a.api("sofia profile " + m.a.profile() + " flush_inbound_reg 1006@a.test")
	began := time.Now()
	eventually(m.T, "the user is reachable again", func() bool { return strings.Contains(m.a.contacts("1006", tenants[0]), m.b.host.String()) })
	if took := time.Since(began); took > 3*time.Second {
		m.Errorf("the user was unreachable for %v", took)
	}
	m.Logf("back after %v", time.Since(began))
	out := m.dial(caller, "1006")
	in := m.rings(user)
	m.answered(out, in)
	m.hangup(out, in)
}

// What is changed on one node, through its scripts or its pages, is known on the other.
func cachedAnswers(m *mesh) {
	caller, target, user := m.phone("1008", m.a), m.phone("1009", m.a), m.phone("1010", m.b)
	out := m.dial(caller, "1010") // now pbx1 has the user in its cache
	m.answered(out, m.rings(user))
	m.hangup(out, m.rings2(user))
	m.star(user, "*721009")
	began := time.Now()
	eventually(m.T, "pbx1 forwards the call", func() bool {
		out := m.dial(caller, "1010")
		if _, err := out.WaitAnswered(m.ctx()); err != nil {
			return false
		}
		_ = out.Hangup(m.ctx())
		m.seen[user] = len(user.Incoming())
		return len(target.Incoming()) > 0
	})
	m.Logf("pbx1 forwards %v after the forward was set on pbx2", time.Since(began))
	m.seen[target] = len(target.Incoming())
	m.star(user, "*73")
	eventually(m.T, "pbx1 calls the user again", func() bool { return m.a.api("user_data 1010@a.test var forward_all_enabled") != "true" })

	// A page of pbx2: it saves, and deletes from its cache with FusionPBX's own class.
	m.a.api("user_data 1010@a.test var effective_caller_id_name")
	m.inst.sql("UPDATE v_extensions SET effective_caller_id_name = 'Renamed' WHERE extension = '1010'")
	script := filepath.Join(m.b.dir, "cache.php")
	if err := os.WriteFile(script, []byte(`<?php require "`+m.inst.checkout+`/resources/require.php"; (new cache)->delete("directory:1010@a.test");`), 0o600); err != nil {
		m.Fatal(err)
	}
	m.inst.runPHP(m.b.dir, script)
	took := eventually(m.T, "pbx1 has the new name", func() bool {
		return m.a.api("user_data 1010@a.test var effective_caller_id_name") == "Renamed"
	})
	m.Logf("a change by a page of pbx2 is known on pbx1 after %v", took)
}

// The undo needs no host name, and leaves nothing behind. It comes last.
func undone(m *mesh) {
	const left = "SELECT count(*) FROM v_sip_profiles WHERE sip_profile_name LIKE 'mesh%%'"
	for i, n := range m.nodes() {
		script, code := n.pbxmesh("fsconf", "-c", n.config, "--flavor", "fusionpbx", "--undo")
		if code != 0 {
			m.Fatalf("fsconf --undo: exit code %d:\n%s", code, script)
		}
		m.inst.run("fusionpbx", script)
		if got, want := m.inst.sql(left), strconv.Itoa(1-i); got != want {
			m.Errorf("after the undo on %s there are %s mesh profiles, want %s", n.name, got, want)
		}
	}
	for _, query := range []string{
		"SELECT count(*) FROM v_dialplans WHERE dialplan_context LIKE 'mesh%'",
		"SELECT count(*) FROM v_access_controls WHERE access_control_name LIKE 'mesh%'",
		"SELECT count(*) FROM v_sip_profile_settings WHERE sip_profile_uuid NOT IN (SELECT sip_profile_uuid FROM v_sip_profiles)",
	} {
		if got := m.inst.sql("%s", query); got != "0" {
			m.Errorf("%s after both: %s", query, got)
		}
	}
}

// A phone that moves between the nodes, while FusionPBX's profile keeps one registration
// a user (multiple-registrations off): each call from either node is one INVITE.
func movedPhone(m *mesh) {
	callers := []*phone.Phone{m.phone("1161", m.a), m.phone("1162", m.b)}
	user := m.phone("1163", m.a)
	for i := range 8 {
		to := m.nodes()[(i+1)%2]
		choice := []phone.CallIDChoice{phone.KeepCallID, phone.NewCallID}[i/2%2]
		if err := user.MoveTo(m.ctx(), netip.AddrPortFrom(to.host, 5060), choice); err != nil {
			m.Fatal(err)
		}
		began := time.Now()
		for _, caller := range callers {
			out := m.dial(caller, "1163")
			in := m.rings(user)
			m.answered(out, in)
			m.hangup(out, in)
			m.idle()
			m.silent(user)
		}
		// The old binding is soon gone: there is one way to the phone, from either node.
		for _, n := range m.nodes() {
			want := ";fs_path=sip%3A" + to.host.String() + "%3A5090" // the other node
			if n == to {
				want = "@" + user.Addr().String()
			}
			eventually(m.T, n.name+" reaches the phone on "+to.name+" alone", func() bool {
				found := n.contacts("1163", tenants[0])
				return strings.Contains(found, want) && !strings.Contains(found, ",")
			})
		}
		m.Logf("move %d: one way from either node after %v", i, time.Since(began))
	}
}
