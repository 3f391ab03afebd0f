package fsconf

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

// maxBackups bounds the copies that are kept beside one file.
const maxBackups = 1000

// Write puts c into the configuration folder dir, in one step, and returns the path
// of the copy of what was there; "" when nothing was. A change that changes nothing
// writes nothing.
//
// The file keeps its owner and mode; a new one gets those of freeswitch.xml, because
// the switch must be able to read it. The copy lies beside it and has another ending
// than .xml: FreeSWITCH includes *.xml.
func (c *Change) Write(dir string) (backup string, err error) {
	if !c.Changed() {
		return "", nil
	}
	path := filepath.Join(dir, filepath.FromSlash(c.Path))
	like := filepath.Join(dir, "freeswitch.xml")
	if c.Old != nil {
		// A link stays one: what it points to is replaced.
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return "", fmt.Errorf("write FreeSWITCH's configuration: %w", err)
		}
		like = path
	}
	info, err := os.Stat(like)
	if err != nil {
		return "", fmt.Errorf("write FreeSWITCH's configuration: %w", err)
	}
	if c.Old != nil {
		if backup, err = keep(path, c.Old, info); err != nil {
			return "", err
		}
	}
	if err := replace(path, c.New, info); err != nil {
		return backup, fmt.Errorf("write FreeSWITCH's configuration: %w", err)
	}
	return backup, nil
}

// keep writes content to the first free name beside path, or finds that the newest
// copy holds it already.
func keep(path string, content []byte, like fs.FileInfo) (string, error) {
	last := ""
	for n := 1; n <= maxBackups; n++ {
		name := path + ".bak"
		if n > 1 {
			name = fmt.Sprintf("%s.bak.%d", path, n)
		}
		_, err := os.Lstat(name)
		if err == nil {
			last = name
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("keep a copy of %s: %w", path, err)
		}
		if last != "" {
			if kept, err := os.ReadFile(last); err == nil && bytes.Equal(kept, content) {
				return last, nil
			}
		}
		if err := replace(name, content, like); err != nil {
			return "", fmt.Errorf("keep a copy of %s: %w", path, err)
		}
		return name, nil
	}
	return "", fmt.Errorf("keep a copy of %s: there are %d already: remove old ones", path, maxBackups)
}

// replace writes a file completely or not at all, with the owner and mode of like.
func replace(path string, content []byte, like fs.FileInfo) error {
	f, err := renameio.NewPendingFile(path, renameio.WithStaticPermissions(like.Mode().Perm()))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // nothing is left when it was replaced
	if err := chown(f.File, like); err != nil {
		return fmt.Errorf("%w: run this as root, or as the owner of FreeSWITCH's configuration", err)
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}
