package socket

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 22, 15, 4, 5, 0, time.UTC)

type directoryFunc func(context.Context, pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error)

func (f directoryFunc) Lookup(ctx context.Context, a pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	return f(ctx, a)
}

type nodesFunc func() *pbxmesh.Mesh

func (f nodesFunc) Mesh() *pbxmesh.Mesh { return f() }

// towns: buffalo is here, london is up, singapore is down.
func towns() *pbxmesh.Mesh {
	m := &pbxmesh.Mesh{At: now, Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
	for i, id := range []pbxmesh.NodeID{"buffalo", "london", "singapore"} {
		m.Nodes[id] = pbxmesh.Node{ID: id, Mesh: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 5090)}
		m.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
	}
	m.States["singapore"] = pbxmesh.NodeState{Observed: pbxmesh.ObservedDown, Reason: "no answer to 3 OPTIONS"}
	return m
}

// users: 1001 is here, 1002 in london, 1003 in both, 1004 in singapore, which is
// down. Whatever else is asked for is not registered.
func users(_ context.Context, a pbxmesh.AOR) ([]*pbxmesh.Registration, time.Duration, error) {
	var nodes []pbxmesh.NodeID
	switch a.User() {
	case "1001":
		nodes = []pbxmesh.NodeID{"buffalo"}
	case "1002":
		nodes = []pbxmesh.NodeID{"london"}
	case "1003":
		nodes = []pbxmesh.NodeID{"london", "buffalo"}
	case "1004":
		nodes = []pbxmesh.NodeID{"singapore"}
	}
	var regs []*pbxmesh.Registration
	for _, n := range nodes {
		regs = append(regs, &pbxmesh.Registration{AOR: a, Node: n, CallID: "x", Contact: "sip:phone", Profile: "internal", Expires: now.Add(time.Hour)})
	}
	return regs, time.Second, nil
}

// start serves a hook; each change edits its options. Shutdown is checked at the
// end of the test.
func start(t testing.TB, changes ...func(*Options)) (h *Hook, addr string) {
	t.Helper()
	o := Options{
		Directory: directoryFunc(users), Nodes: nodesFunc(towns), Local: "buffalo", Now: func() time.Time { return now },
		// Ordinary tests must not depend on how busy the machine is.
		Budget: 30 * time.Second, ConnectTimeout: 10 * time.Second, DecisionTimeout: 10 * time.Second,
	}
	for _, c := range changes {
		c(&o)
	}
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- h.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := h.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if s := h.Stats(); s.Active != 0 || s.Lookups != 0 {
			t.Errorf("after Shutdown: %+v", s)
		}
	})
	return h, l.Addr().String()
}

// short makes the deadlines short: 500 ms remain for what follows connect.
func short(o *Options) {
	o.Budget, o.ConnectTimeout, o.DecisionTimeout = 2*time.Second, 1500*time.Millisecond, 100*time.Millisecond
}

func dialling(number string, changes ...func(*fakeCall)) *fakeCall {
	f := &fakeCall{header: map[string]string{"Caller-Destination-Number": number}, change: map[string]string{}}
	for _, c := range changes {
		c(f)
	}
	return f
}

func with(header, value string) func(*fakeCall) {
	return func(f *fakeCall) { f.header[header] = value }
}

func events(names ...string) func(*fakeCall) {
	return func(f *fakeCall) { f.afterBridge = names }
}

func changed(header, value string) func(*fakeCall) {
	return func(f *fakeCall) { f.change[header] = value }
}

// What the hook may say, in the words of the wire.
const (
	wireConnect = "connect\n\n"
	wireEvents  = "myevents\n\n"

	// wireAway is what a channel is told that was never routed, however the
	// connection ends: without it it would stay parked for ever.
	wireAway = wireConnect + "resume\n\n"
)

func wireSet(result, cause string, more ...string) string {
	s := "api uuid_setvar_multi " + testUUID + " pbxmesh_result=" + result + ";pbxmesh_cause=" + cause
	for _, m := range more {
		s += ";" + m
	}
	return s + "\n\n"
}

// wireBack is how a call that was not bridged goes back.
func wireBack(result, cause string) string { return wireSet(result, cause) + "resume\n\n" }

func wireBridge(arg string) string {
	return "sendmsg\ncall-command: execute\nexecute-app-name: bridge\nexecute-app-arg: " + arg + "\n\n"
}

// idle waits until the hook holds no call: counters are final then.
func idle(t testing.TB, h *Hook) {
	t.Helper()
	eventually(t, "the hook to be idle", func() bool { return h.Stats().Active == 0 })
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-limit:
			t.Fatalf("waited 20 s for %s", what)
		case <-tick.C:
		}
	}
}
