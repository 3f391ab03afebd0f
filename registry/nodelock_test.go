//go:build linux

package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh/registry"
)

func locked(t *testing.T, path string) *registry.NodeLock {
	t.Helper()
	l, err := registry.LockNode(t.Context(), path, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func unlock(t *testing.T, l *registry.NodeLock) {
	t.Helper()
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNodeLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	first := locked(t, path)
	_, err := registry.LockNode(t.Context(), path, 0, nil)
	if want := fmt.Sprintf("process %d on", os.Getpid()); !errors.Is(err, registry.ErrLocked) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
		t.Fatalf("a second lock: %v; want ErrLocked with %q and %s", err, want, path)
	}
	id := first.ID()
	unlock(t, first)
	second := locked(t, path)
	if second.ID() != id || id == "" {
		t.Errorf("the lock is called %q, and then %q", id, second.ID())
	}

	// Whoever removes the file lets another daemon in, and gives it another name.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if third := locked(t, path); third.ID() == id {
		t.Errorf("two locks that are held are called %q", id)
	}

	// A copy is another lock.
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".copy", text, 0o600); err != nil {
		t.Fatal(err)
	}
	if l := locked(t, path+".copy"); l.ID() == id {
		t.Errorf("a copy is called %q too", id)
	}
}

// What cannot be locked is no second daemon.
func TestNoNodeLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, path := range map[string]string{"no folder": filepath.Join(dir, "none", "lock"), "a folder": dir} {
		if _, err := registry.LockNode(t.Context(), path, time.Minute, nil); err == nil || errors.Is(err, registry.ErrLocked) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A file that says nothing of use is locked as well.
func TestNodeLockOfAStranger(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "x", "-1", "12", strings.Repeat("9", 10000), "1 \x1b[31mhost"} {
		path := filepath.Join(t.TempDir(), "lock")
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		l := locked(t, path)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = registry.LockNode(t.Context(), path, 0, nil)
		if !errors.Is(err, registry.ErrLocked) || len(err.Error()) > 300 || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%.20q: %v", text, err)
		}
		unlock(t, l)
		_ = file.Close()
	}
}

// A daemon that starts while the former one shuts down waits for it, for so long and no
// longer, and no longer than it may.
func TestNodeLockIsWaitedFor(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		held, at time.Duration // the lock, and until the end of the context
		want     error
		from, to time.Duration
	}{
		"given up":    {3 * time.Second, time.Hour, nil, 3 * time.Second, 3200 * time.Millisecond},
		"held":        {time.Hour, time.Hour, registry.ErrLocked, 12 * time.Second, 12200 * time.Millisecond},
		"told to end": {time.Hour, 2 * time.Second, context.Canceled, 2 * time.Second, 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "lock")
			synctest.Test(t, func(t *testing.T) {
				first := locked(t, path)
				ctx, cancel := context.WithCancel(t.Context())
				release, end := time.AfterFunc(tt.held, func() { unlock(t, first) }), time.AfterFunc(tt.at, cancel)
				defer release.Stop()
				defer end.Stop()
				var log bytes.Buffer
				began := time.Now()
				l, err := registry.LockNode(ctx, path, 12*time.Second, slog.New(slog.NewTextHandler(&log, nil)))
				if took := time.Since(began); !errors.Is(err, tt.want) || took < tt.from || took > tt.to {
					t.Errorf("after %s: %v; want %v after %s to %s", took, err, tt.want, tt.from, tt.to)
				}
				if err == nil {
					unlock(t, l)
				}
				if n := strings.Count(log.String(), "waiting for another daemon of this node to end"); n != 1 {
					t.Errorf("the log says %d times that it waits:\n%s", n, &log)
				}
			})
		})
	}
}

// A program that a daemon starts does not keep the lock.
func TestNodeLockIsNotInherited(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	l := locked(t, path)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	unlock(t, l)
	again := locked(t, path)
	unlock(t, again)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A lock of another machine or start, of another file system or of another file is another one.
func TestLockID(t *testing.T) {
	t.Parallel()
	ids := map[string]bool{}
	for _, id := range []string{
		registry.LockID("boot", 1, 2), registry.LockID("boot2", 1, 2), registry.LockID("boot", 3, 2), registry.LockID("boot", 1, 4),
		registry.LockID("boot", 2, 1), registry.LockID("boot", 12, 2), registry.LockID("boot", 1, 22),
	} {
		ids[id] = true
	}
	if len(ids) != 7 || !ids[registry.LockID("boot", 1, 2)] {
		t.Errorf("7 locks have %d names", len(ids))
	}
}
