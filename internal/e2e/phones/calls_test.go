package phones_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pbxmesh/fixtures/softphone"
)

// pairs are who calls whom.
var pairs = []struct{ caller, callee softphone.Kind }{
	{softphone.Baresip, softphone.Linphone},
	{softphone.Linphone, softphone.Baresip},
}

// TestPhonesNative plays calls between nodes with dialplans that know nothing of the
// mesh.
func TestPhonesNative(t *testing.T) {
	t.Parallel()
	playCalls(t, newMesh(t, options{net: 141, nodes: 2}))
}

// TestPhonesSocket plays them with dialplans that ask the daemon.
func TestPhonesSocket(t *testing.T) {
	t.Parallel()
	playCalls(t, newMesh(t, options{net: 142, nodes: 2, hook: true}))
}

func playCalls(t *testing.T, m *mesh) {
	for _, k := range pairs {
		t.Run(fmt.Sprintf("%s calls %s", k.caller, k.callee), func(t *testing.T) {
			t.Parallel()
			caller := m.registered(t, "buffalo", softphone.Config{Kind: k.caller, Registrar: m.nodes["buffalo"].sw.SIP()})
			callee := m.registered(t, "london", softphone.Config{Kind: k.callee, Registrar: m.nodes["london"].sw.SIP(), MaxCalls: 1})
			s := &story{t: t, m: m, caller: caller, callee: callee}
			s.refused()
			s.cancelled()
			s.answered()
		})
	}
}

// story is a sequence of calls from one phone to another.
type story struct {
	t              *testing.T
	m              *mesh
	caller, callee *softphone.Phone
	calls          int // so far
}

// ring dials, and returns when the callee rings, once.
func (s *story) ring() {
	s.t.Helper()
	s.calls++
	must(s.t, s.caller.Call(s.callee.User()))
	call, err := s.callee.WaitRinging(bounded(s.t), s.calls)
	must(s.t, err)
	if !strings.Contains(call.Peer, s.caller.User()+"@") {
		s.t.Errorf("%s sees a call from %s, want from %s", s.callee, call.Peer, s.caller.User())
	}
	if want := s.m.nodes["london"].sw.SIP(); call.Via != want {
		s.t.Errorf("the INVITE came from %v, want the callee's node %v", call.Via, want)
	}
	if n := len(s.callee.Trace().Calls()); n != s.calls {
		s.t.Errorf("%d calls rang %s, want %d", n, s.callee, s.calls)
	}
}

// refused: the dialplan answers in the phone's place, and the caller hears that.
func (s *story) refused() {
	s.t.Helper()
	s.ring()
	must(s.t, s.callee.Hangup())
	_, err := s.callee.WaitEnded(bounded(s.t))
	must(s.t, err)
	call, err := s.caller.WaitAnswered(bounded(s.t))
	must(s.t, err)
	if call.Via != s.m.nodes["buffalo"].sw.SIP() {
		s.t.Errorf("the refused call is %+v: its own node was to answer", call)
	}
	s.over(s.caller)
}

// cancelled: the caller gives up while the phone rings.
func (s *story) cancelled() {
	s.t.Helper()
	s.ring()
	s.over(s.caller)
	call, err := s.callee.WaitEnded(bounded(s.t))
	must(s.t, err)
	if call.Status != 487 || call.Answered {
		s.t.Errorf("the cancelled call is %+v at the callee, want 487", call)
	}
}

// answered: hold from both sides, a second caller who finds the phone busy, and an end
// by the callee.
func (s *story) answered() {
	s.t.Helper()
	s.callee.AutoAnswer(100 * time.Millisecond)
	s.ring()
	for _, p := range []*softphone.Phone{s.caller, s.callee} {
		call, err := p.WaitAnswered(bounded(s.t))
		must(s.t, err)
		if call.Codec != softphone.PCMU {
			s.t.Errorf("%s talks %s, want PCMU", p, call.Codec)
		}
	}
	s.held(s.caller, s.callee)
	s.held(s.callee, s.caller)
	busy := s.m.registered(s.t, "buffalo", softphone.Config{Kind: s.caller.Kind(), Registrar: s.m.nodes["buffalo"].sw.SIP()})
	must(s.t, busy.Call(s.callee.User()))
	_, err := busy.WaitAnswered(bounded(s.t)) // by the dialplan
	must(s.t, err)
	calls := s.callee.Trace().Calls()
	if last := calls[len(calls)-1]; last.Status != 486 || last.Peer == s.caller.User() {
		s.t.Errorf("the second call at %s is %+v, want 486", s.callee, last)
	}
	s.over(s.callee)
	_, err = s.caller.WaitEnded(bounded(s.t))
	must(s.t, err)
}

// held puts the other side on hold and takes it back; both must hear of it.
func (s *story) held(by, other *softphone.Phone) {
	s.t.Helper()
	must(s.t, by.Hold(true))
	first := func(p *softphone.Phone, what string, ok func(softphone.Call) bool) {
		s.t.Helper()
		must(s.t, p.Wait(bounded(s.t), what, func(t softphone.Trace) bool {
			for _, c := range t.Calls() {
				if c.Answered && !c.Ended && ok(c) {
					return true
				}
			}
			return false
		}))
	}
	first(by, "its hold", func(c softphone.Call) bool { return c.Mine == "sendonly" || c.Mine == "inactive" })
	must(s.t, by.Hold(false))
	first(by, "the end of its hold", func(c softphone.Call) bool { return c.Mine == "sendrecv" && c.Theirs == "sendrecv" })
	first(other, "a call without hold", func(c softphone.Call) bool { return c.Mine == "sendrecv" })
}

// over hangs up and waits for the end.
func (s *story) over(p *softphone.Phone) {
	s.t.Helper()
	must(s.t, p.HangupAll(bounded(s.t)))
}
