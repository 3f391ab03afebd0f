package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

const recordedCore = "a4f755b8-246b-4d27-a0fb-90ed6d4a7efd"

// TestFeedRecordedRegistration plays the recorded register, whose unregister has
// another Call-ID, and the recorded expire.
func TestFeedRecordedRegistration(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.core = recordedCore
	now := time.Date(2026, 11, 22, 15, 35, 9, 0, time.UTC)
	f, sink := startFeed(t, s, func(o *Options) { o.Now = func() time.Time { return now } })
	connected(t, f)
	if n := s.count("event plain HEARTBEAT CUSTOM sofia::register sofia::unregister sofia::expire sofia::profile_start"); n != 1 {
		t.Errorf("%d subscriptions as wanted, in %q", n, s.log)
	}
	events := recorded(t, "events-register-unregister.txt")
	s.fire(events[:3]...)
	expectRegs(t, "registered", sink, "1001 sip:1001@127.0.4.1:5062 d62b3b92-b789-453c-9688-a4952c67c1c6")
	aor, _ := pbxmesh.NewAOR("1001", "pbx.test")
	want := pbxmesh.Registration{
		AOR: aor, Node: "buffalo", CallID: "d62b3b92-b789-453c-9688-a4952c67c1c6", Contact: "sip:1001@127.0.4.1:5062", Profile: "internal",
		Source: netip.MustParseAddrPort("127.0.4.1:5062"), Transport: "udp", UserAgent: "unknown", Expires: now.Add(180 * time.Second),
		Since: pbxmesh.StampOf(now),
	}
	if got := sink.regs(); len(got) != 1 || got[0] != want {
		t.Errorf("registration %+v\nwant %+v", got, want)
	}
	s.fire(events[3:]...)
	expectRegs(t, "unregistered with another Call-ID", sink)

	// The other recording is of another core: a restart. There the user of the
	// expire event is registered, and the event takes it away.
	s.set(func() {
		s.core = "5602e65b-d284-48e6-b97a-e06c131d920c"
		s.rows["internal"] = []row{{user: "1002@pbx.test", contact: "sip:1002@127.0.4.2:5063", call: "82e241db-71ea-4cb4-b6cd-4cf6fae963ba", expsecs: 10}}
	})
	s.drop()
	expectRegs(t, "after the restart", sink, "1002 sip:1002@127.0.4.2:5063 82e241db-71ea-4cb4-b6cd-4cf6fae963ba")
	connected(t, f)
	s.set(func() { s.rows["internal"] = nil })
	s.fire(recorded(t, "events-register-expire-heartbeat.txt")...)
	expectRegs(t, "expired", sink)
	eventually(t, "heartbeat seen", func() bool { return f.Status().Version == "1.11.1-release~64bit" })
	if st := f.Status(); st.MaxSessions != 2000 || st.IdleCPU <= 0 || !st.LastEvent.Equal(now) || st.CoreUUID != s.core {
		t.Errorf("status %+v", st)
	}
}

// TestFeedRecordedSnapshot answers with the recorded xmlstatus of both profiles.
func TestFeedRecordedSnapshot(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	section := func(profile string) string {
		_, rest, ok := strings.Cut(strings.Join(recorded(t, "api-replies.txt"), ""), "## sofia xmlstatus profile "+profile+" reg\n")
		body, _, ok2 := strings.Cut(rest, "\n## ")
		if !ok || !ok2 {
			t.Fatal("no such section")
		}
		return body
	}
	s.raw["internal"], s.raw["mesh"] = section("internal"), section("mesh")
	now := time.Date(2026, 11, 22, 15, 56, 40, 0, time.UTC)
	f, sink := startFeed(t, s, func(o *Options) {
		o.Now = func() time.Time { return now }
		o.Profiles = []string{"internal", "mesh"} // the agent of the injected row still gives it away
	})
	connected(t, f)
	a1, _ := pbxmesh.NewAOR("1003", "pbx.test")
	a2, _ := pbxmesh.NewAOR("1001", "pbx.test")
	want := []pbxmesh.Registration{
		{AOR: a1, Node: "buffalo", CallID: "9b34ea60-b63c-47be-a70d-22ec0e98e4f5", Contact: "sip:1003@127.0.4.3:5062", Profile: "internal", Source: netip.MustParseAddrPort("127.0.4.3:5062"), Transport: "udp", UserAgent: "unknown", Expires: now.Add(147 * time.Second)},
		{AOR: a2, Node: "buffalo", CallID: "aba2a72d-3ace-47a3-b418-5ba3ef2ebfee", Contact: "sip:1001@127.0.4.1:5062", Profile: "internal", Source: netip.MustParseAddrPort("127.0.4.1:5062"), Transport: "udp", UserAgent: "unknown", Expires: now.Add(178 * time.Second)},
	}
	if got := sink.regs(); !reflect.DeepEqual(got, want) {
		t.Errorf("snapshot\n%+v\nwant\n%+v", got, want)
	}
	if n, epoch := sink.resets(); n != 1 || epoch != "core-1" {
		t.Errorf("%d resets, epoch %q", n, epoch)
	}
	if st := f.Status(); st.Registrations != 2 || st.Err != nil || st.Snapshots != 1 {
		t.Errorf("status %+v", st)
	}
}

