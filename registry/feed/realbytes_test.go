package feed

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// TestScenarioCallIDBytes registers phones whose Call-IDs are no text on a real switch, in
// the midst of others: they are known on their own node, counted and named, and no other
// phone and no other daemon notices.
func TestScenarioCallIDBytes(t *testing.T) {
	sw := startReal(t, "127.0.91.2")
	store := memory.New(memory.Options{})
	var log lockedBuffer
	here, there := registry.NewReplica(registry.ReplicaOptions{Local: "buffalo"}), registry.NewReplica(registry.ReplicaOptions{})
	w, err := registry.NewWriter(registry.WriterOptions{
		Node: pbxmesh.Node{ID: "buffalo"}, Replica: here, Backend: store, CheckEvery: time.Second,
		Logger: slog.New(slog.NewTextHandler(&log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := registry.NewSync(registry.SyncOptions{Replica: there, Backend: store})
	if err != nil {
		t.Fatal(err)
	}
	addr, password := sw.EventSocket()
	f := New(Options{
		ESL: esl.Config{Address: addr, Password: password}, Node: "buffalo", Profiles: []string{"internal"}, Sink: w,
		SnapshotEvery: 500 * time.Millisecond, SnapshotGap: 20 * time.Millisecond, MinBackoff: 10 * time.Millisecond, MaxBackoff: 100 * time.Millisecond,
	})
	ctx, stop := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	for _, run := range []func(context.Context) error{w.Run, s.Run} {
		tasks.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { stop(); tasks.Wait() })
	t.Cleanup(runFeed(t, f))
	connected(t, f)

	register := func(user, call string) *rawPhone {
		p := rawOver(t, "udp", "127.0.93.2", sw.SIP())
		p.user, p.call = user, call
		p.must(3600)
		return p
	}
	var last time.Duration
	known := func(r *registry.Replica, user string) int {
		aor, err := pbxmesh.NewAOR(user, "pbx.test")
		if err != nil {
			t.Fatal(err)
		}
		return len(r.Lookup(aor))
	}
	odd := []*rawPhone{register("1001", "x\xff\xfe@h"), register("1002", "\x80\x81"), register("1003", "caf\xe9@h")}
	for _, user := range []string{"1004", "1005", "1006", "1007"} {
		register(user, "good-"+user)
		began := time.Now()
		eventually(t, user+" elsewhere", func() bool { return known(there, user) == 1 })
		last = max(last, time.Since(began))
	}
	for _, p := range odd {
		eventually(t, p.user+" here", func() bool { return known(here, p.user) == 1 })
		p.must(3600)
	}
	eventually(t, "five more snapshots", func() bool { return f.Status().Snapshots > 7 })
	st, ws := there.Stats(), w.Status()
	t.Logf("known elsewhere after %s at most; reader %+v; writer %+v", last.Round(time.Millisecond), st, ws)
	if ws.Unpublished != 3 || ws.Records != 4 || ws.Refused != 0 || ws.Publications != 1 || ws.Foreign != 0 {
		t.Errorf("writer %+v", ws)
	}
	if st.Registrations != 4 || st.Bad != 0 || st.Drift != 0 || st.Loads > 2 {
		t.Errorf("reader %+v", st)
	}
	if n := strings.Count(log.String(), "rings on its own node only"); n != 3 {
		t.Errorf("named %d times:\n%s", n, log.String())
	}
	for _, p := range odd {
		p.must(0)
		eventually(t, p.user+"'s end", func() bool { return known(here, p.user) == 0 })
	}
	if n := w.Status().Unpublished; n != 0 {
		t.Errorf("%d are left", n)
	}
}

// lockedBuffer is written by several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
