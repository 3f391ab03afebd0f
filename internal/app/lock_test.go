//go:build linux

package app

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
	"pbxmesh/internal/config"
	"pbxmesh/registry/memory"
)

// lockable describes a daemon that needs no port; node "" is a name server's.
func lockable(node pbxmesh.NodeID, state string) *config.Config {
	cfg := config.Defaults()
	cfg.Name, cfg.Registry.StateFile = "here", config.File(state)
	cfg.Failover.Probe.SIP = false
	cfg.API.Listen, cfg.Router.Socket.Listen = netip.AddrPort{}, netip.AddrPort{}
	if node != "" {
		cfg.Node = &config.Node{ID: node}
	}
	return cfg
}

// One daemon of a node starts from one state file; a name server beside it, and another
// node, are no second one.
func TestSecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		open := func(cfg *config.Config) *App {
			a, err := New(cfg, Options{Backend: store})
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		stop := func(a *App) {
			if err := a.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		}
		first := open(lockable("buffalo", state))
		if first.lock == "" {
			t.Error("the daemon has no lock")
		}
		began := time.Now()
		_, err := New(lockable("buffalo", state), Options{Backend: store})
		if err == nil {
			t.Fatal("a second daemon starts")
		}
		for _, want := range []string{fmt.Sprintf("process %d on", os.Getpid()), state + ".buffalo.lock", "node.id", "registry.state_file"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%v: does not say %q", err, want)
			}
		}
		if took := time.Since(began); took < stopTimeout || took > lockWait+time.Second {
			t.Errorf("refused after %s: a daemon may take %s to stop", took, stopTimeout)
		}
		for _, cfg := range []*config.Config{lockable("", state), lockable("london", state), lockable("buffalo", state+"2"), lockable("buffalo", "")} {
			stop(open(cfg))
		}
		time.AfterFunc(5*time.Second, func() { stop(first) })
		stop(open(lockable("buffalo", state))) // it waited
	})
}

// A daemon that is told to end while it waits ends in an orderly way.
func TestWaitingDaemonEnds(t *testing.T) {
	t.Parallel()
	state := filepath.Join(t.TempDir(), "state")
	synctest.Test(t, func(t *testing.T) {
		first, err := New(lockable("buffalo", state), Options{Backend: memory.New(memory.Options{})})
		if err != nil {
			t.Fatal(err)
		}
		ctx, end := context.WithCancel(t.Context())
		defer end()
		time.AfterFunc(500*time.Millisecond, end)
		if err := Run(ctx, lockable("buffalo", state), Options{Backend: memory.New(memory.Options{})}); err != nil {
			t.Errorf("told to end while it waits: %v", err)
		}
		if err := first.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A state file in a folder that cannot be written costs the lock, and says so.
func TestDaemonWithoutALock(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	a, err := New(lockable("buffalo", filepath.Join(t.TempDir(), "none", "state")), Options{
		Backend: memory.New(memory.Options{}), Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if a.lock != "" || !strings.Contains(log.String(), "this node has no lock") {
		t.Errorf("lock %q; the log says:\n%s", a.lock, &log)
	}
	if err := a.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}