func TestFeedRowsOfOthers(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.rows["internal"] = []row{
		{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 10},
		{user: "1002@pbx.test", contact: "c2", call: "i2", expsecs: 10, host: "london"},
		{user: "1003@pbx.test", contact: "c3", call: "i3", expsecs: 10, host: "VM", status: "Registered(TCP-NAT)"},
		{user: "1004@pbx.test", contact: "c4", call: "i4", expsecs: 10, agent: "pbxmesh"},
		{user: "1005@pbx.test", contact: "c5", call: "i5", expsecs: 0},
		{user: "1006@pbx.test", contact: "c6", call: "i6", expsecs: -70},
	}
	f, sink := startFeed(t, s, nil)
	connected(t, f)
	expectRegs(t, "own rows", sink, "1001 c1 i1", "1003 c3 i3")
	if got := sink.regs()[1].Transport; got != "tcp" {
		t.Errorf("transport %q", got)
	}
	// The same for events: another profile, the mesh's own agent.
	reg := parseFacts(5, "+1007 c7 i7")[0].event("core-1")
	s.fire(strings.Replace(reg, "profile-name: internal", "profile-name: mesh", 1), strings.Replace(reg, "user-agent: unknown", "user-agent: pbxmesh", 1),
		strings.Replace(reg, "Event-Sequence: 5", "Event-Sequence: x", 1), strings.Replace(reg, "Core-UUID: core-1", "Core-UUID: ", 1),
		strings.Replace(reg, "Core-UUID: core-1", "Core-UUID: {a}:b", 1), strings.Replace(reg, "expires: 120", "expires: soon", 1))
	s.fire(parseFacts(6, "+1008 c8 i8")[0].event("core-1"))
	expectRegs(t, "own events", sink, "1001 c1 i1", "1003 c3 i3", "1008 c8 i8")
	if st := f.Status(); st.Ignored != 6 || st.Err != nil {
		t.Errorf("status %+v", st)
	}
}

// TestFeedBurst: thousands of events of few users, a little out of order, with ends
// that need questions, and snapshots that race all of it.
func TestFeedBurst(t *testing.T) {
	t.Parallel()
	for name, every := range map[string]time.Duration{"questions only": time.Hour, "snapshots race": 3 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScripted(t)
			f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = every })
			connected(t, f)
			m := &model{mode: byContact}
			rng := rand.New(rand.NewPCG(1, 2))
			fired := 0
			for range 1000 {
				for range 3 {
					user := fmt.Sprint(1001 + rng.IntN(5))
					contact, call := fmt.Sprint("c", user, rng.IntN(3)), fmt.Sprint("i", user, rng.IntN(3))
					switch rng.IntN(6) {
					case 0:
						m.unregister(user, contact, call)
					case 1:
						if i := slices.IndexFunc(m.rows, func(r modelRow) bool { return r.user == user && !r.doomed }); i >= 0 {
							m.disconnect(m.rows[i])
						}
					case 2:
						m.delete()
					default:
						m.register(user, contact, call)
					}
				}
				s.set(func() { s.rows["internal"] = m.table() }) // the switch changes its table, then tells
				events := slices.Clone(m.events[fired:])
				fired = len(m.events)
				rng.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
				s.fire(events...)
			}
			for len(m.doomed) > 0 {
				m.delete()
			}
			s.set(func() { s.rows["internal"] = m.table() })
			eventually(t, "all events in", func() bool { return f.Status().Events == uint64(fired) })
			eventually(t, "as the switch has it", func() bool {
				got := sink.regs()
				for _, reg := range got {
					if !slices.ContainsFunc(m.rows, func(r modelRow) bool { return r.call == reg.CallID && r.contact == reg.Contact }) {
						return false
					}
				}
				calls := map[string]bool{}
				for _, r := range m.rows {
					calls[r.call] = true
				}
				return len(calls) == len(got) && len(got) > 0
			})
			if r, _ := sink.resets(); r != 1 {
				t.Errorf("%d resets", r)
			}
			st := f.Status()
			t.Logf("%d events, %d questions changed %d, %d snapshots repaired %d", st.Events, st.Questions, st.Answered, st.Snapshots, st.Repairs)
		})
	}
}

