package fsconf

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// schema has the columns of FusionPBX's tables that matter. %[1]s is the type of its
// switches, which were text once and are boolean now.
const schema = `
CREATE TABLE v_sip_profiles (sip_profile_uuid uuid PRIMARY KEY, sip_profile_name text, sip_profile_hostname text,
  sip_profile_enabled %[1]s, sip_profile_description text, insert_date timestamptz, insert_user uuid, update_date timestamptz, update_user uuid);
CREATE TABLE v_sip_profile_settings (sip_profile_setting_uuid uuid PRIMARY KEY, sip_profile_uuid uuid, sip_profile_setting_name text,
  sip_profile_setting_value text, sip_profile_setting_enabled %[1]s, sip_profile_setting_description text, insert_date timestamptz);
CREATE TABLE v_dialplans (domain_uuid uuid, dialplan_uuid uuid PRIMARY KEY, app_uuid uuid, hostname text, dialplan_context text, dialplan_name text,
  dialplan_number text, dialplan_destination %[1]s, dialplan_continue %[1]s, dialplan_xml text, dialplan_order numeric, dialplan_enabled %[1]s,
  dialplan_description text, insert_date timestamptz);
CREATE TABLE v_dialplan_details (domain_uuid uuid, dialplan_uuid uuid, dialplan_detail_uuid uuid PRIMARY KEY, dialplan_detail_tag text,
  dialplan_detail_type text, dialplan_detail_data text, dialplan_detail_break text, dialplan_detail_inline text, dialplan_detail_group numeric,
  dialplan_detail_order numeric, dialplan_detail_enabled %[1]s, insert_date timestamptz);
CREATE TABLE v_access_controls (access_control_uuid uuid PRIMARY KEY, access_control_name text, access_control_default text,
  access_control_description text, insert_date timestamptz);
CREATE TABLE v_access_control_nodes (access_control_node_uuid uuid PRIMARY KEY, access_control_uuid uuid, node_type text, node_cidr text,
  node_description text, insert_date timestamptz);
INSERT INTO v_sip_profiles VALUES ('11111111-1111-4111-8111-111111111111', 'internal', NULL, 'true', 'theirs', now());
INSERT INTO v_sip_profile_settings VALUES ('11111111-1111-4111-8111-111111111112', '11111111-1111-4111-8111-111111111111', 'context', 'public', 'true', '', now());
INSERT INTO v_dialplans (dialplan_uuid, dialplan_context, dialplan_name, dialplan_xml, dialplan_order, dialplan_enabled)
  VALUES ('11111111-1111-4111-8111-111111111113', 'global', 'user_exists', '<extension name="user_exists"/>', 10, 'true');
INSERT INTO v_access_controls VALUES ('11111111-1111-4111-8111-111111111114', 'providers', 'deny', 'theirs', now());
INSERT INTO v_access_control_nodes VALUES ('11111111-1111-4111-8111-111111111115', '11111111-1111-4111-8111-111111111114', 'allow', '203.0.113.0/24', '', now());
`

var tables = []string{"v_sip_profiles", "v_sip_profile_settings", "v_dialplans", "v_dialplan_details", "v_access_controls", "v_access_control_nodes"}

// postgres is a server of our own behind a socket in a private folder.
type postgres struct{ psql, dir string }

// startPostgres starts one, or skips loudly when there is none.
func startPostgres(t *testing.T) *postgres {
	t.Helper()
	bin := func(name string) string {
		// Before PATH: what Debian has there is a Perl script that looks for these.
		if found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name); err == nil && len(found) > 0 {
			return found[len(found)-1]
		}
		path, err := exec.LookPath(name)
		if err != nil {
			if os.Getenv("CI") != "" || os.Getenv("PBXMESH_REQUIRE_POSTGRES") != "" {
				t.Fatalf("no %s; install it with: apt-get install postgresql", name)
			}
			t.Skipf("SKIPPED, THE SQL WAS NOT RUN: no %s; install it with: apt-get install postgresql", name)
		}
		return path
	}
	initdb, server := bin("initdb"), bin("postgres")
	p := &postgres{psql: bin("psql")}
	var err error
	if p.dir, err = os.MkdirTemp("", "pbxmesh-pg-"); err != nil { // not t.TempDir: socket paths are short
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(p.dir); err != nil {
			t.Error(err)
		}
	})
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Getuid() == 0 { // the server refuses to run as root
		attr.Credential = unprivileged(t)
		if err := os.Chown(p.dir, int(attr.Credential.Uid), int(attr.Credential.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(p.dir, "data")
	run := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.SysProcAttr = p.dir, attr
		return cmd
	}
	if out, err := run(initdb, "-D", data, "-U", "pbxmesh", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	var log strings.Builder
	cmd := run(server, "-D", data, "-k", p.dir, "-c", "listen_addresses=", "-c", "fsync=off")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := p.run("postgres", "SELECT 1"); err == nil {
			return p
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("postgres ended: %v\n%s", err, log.String())
		case <-ctx.Done():
			t.Fatal("postgres never answered")
		case <-tick.C:
		}
	}
}

func unprivileged(t *testing.T) *syscall.Credential {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	t.Skip("SKIPPED, THE SQL WAS NOT RUN: root, and no other user to run postgres as")
	return nil
}

// run runs a script as its head says, and returns what it prints.
func (p *postgres) run(database, script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", p.dir, "-U", "pbxmesh", "-d", database)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return string(out), nil
}

func (p *postgres) mustRun(t *testing.T, database, script string) string {
	t.Helper()
	out, err := p.run(database, script)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// dump returns everything that stands in the tables.
func (p *postgres) dump(t *testing.T, database string) string {
	t.Helper()
	var script strings.Builder
	for _, table := range tables {
		script.WriteString("\\echo " + table + "\nSELECT t FROM " + table + " t ORDER BY 1;\n")
	}
	return p.mustRun(t, database, script.String())
}

func TestFusionPBXOnPostgres(t *testing.T) {
	t.Parallel()
	p := startPostgres(t)
	for _, kind := range []string{"boolean", "text"} {
		p.mustRun(t, "postgres", "CREATE DATABASE "+kind)
		p.mustRun(t, kind, fmt.Sprintf(schema, kind))
		before := p.dump(t, kind)
		f := &FusionPBX{Settings: *buffalo()}
		p.mustRun(t, kind, string(f.ApplySQL()))
		once := p.dump(t, kind)
		if once == before || !strings.Contains(once, "198.51.100.20/32") {
			t.Fatalf("%s: nothing was put in:\n%s", kind, once)
		}
		if got, want := p.mustRun(t, kind, "SELECT dialplan_xml FROM v_dialplans WHERE dialplan_context = 'mesh'"), f.extension(f.dialplanID()); strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("%s: the dialplan is\n%s\nwant\n%s", kind, got, want)
		}
		// The same query that FusionPBX's xml handler makes.
		got := p.mustRun(t, kind, "SELECT dialplan_context FROM v_dialplans WHERE dialplan_context IN ('mesh', 'global') AND dialplan_enabled = 'true' ORDER BY dialplan_order")
		if strings.Join(strings.Fields(got), " ") != "mesh global" {
			t.Errorf("%s: the order is %q", kind, got)
		}
		p.mustRun(t, kind, string(f.ApplySQL()))
		if twice := p.dump(t, kind); twice != once {
			t.Errorf("%s: the second time gives\n%s", kind, Diff("once", "twice", []byte(once), []byte(twice)))
		}
		// A node leaves: it is shut out.
		fewer := &FusionPBX{Settings: *buffalo()}
		fewer.Peers = fewer.Peers[1:2]
		p.mustRun(t, kind, string(fewer.ApplySQL()))
		if left := p.dump(t, kind); strings.Contains(left, "198.51.100.20") {
			t.Errorf("%s: london is still let in:\n%s", kind, left)
		}
		for range 2 {
			p.mustRun(t, kind, string(f.UndoSQL()))
			if after := p.dump(t, kind); after != before {
				t.Errorf("%s: the undo leaves\n%s", kind, Diff("before", "after", []byte(before), []byte(after)))
			}
		}
	}
	t.Run("shared", func(t *testing.T) { sharedDatabase(t, p) })
	t.Run("host names", func(t *testing.T) { hostNames(t, p) })
	t.Run("guard", func(t *testing.T) { foreignRows(t, p) })
}

// Two nodes on one database: each has its profile, and the last one takes what they share.
func sharedDatabase(t *testing.T, p *postgres) {
	p.mustRun(t, "postgres", "CREATE DATABASE shared")
	p.mustRun(t, "shared", fmt.Sprintf(schema, "boolean"))
	before := p.dump(t, "shared")
	a, b := &FusionPBX{Settings: *buffalo(), Hostname: "pbx1"}, &FusionPBX{Settings: *buffalo(), Hostname: "pbx2"}
	b.Mesh = netip.MustParseAddrPort("198.51.100.20:5090")
	const hint = "freeswitch.mesh_profile: mesh-pbx"
	if out := p.mustRun(t, "shared", string(a.ApplySQL())); strings.Contains(out, hint) {
		t.Errorf("the first node is told of others: %s", out)
	}
	if out := p.mustRun(t, "shared", string(b.ApplySQL())); !strings.Contains(out, hint+"2") {
		t.Errorf("the second node is not told that profiles should differ in name: %s", out)
	}
	got := p.mustRun(t, "shared", `SELECT p.sip_profile_hostname, s.sip_profile_setting_value FROM v_sip_profiles p JOIN v_sip_profile_settings s USING (sip_profile_uuid)
	  WHERE sip_profile_setting_name = 'sip-ip' ORDER BY 1`)
	if want := "pbx1|192.0.2.10\npbx2|198.51.100.20\n"; got != want {
		t.Errorf("the profiles are %q, want %q", got, want)
	}
	// A profile for every host beside them would be theirs too.
	if _, err := p.run("shared", string((&FusionPBX{Settings: *buffalo()}).ApplySQL())); err == nil {
		t.Error("a profile without host name was put beside two with one")
	}
	p.mustRun(t, "shared", string(a.UndoSQL()))
	if left := p.dump(t, "shared"); !strings.Contains(left, "mesh-in") || !strings.Contains(left, "198.51.100.20/32") || strings.Contains(left, "pbx1") {
		t.Errorf("after the first undo there is\n%s", left)
	}
	p.mustRun(t, "shared", string(b.UndoSQL()))
	if after := p.dump(t, "shared"); after != before {
		t.Errorf("after both\n%s", Diff("before", "after", []byte(before), []byte(after)))
	}
}

// A node that was alone gets a host name when a second one joins its database, and
// every script that cannot do what was meant says what to type.
func hostNames(t *testing.T, p *postgres) {
	p.mustRun(t, "postgres", "CREATE DATABASE named")
	p.mustRun(t, "named", fmt.Sprintf(schema, "boolean"))
	before := p.dump(t, "named")
	alone, first, second := &FusionPBX{Settings: *buffalo()}, &FusionPBX{Settings: *buffalo(), Hostname: "pbx1"}, &FusionPBX{Settings: *buffalo(), Hostname: "pbx2"}
	second.Mesh = netip.MustParseAddrPort("198.51.100.20:5090")
	secondAlone := &FusionPBX{Settings: second.Settings}
	profiles := func() string {
		return strings.TrimSpace(p.mustRun(t, "named", "SELECT COALESCE(sip_profile_hostname, '-') FROM v_sip_profiles WHERE sip_profile_name = 'mesh' ORDER BY 1"))
	}
	refused := func(what string, script []byte, want ...string) {
		t.Helper()
		was := p.dump(t, "named")
		_, err := p.run("named", string(script))
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v, want %q", what, err, w)
			}
		}
		if now := p.dump(t, "named"); now != was {
			t.Errorf("%s: the refused script left\n%s", what, Diff("before", "after", []byte(was), []byte(now)))
		}
	}

	p.mustRun(t, "named", string(alone.ApplySQL()))
	refused("a second node beside one without a host name", second.ApplySQL(), "192.0.2.10", "on that node first", "--hostname")
	p.mustRun(t, "named", string(first.ApplySQL()))
	if got := profiles(); got != "pbx1" {
		t.Fatalf("the first node is named: the profiles are %q", got)
	}
	p.mustRun(t, "named", string(second.ApplySQL()))
	refused("a profile of every host beside two with a name", alone.ApplySQL(), "the host pbx1", "--hostname")

	// The undo finds its own row by the address.
	p.mustRun(t, "named", string(alone.UndoSQL()))
	if got := profiles(); got != "pbx2" {
		t.Errorf("the first node's undo without --hostname leaves %q", got)
	}
	refused("the undo once more", alone.UndoSQL(), "--hostname pbx2", "--undo")
	p.mustRun(t, "named", string(secondAlone.UndoSQL()))
	if after := p.dump(t, "named"); after != before {
		t.Errorf("after both\n%s", Diff("before", "after", []byte(before), []byte(after)))
	}
	p.mustRun(t, "named", string(second.UndoSQL())) // nothing left is no error
}

