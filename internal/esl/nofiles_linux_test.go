package esl

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// TestNoFilesLeft runs a process of its own with hardly any file descriptors left,
// so that each step of Dial fails in turn. Nothing may stay behind: an eslgo whose
// connection nobody accepts would.
func TestNoFilesLeft(t *testing.T) {
	if os.Getenv("ESL_TEST_NO_FILES") == "" {
		sw := newTestSwitch(t, func(w *wire) {
			if w.greet() {
				w.obey()
			}
		})
		cmd := exec.Command(os.Args[0], "-test.run=^TestNoFilesLeft$", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), "ESL_TEST_NO_FILES="+sw.addr())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	dial := func() error {
		c, err := Dial(testContext(t), Config{Address: os.Getenv("ESL_TEST_NO_FILES"), Password: "secret"})
		if err == nil {
			_, err = c.API(testContext(t), "uptime")
			c.Close()
		}
		return err
	}
	if err := dial(); err != nil {
		t.Fatal(err)
	}
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	next, err := os.Open("/dev/null") // the lowest number that is free
	if err != nil {
		t.Fatal(err)
	}
	first := uint64(next.Fd())
	next.Close()
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	failed, worked := 0, 0
	for spare := range uint64(8) {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: first + spare, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		err := dial()
		if e := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); e != nil {
			t.Fatal(e)
		}
		t.Logf("%d descriptors to spare: %v after %v", spare, err, time.Since(start))
		if err != nil {
			failed++
		} else {
			worked++
		}
	}
	if failed < 3 || worked < 3 {
		t.Errorf("%d attempts failed and %d worked: the limit does not bite as meant", failed, worked)
	}
	eventually(t, "descriptors and goroutines back", func() bool {
		return descriptors(t) <= fds && runtime.NumGoroutine() <= goroutines
	})
}