func TestFeedEventsDuringTheFirstSnapshot(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.rows["internal"] = []row{
		{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100},
		{user: "1002@pbx.test", contact: "c2", call: "i2", expsecs: 100},
	}
	var once sync.Once
	s.before = func(string) {
		once.Do(func() { // 1001 leaves and 1003 comes while the list is being written
			x := parseFacts(50, "-1001 c1 i1", "+1003 c3 i3", "+1002 c2 i9")
			s.fire(x[1].event("core-1"), x[0].event("core-1"), x[2].event("core-1"))
		})
	}
	f, sink := startFeed(t, s, func(o *Options) { o.SnapshotGap = time.Hour })
	connected(t, f)
	expectRegs(t, "events win over the snapshot they raced", sink, "1002 c2 i9", "1003 c3 i3")
	if n, _ := sink.resets(); n != 1 {
		t.Errorf("%d resets", n)
	}
}

func TestFeedReconnect(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.rows["internal"] = []row{{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}, {user: "1002@pbx.test", contact: "c2", call: "i2", expsecs: 100}}
	f, sink := startFeed(t, s, nil)
	connected(t, f)
	expectRegs(t, "first", sink, "1001 c1 i1", "1002 c2 i2")

	hold := make(chan struct{})
	s.set(func() {
		s.before = func(string) { <-hold }
		s.rows["internal"] = []row{{user: "1002@pbx.test", contact: "c2", call: "i2", expsecs: 100}, {user: "1003@pbx.test", contact: "c3", call: "i3", expsecs: 100}}
	})
	s.drop()
	eventually(t, "the loss is known", func() bool { st := f.Status(); return !st.Connected && st.Err != nil })
	if !errors.Is(f.Status().Err, esl.ErrClosed) {
		t.Errorf("status error %v", f.Status().Err)
	}
	expectRegs(t, "kept over the loss", sink, "1001 c1 i1", "1002 c2 i2")
	close(hold)
	expectRegs(t, "repaired", sink, "1002 c2 i2", "1003 c3 i3")
	connected(t, f)
	if n, _ := sink.resets(); n != 1 {
		t.Errorf("%d resets although the switch is the same", n)
	}
	if st := f.Status(); st.Err != nil || st.Repairs != 2 {
		t.Errorf("status %+v", st)
	}
}

