package registry

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/cespare/xxhash/v2"
)

// flock locks file without waiting and returns its ID; ErrLocked when another open file
// holds the lock.
//
// The ID is made of this start of the kernel and the file's device and inode there. A
// copy of the file is another inode; an inode that is open cannot be given to another
// file, even when its name was removed; and a lock on one machine says nothing about
// another, whose kernel was started at another time.
func flock(file *os.File) (string, error) {
	err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	switch {
	case errors.Is(err, syscall.EWOULDBLOCK):
		return "", ErrLocked
	case err != nil:
		return "", err
	}
	info, err := file.Stat()
	if err != nil {
		return "", err
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // a lock without a name is a lock
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || len(boot) == 0 {
		return "", nil
	}
	return lockID(strings.TrimSpace(string(boot)), uint64(stat.Dev), stat.Ino), nil //nolint:unconvert // some systems have 32 bits
}

// lockID is the name of a lock: by the start of the kernel, the device and the inode there.
func lockID(boot string, dev, ino uint64) string {
	return strconv.FormatUint(xxhash.Sum64String(fmt.Sprintf("%s %d %d", boot, dev, ino)), 36)
}
