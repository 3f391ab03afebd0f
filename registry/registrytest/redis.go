package registrytest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ErrNoRedis says that there is no redis-server in PATH.
var ErrNoRedis = errors.New("no redis-server in PATH; install it with: apt-get install redis-server")

// startTimeout bounds how long a redis-server may take until it answers.
const startTimeout = 10 * time.Second

// Redis is a real redis-server on a loopback port that the kernel chose, without
// persistence: restarted, it is empty.
type Redis struct {
	dir  string
	args []string

	mu   sync.Mutex
	addr string
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd was waited for
}

// StartRedis starts a redis-server that ends with the test. args are further
// arguments of redis-server: "--maxmemory", "1mb".
func StartRedis(t testing.TB, args ...string) *Redis {
	t.Helper()
	r, err := NewRedis(context.Background(), args...)
	if errors.Is(err, ErrNoRedis) && os.Getenv("CI") == "" && os.Getenv("PBXMESH_REQUIRE_REDIS") == "" {
		t.Skipf("SKIPPED, NOTHING WAS TESTED AGAINST A REAL REDIS: %v", err)
	}
	if err != nil {
		t.Fatalf("start redis-server: %v", err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Errorf("stop redis-server: %v", err)
		}
	})
	return r
}

// StartSentinel is StartRedis for a Sentinel with the configuration file config,
// which it rewrites.
func StartSentinel(t testing.TB, config string) *Redis {
	t.Helper()
	return StartRedis(t, config, "--sentinel")
}

// NewRedis starts a redis-server and returns when it answers, ErrNoRedis when
// there is none. The caller closes it.
func NewRedis(ctx context.Context, args ...string) (*Redis, error) {
	if _, err := exec.LookPath("redis-server"); err != nil {
		return nil, ErrNoRedis
	}
	dir, err := os.MkdirTemp("", "pbxmesh-redis-")
	if err != nil {
		return nil, err
	}
	r := &Redis{dir: dir, args: args}
	// Between our look at a free port and the server's own somebody else may
	// take it.
	for range 5 {
		if r.addr, err = freeAddr(); err != nil {
			break
		}
		if err = r.start(ctx); err == nil {
			return r, nil
		}
	}
	return nil, errors.Join(err, os.RemoveAll(dir))
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// start runs the server on r.addr and waits until it answers.
func (r *Redis) start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, port, err := net.SplitHostPort(r.addr)
	if err != nil {
		return err
	}
	log := filepath.Join(r.dir, "redis.log")
	args := []string{
		"--bind", "127.0.0.1", "--port", port, "--dir", r.dir, "--save", "", "--appendonly", "no", "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1",
		"--logfile", log, "--daemonize", "no",
	}
	if slices.Contains(r.args, "--sentinel") { // it knows fewer options, and its file comes first
		args = append(slices.Clone(r.args), "--bind", "127.0.0.1", "--port", port, "--dir", r.dir, "--logfile", log)
	} else {
		args = append(args, r.args...)
	}
	cmd := exec.Command("redis-server", args...)
	// A test that is killed must not leave a server behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
	r.cmd, r.done = cmd, done

	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		switch answers(r.addr, cmd.Process.Pid) {
		case yes:
			return nil
		case another:
			_ = cmd.Process.Kill()
			<-done
			return fmt.Errorf("another server has taken %s", r.addr)
		}
		select {
		case <-done:
			text, _ := os.ReadFile(log)
			return fmt.Errorf("redis-server ended at once: %s", lastLine(string(text)))
		case <-ctx.Done():
			_ = cmd.Process.Kill()
			<-done
			return fmt.Errorf("redis-server did not answer within %s", startTimeout)
		case <-tick.C:
		}
	}
}

// answer is what comes from an address where a server was started.
type answer int

const (
	no answer = iota
	yes
	another // program got the port first, and ours will end
)

// answers asks addr for the server with the process id pid. One with a password says NOAUTH,
// and is taken for ours.
func answers(addr string, pid int) answer {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return no
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := c.Write([]byte("INFO server\r\n")); err != nil {
		return no
	}
	for lines := bufio.NewScanner(c); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "-NOAUTH") {
			return yes
		}
		if id, ok := strings.CutPrefix(line, "process_id:"); ok {
			if id == strconv.Itoa(pid) {
				return yes
			}
			return another
		}
	}
	return no
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// Addr returns host:port; it stays the same over restarts.
func (r *Redis) Addr() string { return r.addr }

// URL returns "redis://host:port".
func (r *Redis) URL() string { return "redis://" + r.addr }

// Kill ends the server like kill -9 and waits for that.
func (r *Redis) Kill() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil {
		return nil
	}
	// Also wakes a server that Pause stopped: SIGKILL does not wait for it.
	err := r.cmd.Process.Kill()
	<-r.done
	r.cmd = nil
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Start starts the server again after Kill, empty, on the same port.
func (r *Redis) Start() error { return r.start(context.Background()) }

// Pause stops the server with SIGSTOP: connections stay open, nothing answers.
func (r *Redis) Pause() error { return r.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (r *Redis) Resume() error { return r.signal(syscall.SIGCONT) }

func (r *Redis) signal(sig os.Signal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil {
		return errors.New("redis-server is not running")
	}
	return r.cmd.Process.Signal(sig)
}

// Close ends the server and removes what it wrote. It is idempotent.
func (r *Redis) Close() error { return errors.Join(r.Kill(), os.RemoveAll(r.dir)) }