func TestFeedRestartedSwitch(t *testing.T) {
	t.Parallel()
	for name, tell := range map[string]func(*scripted){
		"seen at reconnect": func(s *scripted) { s.drop() },
		"seen by an event":  func(s *scripted) { s.fire(heartbeat("core-2", 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScripted(t)
			s.rows["internal"] = []row{{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}}
			f, sink := startFeed(t, s, nil)
			connected(t, f)
			s.fire(parseFacts(900, "+1002 c2 i2")[0].event("core-1"))
			expectRegs(t, "before", sink, "1001 c1 i1", "1002 c2 i2")
			s.set(func() { s.core = "core-2" })
			tell(s)
			eventually(t, "the new epoch", func() bool { n, epoch := sink.resets(); return n == 2 && epoch == "core-2" })
			expectRegs(t, "only what the new core has", sink, "1001 c1 i1")
			// Its sequence starts again: 2 is not old.
			connected(t, f)
			eventually(t, "subscribed again", func() bool { return f.Status().CoreUUID == "core-2" })
			s.fire(parseFacts(2, "+1003 c3 i3")[0].event("core-2"))
			expectRegs(t, "small sequences count", sink, "1001 c1 i1", "1003 c3 i3")
		})
	}
}

func TestFeedWithoutCoreVariable(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.core = ""
	s.rows["internal"] = []row{{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}}
	f, sink := startFeed(t, s, nil)
	eventually(t, "it waits", func() bool { return errors.Is(f.Status().Err, errNoCore) })
	s.fire(heartbeat("core-7", 3))
	expectRegs(t, "after the first event", sink, "1001 c1 i1")
	if _, epoch := sink.resets(); epoch != "core-7" {
		t.Errorf("epoch %q", epoch)
	}
	eventually(t, "no error left", func() bool { return f.Status().Err == nil })
}

// TestFeedLostEvents: what no event told is repaired by the next periodic snapshot.
func TestFeedLostEvents(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.rows["internal"] = []row{{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}}
	f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = 20 * time.Millisecond })
	connected(t, f)
	s.set(func() {
		s.rows["internal"] = []row{{user: "1009@pbx.test", contact: "c9", call: "i9", expsecs: 100}}
	})
	expectRegs(t, "repaired", sink, "1009 c9 i9")
	if st := f.Status(); st.Repairs != 2 {
		t.Errorf("status %+v", st)
	}
}

// TestFeedUnregisterAll: for `Contact: *` a switch with multiple registrations fires
// an event with the Call-ID of a registration that it keeps (seen on 1.11.1).
func TestFeedUnregisterAll(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.rows["internal"] = []row{{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}}
	f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = time.Hour })
	connected(t, f)
	s.fire(parseFacts(10, "-1001 sip:(null)@(null) i1")[0].event("core-1"))
	eventually(t, "the switch was asked", func() bool { return f.Status().Questions == 1 })
	expectRegs(t, "the switch keeps it", sink, "1001 c1 i1")
	s.set(func() { s.rows["internal"] = nil })
	s.fire(parseFacts(11, "-1001 sip:(null)@(null) i1")[0].event("core-1"))
	expectRegs(t, "the switch does not", sink)
}

// TestFeedContactBehindNAT: the switch leaves what is percent-encoded in a contact
// alone in events, so that it comes decoded, unlike in a snapshot. It is one contact.
func TestFeedContactBehindNAT(t *testing.T) {
	t.Parallel()
	for _, contact := range []struct{ stored, form string }{
		{"sip:1001@10.0.0.1:5060;fs_nat=yes;fs_path=sip%3A1001%40192.0.2.1%3A40000", "sip:1001@10.0.0.1:5060;fs_nat=yes;fs_path=sip:1001@192.0.2.1:40000"},
		{"sip:1001@10.0.0.1:5060;fs_path=%3Csip%3A192.0.2.7%3A5080%3Blr%3E", "sip:1001@10.0.0.1:5060;fs_path=<sip:192.0.2.7:5080;lr>"},
		{"sip:1001@10.0.0.1;x=%3c%41", "sip:1001@10.0.0.1;x=%3cA"},
	} {
		s := newScripted(t)
		s.rows["internal"] = []row{{user: "1001@pbx.test", contact: contact.stored, call: "i1", expsecs: 180}}
		f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = 5 * time.Millisecond })
		connected(t, f)
		s.fire(parseFacts(10, "+1001 "+contact.stored+" i1")[0].event("core-1"))
		eventually(t, "the event is in", func() bool { return f.Status().Events == 1 })
		n := f.Status().Snapshots
		eventually(t, "more snapshots", func() bool { return f.Status().Snapshots > n+5 })
		expectRegs(t, "registered", sink, "1001 "+contact.form+" i1")
		if got := f.Status().Repairs; got != 0 {
			t.Errorf("%s: %d repairs of what was right", contact.stored, got)
		}
		s.set(func() { s.rows["internal"] = nil })
		s.fire(parseFacts(20, "-1001 "+contact.stored+" i1")[0].event("core-1"))
		expectRegs(t, "unregistered", sink)
	}
}

