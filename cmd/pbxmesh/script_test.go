package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"pbxmesh"
	"pbxmesh/internal/control"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"pbxmesh": main})
}

// The transcripts in testdata/script are what a user sees. They run against a
// control server with fixed answers, at $API (open) and $TOKEN_API (with token);
// at $DEAD_API nothing listens.
func TestScripts(t *testing.T) {
	t.Parallel()
	open := httptest.NewServer(control.NewHandler(fakeDaemon(), ""))
	t.Cleanup(open.Close)
	closed := httptest.NewServer(control.NewHandler(fakeDaemon(), "s3cret"))
	t.Cleanup(closed.Close)
	away := httptest.NewServer(control.NewHandler(control.Backend{}, ""))
	t.Cleanup(away.Close)
	stranger := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(stranger.Close)
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "returns": returns},
		Setup: func(env *testscript.Env) error {
			endAtOnce(env)
			env.Setenv("API", open.Listener.Addr().String())
			env.Setenv("TOKEN_API", closed.Listener.Addr().String())
			env.Setenv("BARE_API", away.Listener.Addr().String())
			env.Setenv("STRANGER_API", stranger.Listener.Addr().String())
			env.Setenv("DEAD_API", deadAddress(t))
			return nil
		},
	})
}

// endAtOnce keeps a program under the race detector from waiting a second before it
// ends, which it does for races of what still runs then. Every race seen before counts.
func endAtOnce(env *testscript.Env) {
	env.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
}

// exits runs a command line and wants exactly the given exit code:
// exits 1 pbxmesh lookup ...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits code command [args...]")
	}
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit interface{ ExitCode() int }
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		code = exit.ExitCode()
	}
	if got := fmt.Sprint(code); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// returns is exits without a process, for what needs no folder and no variables of its
// own: the command line runs here. Under the race detector a process costs 0.12 s.
func returns(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || args[1] != "pbxmesh" {
		ts.Fatalf("usage: returns code pbxmesh [args...]")
	}
	code := run(context.Background(), args[2:], ts.Stdout(), ts.Stderr())
	if got := fmt.Sprint(code); got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// deadAddress is a port that was free a moment ago. Nothing else on a test machine
// takes a port of 127.0.0.9.
func deadAddress(t *testing.T) string {
	t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.9:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func fakeDaemon() control.Backend {
	lease, calls, limit, up, down := control.Seconds(0.8), 3, 1000, true, false
	nodes := []control.Node{{
		ID: "buffalo", Local: true, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")},
		Mesh: netip.MustParseAddrPort("192.0.2.10:5090"), Ports: pbxmesh.SIPPorts{UDP: 5060},
		Observed: "up", Wanted: "in service", Effective: "up", LeaseAge: &lease,
		Sessions: &calls, MaxSessions: &limit, Registrations: 12, SwitchConnected: &up,
		Shed: 300, ShedReason: "loaded", Votes: control.Votes{Counted: 2, Answers: 2, Observers: []control.Vote{}},
	}, {
		ID: "london", Mesh: netip.MustParseAddrPort("192.0.2.20:5090"),
		Observed: "down", Wanted: "draining", Effective: "down", Reason: "no answer to 3 OPTIONS", SwitchConnected: &down,
		WantedBy: "alice@ops", WantedReason: "new kernel", Drain: &control.Drain{Registrations: 3, Calls: 2},
		Shed: 1000, ShedReason: "it is down", Votes: control.Votes{Counted: 4, Needed: 5, Silent: 3, Answers: 1, Observers: []control.Vote{
			{Observer: "buffalo", Site: "buffalo", Beside: "buffalo", Phones: "silent", For: 2.3},
			{Observer: "london", Site: "london", Beside: "london", Phones: "silent", For: 2.5, Age: 0.3, Switch: "dead"},
			{Observer: "losangeles", Site: "losangeles", Phones: "none", For: 9, Age: 0.4, CutOff: true},
			{Observer: "singapore", Site: "singapore", Beside: "singapore", Phones: "answers", Mesh: "silent", For: 61, Age: 1.1},
		}},
	}}
	return control.Backend{
		Lookup: func(_ context.Context, aor pbxmesh.AOR) (*control.LookupReply, error) {
			reply := &control.LookupReply{AOR: aor, DataAge: 0.4, Source: "replica"}
			switch aor.User() {
			case "1002":
				reply.Registrations = []control.Registration{{
					Node: "london", NodeState: "up", Profile: "internal", Contact: "sip:1002@198.51.100.7:5062", Transport: "udp",
					Source: netip.MustParseAddrPort("198.51.100.7:5062"), UserAgent: "Phone 1.0\x1b[31m", CallID: "c1",
					Expires: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), ExpiresIn: 3541,
				}, {
					Node: "singapore", NodeState: "draining", Profile: "internal", Contact: "sip:1002@203.0.113.9;transport=tls",
					CallID: "c2", Expires: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), ExpiresIn: 4.26,
				}}
			case "away":
				return nil, fmt.Errorf("the replica was never filled: %w", pbxmesh.ErrUnavailable)
			}
			return reply, nil
		},
		List:    listPage,
		ListAll: listAll,
		Nodes: func(context.Context) (*control.NodesReply, error) {
			nodes := append([]control.Node(nil), nodes...)
			for i := range nodes {
				nodes[i].Since = time.Now().Add(-125 * time.Minute)
				if nodes[i].Wanted != "in service" {
					since := time.Now().Add(-5 * time.Minute)
					nodes[i].WantedSince = &since
				}
			}
			return &control.NodesReply{Nodes: nodes, DataAge: 0.4, Observer: "buffalo"}, nil
		},
		DNSExplain: fakeDNSExplain,
		Explain: func(_ context.Context, aor pbxmesh.AOR, fromMesh bool) (*control.ExplainReply, error) {
			reply := &control.ExplainReply{AOR: aor, Node: "buffalo", FromMesh: fromMesh, Result: "not-registered", DataAge: 0.4}
			if fromMesh {
				reply.Reasons = []control.Reason{{Node: "london", Text: "the call came over the mesh, it rings local devices only"}}
				return reply, nil
			}
			reply.Result = "routed"
			reply.Bridge = "sofia/internal/1002@pbx.test,sofia/mesh/sip:1002@pbx.test;fs_path=sip%3A192.0.2.20%3A5090"
			reply.Groups = [][]control.Target{
				{
					{Node: "buffalo", Local: true, Profile: "internal", Devices: 2},
					{Node: "london", Address: netip.MustParseAddrPort("192.0.2.20:5090"), Devices: 1},
				},
				{{Node: "singapore", Address: netip.MustParseAddrPort("192.0.2.30:5090"), Devices: 1}},
			}
			reply.Reasons = []control.Reason{
				{Node: "buffalo", Text: "registered on this switch"},
				{Node: "london", Text: "the node is up"},
				{Text: "one registration has expired"},
			}
			return reply, nil
		},
		Want: func(_ context.Context, r control.WantedRequest) (*control.WantedReply, error) {
			words := map[string]string{control.StateInService: "in service", control.StateDraining: "draining", control.StateOut: "out"}
			reply := &control.WantedReply{Node: r.Node, Wanted: words[r.State], Was: "in service", Since: time.Date(2026, 11, 26, 22, 0, 0, 0, time.UTC), By: r.By, Reason: r.Reason, Shared: true}
			switch {
			case r.Node == "tokyo":
				return nil, fmt.Errorf("%w: no node is called tokyo; `pbxmesh nodes` lists them", control.ErrRefused)
			case r.Node == "full" && !r.Force:
				return nil, fmt.Errorf("%w: full holds 500 registrations, and the others have room for 20 (node.capacity); --force does it all the same", control.ErrRefused)
			case r.Node == "full":
				reply.Warnings = []string{"full holds 500 registrations, and the others have room for 20 (node.capacity)"}
			case r.Node == "lisbon":
				reply.Was = reply.Wanted
			case r.State == control.StateInService:
				reply.Was = "draining"
			}
			return reply, nil
		},
		Drain:   fakeDrain(),
		Version: control.VersionReply{Version: "v1.2.3", Commit: "0123456789ab", Go: "go1.26", Observer: "buffalo"},
	}
}

