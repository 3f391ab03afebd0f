package failover_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

const (
	buffalo   = pbxmesh.NodeID("buffalo")
	london    = pbxmesh.NodeID("london")
	singapore = pbxmesh.NodeID("singapore")
)

var start = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func member(id pbxmesh.NodeID, last byte) pbxmesh.Node {
	return pbxmesh.Node{
		ID:        id,
		Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, last})},
		Ports:     pbxmesh.SIPPorts{UDP: 5060},
		Mesh:      netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, last}), 5090),
	}
}

// world drives a tracker in steps of 100 ms.
type world struct {
	t           *testing.T
	tr          *failover.Tracker
	now         time.Time
	transitions []failover.Transition
	log         bytes.Buffer
}

func newWorld(t *testing.T, o failover.Options, ids ...pbxmesh.NodeID) *world {
	t.Helper()
	w := &world{t: t, now: start}
	o.OnTransition = func(tr failover.Transition) {
		if got := w.tr.Mesh().State(tr.Node); got != tr.New {
			t.Errorf("during the transition of %s the picture shows %+v, want %+v", tr.Node, got, tr.New)
		}
		w.transitions = append(w.transitions, tr)
	}
	o.Logger = slog.New(slog.NewTextHandler(&w.log, nil))
	tr, err := failover.New(o)
	if err != nil {
		t.Fatal(err)
	}
	w.tr = tr
	var nodes []pbxmesh.Node
	for i, id := range ids {
		nodes = append(nodes, member(id, byte(i+1)))
	}
	tr.SetMembers(w.tick(), nodes)
	return w
}

func (w *world) tick() time.Time {
	w.now = w.now.Add(100 * time.Millisecond)
	return w.now
}

// pass lets d pass for an observer that nothing new reaches, and that is not stopped.
func (w *world) pass(d time.Duration) {
	for end := w.now.Add(d); w.now.Before(end); {
		w.now = w.now.Add(min(time.Second, end.Sub(w.now)))
		w.tr.Leases(w.now, nil)
	}
}

func (w *world) probe(id pbxmesh.NodeID, o failover.Outcome) {
	w.tr.Probe(failover.ProbeResult{Node: id, Outcome: o, At: w.tick()})
}

func (w *world) mesh(id pbxmesh.NodeID, o failover.Outcome) {
	w.tr.Probe(failover.ProbeResult{Node: id, Path: failover.PathMesh, Outcome: o, At: w.tick()})
}

func (w *world) lease(id pbxmesh.NodeID, s failover.LeaseStatus, sw failover.SwitchWord, link bool) {
	w.tr.Lease(failover.LeaseReport{Node: id, Status: s, Switch: sw, LinkOK: link, At: w.tick()})
}

// run reads a script: "b+" buffalo answers, "b-" is silent, "b!" refused, "b5"
// overloaded, "b?" this observer was late; "bm-" and "bm+" its mesh address; "bF" fresh lease with the switch
// alive, "bD" fresh and dead, "bX" expired, "bx" expired over a bad link, "bd" dead
// over a bad link.
func (w *world) run(script string) {
	w.t.Helper()
	ids := map[byte]pbxmesh.NodeID{'b': buffalo, 'l': london, 's': singapore}
	for word := range strings.FieldsSeq(script) {
		id := ids[word[0]]
		switch word[1:] {
		case "+":
			w.probe(id, failover.OutcomeOK)
		case "-":
			w.probe(id, failover.OutcomeTimeout)
		case "!":
			w.probe(id, failover.OutcomeRefused)
		case "5":
			w.probe(id, failover.OutcomeOverloaded)
		case "?":
			w.probe(id, failover.OutcomeLate)
		case "m-":
			w.mesh(id, failover.OutcomeTimeout)
		case "m+":
			w.mesh(id, failover.OutcomeOK)
		case "F":
			w.lease(id, failover.LeaseFresh, failover.SwitchAlive, true)
		case "D":
			w.lease(id, failover.LeaseFresh, failover.SwitchDead, true)
		case "X":
			w.lease(id, failover.LeaseExpired, failover.SwitchAlive, true)
		case "x":
			w.lease(id, failover.LeaseExpired, failover.SwitchAlive, false)
		case "d":
			w.lease(id, failover.LeaseFresh, failover.SwitchDead, false)
		default:
			w.t.Fatalf("script word %q", word)
		}
	}
}