// TestFeedQuestions counts them, by what an event leaves open; the snapshot that
// nobody asks for is an hour away.
func TestFeedQuestions(t *testing.T) {
	t.Parallel()
	one := row{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}
	two := row{user: "1001@pbx.test", contact: "c2", call: "i2", expsecs: 100}
	for name, tc := range map[string]struct {
		rows  []row // before the event, and after it
		after []row
		event string
		asked uint64
		want  []string
	}{
		"first device":                       {nil, []row{one}, "+1001 c1 i1", 0, []string{"1001 c1 i1"}},
		"refresh":                            {[]row{one}, []row{one}, "+1001 c1 i1", 0, []string{"1001 c1 i1"}},
		"second device":                      {[]row{one}, []row{one, two}, "+1001 c2 i2", 1, []string{"1001 c1 i1", "1001 c2 i2"}},
		"second device where one may be":     {[]row{one}, []row{two}, "+1001 c2 i2", 1, []string{"1001 c2 i2"}},
		"unregister":                         {[]row{one}, nil, "-1001 c1 i1", 0, nil},
		"unregister with another Call-ID":    {[]row{one}, nil, "-1001 c1 i9", 1, nil},
		"unregister that the switch undoes":  {[]row{one}, []row{one}, "-1001 c1 i9", 1, []string{"1001 c1 i1"}},
		"unregister of all where one may be": {[]row{one}, nil, "-1001 c3 i9", 1, nil},
		"unregister of nobody we know":       {[]row{one}, []row{one}, "-1002 c2 i9", 0, []string{"1001 c1 i1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newScripted(t)
			s.rows["internal"] = tc.rows
			f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = time.Hour })
			connected(t, f)
			s.set(func() { s.rows["internal"] = tc.after })
			s.fire(parseFacts(10, tc.event)[0].event("core-1"))
			eventually(t, "the event is in", func() bool { return f.Status().Events == 1 })
			expectRegs(t, "as the switch has it", sink, tc.want...)
			eventually(t, "asked", func() bool { return f.Status().Questions == tc.asked })
			if n := len(f.ask); n != 0 || f.Status().Snapshots != 1 || f.Status().Repairs != 0 {
				t.Errorf("%d asked, status %+v", n, f.Status())
			}
		})
	}
}

// TestFeedConnectionEnds: the switch tells the end of a phone's connection by Call-ID
// alone, and deletes the row a moment later.
func TestFeedConnectionEnds(t *testing.T) {
	t.Parallel()
	end := custom("core-1", 10, "sofia::unregister", "from-user", "Alice", "from-host", "pbx.test", "call-id", "i1", "reason", "socket-disconnection")
	old := row{user: "Alice@pbx.test", contact: "c1", call: "i1", expsecs: 100}
	live := row{user: "Alice@pbx.test", contact: "c2", call: "i1", expsecs: 101}
	t.Run("closed", func(t *testing.T) {
		t.Parallel()
		s := newScripted(t)
		s.rows["internal"] = []row{old}
		f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = time.Hour })
		connected(t, f)
		s.fire(end)
		eventually(t, "asked again while the row stays", func() bool { return f.Status().Questions > 2 })
		expectRegs(t, "the switch still has it", sink, "alice c1 i1")
		s.set(func() { s.rows["internal"] = nil })
		expectRegs(t, "gone with the row", sink)
		if st := f.Status(); st.Snapshots != 1 || s.count("api sofia xmlstatus profile internal user Alice@pbx.test") != int(st.Questions) {
			t.Errorf("asked in another way: %+v", st)
		}
	})
	t.Run("back before it ended", func(t *testing.T) {
		t.Parallel()
		s := newScripted(t)
		s.rows["internal"] = []row{old, live}
		f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = time.Hour })
		connected(t, f)
		var away sync.Once
		sink.mu.Lock()
		sink.b.removed = func(id pbxmesh.RegistrationID) { away.Do(func() { t.Errorf("%s was taken away", id.CallID) }) }
		sink.mu.Unlock()
		s.fire(end)
		eventually(t, "asked", func() bool { return f.Status().Questions > 1 })
		s.set(func() { s.rows["internal"] = []row{live} })
		n := f.Status().Questions
		eventually(t, "asked since", func() bool { return f.Status().Questions > n+1 })
		expectRegs(t, "the live flow", sink, "alice c2 i1")
	})
}

// TestFeedProfileStarts: a profile that was stopped and started is read at once.
func TestFeedProfileStarts(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = time.Hour })
	connected(t, f)
	s.set(func() { s.rows["internal"] = []row{{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}} })
	s.fire("Event-Subclass: sofia%3A%3Aprofile_start\nEvent-Name: CUSTOM\nCore-UUID: core-1\nEvent-Sequence: 7\nmodule_name: mod_sofia\nprofile_name: internal\n\n")
	expectRegs(t, "what came back with it", sink, "1001 c1 i1")
}

