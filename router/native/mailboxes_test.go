package native

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
)

// post is two nodes with mailboxes between them; anna's phone is on buffalo.
type post struct {
	world           *world
	buffalo, london *fakeSwitch
	here, there     *Mailboxes
	stopThere       func()
}

func newPost(t *testing.T, shared bool) *post {
	p := &post{world: newWorld(), buffalo: newFakeSwitch(), london: newFakeSwitch()}
	p.world.register(annaA, "buffalo", 240*time.Hour)
	x := NewMemory()
	p.here = NewMailboxes(MailboxesOptions{Local: "buffalo", Directory: p.world, Exchange: x, Dial: p.buffalo.dial, Shared: shared})
	p.there = NewMailboxes(MailboxesOptions{Local: "london", Directory: p.world, Exchange: x, Dial: p.london.dial, Shared: shared})
	start(t, p.here.Run)
	p.stopThere = start(t, p.there.Run)
	time.Sleep(time.Second)
	return p
}

// report is what a switch's voicemail says; profile "" leaves it out.
func report(s *fakeSwitch, aor pbxmesh.AOR, waiting, counts, profile string) {
	pairs := []string{"MWI-Messages-Waiting", waiting, "MWI-Message-Account", "sip:" + aor.String(), "MWI-Voice-Message", counts}
	if profile != "" {
		pairs = append(pairs, "Sofia-Profile", profile)
	}
	s.emit("MESSAGE_WAITING", pairs...)
	time.Sleep(time.Second)
	synctest.Wait()
}

// told returns what the switch's phones were told since the last call.
func told(t *testing.T, s *fakeSwitch, node pbxmesh.NodeID) []string {
	t.Helper()
	out := []string{}
	for _, e := range s.events() {
		if e.name == "MESSAGE_QUERY" { // see TestMailboxesAsk
			continue
		}
		if e.name != "MESSAGE_WAITING" || e.headers[originHeader] != string(node) {
			t.Errorf("event %s with headers %v", e.name, e.headers)
		}
		out = append(out, e.headers["MWI-Message-Account"]+" "+e.headers["MWI-Messages-Waiting"]+" "+e.headers["MWI-Voice-Message"]+" "+e.headers["sofia-profile"])
	}
	return out
}

func expectTold(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) && len(got)+len(want) > 0 {
		t.Errorf("%s: told %q, want %q", what, got, want)
	}
}

func TestMailboxes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t, false)
		const anna = "sip:anna@a.test "
		report(p.london, annaA, "yes", "2/1 (1/0)", "internal")
		expectTold(t, "a message in london", told(t, p.buffalo, "buffalo"), anna+"yes 2/1 (1/0) internal")
		expectTold(t, "no phone in london", told(t, p.london, "london"))

		report(p.buffalo, annaA, "no", "0/0 (0/0)", "internal")
		expectTold(t, "the local voicemail hid it", told(t, p.buffalo, "buffalo"), anna+"yes 2/1 (1/0) internal")
		report(p.buffalo, annaA, "yes", "3/0", "")
		expectTold(t, "both", told(t, p.buffalo, "buffalo"), anna+"yes 5/1 (1/0) internal")

		p.buffalo.emit("MESSAGE_QUERY", "Message-Account", "sip:anna@a.test", "VM-Sofia-Profile", "internal")
		time.Sleep(time.Second)
		expectTold(t, "a phone asks", told(t, p.buffalo, "buffalo"), anna+"yes 5/1 (1/0) internal")

		expectTold(t, "who watches it in london", told(t, p.london, "london"), anna+"yes 5/1 (1/0) internal")
		p.world.register(annaA, "london", 240*time.Hour)
		p.there.Changed(annaA)
		time.Sleep(time.Second)
		expectTold(t, "a phone comes to london", told(t, p.london, "london"), anna+"yes 5/1 (1/0) internal")
		p.world.register(annaA, "london", 0)

		report(p.london, annaA, "no", "0/0 (0/0)", "internal")
		expectTold(t, "london's are read", told(t, p.buffalo, "buffalo"), anna+"yes 3/0 (0/0) internal")
		report(p.buffalo, annaA, "no", "0/0", "")
		expectTold(t, "a local event without a profile", told(t, p.buffalo, "buffalo"), anna+"no 0/0 (0/0) internal")
		report(p.buffalo, annaA, "no", "0/0", "internal")
		expectTold(t, "a local event with one", told(t, p.buffalo, "buffalo"))

		report(p.london, annaA, "yes", "1/0", "internal")
		told(t, p.buffalo, "buffalo")
		p.buffalo.restart()
		time.Sleep(6 * time.Second)
		expectTold(t, "the switch starts anew", told(t, p.buffalo, "buffalo"), anna+"yes 1/0 (0/0) internal")
		time.Sleep(24 * time.Hour)
		expectTold(t, "a day of repetitions", told(t, p.buffalo, "buffalo"))
		p.stopThere()
		time.Sleep(15 * time.Minute)
		expectTold(t, "london's daemon is gone for good", told(t, p.buffalo, "buffalo"), anna+"no 0/0 (0/0) internal")
	})
}