func (w *world) observed(id pbxmesh.NodeID) pbxmesh.Observed { return w.tr.Mesh().State(id).Observed }

const (
	unknown = pbxmesh.ObservedUnknown
	up      = pbxmesh.ObservedUp
	suspect = pbxmesh.ObservedSuspect
	down    = pbxmesh.ObservedDown
)

// TestEdges walks every edge of the state chart in judge.go for london, and the
// loops that must not leave a state.
func TestEdges(t *testing.T) {
	t.Parallel()
	all := []pbxmesh.NodeID{buffalo, london, singapore}
	for _, tt := range []struct {
		name   string
		opts   failover.Options
		ids    []pbxmesh.NodeID
		before string // brings the node to from
		from   pbxmesh.Observed
		input  string
		to     pbxmesh.Observed
		reason string
	}{
		{name: "unknown stays without input", from: unknown, to: unknown, reason: "not yet probed"},
		{name: "unknown to up by the first answer", from: unknown, input: "l+", to: up, reason: "answers"},
		{name: "unknown to suspect by silence", before: "b+", from: unknown, input: "l-", to: suspect, reason: "no answer to 1"},
		{name: "unknown to suspect by lease", from: unknown, input: "lX", to: suspect, reason: "lease has run out"},
		{name: "unknown to down by the daemon's word", from: unknown, input: "lD", to: down, reason: "own daemon"},
		{name: "unknown to suspect by 503", from: unknown, input: "l5", to: suspect, reason: "503"},
		{name: "unknown stays with a fresh lease", from: unknown, input: "lF", to: unknown},

		{name: "up to suspect by a timeout", before: "b+ l+", from: up, input: "l-", to: suspect, reason: "timeout"},
		{name: "up to suspect by a refusal", before: "b+ l+", from: up, input: "l!", to: suspect, reason: "refused"},
		{name: "up to suspect by 503", before: "b+ l+", from: up, input: "l5", to: suspect, reason: "503"},
		{name: "up to suspect by lease", before: "l+ lF", from: up, input: "lX", to: suspect, reason: "its switch answers"},
		{name: "up stays when the lease is lost by a bad link", before: "l+ lF", from: up, input: "lx", to: up},
		{name: "up to suspect by a silent mesh address", before: "b+ l+", from: up, input: "lm- lm- l+ lm-", to: suspect, reason: "mesh address"},
		{name: "up stays with two silences on the mesh address", before: "b+ l+", from: up, input: "lm- lm-", to: up},
		{name: "up to down by the daemon's word", before: "b+ l+", from: up, input: "lD l-", to: down, reason: "own daemon"},
		{name: "up to suspect by the daemon's word that SIP contradicts", before: "b+ l+", from: up, input: "lD l+ l+", to: suspect, reason: "event socket"},
		{name: "suspect to up when the event socket answers again", before: "b+ l+ lD", from: suspect, input: "lF", to: up},
		{name: "up stays with the word of a bad link", before: "l+", from: up, input: "ld", to: up},
		{name: "up stays below the first threshold", opts: failover.Options{SuspectAfter: 2}, before: "b+ l+", from: up, input: "l-", to: up},
		{name: "up to suspect at the first threshold", opts: failover.Options{SuspectAfter: 2}, before: "b+ l+", from: up, input: "l- l-", to: suspect, reason: "no answer to 2"},
		{name: "up stays when an answer interrupts", opts: failover.Options{SuspectAfter: 2}, before: "b+ l+", from: up, input: "l- l+ l-", to: up},

		{name: "suspect to up by one answer", before: "b+ l+ l-", from: suspect, input: "l+", to: up},
		{name: "suspect to up when the lease is back", before: "l+ lX", from: suspect, input: "lF", to: up},
		{name: "suspect to up when the mesh address is back", before: "b+ l+ lm- lm- l+ lm-", from: suspect, input: "lm+", to: up},
		{name: "suspect to up after 503", before: "l+ l5", from: suspect, input: "l+", to: up},
		{name: "suspect stays below the second threshold", before: "b+ l+ l-", from: suspect, input: "b+ l-", to: suspect},
		{name: "suspect stays with 503 for ever", before: "b+ l+ l5", from: suspect, input: "l5 l5 l5 l5 l5", to: suspect, reason: "503"},
		{name: "503 interrupts a silence", before: "b+ l+ l- l-", from: suspect, input: "l5 b+ l- l-", to: suspect},
		{name: "suspect to down at the second threshold", before: "b+ l+ l- l-", from: suspect, input: "b+ l-", to: down, reason: "while other nodes answer"},
		{name: "a fresh lease does not save a silent switch", before: "b+ l+ lF l- l-", from: suspect, input: "b+ l-", to: down, reason: "while other nodes answer"},
		{name: "a witness that answered before the silence is none", before: "b+ l+ l-", from: suspect, input: "l- l- l-", to: suspect, reason: "nothing shows"},
		{name: "that witness answers late", before: "b+ l+ l- l- l- l-", from: suspect, input: "b+", to: down, reason: "while other nodes answer"},
		{name: "503 of another is a witness", before: "b+ l+ l- l-", from: suspect, input: "b5 l-", to: down, reason: "while other nodes answer"},
		{name: "down by lease and silence without a witness", before: "b+ l+ l- l- l-", from: suspect, input: "lX", to: down, reason: "its lease has run out"},
		{name: "a lease lost over a bad link is no witness", before: "b+ l+ l- l- l-", from: suspect, input: "lx", to: suspect},
		{name: "suspect to down by the daemon's word", before: "b+ l+ l-", from: suspect, input: "lD", to: down, reason: "own daemon"},

		{name: "the only node is down by silence", ids: []pbxmesh.NodeID{london}, before: "l+ l- l-", from: suspect, input: "l-", to: down, reason: "the only node"},
		{name: "one of two is down by lease and silence", opts: failover.Options{Self: buffalo}, ids: all[:2], before: "b+ l+ l- b+ l- l-", from: suspect, input: "lX", to: down},
		{name: "one of two is suspect without a witness: the own switch is none", opts: failover.Options{Self: buffalo}, ids: all[:2], before: "b+ l+ l-", from: suspect, input: "b+ l- b+ l- b+ l-", to: suspect, reason: "nothing shows"},
		{name: "the own switch needs no witness", opts: failover.Options{Self: london}, before: "b+ l+ l- l-", from: suspect, input: "l-", to: down, reason: "switch of this node"},
		{name: "the own switch goes down while cut off", opts: failover.Options{Self: london}, before: "b- s- l+ l- l-", from: suspect, input: "l-", to: down, reason: "switch of this node"},

		{name: "down stays below the streak", before: "l+ lD l- lF", from: down, input: "l+ l+", to: down},
		{name: "down to up by a streak", before: "l+ lD l- lF", from: down, input: "l+ l+ l+", to: up, reason: "3 OPTIONS in a row"},
		{name: "silence starts the streak again", before: "l+ lD l- lF", from: down, input: "l+ l+ l- l+ l+", to: down},
		{name: "503 starts the streak again", before: "l+ lD l- lF", from: down, input: "l+ l+ l5 l+ l+", to: down},
		{name: "down stays with two 503", before: "l+ lD l- lF", from: down, input: "l5 l5", to: down},
		{name: "down to suspect by a streak of 503", before: "l+ lD l- lF", from: down, input: "l5 l5 l5", to: suspect, reason: "503"},
		{name: "down to suspect by a streak while the daemon says dead", before: "l+ lD l-", from: down, input: "l+ l+ l+", to: suspect, reason: "event socket"},
		{name: "answers from before the daemon's word do not count", before: "l+ l+ l+ l- lD", from: down, input: "l+ l+", to: down},
		{name: "the word of a daemon that died does not count", before: "l+ lD l-", from: down, input: "lX l+ l+ l+", to: up},
		{name: "the word over a link that broke does not count", before: "l+ lD l-", from: down, input: "ld l+ l+ l+", to: up},
		{name: "streak of one", opts: failover.Options{UpAfter: 1}, before: "l+ lD l- lF", from: down, input: "l+", to: up},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ids := tt.ids
			if ids == nil {
				ids = all
			}
			w := newWorld(t, tt.opts, ids...)
			w.run(tt.before)
			if got := w.observed(london); got != tt.from {
				t.Fatalf("before: %v (%s), want %v", got, w.tr.Mesh().State(london).Reason, tt.from)
			}
			seen := len(w.transitions)
			w.run(tt.input)
			state := w.tr.Mesh().State(london)
			if state.Observed != tt.to || !strings.Contains(state.Reason, tt.reason) {
				t.Fatalf("after %q: %v because %q, want %v because %q", tt.input, state.Observed, state.Reason, tt.to, tt.reason)
			}
			if tt.from != tt.to {
				last := w.transitions[len(w.transitions)-1]
				if len(w.transitions) == seen || last.Node != london || last.New.Observed != tt.to || !last.At.Equal(state.Since) {
					t.Fatalf("transition %+v, want one of london to %v", last, tt.to)
				}
			}
		})
	}
}

func TestCutOffObserverChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{}, buffalo, london, singapore)
	w.run("b+ l+ s+ sF lF bF")
	w.run("s- b+ l+ s- b+ l+ s-") // singapore dies by itself
	if w.observed(singapore) != down {
		t.Fatalf("singapore is %v, want down", w.observed(singapore))
	}
	for range 10 { // now our own network is gone, registry included
		w.run("b- l- s- bx lx sx")
	}
	want := map[pbxmesh.NodeID]pbxmesh.Observed{buffalo: up, london: up, singapore: down}
	for id, o := range want {
		if got := w.tr.Mesh().State(id); got.Observed != o {
			t.Errorf("cut off: %s is %v (%s), want %v", id, got.Observed, got.Reason, o)
		}
	}
	if r := w.tr.Mesh().State(london).Reason; !strings.Contains(r, "cut off") {
		t.Errorf("the reason does not say so: %q", r)
	}
	if _, cut := w.tr.Details(); !cut {
		t.Error("Details does not say so")
	}
	mesh := w.tr.Mesh()
	w.run("b- l- s-")
	if w.tr.Mesh() != mesh {
		t.Error("the picture is published again though nothing changed")
	}

	// One answer ends it. What was lost meanwhile must not count.
	w.run("b+ l- b+")
	if got := w.observed(london); got != suspect {
		t.Errorf("after the first answer london is %v, want suspect", got)
	}
	w.run("l- b+ l-")
	if got := w.observed(london); got != down {
		t.Errorf("after three new silences london is %v, want down", got)
	}
	if n := strings.Count(w.log.String(), "observer's own link"); n != 2 {
		t.Errorf("%d log lines about our own link, want 2", n)
	}
}

