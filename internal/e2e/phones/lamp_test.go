package phones_test

import (
	"slices"
	"strings"
	"testing"

	"pbxmesh/fixtures/softphone"
)

// TestScenarioLampOfAPhone has a baresip watch a Linphone (RFC 3856) that is on its own node or
// on another: it is told the same of a call, ringing, answered and ended. (What it is told before
// the first call is not the same: a switch takes phones of other nodes for unregistered.)
func TestScenarioLampOfAPhone(t *testing.T) {
	if realBinary() == "" {
		t.Skip("SKIPPED, NOT TESTED: simulated switches tell baresip nothing")
	}
	m := newMesh(t, options{net: 151, nodes: 3, plan: matrixPlan})
	got := map[string][]string{}
	for _, at := range []string{"buffalo", "london", "singapore"} { // the watcher
		callee := m.registered(t, "buffalo", softphone.Config{Kind: softphone.Linphone})
		caller := m.registered(t, "singapore", softphone.Config{Kind: softphone.Baresip})
		watcher := m.registered(t, at, softphone.Config{Kind: softphone.Baresip, Watch: []string{callee.User()}})
		must(t, watcher.Wait(bounded(t), "its subscription", func(t softphone.Trace) bool { return len(lamp(t)) > 0 }))
		shows := func(what string, like func(string) bool) {
			t.Helper()
			must(t, watcher.Wait(bounded(t), what, func(t softphone.Trace) bool {
				l := lamp(t)
				return len(l) > 0 && like(l[len(l)-1])
			}))
		}
		must(t, caller.Call(callee.User()))
		_, err := callee.WaitRinging(bounded(t), 1)
		must(t, err)
		shows("the lamp of a phone that rings", busy)
		must(t, callee.Answer())
		for _, p := range []*softphone.Phone{caller, callee} {
			_, err := p.WaitAnswered(bounded(t))
			must(t, err)
		}
		shows("the lamp of a phone that talks", func(s string) bool { return strings.Contains(s, "Talk") })
		must(t, caller.HangupAll(bounded(t)))
		shows("the lamp of a phone that is free again", func(s string) bool { return !busy(s) })
		states := lamp(watcher.Trace())
		for _, s := range states[slices.IndexFunc(states, busy):] {
			got[at] = append(got[at], strings.ReplaceAll(s, caller.User(), "the caller"))
		}
		t.Logf("watched from %s: %q", at, got[at])
		for _, p := range []*softphone.Phone{watcher, caller, callee} {
			must(t, p.Close())
		}
	}
	for _, at := range []string{"london", "singapore"} {
		if !slices.Equal(got[at], got["buffalo"]) {
			t.Errorf("watched from %s: %q, on its own node %q", at, got[at], got["buffalo"])
		}
	}
}

// busy reports whether a state is one of a call.
func busy(state string) bool { return strings.Contains(state, "on-the-phone") }

// lamp returns the states that a watcher was told, one after another and none twice in turn.
func lamp(trace softphone.Trace) (states []string) {
	for _, m := range trace {
		if m.Sent || m.Method() != "NOTIFY" || m.Status() != 0 || !strings.Contains(m.Body, "<presence") {
			continue
		}
		state := "open"
		if strings.Contains(m.Body, "closed") {
			state = "closed"
		}
		for _, word := range []string{"on-the-phone", "away", "busy"} {
			if strings.Contains(m.Body, "rpid:"+word) {
				state += " " + word
			}
		}
		if _, note, ok := strings.Cut(m.Body, "note>"); ok {
			note, _, _ = strings.Cut(note, "<")
			state += ": " + note
		}
		if len(states) == 0 || states[len(states)-1] != state {
			states = append(states, state)
		}
	}
	return states
}