// fakeDrain answers for london, which gets empty, for paris, which does not, for rome,
// which somebody takes back, and for oslo, which is down.
func fakeDrain() func(context.Context, pbxmesh.NodeID) (*control.DrainReply, error) {
	var asked atomic.Int32
	return func(_ context.Context, node pbxmesh.NodeID) (*control.DrainReply, error) {
		left := 41
		r := &control.DrainReply{Node: node, Wanted: "draining", Effective: "draining", Registrations: 412, Drain: &control.Drain{
			Method: "check-sync", Registrations: 412, InCall: 3, Calls: 31, Total: 1000, Moved: 580, Told: 600, Returned: 8, Pace: 20, LeftSeconds: &left,
		}}
		switch node {
		case "london":
			if asked.Add(1)%2 == 0 {
				zero := 0
				r.Empty, r.Registrations = true, 0
				*r.Drain = control.Drain{Method: "check-sync", Total: 1000, Moved: 1000, Told: 1000, Pace: 20, LeftSeconds: &zero}
			}
		case "paris":
			r.Drain, r.Notice = nil, "the daemon of paris is silent: its phones leave by themselves, and its calls cannot be counted"
		case "rome":
			r.Wanted, r.WantedBy = "in service", "bob"
		case "oslo":
			r.Drain, r.Empty, r.Notice, r.Registrations = nil, true, "oslo is down: no answer to 3 OPTIONS", 2
		}
		return r, nil
	}
}

// Whatever the command line, run returns and no test process ends.
func TestRunReturnsCodes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		want int
		args []string
	}{
		{exitOK, []string{"version"}},
		{exitUsage, []string{"nothing"}},
		{exitUsage, []string{"lookup"}},
		{exitUsage, []string{"serve"}},
		{exitUnreachable, []string{"nodes", "--api", deadAddress(t)}},
	} {
		if got := run(t.Context(), tc.args, devNull{}, devNull{}); got != tc.want {
			t.Errorf("pbxmesh %v gives %d, want %d", tc.args, got, tc.want)
		}
	}
}

type devNull struct{}

func (devNull) Write(p []byte) (int, error) { return len(p), nil }
