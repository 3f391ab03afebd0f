package fusionpbx

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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

// The tests run only with both of these: a checkout of FusionPBX, and a freeswitch binary.
const (
	envCheckout   = "PBXMESH_FUSIONPBX"
	envFreeSWITCH = "PBXMESH_FREESWITCH"
)

// Two tenants, with the same extensions.
var tenants = []string{"a.test", "b.test"}

// installation is FusionPBX in a database: its schema and default data, two tenants.
type installation struct {
	t        *testing.T
	checkout string
	dir      string // PostgreSQL's, with its socket
	psql     string

	voicemail string // folder of the messages' audio
}

// install starts PostgreSQL and has FusionPBX's own PHP fill it.
func install(t *testing.T) *installation {
	t.Helper()
	checkout := os.Getenv(envCheckout)
	if checkout == "" || os.Getenv(envFreeSWITCH) == "" {
		t.Skipf("set %s to a checkout of FusionPBX and %s to a freeswitch binary to run this", envCheckout, envFreeSWITCH)
	}
	if _, err := exec.LookPath("php"); err != nil {
		t.Fatalf("%v; install it with: apt-get install php-cli php-pgsql php-xml php-mbstring php-curl", err)
	}
	for _, file := range []string{"/etc/fusionpbx/config.conf", "/usr/local/etc/fusionpbx/config.conf"} {
		if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("%s: this machine is a FusionPBX itself, its scripts would use that file: %v", file, err)
		}
	}
	if os.Getuid() != 0 {
		t.Fatal("root is needed: each node has a host name of its own")
	}
	i := &installation{t: t, checkout: checkout}
	i.startPostgres()
	i.run("postgres", "CREATE DATABASE fusionpbx OWNER fusionpbx")

	// The installer of FusionPBX: schema, a domain, defaults.
	web := i.site(filepath.Join(t.TempDir(), "web"), "127.0.0.1")
	i.php(web, "core/upgrade/upgrade_schema.php")
	for n, tenant := range tenants {
		i.sql("INSERT INTO v_domains (domain_uuid, domain_name, domain_enabled) VALUES ('%s', '%s', true)", domainID(n), tenant)
	}
	i.php(web, "core/upgrade/upgrade_domains.php")
	if n := i.sql("SELECT count(*) FROM v_dialplans WHERE dialplan_name = 'local_extension'"); n == "0" {
		t.Fatal("the defaults of FusionPBX are not there")
	}
	// What its own installer leaves to the operator: phones over TLS are called on the
	// connection that they opened, no IPv6 on this loopback, and a
	// recording needs a format that this FreeSWITCH can write.
	i.sql(`INSERT INTO v_sip_profile_settings (sip_profile_setting_uuid, sip_profile_uuid, sip_profile_setting_name, sip_profile_setting_value, sip_profile_setting_enabled)
	  SELECT gen_random_uuid(), sip_profile_uuid, 'tls-always-nat', 'true', true FROM v_sip_profiles WHERE sip_profile_name = 'internal'`)
	i.sql("UPDATE v_sip_profiles SET sip_profile_enabled = false WHERE sip_profile_name LIKE '%%ipv6'")
	i.sql("UPDATE v_dialplans SET dialplan_xml = replace(dialplan_xml, 'record_ext=mp3', 'record_ext=wav')")
	i.sql("UPDATE v_default_settings SET default_setting_value = 'wav' WHERE default_setting_value = 'mp3'")
	// The pages read the folders from a running switch. Messages lie on a disk that both share.
	i.voicemail = t.TempDir()
	i.sql("UPDATE v_default_settings SET default_setting_value = '%s', default_setting_enabled = true WHERE default_setting_category = 'switch' AND default_setting_subcategory = 'voicemail'", i.voicemail)
	return i
}