func TestFeedProfiles(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.rows["internal"] = []row{{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}}
	f, sink := startFeed(t, s, func(o *Options) { o.Profiles = []string{"internal", "extern"} })
	connected(t, f)
	expectRegs(t, "the profile that exists", sink, "1001 c1 i1")
	err := f.Status().Err
	if !errors.Is(err, ErrProfile) || !strings.Contains(err.Error(), `"extern"`) || !strings.Contains(err.Error(), "sofia status") {
		t.Errorf("error %v", err)
	}
	s.set(func() { s.rows["extern"] = []row{{user: "1002@pbx.test", contact: "c2", call: "i2", expsecs: 100}} })
	expectRegs(t, "once it is loaded", sink, "1001 c1 i1", "1002 c2 i2")
	eventually(t, "no error left", func() bool { return f.Status().Err == nil })
}

func TestFeedBrokenSnapshotChangesNothing(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.rows["internal"] = []row{{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100}}
	f, sink := startFeed(t, s, func(o *Options) { o.SnapshotEvery = 5 * time.Millisecond })
	connected(t, f)
	for _, raw := range []string{"", "-ERR timeout", "<profile><registrations>", "<profile>\n<registrations>\n<registration>\n<call-id>x", "<registrations><registration></registrations>"} {
		s.set(func() { s.raw["internal"] = raw })
		n := s.count("api sofia xmlstatus")
		eventually(t, "asked again", func() bool { return s.count("api sofia xmlstatus") > n+1 })
		expectRegs(t, "kept", sink, "1001 c1 i1")
		if f.Status().Err == nil {
			t.Errorf("no error for %q", raw)
		}
	}
	s.set(func() { delete(s.raw, "internal"); s.rows["internal"] = nil })
	expectRegs(t, "a good one counts", sink)
}

func TestFeedHostileValues(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	bad := []string{"1001,sofia/gateway/x", "1001|y", "${system(id)}", "[a=b]1", "{x}", "1001@other", "^^:", "a\r\nb", strings.Repeat("9", 4096), "%%", "１００１", "", "a b", "<registration>"}
	for i, u := range bad {
		s.rows["internal"] = append(s.rows["internal"], row{user: u + "@pbx.test", contact: "c", call: fmt.Sprint("bad", i), expsecs: 100})
	}
	s.rows["internal"] = append(s.rows["internal"],
		row{user: "1001@pbx.test", contact: "c1", call: "i1", expsecs: 100, agent: "evil </agent><registration> & \x01 \xff " + strings.Repeat("x", 300)},
		row{user: "1002@pbx.test", contact: "c2", call: strings.Repeat("i", pbxmesh.MaxCallIDLen+1), expsecs: 100},
		row{user: "1003@pbx.test", contact: strings.Repeat("c", pbxmesh.MaxContactLen+1), call: "i3", expsecs: 100},
		row{user: "1004@pbx.test", contact: "", call: "i4", expsecs: 100},
		row{user: "1005@pbx.test", contact: "a\x00b", call: "i5", expsecs: 100},
	)
	var logged lines
	f, sink := startFeed(t, s, func(o *Options) {
		o.SnapshotEvery = 5 * time.Millisecond
		o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	})
	connected(t, f)
	expectRegs(t, "only the valid ones", sink, "1001 c1 i1", "1005 a%00b i5")
	if ua := sink.regs()[0].UserAgent; len(ua) > pbxmesh.MaxUserAgentLen || strings.ContainsRune(ua, 1) || !utf8.ValidString(ua) || !strings.HasPrefix(ua, "evil </agent><registration> &") {
		t.Errorf("user agent %q", ua)
	}
	for i, u := range bad {
		s.fire(custom("core-1", uint64(100+i), "sofia::register", "from-user", u, "from-host", "pbx.test", "contact", "<c>", "call-id", "x", "expires", "60"),
			custom("core-1", uint64(200+i), "sofia::unregister", "from-user", u, "from-host", "pbx.test", "contact", "<c>", "call-id", "x"),
			custom("core-1", uint64(300+i), "sofia::expire", "user", "1001", "host", u, "contact", "<c1>", "call-id", "i1"))
	}
	n := f.Status().Snapshots
	eventually(t, "more snapshots", func() bool { return f.Status().Snapshots > n+2 && f.Status().Events == uint64(3*len(bad)) })
	expectRegs(t, "still only the valid ones", sink, "1001 c1 i1", "1005 a%00b i5")
	if st := f.Status(); st.Refused < uint64(3*len(bad)) {
		t.Errorf("%d refused", st.Refused)
	}
	if n, limit := logged.count("left out"), 2*len(bad)+5; n == 0 || n > limit {
		t.Errorf("%d refusals logged, at most one per name wanted (%d)", n, limit)
	}
}

