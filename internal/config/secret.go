package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

const maxSecret = 4096 // bytes; a key file given by mistake is larger

// SecretFile is the path of a file that holds one secret. The secret itself is
// never part of a Config, so that printing one gives nothing away.
type SecretFile string

// Read returns the secret without its final newline; "" when no file is named.
// It is read anew each time, so a changed secret needs no restart of who asks again.
// Errors name cause and remedy, and never the content.
func (s SecretFile) Read() (string, error) {
	if s == "" {
		return "", nil
	}
	path := string(s)
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() { // opening a pipe would wait for a writer
		return "", fmt.Errorf("%s is no regular file: name a file that holds the secret as its only line", path)
	}
	f, err := os.Open(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("the file %s does not exist: create it with the secret as its only line, mode 0600: %w", path, err)
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("the file %s may not be read by this user: give it to the user that runs pbxmesh: %w", path, err)
	case err != nil:
		return "", fmt.Errorf("read a secret: %w", err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return "", fmt.Errorf("read a secret: %w", err)
	}
	// Whoever can log in could read it: then it is no secret any more.
	if perm := info.Mode().Perm(); perm&0o007 != 0 {
		return "", fmt.Errorf("the file %s is open to every user (mode %04o): run chmod o-rwx %s, and change the secret", path, perm, path)
	}
	raw, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", fmt.Errorf("read a secret: %w", err)
	}
	if len(raw) > maxSecret {
		return "", fmt.Errorf("the file %s is larger than %d bytes: it should hold one secret and nothing else", path, maxSecret)
	}
	secret := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r")
	switch {
	case secret == "":
		return "", fmt.Errorf("the file %s is empty: write the secret into it as its only line", path)
	case strings.ContainsFunc(secret, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", fmt.Errorf("the file %s has more than one line or a control character: it should hold one secret and nothing else", path)
	}
	return secret, nil
}

// check reports whether a plain file can be read at all.
func (f File) check() error {
	if f == "" {
		return nil
	}
	fd, err := os.Open(string(f))
	if err != nil {
		return fmt.Errorf("cannot be read: %w", err)
	}
	return fd.Close()
}