// Somebody's own rows stop the script, and nothing was changed then.
func foreignRows(t *testing.T, p *postgres) {
	p.mustRun(t, "postgres", "CREATE DATABASE guarded")
	p.mustRun(t, "guarded", fmt.Sprintf(schema, "boolean"))
	f := &FusionPBX{Settings: *buffalo()}
	const id = "'22222222-2222-4222-8222-222222222222'"
	for insert, want := range map[string]string{
		"INSERT INTO v_sip_profiles (sip_profile_uuid, sip_profile_name) VALUES (" + id + ", 'mesh')":              "another SIP profile",
		"INSERT INTO v_access_controls (access_control_uuid, access_control_name) VALUES (" + id + ", 'mesh')":     "another access control",
		"INSERT INTO v_dialplans (dialplan_uuid, dialplan_context, dialplan_order) VALUES (" + id + ", 'mesh', 1)": "another dialplan",
	} {
		p.mustRun(t, "guarded", insert)
		before := p.dump(t, "guarded")
		if _, err := p.run("guarded", string(f.ApplySQL())); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", insert, err)
		}
		if after := p.dump(t, "guarded"); after != before {
			t.Errorf("%s: the refused script left\n%s", insert, Diff("before", "after", []byte(before), []byte(after)))
		}
		p.mustRun(t, "guarded", "DELETE FROM v_sip_profiles WHERE sip_profile_uuid = "+id+"; DELETE FROM v_access_controls WHERE access_control_uuid = "+id+"; DELETE FROM v_dialplans WHERE dialplan_uuid = "+id)
	}
}
