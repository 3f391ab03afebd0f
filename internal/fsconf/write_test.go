package fsconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// confDir is a FreeSWITCH configuration folder with stock files.
func confDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, sub := range []string{"autoload_configs", "sip_profiles", "dialplan"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string][]byte{
		"freeswitch.xml": []byte("<document type=\"freeswitch/xml\"/>\n"), "autoload_configs/acl.conf.xml": stock(t, "acl.conf.xml"),
		"autoload_configs/event_socket.conf.xml": stock(t, "event_socket.conf.xml"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// apply writes all changes and returns how many files were written.
func apply(t *testing.T, s *Settings, dir string) int {
	t.Helper()
	changes, err := s.Plan(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for i := range changes {
		if changes[i].Changed() {
			n++
		}
		backup, err := changes[i].Write(dir)
		if err != nil {
			t.Fatal(err)
		}
		if changes[i].Old != nil && changes[i].Changed() {
			if kept, err := os.ReadFile(backup); err != nil || string(kept) != string(changes[i].Old) {
				t.Errorf("%s: the copy %q holds %q, %v", changes[i].Path, backup, kept, err)
			}
		}
	}
	return n
}

func TestWrite(t *testing.T) {
	t.Parallel()
	dir, s := confDir(t), buffalo()
	if n := apply(t, s, dir); n != 4 {
		t.Errorf("%d files were written, want 4", n)
	}
	if n := apply(t, s, dir); n != 0 {
		t.Errorf("the second time %d files were written", n)
	}
	for _, name := range []string{"sip_profiles/mesh.xml", "autoload_configs/acl.conf.xml", "autoload_configs/event_socket.conf.xml.bak"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	// Each change keeps what was there; nothing of ours ends in .xml beside the files.
	s.Peers = s.Peers[:1]
	apply(t, s, dir)
	all, err := filepath.Glob(filepath.Join(dir, "autoload_configs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, name := range all {
		names = append(names, filepath.Base(name))
	}
	if got, want := strings.Join(names, " "), "acl.conf.xml acl.conf.xml.bak acl.conf.xml.bak.2 event_socket.conf.xml event_socket.conf.xml.bak"; got != want {
		t.Errorf("the folder holds %s, want %s", got, want)
	}
	if kept, err := os.ReadFile(filepath.Join(dir, "autoload_configs/acl.conf.xml.bak")); err != nil || string(kept) != string(stock(t, "acl.conf.xml")) {
		t.Errorf("the first copy is no longer the original: %v", err)
	}
}

// A link stays a link: what it points to changes.
func TestWriteFollowsLinks(t *testing.T) {
	t.Parallel()
	dir := confDir(t)
	path, target := filepath.Join(dir, "autoload_configs/acl.conf.xml"), filepath.Join(dir, "real.xml")
	if err := os.Rename(path, target); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	apply(t, buffalo(), dir)
	if info, err := os.Lstat(path); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", info, err)
	}
	if text, err := os.ReadFile(target); err != nil || !strings.Contains(string(text), "198.51.100.20/32") {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestPlanRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(t *testing.T, dir string) string
		want   string
	}{
		"nothing there":  {func(_ *testing.T, dir string) string { return filepath.Join(dir, "missing") }, "name the folder that holds freeswitch.xml"},
		"a file":         {func(_ *testing.T, dir string) string { return filepath.Join(dir, "freeswitch.xml") }, "is no folder"},
		"another folder": {func(_ *testing.T, dir string) string { return filepath.Join(dir, "dialplan") }, "has no freeswitch.xml"},
		"no profiles": {func(t *testing.T, dir string) string {
			if err := os.Remove(filepath.Join(dir, "sip_profiles")); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "has no folder sip_profiles"},
		"their own profile": {func(t *testing.T, dir string) string {
			if err := os.WriteFile(filepath.Join(dir, "sip_profiles/mesh.xml"), []byte("<profile name=\"mesh\"/>"), 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "was not written by pbxmesh"},
		"broken list": {func(t *testing.T, dir string) string {
			if err := os.WriteFile(filepath.Join(dir, "autoload_configs/acl.conf.xml"), []byte("<"), 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "acl.conf.xml: it is no XML"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := tc.change(t, confDir(t))
			if _, err := buffalo().Plan(dir); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// A diff tells that the password differs, and tells neither.
func TestDiffHidesPasswords(t *testing.T) {
	t.Parallel()
	dir, s := confDir(t), buffalo()
	changes, err := s.Plan(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for i := range changes {
		all.WriteString(s.Diff(dir, &changes[i]))
	}
	got := all.String()
	for _, secret := range []string{"ClueCon", attr(s.EventSocket.Password), s.EventSocket.Password} {
		if strings.Contains(got, secret) {
			t.Errorf("%q stands in\n%s", secret, got)
		}
	}
	for _, want := range []string{
		"--- /dev/null\n", `-    <param name="password" value="(another password)"/>`,
		`+    <param name="password" value="(the content of /etc/pbxmesh/event_socket.password)"/>`,
		`+      <node type="allow" cidr="198.51.100.20/32"/> <!-- london -->`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if text := s.EventSocketFragment(true); strings.Contains(string(text), attr(s.EventSocket.Password)) {
		t.Errorf("%s", text)
	}
}

func TestDiff(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("same\n", 20)
	for name, tc := range map[string]struct{ a, b, want string }{
		"equal": {"a\nb\n", "a\nb\n", ""},
		"new":   {"", "a\n", "--- a\n+++ b\n@@ -0,0 +1,1 @@\n+a\n"},
		"gone":  {"a\n", "", "--- a\n+++ b\n@@ -1,1 +0,0 @@\n-a\n"},
		"middle": {"1\n2\n3\n4\nx\n5\n6\n7\n8\n", "1\n2\n3\n4\ny\nz\n5\n6\n7\n8\n",
			"--- a\n+++ b\n@@ -2,7 +2,8 @@\n 2\n 3\n 4\n-x\n+y\n+z\n 5\n 6\n 7\n"},
		"two hunks":  {"x\n" + long + "y\n", long, "--- a\n+++ b\n@@ -1,4 +1,3 @@\n-x\n same\n same\n same\n@@ -19,4 +18,3 @@\n same\n same\n same\n-y\n"},
		"no newline": {"a", "a\n", "--- a\n+++ b\n@@ -1,1 +1,1 @@\n-a\n\\ No newline at end of file\n+a\n"},
	} {
		if got := Diff("a", "b", []byte(tc.a), []byte(tc.b)); got != tc.want {
			t.Errorf("%s:\n%s\nwant:\n%s", name, got, tc.want)
		}
	}
	// Too large for the table: still right, in one hunk.
	a, b := strings.Repeat("a\n", 3000), strings.Repeat("b\n", 3000)
	if got := Diff("a", "b", []byte(a), []byte(b)); strings.Count(got, "\n") != 6003 {
		t.Errorf("%d lines", strings.Count(got, "\n"))
	}
}