// TestMailboxesShared: with one store for all, the newest report is the truth.
// TestMailboxesLateReport: of two reports that the switch's threads deliver the wrong way
// round, the later one counts.
func TestMailboxesLateReport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t, false)
		for _, r := range [][3]string{{"1003", "yes", "3/0 (0/0)"}, {"1001", "yes", "2/0 (0/0)"}} {
			p.london.emit("MESSAGE_WAITING", "MWI-Messages-Waiting", r[1], "MWI-Message-Account", "sip:anna@a.test", "MWI-Voice-Message", r[2], "Event-Sequence", r[0])
		}
		time.Sleep(time.Second)
		expectTold(t, "a late report", told(t, p.buffalo, "buffalo"), "sip:anna@a.test yes 3/0 (0/0) internal")
	})
}

func TestMailboxesShared(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t, true)
		const anna = "sip:anna@a.test "
		report(p.london, annaA, "yes", "2/0", "internal")
		expectTold(t, "london", told(t, p.buffalo, "buffalo"), anna+"yes 2/0 (0/0) internal")
		report(p.buffalo, annaA, "yes", "2/0", "internal") // the same two, asked for here
		expectTold(t, "buffalo's own phones know", told(t, p.buffalo, "buffalo"))
		report(p.buffalo, annaA, "no", "0/2", "internal")
		expectTold(t, "buffalo's own phones know", told(t, p.buffalo, "buffalo"))
		p.world.register(annaA, "london", 240*time.Hour)
		report(p.london, annaA, "yes", "1/2", "internal")
		expectTold(t, "a new one", told(t, p.buffalo, "buffalo"), anna+"yes 1/2 (0/0) internal")
		expectTold(t, "in london", told(t, p.london, "london"), anna+"no 0/2 (0/0) internal")
		time.Sleep(time.Hour)
		expectTold(t, "quiet", append(told(t, p.buffalo, "buffalo"), told(t, p.london, "london")...))
	})
}

func TestMailboxesIgnore(t *testing.T) {
	t.Parallel()
	cases := map[string][]string{
		"our own event":    {"MWI-Messages-Waiting", "yes", "MWI-Message-Account", "anna@a.test", "MWI-Voice-Message", "1/0", originHeader, "buffalo"},
		"a hostile user":   {"MWI-Messages-Waiting", "yes", "MWI-Message-Account", "a|b@a.test", "MWI-Voice-Message", "1/0"},
		"no account":       {"MWI-Messages-Waiting", "yes", "MWI-Voice-Message", "1/0"},
		"empty, never had": {"MWI-Messages-Waiting", "no", "MWI-Message-Account", "anna@a.test", "MWI-Voice-Message", "0/0", "Sofia-Profile", "internal"},
	}
	for name, pairs := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPost(t, false)
				p.london.emit("MESSAGE_WAITING", pairs...)
				time.Sleep(time.Second)
				expectTold(t, name, append(told(t, p.buffalo, "buffalo"), told(t, p.london, "london")...))
				if got := p.there.Stats().Told.Published; got != 0 {
					t.Errorf("published %d", got)
				}
			})
		})
	}
}

func TestMessagesOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]messages{
		"2/5 (1/3)": {fresh: 2, old: 5, freshUrgent: 1, oldUrgent: 3}, "2/5": {fresh: 2, old: 5}, "": {}, "x/y (": {},
		"-1/99999999999999999999": {}, "2": {}, " 2 / 5 ( 1 / 3 ) ": {fresh: 2, old: 5, freshUrgent: 1, oldUrgent: 3},
	} {
		if got := messagesOf(map[string]string{"MWI-Voice-Message": text}); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// TestMailboxesAsk: a new daemon does not know what waits in its switch's voicemail
// and asks, once for each user and session.
func TestMailboxesAsk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t, false)
		questions := func(s *fakeSwitch) (out []string) {
			for _, e := range s.events() {
				if e.name == "MESSAGE_QUERY" && e.headers["VM-Call-ID"] == questionID && e.headers[originHeader] != "" {
					out = append(out, e.headers["Message-Account"])
				}
			}
			return out
		}
		expectTold(t, "at the start", questions(p.london), "sip:anna@a.test")
		p.london.emit("MESSAGE_WAITING", "MWI-Messages-Waiting", "yes", "MWI-Message-Account", "sip:anna@a.test",
			"MWI-Voice-Message", "4/0 (0/0)", "Call-ID", questionID, "Sofia-Profile", "internal")
		time.Sleep(time.Second)
		expectTold(t, "the answer", told(t, p.buffalo, "buffalo"), "sip:anna@a.test yes 4/0 (0/0) internal")
		p.there.Changed(bobA)
		p.there.Changed(bobA)
		time.Sleep(time.Second)
		expectTold(t, "somebody new", questions(p.london), "sip:bob@a.test")
		p.london.restart()
		time.Sleep(6 * time.Second)
		expectTold(t, "a new switch", questions(p.london), "sip:anna@a.test")
	})
}

// TestMailboxesOneStore: nodes whose directory names the same domain UUID read the same
// messages, and nothing has to be said about it.
func TestMailboxesOneStore(t *testing.T) {
	t.Parallel()
	const id, anna = "3a8b1c52-7d0e-4a7e-9f53-0c6f2f6a9b11", "sip:anna@a.test "
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t, false)
		both := func(what string, here, there []string) {
			t.Helper()
			expectTold(t, what+", buffalo", told(t, p.buffalo, "buffalo"), here...)
			expectTold(t, what+", london", told(t, p.london, "london"), there...)
		}
		for _, s := range []*fakeSwitch{p.buffalo, p.london} {
			s.mu.Lock()
			s.domainUUID = id
			s.mu.Unlock()
		}
		report(p.london, annaA, "yes", "1/0 (0/0)", "internal")
		both("a message", []string{anna + "yes 1/0 (0/0) internal"}, nil)
		report(p.buffalo, annaA, "yes", "1/0 (0/0)", "internal")
		both("the same one", nil, nil)
		report(p.buffalo, annaA, "no", "0/1 (0/0)", "internal")
		both("heard in buffalo", nil, []string{anna + "no 0/1 (0/0) internal"})
		report(p.london, annaA, "yes", "1/1 (0/0)", "internal")
		both("another one", []string{anna + "yes 1/1 (0/0) internal"}, nil)

		// What mod_voicemail has of its own comes on top; that it has nothing is no news.
		p.buffalo.emit("MESSAGE_WAITING", "MWI-Messages-Waiting", "no", "MWI-Message-Account", "sip:anna@a.test", "Call-ID", questionID,
			"Event-Calling-File", "mod_voicemail.c", "Sofia-Profile", "internal")
		time.Sleep(time.Second)
		both("an empty stock voicemail", nil, nil)
		stock := func(waiting, counts string) {
			p.buffalo.emit("MESSAGE_WAITING", "MWI-Messages-Waiting", waiting, "MWI-Message-Account", "sip:anna@a.test", "MWI-Voice-Message", counts,
				"Event-Calling-File", "mod_voicemail.c", "Sofia-Profile", "internal")
			time.Sleep(time.Second)
		}
		stock("yes", "2/0 (0/0)")
		both("one with messages", []string{anna + "yes 3/1 (0/0) internal"}, []string{anna + "yes 3/1 (0/0) internal"})
		stock("no", "0/0 (0/0)")
		both("which were deleted", []string{anna + "yes 1/1 (0/0) internal"}, []string{anna + "yes 1/1 (0/0) internal"})

		// The node that spoke last dies: the messages still wait.
		p.stopThere()
		time.Sleep(time.Hour)
		synctest.Wait()
		if b := p.here.boxes[annaA]; b == nil || b.sum().fresh != 1 || b.sum().old != 1 {
			t.Errorf("after the death of the node that spoke last: %+v", b)
		}
		report(p.buffalo, annaA, "no", "0/0 (0/0)", "internal")
		told(t, p.buffalo, "buffalo")
		p.buffalo.emit("MESSAGE_QUERY", "Message-Account", "sip:anna@a.test", "VM-Sofia-Profile", "internal")
		time.Sleep(time.Second)
		expectTold(t, "nothing left", told(t, p.buffalo, "buffalo"))
	})
}

// TestMailboxesNewestWord: a state that comes late says nothing, and a node that never
// spoke of a mailbox may be the one where its messages were heard.
func TestMailboxesNewestWord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t, true)
		report(p.london, annaA, "yes", "1/0 (0/0)", "internal")
		expectTold(t, "a message", told(t, p.buffalo, "buffalo"), "sip:anna@a.test yes 1/0 (0/0) internal")
		told(t, p.london, "london")
		report(p.buffalo, annaA, "no", "0/0 (0/0)", "internal")
		expectTold(t, "deleted in buffalo", told(t, p.london, "london"), "sip:anna@a.test no 0/0 (0/0) internal")

		state := func(seq uint64, counts string) {
			p.here.hear(State{Kind: KindMailbox, Node: "singapore", Key: "bob@a.test", AOR: bobA, Run: "r", Seq: seq, Change: seq, TTL: time.Minute,
				Fields: map[string]string{"MWI-Messages-Waiting": "yes", "MWI-Voice-Message": counts}})
		}
		state(5, "1/0 (0/0)")
		state(4, "3/0 (0/0)")
		if n := p.here.boxes[bobA].sum().fresh; n != 1 {
			t.Errorf("%d messages", n)
		}
	})
}

// TestMailboxesDirectoryComesLater: a directory that named no store is asked again.
func TestMailboxesDirectoryComesLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t, false)
		both := func() int {
			for _, s := range []*fakeSwitch{p.london, p.buffalo} {
				report(s, annaA, "yes", "1/0 (0/0)", "internal")
				time.Sleep(time.Second)
			}
			synctest.Wait()
			return p.here.boxes[annaA].sum().fresh
		}
		if n := both(); n != 2 {
			t.Errorf("two stores: %d messages", n)
		}
		for _, s := range []*fakeSwitch{p.buffalo, p.london} {
			s.mu.Lock()
			s.domainUUID = "3a8b1c52-7d0e-4a7e-9f53-0c6f2f6a9b11"
			s.mu.Unlock()
		}
		if n := both(); n != 2 {
			t.Errorf("asked at once: %d messages", n)
		}
		time.Sleep(storeAgain)
		if n := both(); n != 1 {
			t.Errorf("one store: %d messages", n)
		}
	})
}

// TestMailboxesStoresAddUp: nodes with databases of their own, where the same domain
// has another UUID, and stock voicemail.
func TestMailboxesStoresAddUp(t *testing.T) {
	t.Parallel()
	for name, ids := range map[string][2]string{
		"two databases":        {"3a8b1c52-7d0e-4a7e-9f53-0c6f2f6a9b11", "4a8b1c52-7d0e-4a7e-9f53-0c6f2f6a9b11"},
		"one and stock":        {"3a8b1c52-7d0e-4a7e-9f53-0c6f2f6a9b11", ""},
		"stock":                {"", ""},
		"no UUID at all":       {"default", "default"},
		"a directory's answer": {"-ERR no such user", "-ERR no such user"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPost(t, false)
				for i, s := range []*fakeSwitch{p.buffalo, p.london} {
					s.mu.Lock()
					s.domainUUID = ids[i]
					s.mu.Unlock()
				}
				report(p.london, annaA, "yes", "1/0 (0/0)", "internal")
				report(p.buffalo, annaA, "yes", "1/0 (0/0)", "internal")
				told(t, p.buffalo, "buffalo")
				p.buffalo.emit("MESSAGE_QUERY", "Message-Account", "sip:anna@a.test", "VM-Sofia-Profile", "internal")
				time.Sleep(time.Second)
				expectTold(t, "both", told(t, p.buffalo, "buffalo"), "sip:anna@a.test yes 2/0 (0/0) internal")
			})
		})
	}
}

// TestMailboxesOfGroups: a mailbox under whose name nobody registers, and one that is
// spelled in several ways.
func TestMailboxesOfGroups(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPost(t, false)
		sales := mustAOR(t, "sales@a.test")
		report(p.london, sales, "yes", "2/0 (0/0)", "internal")
		expectTold(t, "a group's", told(t, p.buffalo, "buffalo"), "sip:sales@a.test yes 2/0 (0/0) internal")
		p.buffalo.emit("MESSAGE_QUERY", "Message-Account", "sip:Sales@A.test", "VM-Sofia-Profile", "internal")
		time.Sleep(time.Second)
		expectTold(t, "who watches it as Sales", told(t, p.buffalo, "buffalo"), "sip:sales@a.test yes 2/0 (0/0) internal", "sip:Sales@A.test yes 2/0 (0/0) internal")
		p.london.emit("MESSAGE_WAITING", "MWI-Messages-Waiting", "no", "MWI-Message-Account", "SALES@a.test", "MWI-Voice-Message", "0/2", "Sofia-Profile", "internal")
		time.Sleep(time.Second)
		expectTold(t, "its own text, lower case and the watched one", told(t, p.buffalo, "buffalo"),
			"sip:sales@a.test no 0/2 (0/0) internal", "sip:SALES@a.test no 0/2 (0/0) internal", "sip:Sales@A.test no 0/2 (0/0) internal")

		// A daemon that starts anew takes up what it had told: FusionPBX answers no questions.
		p.stopThere()
		p.there = NewMailboxes(p.there.opts)
		p.stopThere = start(t, p.there.Run)
		time.Sleep(time.Hour)
		told(t, p.buffalo, "buffalo")
		p.buffalo.emit("MESSAGE_QUERY", "Message-Account", "sip:sales@a.test", "VM-Sofia-Profile", "internal")
		time.Sleep(time.Second)
		if got := told(t, p.buffalo, "buffalo"); len(got) == 0 || got[0] != "sip:sales@a.test no 0/2 (0/0) internal" {
			t.Errorf("an hour after the daemon's new start: told %q", got)
		}
	})
}