// lines is a log for tests.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

// TestFeedLogsACauseOnce: hundreds of attempts against a closed port are one line.
func TestFeedLogsACauseOnce(t *testing.T) {
	t.Parallel()
	s := newScripted(t)
	s.ln.Close()
	var logged lines
	f, sink := startFeed(t, s, func(o *Options) {
		o.MaxBackoff = time.Millisecond
		o.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	})
	eventually(t, "the first failure", func() bool { return f.Status().Err != nil })
	first := f.Status().Err
	eventually(t, "many more", func() bool { return f.Status().Err != first && logged.count("\n") > 0 })
	for range 20 {
		last := f.Status().Err
		eventually(t, "another attempt", func() bool { return f.Status().Err != last })
	}
	if n := logged.count("cannot follow"); n != 1 {
		t.Errorf("%d lines for one cause", n)
	}
	if n, _ := sink.resets(); n != 0 {
		t.Errorf("%d resets without a switch", n)
	}
}

func TestFeedOptions(t *testing.T) {
	t.Parallel()
	good := Options{Node: "buffalo", Profiles: []string{"internal"}, Sink: newBooks()}
	for name, change := range map[string]func(*Options){
		"no sink":         func(o *Options) { o.Sink = nil },
		"no node":         func(o *Options) { o.Node = "" },
		"bad node":        func(o *Options) { o.Node = "Buffalo_1" },
		"no profile":      func(o *Options) { o.Profiles = nil },
		"hostile profile": func(o *Options) { o.Profiles = []string{"internal reg\n\napi shutdown"} },
		"empty profile":   func(o *Options) { o.Profiles = []string{""} },
	} {
		o := good
		change(&o)
		if err := New(o).Run(context.Background()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := New(good).Run(ctx); err != nil {
		t.Error(err)
	}
}

// listed answers every question with one list.
type listed string

func (l listed) API(context.Context, string) (string, error) { return string(l), nil }

// TestFeedContactCutShort: the switch cuts a long escaped contact in its list, and the
// event told all of it.
func TestFeedContactCutShort(t *testing.T) {
	t.Parallel()
	sink := newBooks()
	f := New(Options{Node: "buffalo", Profiles: []string{"internal"}, Sink: sink})
	f.adopt("core-1")
	contact := "sip:1001@192.0.2.7;x=" + strings.Repeat("&", 450)
	f.onEvent(esl.ParseEvent(custom("core-1", 1, "sofia::register", "from-user", "1001", "from-host", "pbx.test", "contact", `"Desk" <`+contact+`>`,
		"call-id", "i1", "expires", "3600", "network-ip", "192.0.2.7", "network-port", "5060", "status", "Registered(UDP)", "user-agent", "unknown")))
	list := listed("<registrations>\n<registration>\n<call-id>i1</call-id>\n<user>1001@pbx.test</user>\n<contact>&quot;Desk&quot; &lt;sip:1001@192.0.2.7;x=" +
		strings.Repeat("&amp;", 401) + "</contact>\n<agent>unknown</agent>\n<status>Registered(UDP)(unknown) exp(x) expsecs(3660)</status>\n" +
		"<network-ip>192.0.2.7</network-ip>\n<network-port>5060</network-port>\n</registration>\n</registrations>\n")
	for range 3 {
		if err := f.snapshot(t.Context(), list); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range sink.regs {
		if r.Contact != contact {
			t.Errorf("the contact is %d bytes long, of %d", len(r.Contact), len(contact))
		}
	}
	if n := f.Status().Repairs; n != 0 || len(sink.regs) != 1 {
		t.Errorf("%d repairs, %d registrations", n, len(sink.regs))
	}
}
