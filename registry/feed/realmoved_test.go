package feed

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover/drain"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/sofia"
	"pbxmesh/registry/bindings"
)

// movedMesh is a registry of two nodes: what the Sink of buffalo's feed has, and the
// phones that have registered on london since.
type movedMesh struct {
	*lockedBooks
	mu   sync.Mutex
	away []*pbxmesh.Registration
	mesh *pbxmesh.Mesh
}

func (m *movedMesh) Lookup(aor pbxmesh.AOR) (out []*pbxmesh.Registration) {
	for _, r := range m.regs() {
		if r.AOR == aor {
			out = append(out, &r)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.away {
		if r.AOR == aor {
			out = append(out, r)
		}
	}
	return out
}

func (m *movedMesh) WalkNode(node pbxmesh.NodeID, yield func(*pbxmesh.Registration) bool) {
	for _, r := range m.regs() {
		if r.Node == node && !yield(&r) {
			return
		}
	}
}

func (m *movedMesh) Mesh() *pbxmesh.Mesh {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mesh
}

func (m *movedMesh) PutBack(r pbxmesh.Registration) { m.Put(r) }

// london says how london is.
func (m *movedMesh) london(observed pbxmesh.Observed) {
	mesh := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
	for _, id := range []pbxmesh.NodeID{"buffalo", "london"} {
		mesh.Nodes[id] = pbxmesh.Node{ID: id, Mesh: netip.MustParseAddrPort("192.0.2.2:5090")}
		mesh.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
	}
	mesh.States["london"] = pbxmesh.NodeState{Observed: observed}
	m.mu.Lock()
	m.mesh = mesh
	m.mu.Unlock()
}

// tableOf returns the switch's own table, a line for each row, without what is counted.
func tableOf(t *testing.T, sw *realswitch.Switch) (out []string) {
	t.Helper()
	reply, err := sw.API(t.Context(), "sofia xmlstatus profile internal reg")
	if err != nil {
		t.Fatal(err)
	}
	err = sofia.Rows(reply, "internal", func(r sofia.Row) {
		status, _, _ := strings.Cut(r.Status, "(")
		out = append(out, fmt.Sprintf("%q %q %q %q %s %s:%s %s@%s %s", r.CallID, r.User, r.Contact, strings.Join(strings.Fields(r.Agent), " "), status, r.IP, r.Port, r.AuthUser, r.AuthRealm, r.Mailbox))
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(out)
	return out
}

// TestScenarioOddPhonesMove has dozens of odd phones register on another node, which then
// dies: each one's row leaves the switch and comes back byte for byte, so that the phone's
// next REGISTER finds it. Then the node is emptied, and every row goes.
func TestScenarioOddPhonesMove(t *testing.T) {
	sw := startReal(t, "127.0.91.3")
	f, sink := followReal(t, sw, time.Minute)
	var phones []*rawPhone
	for i, odd := range oddPhones(rand.New(rand.NewPCG(3, 4))) {
		p := rawOver(t, []string{"udp", "tcp"}[i%2], "127.0.93.3", sw.SIP())
		p.user = fmt.Sprint(1001 + i%60)
		if odd(p); strings.Count(p.contact, "&") < 400 && p.register(3600) == 200 { // the switch's list cuts those
			phones = append(phones, p)
		}
	}
	quiet(t, f, len(phones))
	snapshots(t, f, 1)
	before, regs := tableOf(t, sw), sink.regs()

	m := &movedMesh{lockedBooks: sink}
	m.london(pbxmesh.ObservedUp)
	addr, password := sw.EventSocket()
	keeper := bindings.New(bindings.Options{
		ESL: esl.Config{Address: addr, Password: password}, Local: "buffalo", Directory: m, Nodes: m, Sink: m, Restored: f.Refresh,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = keeper.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	aors := map[pbxmesh.AOR]bool{}
	m.mu.Lock()
	for _, r := range regs {
		moved := r
		moved.Node, moved.Since = "london", pbxmesh.StampOf(time.Now().Add(time.Minute))
		m.away, aors[r.AOR] = append(m.away, &moved), true
	}
	m.mu.Unlock()
	for aor := range maps.Keys(aors) {
		keeper.Changed(aor)
	}
	var stats bindings.Stats
	eventually(t, "every phone that moved is dealt with", func() bool {
		stats = keeper.Stats()
		return int(stats.TakenOut+stats.Unsafe) == len(regs)
	})
	left := tableOf(t, sw)
	t.Logf("%d rows of %d registrations: %d taken out (%d put aside), %d cannot be named, %d rows left", len(before), len(regs), stats.TakenOut, stats.Aside, stats.Unsafe, len(left))
	if len(left) != 0 || stats.Unsafe != 0 {
		t.Errorf("%d rows are left, %d were there and %d taken out:\n%s", len(left), len(before), stats.TakenOut, strings.Join(left, "\n"))
	}
	eventually(t, "the registry knows", func() bool { return len(sink.regs()) == 0 })

	m.london(pbxmesh.ObservedDown)
	keeper.NodesChanged()
	eventually(t, "all are back", func() bool { return len(tableOf(t, sw)) == len(before) })
	for i, row := range tableOf(t, sw) {
		if row != before[i] {
			t.Errorf("came back as\n%s, was\n%s", row, before[i])
		}
	}
	for _, p := range phones {
		p.must(3600)
	}
	eventually(t, "each phone has found its own row", func() bool { return slices.Equal(tableOf(t, sw), before) })

	// The same phones on a node that is emptied: no command may miss one.
	drainer := drain.New(drain.Options{
		Node: "buffalo", ESL: esl.Config{Address: addr, Password: password}, Directory: m,
		Settings:   drain.Settings{Method: drain.MethodFlush, Grace: time.Hour, Again: time.Hour},
		TakesCalls: func(pbxmesh.NodeID) bool { return false }, Pace: func() (int, string) { return 1000, "" },
		OnProgress: func(drain.Progress) {}, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	drainer.Want(1)
	drained := make(chan struct{})
	go func() { defer close(drained); _ = drainer.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-drained })
	eventually(t, "the node is empty", func() bool { return len(tableOf(t, sw)) == 0 })
}