func domainID(n int) string { return fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", n+1) }

// site makes the folder of one machine with FusionPBX: its config.conf and what the
// switch reads. The event socket is at host. FusionPBX finds config.conf in the folder
// ProgramData of $SystemDrive, on every system.
func (i *installation) site(dir, host string) string {
	i.t.Helper()
	sub := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(path, 0o755); err != nil {
			i.t.Fatal(err)
		}
		return path
	}
	conf := sub("conf")
	if err := os.CopyFS(conf, os.DirFS(filepath.Join(i.checkout, "app/switch/resources/conf"))); err != nil {
		i.t.Fatal(err)
	}
	text := fmt.Sprintf(`database.0.type = pgsql
database.0.host = %[1]s
database.0.port = 5432
database.0.sslmode = prefer
database.0.name = fusionpbx
database.0.username = fusionpbx
database.0.password = fusionpbx
database.1.type = sqlite
database.1.path = %[2]s
database.1.name = core.db
document.root = %[3]s
project.path =
temp.dir = %[4]s
php.dir = /usr/bin
php.bin = php
cache.method = file
cache.location = %[5]s
cache.settings = true
switch.conf.dir = %[6]s
switch.sounds.dir = %[7]s
switch.database.dir = %[2]s
switch.recordings.dir = %[8]s
switch.storage.dir = %[9]s
switch.voicemail.dir = %[10]s
switch.scripts.dir = %[11]s
switch.event_socket.host = %[12]s
switch.event_socket.port = 8021
switch.event_socket.password = ClueCon
xml_handler.fs_path = false
xml_handler.reg_as_number_alias = false
xml_handler.number_as_presence_id = true
error.reporting = user
`, i.dir, sub("db"), i.checkout, sub("tmp"), sub("cache"), conf, sub("sounds"), sub("recordings"), sub("storage"), sub("storage/voicemail"), sub("scripts"), host)
	if err := os.WriteFile(filepath.Join(sub("ProgramData/fusionpbx"), "config.conf"), []byte(text), 0o644); err != nil {
		i.t.Fatal(err)
	}
	return dir
}

// php runs a program of FusionPBX as the machine of the folder site.
func (i *installation) php(site, file string, args ...string) string {
	i.t.Helper()
	return i.runPHP(site, filepath.Join(i.checkout, file), args...)
}

func (i *installation) runPHP(site, file string, args ...string) string {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "php", append([]string{file}, args...)...)
	cmd.Dir = i.checkout
	cmd.Env = append(os.Environ(), "SystemDrive="+site)
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "Fatal error") {
		i.t.Fatalf("php %s: %v\n%s", file, err, out)
	}
	return string(out)
}

// sql runs a statement in FusionPBX's database and returns what it prints, unaligned.
func (i *installation) sql(format string, args ...any) string {
	i.t.Helper()
	return i.run("fusionpbx", fmt.Sprintf(format, args...))
}

// run runs a script as `psql -f` does, in one database.
func (i *installation) run(database, script string) string {
	i.t.Helper()
	out, err := i.tryRun(database, script)
	if err != nil {
		i.t.Fatalf("%v\n%s", err, script)
	}
	return out
}

func (i *installation) tryRun(database, script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, i.psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", i.dir, "-U", "fusionpbx", "-d", database)
	cmd.Stdin = strings.NewReader(script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("psql: %w: %s", err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// startPostgres starts a server of our own behind a socket in a private folder.
func (i *installation) startPostgres() {
	t := i.t
	t.Helper()
	bin := func(name string) string {
		found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s; install it with: apt-get install postgresql", name)
		}
		return found[len(found)-1]
	}
	i.psql = bin("psql")
	var err error
	if i.dir, err = os.MkdirTemp("", "pbxmesh-pg-"); err != nil { // not t.TempDir: socket paths are short
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(i.dir) })
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: unprivileged(t)}
	if err := os.Chown(i.dir, int(attr.Credential.Uid), int(attr.Credential.Gid)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(i.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(i.dir, "data")
	program := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.SysProcAttr = i.dir, attr
		return cmd
	}
	if out, err := program(bin("initdb"), "-D", data, "-U", "fusionpbx", "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	cmd := program(bin("postgres"), "-D", data, "-k", i.dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		<-ended
	})
	eventually(t, "PostgreSQL answers", func() bool {
		_, err := i.tryRun("postgres", "SELECT 1")
		return err == nil
	})
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
	t.Fatal("no other user than root to run PostgreSQL as")
	return nil
}

// soon bounds everything that happens by itself.
const soon = 30 * time.Second

// eventually polls until cond holds, and returns how long that took.
func eventually(t *testing.T, what string, cond func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		if time.Since(began) > soon {
			t.Fatalf("not within %s: %s", soon, what)
		}
		<-tick.C
	}
	return time.Since(began)
}
