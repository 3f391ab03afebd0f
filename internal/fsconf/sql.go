package fsconf

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"

	"pbxmesh/internal/meshcontext"
)

// namespace is that of all UUIDs we put into FusionPBX's tables. It never changes:
// the undo of one version must find what another one wrote.
var namespace = [16]byte{0x6b, 0x1e, 0x0f, 0x5e, 0x52, 0x8c, 0x4b, 0x0d, 0x9a, 0x3f, 0x70, 0x62, 0x78, 0x6d, 0x65, 0x73}

// uuid5 is the name-based UUID of RFC 9562 section 5.5.
func uuid5(name string) string {
	sum := sha1.Sum(append(namespace[:], name...))
	sum[6] = sum[6]&0x0f | 0x50
	sum[8] = sum[8]&0x3f | 0x80
	h := hex.EncodeToString(sum[:16])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// dialplanManager is the application that FusionPBX's own dialplans belong to; its
// pages list no row without one.
const dialplanManager = "742714e5-8cdf-32fd-462c-cbe7e3d655db"

const sqlNote = "pbxmesh: calls between nodes. Written by pbxmesh fsconf."

// actions are those of every node, and what FusionPBX's own scripts need besides.
func (f *FusionPBX) actions() []meshcontext.Action {
	return f.Settings.actions(meshcontext.Dialled.FusionPBX()...)
}

func (f *FusionPBX) extension(uuid string) string { return f.extensionOf(uuid, f.actions()) }

// FusionPBX is a node whose settings are rows in FusionPBX's PostgreSQL database.
type FusionPBX struct {
	Settings

	// Hostname limits the profile to the switch with that `hostname`; needed when
	// several nodes share one database, because each has its own address. ""
	// means the one switch of this database.
	Hostname string
}

// quote makes an SQL string of s (standard_conforming_strings or not).
func quote(s string) string {
	q := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(q, `\`) {
		return "E" + strings.ReplaceAll(q, `\`, `\\`)
	}
	return q
}

func (f *FusionPBX) profileID() string {
	if f.Hostname == "" {
		return uuid5("sip_profile/" + f.Profile)
	}
	return uuid5("sip_profile/" + f.Profile + "@" + f.Hostname)
}

func (f *FusionPBX) dialplanID() string { return uuid5("dialplan/" + f.Profile) }
func (f *FusionPBX) aclID() string      { return uuid5("access_control/" + f.Profile) }

// Check returns all that is wrong with f.
func (f *FusionPBX) Check() error {
	if f.Hostname != "" && !profileName.MatchString(f.Hostname) {
		return fmt.Errorf("the host name %+.70q cannot be written: letters, digits, '.', '-' and '_' are allowed", f.Hostname)
	}
	return f.Settings.Check()
}

// ApplySQL returns a script for psql that puts the rows in, replacing those of an
// earlier run, in one transaction. It stops, and changes nothing, when rows of the
// same name are there that are not ours.
func (f *FusionPBX) ApplySQL() []byte {
	var b strings.Builder
	f.head(&b, "the calls between nodes")
	b.WriteString("BEGIN;\n\n-- Rows of the same name that somebody else made are not touched.\n")
	f.guard(&b)
	f.remove(&b)
	f.insertProfile(&b)
	f.insertDialplan(&b)
	f.insertACL(&b)
	b.WriteString("\nCOMMIT;\n")
	return []byte(b.String())
}

// UndoSQL returns a script for psql that removes what ApplySQL put in for this node,
// with whatever host name it was written. What nodes with the same database share goes
// with the last of them. It stops when only other nodes have rows of ours, and says
// what to type for them.
func (f *FusionPBX) UndoSQL() []byte {
	var b strings.Builder
	f.head(&b, "remove the calls between nodes")
	b.WriteString("BEGIN;\n\n")
	fmt.Fprintf(&b, `DO $pbxmesh$
DECLARE
  own record;
  hosts text;
BEGIN
  FOR own IN %s LOOP
    IF own.id = %s OR own.address = %s THEN
      DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = own.id;
      DELETE FROM v_sip_profiles WHERE sip_profile_uuid = own.id;
      RETURN;
    END IF;
    hosts := COALESCE(hosts || ', ', '') || CASE own.host WHEN '' THEN 'no --hostname (address ' || own.address || ')' ELSE '--hostname ' || own.host END;
  END LOOP;
  IF hosts IS NOT NULL THEN
    RAISE EXCEPTION 'the profile %s was written with %%: run pbxmesh fsconf with --flavor fusionpbx --undo for each, on the node itself or with its configuration', hosts;
  END IF;
END
$pbxmesh$;
`, f.ownProfiles(), f.uuid(f.profileID()), quote(f.Mesh.Addr().String()), f.Profile)
	b.WriteString("\n-- Another node of this database may still need these.\n")
	unused := fmt.Sprintf("NOT EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = %s)", quote(f.Profile))
	for _, t := range []struct{ table, key, id string }{
		{"v_dialplan_details", "dialplan_uuid", f.dialplanID()},
		{"v_dialplans", "dialplan_uuid", f.dialplanID()},
		{"v_access_control_nodes", "access_control_uuid", f.aclID()},
		{"v_access_controls", "access_control_uuid", f.aclID()},
	} {
		fmt.Fprintf(&b, "DELETE FROM %s WHERE %s = %s AND %s;\n", t.table, t.key, quote(t.id), unused)
	}
	b.WriteString("\nCOMMIT;\n")
	return []byte(b.String())
}

// ownProfiles is a query for the mesh profiles that pbxmesh wrote, of all host names:
// id, host ("" for none) and address, where the other nodes send calls. The row of this
// configuration comes first.
func (f *FusionPBX) ownProfiles() string {
	return fmt.Sprintf(`
    SELECT p.sip_profile_uuid AS id, COALESCE(p.sip_profile_hostname, '') AS host,
      (SELECT s.sip_profile_setting_value FROM v_sip_profile_settings s WHERE s.sip_profile_uuid = p.sip_profile_uuid
        AND s.sip_profile_setting_name IN ('ext-sip-ip', 'sip-ip') ORDER BY s.sip_profile_setting_name LIMIT 1) AS address
    FROM v_sip_profiles p
    WHERE p.sip_profile_name = %s AND (p.sip_profile_description = %s OR p.sip_profile_uuid = %s)
    ORDER BY p.sip_profile_uuid <> %[3]s, host`, quote(f.Profile), quote(sqlNote), f.uuid(f.profileID()))
}

// uuid is an SQL expression of the columns' type, whatever schema they have.
func (f *FusionPBX) uuid(id string) string { return "CAST(" + quote(id) + " AS uuid)" }

func (f *FusionPBX) head(b *strings.Builder, what string) {
	fmt.Fprintf(b, "-- pbxmesh fsconf: %s, for FusionPBX.\n--\n-- Run it with:  psql -v ON_ERROR_STOP=1 -d fusionpbx -f FILE\n-- Then, on the switch:\n", what)
	for _, c := range f.Commands(strings.HasPrefix(what, "remove")) {
		fmt.Fprintf(b, "--   %s\n", c)
	}
	b.WriteString("\\set ON_ERROR_STOP on\n")
}

// Commands returns the command lines that make the switch see what is in the
// database. FusionPBX keeps a copy of each answer for an hour, in files or memcached.
func (f *FusionPBX) Commands(undo bool) []string {
	out := []string{
		"rm -f /var/cache/fusionpbx/dialplan." + f.Profile + " /var/cache/fusionpbx/configuration.acl.conf /var/cache/fusionpbx/*.configuration.sofia.conf",
		"fs_cli -x 'memcache delete dialplan:" + f.Profile + "'         (with memcached instead of files)",
		"fs_cli -x 'memcache delete configuration:acl.conf'",
		"fs_cli -x \"memcache delete $(hostname):configuration:sofia.conf\"",
	}
	if undo {
		return append([]string{"fs_cli -x 'sofia profile " + f.Profile + " stop'"}, append(out, "fs_cli -x reloadacl")...)
	}
	return append(out, "fs_cli -x reloadacl", "fs_cli -x 'sofia profile "+f.Profile+" start'")
}

func (f *FusionPBX) hostname() string {
	if f.Hostname == "" {
		return "NULL"
	}
	return quote(f.Hostname)
}

// guard raises an error that names the row in the way. The host names overlap when
// either is empty. A row of ours in the way is this node's when it has this node's
// address, and is replaced: a node that was alone gets a host name when a second one
// joins its database. Otherwise it says what to type.
func (f *FusionPBX) guard(b *strings.Builder) {
	overlap, replace := "", "false"
	if f.Hostname != "" {
		overlap = fmt.Sprintf("\n      AND COALESCE(sip_profile_hostname, '') IN ('', %s)", quote(f.Hostname))
		replace = "own.address = " + quote(f.Mesh.Addr().String())
	}
	fmt.Fprintf(b, `DO $pbxmesh$
DECLARE
  own record;
BEGIN
  FOR own IN %[1]s LOOP
    IF own.id = %[2]s OR own.host NOT IN ('', %[3]s) AND %[3]s <> '' THEN
      CONTINUE;
    ELSIF %[4]s THEN
      DELETE FROM v_sip_profile_settings WHERE sip_profile_uuid = own.id;
      DELETE FROM v_sip_profiles WHERE sip_profile_uuid = own.id;
    ELSIF own.host = '' THEN
      RAISE EXCEPTION 'the profile %[5]s of the node at %% was written without --hostname and would be every switch''s: on that node first, run pbxmesh fsconf --flavor fusionpbx --hostname and its host name (fs_cli -x hostname), and run what it prints', own.address;
    ELSE
      RAISE EXCEPTION 'this database has the profile %[5]s of the host %%: run pbxmesh fsconf --flavor fusionpbx with --hostname and this switch''s host name (fs_cli -x hostname)', own.host;
    END IF;
  END LOOP;
  IF EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = %[6]s AND sip_profile_uuid <> %[2]s%[7]s) THEN
    RAISE EXCEPTION 'there is another SIP profile of the name %[5]s: delete it (Advanced, SIP Profiles), or name another one with freeswitch.mesh_profile';
  END IF;
  IF EXISTS (SELECT FROM v_access_controls WHERE access_control_name = %[6]s AND access_control_uuid <> %[8]s) THEN
    RAISE EXCEPTION 'there is another access control of the name %[5]s: delete it (Advanced, Access Controls)';
  END IF;
  IF EXISTS (SELECT FROM v_dialplans WHERE dialplan_context = %[6]s AND dialplan_uuid <> %[9]s) THEN
    RAISE EXCEPTION 'there is another dialplan in the context %[5]s: delete it (Dialplan, Dialplan Manager)';
  END IF;
  IF EXISTS (SELECT FROM v_sip_profiles WHERE sip_profile_name = %[6]s AND sip_profile_uuid <> %[2]s) THEN
    RAISE WARNING 'another node of this database has a profile %[5]s too: FusionPBX lists every user of other nodes once for each. Give each node a profile of its own, such as freeswitch.mesh_profile: %[5]s-%[10]s';
  END IF;
END
$pbxmesh$;
`, f.ownProfiles(), f.uuid(f.profileID()), quote(f.Hostname), replace, f.Profile, quote(f.Profile), overlap, f.uuid(f.aclID()), f.uuid(f.dialplanID()), cmp.Or(f.Hostname, "HOSTNAME"))
}

func (f *FusionPBX) remove(b *strings.Builder) {
	b.WriteString("\n-- What an earlier run put in.\n")
	for _, t := range []struct{ table, key, id string }{
		{"v_sip_profile_settings", "sip_profile_uuid", f.profileID()},
		{"v_sip_profiles", "sip_profile_uuid", f.profileID()},
		{"v_dialplan_details", "dialplan_uuid", f.dialplanID()},
		{"v_dialplans", "dialplan_uuid", f.dialplanID()},
		{"v_access_control_nodes", "access_control_uuid", f.aclID()},
		{"v_access_controls", "access_control_uuid", f.aclID()},
	} {
		fmt.Fprintf(b, "DELETE FROM %s WHERE %s = %s;\n", t.table, t.key, quote(t.id))
	}
}

func (f *FusionPBX) insertProfile(b *strings.Builder) {
	fmt.Fprintf(b, `
INSERT INTO v_sip_profiles (sip_profile_uuid, sip_profile_name, sip_profile_hostname, sip_profile_enabled, sip_profile_description)
VALUES (%s, %s, %s, 'true', %s);
INSERT INTO v_sip_profile_settings (sip_profile_setting_uuid, sip_profile_uuid, sip_profile_setting_name, sip_profile_setting_value, sip_profile_setting_enabled, sip_profile_setting_description)
VALUES
`, quote(f.profileID()), quote(f.Profile), f.hostname(), quote(sqlNote))
	var rows []string
	for _, p := range f.profileSettings() {
		rows = append(rows, fmt.Sprintf("  (%s, %s, %s, %s, 'true', %s)",
			quote(uuid5("sip_profile_setting/"+f.profileID()+"/"+p.Name)), quote(f.profileID()), quote(p.Name), quote(p.Value), quote(p.Why)))
	}
	b.WriteString(strings.Join(rows, ",\n") + ";\n")
}

// insertDialplan writes the extension twice: as the XML that the switch gets, and as
// the parts that FusionPBX's editor shows and would write the XML from.
func (f *FusionPBX) insertDialplan(b *strings.Builder) {
	fmt.Fprintf(b, `
-- FusionPBX puts its global dialplans (user_exists and others) into every context, in
-- the order of dialplan_order: 5 is before them.
INSERT INTO v_dialplans (dialplan_uuid, app_uuid, dialplan_context, dialplan_name, dialplan_order, dialplan_continue, dialplan_enabled, dialplan_description, dialplan_xml)
VALUES (%s, %s, %s, %s, 5, 'false', 'true', %s, %s);
INSERT INTO v_dialplan_details (dialplan_detail_uuid, dialplan_uuid, dialplan_detail_tag, dialplan_detail_type, dialplan_detail_data, dialplan_detail_group, dialplan_detail_order, dialplan_detail_enabled)
VALUES
`, quote(f.dialplanID()), quote(dialplanManager), quote(f.Profile), quote(f.Profile+"-in"), quote(sqlNote), quote(f.extension(f.dialplanID())))
	type part struct{ tag, kind, data string }
	parts := []part{{"condition", "${sip_req_host}", meshcontext.Domains}, {"condition", "destination_number", meshcontext.Users}}
	for _, a := range f.actions() {
		parts = append(parts, part{"action", a.Name, a.Data})
	}
	var rows []string
	for i, d := range parts {
		rows = append(rows, fmt.Sprintf("  (%s, %s, %s, %s, %s, 0, %d, 'true')",
			quote(uuid5(fmt.Sprintf("dialplan_detail/%s/%d", f.Profile, i))), quote(f.dialplanID()), quote(d.tag), quote(d.kind), quote(d.data), 5*(i+1)))
	}
	b.WriteString(strings.Join(rows, ",\n") + ";\n")
}

func (f *FusionPBX) insertACL(b *strings.Builder) {
	fmt.Fprintf(b, `
INSERT INTO v_access_controls (access_control_uuid, access_control_name, access_control_default, access_control_description)
VALUES (%s, %s, 'deny', %s);
`, quote(f.aclID()), quote(f.Profile), quote(sqlNote))
	var rows []string
	for _, p := range f.peers() {
		rows = append(rows, fmt.Sprintf("  (%s, %s, 'allow', %s, %s)",
			quote(uuid5("access_control_node/"+f.Profile+"/"+string(p.Name)+"/"+p.Address.String())), quote(f.aclID()), quote(p.cidr()), quote(string(p.Name))))
	}
	if len(rows) > 0 {
		b.WriteString("INSERT INTO v_access_control_nodes (access_control_node_uuid, access_control_uuid, node_type, node_cidr, node_description)\nVALUES\n" +
			strings.Join(rows, ",\n") + ";\n")
	}
}