func TestCutOffStillBelievesTheRegistry(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{}, buffalo, london)
	w.run("b+ l+ b- l- b- l- b- l-")
	if w.observed(london) != up {
		t.Fatalf("london is %v, want up", w.observed(london))
	}
	w.run("bF lX") // SIP is filtered on our side, the registry is not
	if w.observed(london) != down || w.observed(buffalo) != up {
		t.Fatalf("london %v, buffalo %v; want down and up", w.observed(london), w.observed(buffalo))
	}
}

func TestWantedIsNeverOverwritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{}, buffalo, london)
	w.tr.SetWanted(w.tick(), london, pbxmesh.WantedDraining)
	w.tr.SetWanted(w.tick(), london, pbxmesh.WantedDraining)
	w.tr.SetWanted(w.tick(), singapore, pbxmesh.WantedOut) // not yet a member
	check := func(id pbxmesh.NodeID, o pbxmesh.Observed, wa pbxmesh.Wanted, e pbxmesh.Effective) {
		t.Helper()
		s := w.tr.Mesh().State(id)
		if s.Observed != o || s.Wanted != wa || s.Effective() != e {
			t.Errorf("%s: %v, %v, %v; want %v, %v, %v", id, s.Observed, s.Wanted, s.Effective(), o, wa, e)
		}
	}
	w.run("b+ l+")
	check(london, up, pbxmesh.WantedDraining, pbxmesh.EffectiveDraining)
	w.run("l- b+ l- b+ l-")
	check(london, down, pbxmesh.WantedDraining, pbxmesh.EffectiveDown)
	w.run("l+ l+ l+")
	check(london, up, pbxmesh.WantedDraining, pbxmesh.EffectiveDraining)
	w.tr.SetMembers(w.tick(), []pbxmesh.Node{member(london, 2), member(singapore, 3)})
	check(london, up, pbxmesh.WantedDraining, pbxmesh.EffectiveDraining)
	check(singapore, unknown, pbxmesh.WantedOut, pbxmesh.EffectiveOut)
	w.tr.SetWanted(w.tick(), london, pbxmesh.WantedInService)
	check(london, up, pbxmesh.WantedInService, pbxmesh.EffectiveUp)
	var wanted []string
	for _, tr := range w.transitions {
		if tr.Old.Wanted != tr.New.Wanted {
			wanted = append(wanted, fmt.Sprintf("%s %v>%v", tr.Node, tr.Old.Wanted, tr.New.Wanted))
		}
	}
	if got := strings.Join(wanted, ", "); got != "london in service>draining, london draining>in service" {
		t.Errorf("wanted transitions: %s", got)
	}
}

func TestTransitionsAreLoggedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{}, buffalo, london)
	w.run("b+ l+ l- b+ l- b+ l- b+ l- b+ l- b+ l-")
	var got []string
	for _, tr := range w.transitions {
		got = append(got, fmt.Sprintf("%s %v>%v", tr.Node, tr.Old.Observed, tr.New.Observed))
	}
	if s := strings.Join(got, ", "); s != "buffalo unknown>up, london unknown>up, london up>suspect, london suspect>down" {
		t.Errorf("transitions: %s", s)
	}
	if n := strings.Count(w.log.String(), `msg="node state"`); n != 4 {
		t.Errorf("%d log lines, want 4:\n%s", n, w.log.String())
	}
	for _, want := range []string{"old=suspect", "new=down", "effective=down", "was_effective=suspect", "while other nodes answer"} {
		if !strings.Contains(w.log.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, w.log.String())
		}
	}
}

func TestMembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{}, buffalo, london)
	w.run("b+ l+")
	before := w.tr.Mesh()
	w.tr.SetMembers(w.tick(), []pbxmesh.Node{member(buffalo, 1), member(london, 2)})
	if w.tr.Mesh() != before {
		t.Error("the same members publish a new picture")
	}
	moved := member(london, 9)
	w.tr.SetMembers(w.tick(), []pbxmesh.Node{moved})
	now := w.tr.Mesh()
	if len(now.Nodes) != 1 || now.Nodes[london].Addresses[0] != moved.Addresses[0] || now.State(london).Observed != up {
		t.Errorf("after a move: %+v", now)
	}
	if len(before.Nodes) != 2 || before.Nodes[london].Addresses[0] == moved.Addresses[0] {
		t.Error("a published picture was written to")
	}
	moved.Addresses[0] = netip.Addr{} // the caller's array is not ours
	if !w.tr.Mesh().Nodes[london].Addresses[0].IsValid() {
		t.Error("the picture shares the caller's addresses")
	}
	w.probe(buffalo, failover.OutcomeOK) // a straggler of one that left
	w.tr.Probe(failover.ProbeResult{Node: london, Outcome: failover.OutcomeTimeout, At: start})
	if w.tr.Mesh() != now {
		t.Error("a stranger's or an old result changed the picture")
	}
}

func TestNodeWithoutPhonesIsJudgedByItsMeshAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, failover.Options{}, buffalo)
	core := member(london, 2)
	core.Addresses = nil
	w.tr.SetMembers(w.tick(), []pbxmesh.Node{member(buffalo, 1), core})
	w.run("b+ lm+")
	if w.observed(london) != up {
		t.Fatalf("london is %v, want up", w.observed(london))
	}
	w.run("lm- b+ lm- b+ lm-")
	if w.observed(london) != down {
		t.Fatalf("london is %v, want down", w.observed(london))
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		o    failover.Options
		want string
	}{
		{failover.Options{}, ""},
		{failover.Options{SuspectAfter: -1}, "suspect after"},
		{failover.Options{SuspectAfter: 3}, "must be more than"},
		{failover.Options{UpAfter: -2}, "up after"},
	} {
		_, err := failover.New(tt.o)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.o, err, tt.want)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	tr, err := failover.New(failover.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tr.SetMembers(start, []pbxmesh.Node{member(buffalo, 1), member(london, 2)})
	var wg sync.WaitGroup
	for i, id := range []pbxmesh.NodeID{buffalo, london} {
		wg.Go(func() {
			for n := range 500 {
				at := start.Add(time.Duration(n) * time.Second)
				tr.Probe(failover.ProbeResult{Node: id, Outcome: failover.Outcome((n / (i + 2)) % 2), At: at})
				tr.SetWanted(at, id, pbxmesh.Wanted(n%3))
				if m := tr.Mesh(); len(m.Nodes) != 2 || len(m.States) != 2 {
					t.Errorf("picture with %d nodes, %d states", len(m.Nodes), len(m.States))
				}
			}
		})
	}
	wg.Wait()
}
