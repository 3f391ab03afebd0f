package fsconf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// maxFile bounds a configuration file that is read, in bytes.
const maxFile = 4 << 20

// Change is one file of a FreeSWITCH configuration: what is there, and what shall be.
type Change struct {
	Path string // relative to the configuration folder: "sip_profiles/mesh.xml"
	Old  []byte // nil when there is no such file
	New  []byte
}

// Changed reports whether writing would change anything.
func (c *Change) Changed() bool { return c.Old == nil || !bytes.Equal(c.Old, c.New) }

// Plan reads the FreeSWITCH configuration in dir and returns what has to stand in
// it, file by file, in a fixed order. It changes nothing.
//
// It fails when dir is no FreeSWITCH configuration, and when a file that has to be
// completed cannot be understood.
func (s *Settings) Plan(dir string) ([]Change, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	if err := CheckDir(dir); err != nil {
		return nil, err
	}
	type step struct {
		path  string
		merge func(old []byte) ([]byte, error)
	}
	steps := []step{
		{"sip_profiles/" + s.Profile + ".xml", whole(s.ProfileXML())},
		{"dialplan/" + s.Profile + ".xml", whole(s.DialplanXML())},
		{"autoload_configs/acl.conf.xml", s.MergeACL},
		{"autoload_configs/event_socket.conf.xml", s.MergeEventSocket},
	}
	if !s.EventSocket.Listen.IsValid() {
		steps = steps[:3]
	}
	if s.Domain != "" {
		steps = append(steps, step{"vars.xml", s.MergeDomain})
	}
	var out []Change
	for _, step := range steps {
		path := filepath.Join(dir, filepath.FromSlash(step.path))
		old, err := readFile(path)
		if err != nil {
			return nil, err
		}
		after, err := step.merge(old)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, Change{Path: step.path, Old: old, New: after})
	}
	return out, nil
}

// whole replaces a file from end to end, but only one that is ours: somebody's own
// profile of the same name is theirs.
func whole(content []byte) func([]byte) ([]byte, error) {
	return func(old []byte) ([]byte, error) {
		if old != nil && !bytes.Contains(old, []byte(notice)) {
			return nil, errors.New("this file was not written by pbxmesh: move it away, or name another profile with freeswitch.mesh_profile")
		}
		return content, nil
	}
}

// CheckDir says why dir is no FreeSWITCH configuration in files; nil when it is one.
func CheckDir(dir string) error {
	const remedy = "name the folder that holds freeswitch.xml, such as /etc/freeswitch"
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return fmt.Errorf("FreeSWITCH's configuration: %w; %s", err, remedy)
	case !info.IsDir():
		return fmt.Errorf("%s is no folder; %s", dir, remedy)
	}
	if info, err := os.Stat(filepath.Join(dir, "freeswitch.xml")); err != nil || !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no FreeSWITCH configuration: it has no freeswitch.xml; %s", dir, remedy)
	}
	for _, sub := range []string{"autoload_configs", "sip_profiles", "dialplan"} {
		if info, err := os.Stat(filepath.Join(dir, sub)); err != nil || !info.IsDir() {
			return fmt.Errorf("%s is no FreeSWITCH configuration that is kept in files: it has no folder %s; print the parts without --write and put them where yours belong", dir, sub)
		}
	}
	return nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read FreeSWITCH's configuration: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no regular file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", path, info.Size(), maxFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read FreeSWITCH's configuration: %w", err)
	}
	return append([]byte{}, text...), nil // never nil: an empty file is there
}

// Diff returns the unified difference of c, "" when there is none. Passwords do not
// stand in it, only whether they differ.
func (s *Settings) Diff(dir string, c *Change) string {
	if !c.Changed() {
		return ""
	}
	oldName := filepath.Join(dir, filepath.FromSlash(c.Path))
	newName := oldName + " (pbxmesh)"
	if c.Old == nil {
		oldName = "/dev/null"
	}
	before, after := c.Old, c.New
	if strings.HasSuffix(c.Path, "event_socket.conf.xml") {
		before, after = s.hide(before), s.hide(after)
	}
	return Diff(oldName, newName, before, after)
}

var passwordParam = regexp.MustCompile(`(<param\s+name\s*=\s*["']password["']\s+value\s*=\s*)("[^"]*"|'[^']*')`)

// hide replaces passwords: ours by the name of its file, others by a word.
func (s *Settings) hide(text []byte) []byte {
	return passwordParam.ReplaceAllFunc(text, func(m []byte) []byte {
		parts := passwordParam.FindSubmatch(m)
		value := parts[2][1 : len(parts[2])-1]
		shown := "(another password)"
		if string(value) == attr(s.EventSocket.Password) || unescape(value) == s.EventSocket.Password {
			shown = s.hidden()
		}
		return append(append([]byte{}, parts[1]...), `"`+attr(shown)+`"`...)
	})
}

func unescape(value []byte) string {
	var v struct {
		Text string `xml:",chardata"`
	}
	if err := xml.Unmarshal([]byte("<v>"+string(value)+"</v>"), &v); err != nil {
		return ""
	}
	return v.Text
}
