package native

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a directory and a picture of the nodes that tests change at will.
type world struct {
	mu    sync.Mutex
	regs  map[pbxmesh.AOR][]*pbxmesh.Registration
	nodes *pbxmesh.Mesh
}

func newWorld() *world {
	return &world{regs: make(map[pbxmesh.AOR][]*pbxmesh.Registration), nodes: &pbxmesh.Mesh{}}
}

func (w *world) Lookup(aor pbxmesh.AOR) []*pbxmesh.Registration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.regs[aor]
}

func (w *world) Walk(fn func(*pbxmesh.Registration) bool) {
	w.mu.Lock()
	defer w.mu.Unlock() // a look-up from within fn would hang
	for _, regs := range w.regs {
		for _, r := range regs {
			if !fn(r) {
				return
			}
		}
	}
}

func (w *world) Mesh() *pbxmesh.Mesh {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes
}

// register puts one device of aor on node, or takes it away with lifetime 0.
func (w *world) register(aor pbxmesh.AOR, node pbxmesh.NodeID, lifetime time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var next []*pbxmesh.Registration
	for _, r := range w.regs[aor] {
		if r.Node != node {
			next = append(next, r)
		}
	}
	if lifetime > 0 {
		next = append(next, &pbxmesh.Registration{
			AOR: aor, Node: node, CallID: "phone-" + aor.String(), Profile: "internal",
			Contact: "sip:" + aor.User() + "@192.0.2.7:5060", Expires: time.Now().Add(lifetime),
		})
	}
	if len(next) == 0 {
		delete(w.regs, aor)
		return
	}
	w.regs[aor] = next
}

// setNode gives node a mesh address and a state.
func (w *world) setNode(id pbxmesh.NodeID, mesh netip.AddrPort, o pbxmesh.Observed, wanted pbxmesh.Wanted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := &pbxmesh.Mesh{Nodes: make(map[pbxmesh.NodeID]pbxmesh.Node), States: make(map[pbxmesh.NodeID]pbxmesh.NodeState), At: time.Now()}
	for k, v := range w.nodes.Nodes {
		next.Nodes[k], next.States[k] = v, w.nodes.States[k]
	}
	next.Nodes[id] = pbxmesh.Node{ID: id, Mesh: mesh}
	next.States[id] = pbxmesh.NodeState{Observed: o, Wanted: wanted}
	w.nodes = next
}

func mustAOR(t testing.TB, s string) pbxmesh.AOR {
	t.Helper()
	a, err := pbxmesh.ParseAOR(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// start runs fn until the test ends and waits for it.
func start(t testing.TB, fn func(context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = fn(ctx)
	}()
	stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(stop)
	return stop
}

// eventually waits for a condition on real sockets.
func eventually(t testing.TB, within time.Duration, what func() string) time.Duration {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		problem := what()
		if problem == "" {
			return time.Since(began)
		}
		if time.Since(began) > within {
			t.Fatalf("not within %s: %s", within, problem)
		}
		<-tick.C
	}
}

// stays holds what for so long.
func stays(t testing.TB, long time.Duration, what func() string) {
	t.Helper()
	began := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Since(began) < long {
		if problem := what(); problem != "" {
			t.Errorf("after %s: %s", time.Since(began), problem)
			return
		}
		<-tick.C
	}
}

func wantString(got, want string) string {
	if got == want {
		return ""
	}
	return fmt.Sprintf("got %q, want %q", got, want)
}

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }
