package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cespare/xxhash/v2"

	"pbxmesh"
)

// saved returns a replica with two nodes and what it writes.
func saved(t *testing.T) (*Replica, []byte) {
	t.Helper()
	r := NewReplica(ReplicaOptions{Local: "buffalo"})
	for _, id := range []pbxmesh.NodeID{"buffalo", "london"} {
		r.announce(&Announcement{Node: pbxmesh.Node{
			ID: id, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, Ports: pbxmesh.SIPPorts{UDP: 5060},
			Mesh: netip.MustParseAddrPort("192.0.2.1:5090"), Software: "FreeSWITCH <&>",
		}})
		r.node(id).setFresh(epoch0.Add(-2 * time.Second))
		for n := range 5 {
			reg := device(t, id, n, epoch0.Add(time.Duration(n)*time.Minute)) // the first has expired
			r.putLocal(&reg)
		}
	}
	r.setPolled(epoch0.Add(-time.Second), epoch0.Add(-time.Second))
	r.setSynced()
	var buf bytes.Buffer
	if err := r.writeState(&buf, epoch0); err != nil {
		t.Fatal(err)
	}
	return r, buf.Bytes()
}

func TestStateRoundTrip(t *testing.T) {
	t.Parallel()
	r, _ := saved(t)
	path := filepath.Join(t.TempDir(), "state")
	if err := r.SaveState(path, epoch0); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, err %v", info.Mode(), err)
	}
	later := epoch0.Add(90 * time.Second)
	back := NewReplica(ReplicaOptions{})
	report, err := back.LoadState(path, later)
	if err != nil {
		t.Fatal(err)
	}
	if report.Members != 2 || report.Registrations != 6 || !report.Saved.Equal(epoch0) {
		t.Errorf("report %+v, want 2 members and the 6 registrations that live on", report)
	}
	checkConsistent(t, back)
	back.Walk(func(reg *pbxmesh.Registration) bool {
		for _, was := range r.Lookup(reg.AOR) {
			if was.Node == reg.Node && reflect.DeepEqual(*was, *reg) {
				return true
			}
		}
		t.Errorf("%+v was never saved", reg)
		return true
	})
	for i, m := range back.Members() {
		if was := r.Members()[i]; !reflect.DeepEqual(m.Node, was.Node) {
			t.Errorf("member %+v, want %+v", m.Node, was.Node)
		}
	}
	if age := back.Age(later); age != 92*time.Second {
		t.Errorf("the view is %s old, want 92 s", age)
	}
	// What the store says replaces it.
	back.replace(back.node("london"), SnapshotInfo{Cursor: Cursor{Node: "london", Term: 1, Seq: 1}}, nil)
	if n := back.Stats().Registrations; n != 3 {
		t.Errorf("%d registrations, want buffalo's 3", n)
	}
}

func TestStateNotThere(t *testing.T) {
	t.Parallel()
	r := NewReplica(ReplicaOptions{})
	dir := t.TempDir()
	if _, err := r.LoadState(filepath.Join(dir, "none"), epoch0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	if _, err := r.LoadState(dir, epoch0); !errors.Is(err, ErrStateFile) {
		t.Errorf("a directory: error %v", err)
	}
	if err := r.SaveState(filepath.Join(dir, "none", "state"), epoch0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such directory: error %v", err)
	}
	if age := r.Age(epoch0); age != NeverSynced {
		t.Errorf("age %s", age)
	}
}

func TestHostileStateFiles(t *testing.T) {
	t.Parallel()
	_, good := saved(t)
	lines := strings.SplitAfter(strings.TrimSuffix(string(good), "\n"), "\n")
	// sealed returns changed lines under a correct end, so that the change
	// itself must be found.
	sealed := func(change func([]string) []string) string {
		body := change(append([]string{}, lines[:len(lines)-1]...))
		return seal(body)
	}
	for name, text := range map[string]string{
		"empty":               "",
		"one byte":            "x",
		"cut off":             string(good[:len(good)/2]),
		"cut at a line":       strings.Join(lines[:len(lines)-1], ""),
		"a bit flipped":       strings.Replace(string(good), "192.0.2.1", "192.0.2.2", 1),
		"lines swapped":       strings.Join(append([]string{lines[0], lines[2], lines[1]}, lines[3:]...), ""),
		"something behind":    string(good) + "\n{}\n",
		"twice":               string(good) + "\n" + string(good),
		"binary":              "\x00\x01\x02\xff",
		"a long line":         lines[0] + strings.Repeat("x", maxStateLine+1),
		"later version":       sealed(func(l []string) []string { l[0] = strings.Replace(l[0], ":1", ":2", 1); return l }),
		"record of no member": sealed(func(l []string) []string { return append(l[:2], l[3:]...) }),
		"node twice":          sealed(func(l []string) []string { return append(l, l[1]) }),
		"hostile node":        sealed(func(l []string) []string { l[1] = strings.Replace(l[1], `"buffalo"`, `"a}b"`, 1); return l }),
		"hostile AOR":         sealed(func(l []string) []string { l[3] = strings.Replace(l[3], "@", ",sofia/gateway/x@", 1); return l }),
		"other key":           sealed(func(l []string) []string { l[3] = strings.Replace(l[3], "|", "|A", 1); return l }),
		"other Call-ID":       sealed(func(l []string) []string { l[3] = strings.Replace(l[3], "4c1b", "4c1c", 1); return l }),
		"neither":             sealed(func(l []string) []string { return append(l, "{}\n") }),
		"null":                sealed(func(l []string) []string { return append(l, "null\n") }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "state")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			r := NewReplica(ReplicaOptions{})
			if _, err := r.LoadState(path, epoch0); !errors.Is(err, ErrStateFile) {
				t.Errorf("error %v, want %v", err, ErrStateFile)
			} else if !strings.Contains(err.Error(), "line ") || len(err.Error()) > 500 {
				t.Errorf("the error must name the line, and briefly: %v", err)
			}
			if s := r.Stats(); s.Registrations != 0 || s.Nodes != 0 {
				t.Errorf("something was taken over: %+v", s)
			}
		})
	}
	// The seal itself is right: an unchanged body passes.
	if _, err := readState(strings.NewReader(sealed(func(l []string) []string { return l })), epoch0); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

// seal ends body as writeState does.
func seal(body []string) string {
	text := strings.Join(body, "")
	end, err := json.Marshal(stateLine{End: &stateEnd{Lines: len(body), Sum: sumOf(text)}})
	if err != nil {
		panic(err)
	}
	return text + string(end) + "\n"
}

func sumOf(text string) string { return strconv.FormatUint(xxhash.Sum64String(text), 16) }
