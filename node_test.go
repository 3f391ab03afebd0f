package pbxmesh

import (
	"errors"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestParseNodeID(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]NodeID{
		"buffalo": "buffalo", "Buffalo": "buffalo", "ny-1": "ny-1", "1": "1", strings.Repeat("a", 63): NodeID(strings.Repeat("a", 63)),
	} {
		if got, err := ParseNodeID(in); err != nil || got != want {
			t.Errorf("%q: got %q, %v", in, got, err)
		}
	}
	for _, in := range append([]string{"-a", "a-", "-", "a.b", "a_b", "{a}", "a:b", strings.Repeat("a", 64)}, hostileParts...) {
		if got, err := ParseNodeID(in); !errors.Is(err, ErrInvalidNodeID) || got != "" {
			t.Errorf("%.40q: got %q, %v", in, got, err)
		}
	}
}

// TestEffective walks all twelve combinations of observed and wanted.
func TestEffective(t *testing.T) {
	t.Parallel()
	tests := []struct {
		observed      Observed
		wanted        Wanted
		want          Effective
		calls, phones bool
	}{
		{ObservedUnknown, WantedInService, EffectiveSuspect, true, true},
		{ObservedUp, WantedInService, EffectiveUp, true, true},
		{ObservedSuspect, WantedInService, EffectiveSuspect, true, true},
		{ObservedDown, WantedInService, EffectiveDown, false, false},
		{ObservedUnknown, WantedDraining, EffectiveDraining, true, false},
		{ObservedUp, WantedDraining, EffectiveDraining, true, false},
		{ObservedSuspect, WantedDraining, EffectiveDraining, true, false},
		{ObservedDown, WantedDraining, EffectiveDown, false, false},
		{ObservedUnknown, WantedOut, EffectiveOut, false, false},
		{ObservedUp, WantedOut, EffectiveOut, false, false},
		{ObservedSuspect, WantedOut, EffectiveOut, false, false},
		{ObservedDown, WantedOut, EffectiveOut, false, false},
	}
	for _, tt := range tests {
		got := NodeState{Observed: tt.observed, Wanted: tt.wanted}.Effective()
		if got != tt.want || got.TakesCalls() != tt.calls || got.TakesPhones() != tt.phones {
			t.Errorf("%s, %s: got %s, calls %v, phones %v", tt.observed, tt.wanted, got, got.TakesCalls(), got.TakesPhones())
		}
	}
	if got := (NodeState{}).Effective(); got != EffectiveSuspect {
		t.Errorf("a node nobody has looked at is %s", got)
	}
}

// TestTakesCalls: what this node's own probes know of a mesh address goes before what all see.
func TestTakesCalls(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		state NodeState
		want  bool
	}{
		{NodeState{}, true},
		{NodeState{Observed: ObservedDown}, false},
		{NodeState{Observed: ObservedDown, Mesh: MeshAnswers}, true},
		{NodeState{Observed: ObservedDown, Mesh: MeshSilent}, false},
		{NodeState{Observed: ObservedUp, Mesh: MeshSilent}, false},
		{NodeState{Observed: ObservedUp, Wanted: WantedDraining, Mesh: MeshAnswers}, true},
		{NodeState{Observed: ObservedUp, Wanted: WantedDraining, Mesh: MeshSilent}, false},
		{NodeState{Observed: ObservedUp, Wanted: WantedOut, Mesh: MeshAnswers}, false},
	} {
		if got := tt.state.TakesCalls(); got != tt.want {
			t.Errorf("%+v (%s): %v", tt.state, tt.state.Mesh, got)
		}
	}
}

func TestStateWords(t *testing.T) {
	t.Parallel()
	got := []string{
		ObservedUnknown.String(), ObservedUp.String(), ObservedSuspect.String(), ObservedDown.String(), Observed(99).String(),
		WantedInService.String(), WantedDraining.String(), WantedOut.String(),
		EffectiveUp.String(), EffectiveSuspect.String(), EffectiveDraining.String(), EffectiveDown.String(), EffectiveOut.String(),
		MeshUnknown.String(), MeshAnswers.String(), MeshSilent.String(),
	}
	const want = "unknown up suspect down unknown|in service|draining out up suspect draining down out unknown answers silent"
	if s := strings.Join(got, " "); s != strings.ReplaceAll(want, "|", " ") {
		t.Errorf("got %s", s)
	}
}

func TestMesh(t *testing.T) {
	t.Parallel()
	var none *Mesh
	if _, ok := none.Node("buffalo"); ok || none.State("buffalo") != (NodeState{}) {
		t.Error("a nil mesh knows a node")
	}
	at := netip.MustParseAddrPort("192.0.2.1:5090")
	m := &Mesh{Nodes: map[NodeID]Node{"buffalo": {ID: "buffalo", Mesh: at}}, States: map[NodeID]NodeState{"buffalo": {Observed: ObservedUp, Since: time.Unix(1, 0)}}}
	if n, ok := m.Node("buffalo"); !ok || n.Mesh != at || m.State("buffalo").Observed != ObservedUp {
		t.Errorf("got %+v, %v", n, ok)
	}
	if _, ok := m.Node("london"); ok || m.State("london") != (NodeState{}) {
		t.Error("a stranger is known")
	}
}

// FuzzParseNodeID: what is accepted is a lower-case DNS label and a fixed point.
func FuzzParseNodeID(f *testing.F) {
	label := regexp.MustCompile(`\A[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\z`)
	f.Add("buffalo")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseNodeID(s)
		if err != nil {
			if id != "" || !errors.Is(err, ErrInvalidNodeID) || len(err.Error()) > 400 {
				t.Fatalf("%q: %q, %q", s, id, err)
			}
			return
		}
		if !label.MatchString(string(id)) || !strings.EqualFold(string(id), s) || len(id) != len(s) {
			t.Fatalf("%q: accepted as %q", s, id)
		}
		if again, err := ParseNodeID(string(id)); err != nil || again != id {
			t.Fatalf("%q read again: %q, %v", id, again, err)
		}
	})
}
