package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"time"
)

// ErrLocked says that another process holds the lock.
var ErrLocked = errors.New("another daemon holds this node's lock")

// lockEvery is how often a lock that another process holds is tried again.
const lockEvery = 100 * time.Millisecond

// NodeLock is a locked file (flock(2)), which a daemon that publishes for a node holds
// for as long as it lives. The kernel takes it away with the process, however that ends,
// so whoever gets it knows that every former holder is gone. The file itself stays, and
// says which process was the last one to hold it.
type NodeLock struct {
	file *os.File
	id   string
}

// LockNode takes the lock of the file at path, which it creates when there is none. It
// waits up to wait for another process to give it up, and says so in the log once.
//
// ErrLocked when it does not, with the name of the process; ctx's error when that ends
// first. Every other error says that this file cannot be locked (no such folder, a file
// system that is read only or knows no locks), and nothing about another process.
func LockNode(ctx context.Context, path string, wait time.Duration, log *slog.Logger) (*NodeLock, error) {
	log = logger(log, "registry.lock")
	deadline := time.Now().Add(wait)
	for told := false; ; {
		l, err := tryLock(path)
		if err == nil || !errors.Is(err, ErrLocked) || !time.Now().Before(deadline) {
			return l, err
		}
		if !told {
			told = true
			log.Info("waiting for another daemon of this node to end", "at_most", wait, "err", err)
		}
		if !sleep(ctx, lockEvery) {
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// tryLock opens the file anew each time: it may have been replaced meanwhile.
func tryLock(path string) (*NodeLock, error) {
	// Go opens files so that no child keeps them, and with them the lock.
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the node: %w", err)
	}
	id, err := flock(file)
	if err != nil {
		if errors.Is(err, ErrLocked) {
			err = fmt.Errorf("%w: %s holds %s", ErrLocked, holder(file), path)
		} else {
			err = fmt.Errorf("lock the node: %s: %w", path, err)
		}
		_ = file.Close()
		return nil, err
	}
	// Who cannot write the name holds the lock all the same.
	if host, err := os.Hostname(); err == nil && file.Truncate(0) == nil {
		_, _ = file.WriteAt([]byte(strconv.Itoa(os.Getpid())+" "+host+"\n"), 0)
	}
	return &NodeLock{file: file, id: id}, nil
}

// holder says which process wrote its name into the file.
func holder(file *os.File) string {
	text, err := io.ReadAll(io.LimitReader(file, 512))
	var pid int
	var host string
	if _, scanErr := fmt.Sscan(string(text), &pid, &host); err != nil || scanErr != nil || pid <= 0 {
		return "a process"
	}
	return fmt.Sprintf("process %d on %s", pid, show(host))
}

// ID names this very lock among all machines: no two daemons that live at a time have the
// same, not even with a copied file or one host name. "" when the system has no name for
// it.
func (l *NodeLock) ID() string { return l.id }

// Close gives the lock up. Idempotent.
func (l *NodeLock) Close() error {
	if err := l.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("unlock the node: %w", err)
	}
	return nil
}
