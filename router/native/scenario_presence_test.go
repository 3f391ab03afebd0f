package native

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/internal/esl"
)

// lampText is what a NOTIFY shows: the state of a dialog, or the note of a presence
// document.
func lampText(n phone.Notify) string {
	if strings.Contains(n.Body, "<dialog-info") {
		return dialogState(n)
	}
	return strings.TrimSpace(element(n.Body, "dm:note") + element(n.Body, "note"))
}

// last returns what the newest NOTIFY shows.
func last(s *phone.Subscription) string {
	all := s.Notifies()
	if len(all) == 0 {
		return "no NOTIFY"
	}
	return lampText(all[len(all)-1])
}

// shown lists what the newest NOTIFYs show, and when they came.
func shown(s *phone.Subscription) string {
	all := s.Notifies()
	var b strings.Builder
	for _, n := range all[max(0, len(all)-6):] {
		fmt.Fprintf(&b, "%s %q, ", n.At.Format("05.000"), lampText(n))
	}
	return b.String()
}

// watch subscribes to user at each phone.
func watch(t *testing.T, event, user string, phones ...*phone.Phone) []*phone.Subscription {
	t.Helper()
	var out []*phone.Subscription
	for _, p := range phones {
		s, err := p.Subscribe(t.Context(), event, user)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

// TestScenarioSpellings watches a phone that is registered as Alice in all spellings,
// on its own node and on another one.
func TestScenarioSpellings(t *testing.T) {
	w, nodes := meshOf(t, "buffalo", "london")
	buffalo, lon := nodes[0], nodes[1]
	far := phoneAt(t, w, nodes, buffalo, "1001", "127.0.86.1")
	near := phoneAt(t, w, nodes, lon, "1004", "127.0.86.4")
	callee := phoneAt(t, w, nodes, lon, "Alice", "127.0.86.2")
	here := phoneAt(t, w, nodes, lon, "1003", "127.0.86.3")
	subs := make(map[string]*phone.Subscription)
	for _, user := range []string{"alice", "Alice", "ALICE"} {
		both := watch(t, phone.EventDialog, user, far, near)
		subs["far "+user], subs["near "+user] = both[0], both[1]
		subs["far presence of "+user] = watch(t, phone.EventPresence, user, far)[0]
	}
	show := func(what string, want ...string) {
		t.Helper()
		for name, s := range subs {
			took := eventually(t, 5*time.Second, func() string {
				got := last(s)
				for _, w := range want {
					if strings.HasPrefix(got, w) {
						return ""
					}
				}
				return fmt.Sprintf("%s, %s: shown %q; before: %s", what, name, got, shown(s))
			})
			if took > time.Second {
				t.Errorf("%s, %s: shown after %s", what, name, took)
			}
		}
	}
	for i, from := range []struct {
		caller *phone.Phone
		node   *meshNode
		dials  string
	}{{here, lon, "Alice"}, {here, lon, "alice"}, {here, lon, "ALICE"}, {far, buffalo, "Alice"}, {far, buffalo, "alice"}} {
		what := fmt.Sprintf("%s dials %s", from.node.id, from.dials)
		callee.SetBehaviour(phone.RingForever())
		from.node.dialStock(from.caller.User(), from.dials)
		c, err := callee.WaitIncoming(within(t, 5*time.Second), i+1)
		if err != nil {
			t.Fatal(err)
		}
		show(what+", rings", "early", "Ring")
		if err := c.Answer(); err != nil {
			t.Fatal(err)
		}
		show(what+", answered", "confirmed", "Talk", "On The Phone")
		if err := c.Hangup(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		show(what+", over", "terminated", "Available")
	}
}

// status is a PRESENCE_IN as FusionPBX's scripts and pages send it.
func status(proto, from, id string, on bool) []esl.Header {
	h := []esl.Header{
		{Name: "proto", Value: proto}, {Name: "event_type", Value: "presence"}, {Name: "alt_event_type", Value: "dialog"},
		{Name: "Presence-Call-Direction", Value: "outbound"}, {Name: "from", Value: from}, {Name: "login", Value: from},
		{Name: "unique-id", Value: id}, {Name: "status", Value: "Active (1 waiting)"},
	}
	if !on {
		return append(h, esl.Header{Name: "answer-state", Value: "terminated"})
	}
	return append(h, esl.Header{Name: "answer-state", Value: "confirmed"}, esl.Header{Name: "rpid", Value: "unknown"}, esl.Header{Name: "event_count", Value: "1"})
}

// TestScenarioStatuses compares, step by step, what phones of two nodes are shown of
// users and codes that scripts speak for on one of them.
func TestScenarioStatuses(t *testing.T) {
	w, nodes := meshOf(t, "buffalo", "london")
	buffalo, lon := nodes[0], nodes[1]
	far := phoneAt(t, w, nodes, buffalo, "1001", "127.0.86.1")
	near := phoneAt(t, w, nodes, lon, "1004", "127.0.86.4")
	user := phoneAt(t, w, nodes, lon, "1002", "127.0.86.2")
	user.SetBehaviour(phone.RingForever())
	subs := make(map[string][]*phone.Subscription)
	for _, what := range []string{"1002", "dnd+1002", "flow+*31", "5901", "park+5902", "agent+1002", "voicemail+1002", "5/9", "flow+c"} {
		subs[what] = watch(t, phone.EventDialog, what, near, far)
	}
	subs["presence of 1002"] = watch(t, phone.EventPresence, "1002", near, far)
	// What is shown of a user at first comes when the switch gets to it, and would put out a lamp.
	for _, what := range []string{"1002", "presence of 1002"} {
		for i, s := range subs[what] {
			eventually(t, 5*time.Second, func() string {
				if len(s.Notifies()) == 0 {
					return fmt.Sprintf("%s: %s was shown nothing yet", what, []string{"near", "far"}[i])
				}
				return ""
			})
		}
	}
	say := func(n *meshNode, headers []esl.Header) {
		t.Helper()
		if err := n.conn.SendEvent(t.Context(), "PRESENCE_IN", headers, nil); err != nil {
			t.Fatal(err)
		}
	}
	// same waits until both phones have been shown want, and nothing else for a while.
	same := func(what, watched, want string) {
		t.Helper()
		shows := func(i int) string {
			if got := last(subs[watched][i]); got != want {
				return fmt.Sprintf("%s, %s: %s shows %q, want %q", what, watched, []string{"near", "far"}[i], got, want)
			}
			return ""
		}
		for i := range subs[watched] {
			took := eventually(t, 5*time.Second, func() string { return shows(i) })
			t.Logf("%s: %s %s after %s", what, []string{"near", "far"}[i], want, took.Round(time.Millisecond))
		}
		stays(t, 400*time.Millisecond, func() string { return shows(0) + shows(1) })
	}
	for _, c := range []struct{ proto, from, watched string }{
		{"sip", "1002@" + tenant, "1002"}, {"dnd", "1002@" + tenant, "dnd+1002"}, {"flow", "flow+*31@" + tenant, "flow+*31"},
		{"sip", "5901@" + tenant, "5901"}, {"park", "5902@" + tenant, "park+5902"}, {"agent", "1002@" + tenant, "agent+1002"},
		{"voicemail", "1002@" + tenant, "voicemail+1002"}, {"sip", "5/9@" + tenant, "5/9"},
	} {
		for range 2 {
			say(lon, status(c.proto, c.from, sipwire.NewCallID(), true))
			same("on", c.watched, "confirmed")
			say(lon, status(c.proto, c.from, sipwire.NewCallID(), false))
			same("off", c.watched, "terminated")
		}
	}

	t.Log("nobody can watch a user with a + within, and who comes behind it is another one")
	say(lon, status("flow", "flow+b+c@"+tenant, sipwire.NewCallID(), true))
	say(lon, status("flow", "flow+*31@"+tenant, sipwire.NewCallID(), true))
	same("on, after it", "flow+*31", "confirmed")
	for i, s := range subs["flow+c"] {
		if len(s.Notifies()) > 0 {
			t.Errorf("flow+c: %s was shown %q", []string{"near", "far"}[i], last(s))
		}
	}
	say(lon, status("flow", "flow+*31@"+tenant, sipwire.NewCallID(), false))
	same("off", "flow+*31", "terminated")

	t.Log("a status stays lit, for late subscribers too, until it is ended on the other node")
	say(lon, status("sip", "1002@"+tenant, "c0ffee00-0000-4000-8000-000000000001", true))
	same("on", "1002", "confirmed")
	seen := len(subs["1002"][1].Notifies())
	late := watch(t, phone.EventDialog, "1002", far)[0]
	eventually(t, 2*time.Second, func() string { return wantString(last(late), "confirmed") })
	say(buffalo, status("sip", "1002@"+tenant, "c0ffee00-0000-4000-8000-000000000002", false))
	same("off on the other node", "1002", "terminated")
	for _, n := range subs["1002"][1].Notifies()[seen:] {
		if s := dialogState(n); s == "terminated" && n.At.Before(late.Notifies()[0].At) {
			t.Error("the lamp went out by itself")
		}
	}

	t.Log("a status in a call changes nothing, and the end of the call puts the lamp out")
	lon.dialStock("1004", "1002")
	caller, err := near.WaitIncoming(within(t, 5*time.Second), 1)
	if err != nil {
		t.Fatal(err)
	}
	call, err := user.WaitIncoming(within(t, 5*time.Second), 1)
	if err != nil {
		t.Fatal(err)
	}
	same("it rings", "1002", "early")
	if err := call.Answer(); err != nil {
		t.Fatal(err)
	}
	same("it talks", "1002", "confirmed")
	for _, on := range []bool{true, false, true} {
		say(lon, status("sip", "1002@"+tenant, sipwire.NewCallID(), on))
		same("a status in the call", "1002", "confirmed")
	}
	// The switch there knows of no call, and puts its phones' lamps out by itself: they are
	// lit again a moment later.
	seen = len(subs["1002"][1].Notifies())
	said := time.Now()
	say(buffalo, status("sip", "1002@"+tenant, sipwire.NewCallID(), false))
	took := eventually(t, 5*time.Second, func() string {
		if all := subs["1002"][1].Notifies()[seen:]; len(all) == 0 && time.Since(said) < time.Second || len(all) > 0 && dialogState(all[len(all)-1]) != "confirmed" {
			return "an end on the other node: its lamp is not lit again"
		}
		return ""
	})
	if took > 2*time.Second {
		t.Errorf("an end on the other node puts the lamp out for %s", took)
	}
	same("an end on the other node", "1002", "confirmed")
	if err := caller.Hangup(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	same("the call is over", "1002", "terminated")

	t.Log("a status before a call is over with the call")
	say(lon, status("sip", "1002@"+tenant, sipwire.NewCallID(), true))
	same("on", "1002", "confirmed")
	lon.dialStock("1004", "1002")
	if caller, err = near.WaitIncoming(within(t, 5*time.Second), 2); err != nil {
		t.Fatal(err)
	}
	if _, err = user.WaitIncoming(within(t, 5*time.Second), 2); err != nil {
		t.Fatal(err)
	}
	same("it rings", "1002", "early")
	if err := caller.Hangup(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	same("the call is over", "1002", "terminated")

	t.Log("presence in words")
	for _, note := range []string{"Lunch", "Back soon"} {
		lon.api(fmt.Sprintf("presence in 1002@%s away '%s'", tenant, note))
		same("a note", "presence of 1002", note)
	}

	t.Log("the node dies")
	say(lon, status("flow", "flow+*31@"+tenant, sipwire.NewCallID(), true))
	same("on", "flow+*31", "confirmed")
	lon.stop()
	if err := lon.Kill(); err != nil {
		t.Fatal(err)
	}
	w.setNode("london", lon.Mesh(), pbxmesh.ObservedDown, pbxmesh.WantedInService)
	buffalo.lamps.NodesChanged()
	eventually(t, 2*time.Second, func() string { return wantString(last(subs["flow+*31"][1]), "terminated") })
}

// TestScenarioUUIDs lights lamps for channels whose UUID is the caller's Call-ID, or
// what a dial string makes up.
func TestScenarioUUIDs(t *testing.T) {
	w, nodes := meshWith(t, []string{"buffalo", "london"}, realswitch.WithInternalParam("inbound-use-callid-as-uuid", "true"))
	buffalo, lon := nodes[0], nodes[1]
	far := phoneAt(t, w, nodes, buffalo, "1001", "127.0.86.1")
	callee := phoneAt(t, w, nodes, lon, "1002", "127.0.86.2")
	callee.SetBehaviour(phone.AutoAnswer(100 * time.Millisecond))
	caller := phoneAt(t, w, nodes, lon, "1003", "127.0.86.3")
	ofCaller, ofCallee := watch(t, phone.EventDialog, "1003", far)[0], watch(t, phone.EventDialog, "1002", far)[0]
	listed := func(id string) {
		t.Helper()
		// The list of channels is compared with the events every ten seconds: a call that
		// it does not know by its id would be taken for over.
		deadline := time.Now().Add(listEvery + 3*time.Second)
		eventually(t, listEvery+10*time.Second, func() string {
			if time.Now().Before(deadline) {
				return "waiting for a list"
			}
			return ""
		})
		if n := lon.lamps.Stats().Mended; n != 0 {
			t.Errorf("%q: %d calls were mended by the list", id, n)
		}
	}
	for i, id := range []string{"5ea7a1dd-e7932921@192.0.2.10", "z97<8df>6d~8g6+7%sdg@192.0.2.9", "a%41b%4/c@h&=;'x`"} {
		seen := len(ofCaller.Notifies())
		c, err := caller.Call(within(t, 10*time.Second), "1999", sipwire.Header{Name: "Call-ID", Value: id})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WaitAnswered(within(t, 5*time.Second)); err != nil {
			t.Fatalf("%q: %v", id, err)
		}
		waitLamp(t, ofCaller, seen, "confirmed", 5*time.Second)
		if i == 2 {
			listed(id)
			if got := last(ofCaller); got != "confirmed" {
				t.Errorf("%q: shown %q", id, got)
			}
		}
		seen = len(ofCaller.Notifies())
		if err := c.Hangup(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		waitLamp(t, ofCaller, seen, "terminated", 5*time.Second)
	}
	for i, id := range []string{"my-call-1", "my call 2", "it<a>&%\"#@3"} {
		seen := len(ofCallee.Notifies())
		lon.api(fmt.Sprintf(`bgapi originate {origination_uuid='%s'}user/1002@%s &park`, id, tenant))
		c, err := callee.WaitIncoming(within(t, 5*time.Second), i+1)
		if err != nil {
			t.Fatalf("%q: %v", id, err)
		}
		if _, err := c.WaitAnswered(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		waitLamp(t, ofCallee, seen, "confirmed", 5*time.Second)
		seen = len(ofCallee.Notifies())
		if err := c.Hangup(within(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		waitLamp(t, ofCallee, seen, "terminated", 5*time.Second)
	}
}

// messagesAt sends what a voicemail of n says of an account.
func (n *meshNode) messagesAt(account, waiting, counts, profile string) {
	n.t.Helper()
	h := []esl.Header{{Name: "MWI-Messages-Waiting", Value: waiting}, {Name: "MWI-Message-Account", Value: "sip:" + account}, {Name: "MWI-Voice-Message", Value: counts}}
	if profile != "" {
		h = append(h, esl.Header{Name: "sofia-profile", Value: profile})
	}
	if err := n.conn.SendEvent(n.t.Context(), "MESSAGE_WAITING", h, nil); err != nil {
		n.t.Fatal(err)
	}
}

// waitMessages waits until the newest NOTIFY of each subscription shows the counts.
func waitMessages(t *testing.T, what, counts string, subs ...*phone.Subscription) {
	t.Helper()
	for i, s := range subs {
		took := eventually(t, 5*time.Second, func() string {
			all := s.Notifies()
			if len(all) == 0 {
				return what + ": no NOTIFY"
			}
			if body := all[len(all)-1].Body; !strings.Contains(body, "Voice-Message: "+counts) {
				return fmt.Sprintf("%s: subscription %d shows %q, want %s", what, i, body, counts)
			}
			return ""
		})
		t.Logf("%s: %d shows %s after %s", what, i, counts, took.Round(time.Millisecond))
	}
}

// TestScenarioOneStore: two switches whose directory names one domain UUID, as two
// FusionPBX nodes on one database do, speak of the same messages.
func TestScenarioOneStore(t *testing.T) {
	w, nodes := meshWith(t, []string{"buffalo", "london"}, realswitch.WithUserVariable("domain_uuid", "3a8b1c52-7d0e-4a7e-9f53-0c6f2f6a9b11"))
	buffalo, lon := nodes[0], nodes[1]
	here, there := phoneAt(t, w, nodes, buffalo, "1001", "127.0.87.1"), phoneAt(t, w, nodes, lon, "1002", "127.0.87.2")
	subs := watch(t, phone.EventMessages, "1001", here, there)
	lon.messagesAt("1001@"+tenant, "yes", "1/0 (0/0)", "internal")
	waitMessages(t, "a message", "1/0", subs...)
	buffalo.messagesAt("1001@"+tenant, "yes", "1/0 (0/0)", "internal")
	buffalo.messagesAt("1001@"+tenant, "yes", "1/0 (0/0)", "mesh") // FusionPBX tells every profile of the user's contacts
	eventually(t, 5*time.Second, func() string { return wantString(fmt.Sprint(buffalo.boxes.Stats().Told.Published), "1") })
	waitMessages(t, "the same one", "1/0", subs...)
	lon.messagesAt("1001@"+tenant, "yes", "2/0 (0/0)", "internal")
	waitMessages(t, "another one", "2/0", subs...)
	buffalo.messagesAt("1001@"+tenant, "no", "0/2 (0/0)", "user_not_registered")
	eventually(t, 5*time.Second, func() string { return wantString(fmt.Sprint(lon.boxes.Stats().Told.Own), "0") })
	waitMessages(t, "heard on the other node", "0/2", subs...)
	lon.messagesAt("1001@"+tenant, "no", "0/0 (0/0)", "internal")
	waitMessages(t, "deleted", "0/0", subs...)
	for _, s := range subs {
		for _, n := range s.Notifies() {
			for _, wrong := range []string{"2/2", "4/0", "3/0", "1/2"} {
				if strings.Contains(n.Body, "Voice-Message: "+wrong) {
					t.Errorf("a phone was shown a sum: %s", n.Body)
				}
			}
		}
	}
}

// TestScenarioGroupMailbox: phones whose directory entry names a group's mailbox are
// told of it without asking, and those that subscribe to it too, in any spelling.
func TestScenarioGroupMailbox(t *testing.T) {
	w, nodes := meshWith(t, []string{"buffalo", "london"}, realswitch.WithUserParam("mwi-account", "Sales@"+tenant), realswitch.WithModule("mod_voicemail",
		`<configuration name="voicemail.conf"><settings/><profiles><profile name="default"/></profiles></configuration>`))
	buffalo, lon := nodes[0], nodes[1]
	member := phoneAt(t, w, nodes, buffalo, "1001", "127.0.87.1")
	phoneAt(t, w, nodes, lon, "1002", "127.0.87.2")
	subs := watch(t, phone.EventMessages, "sales", member)
	subs = append(subs, watch(t, phone.EventMessages, "Sales", member)...)
	for _, account := range []string{"Sales", "sales", "SALES"} {
		lon.messagesAt(account+"@"+tenant, "yes", "2/0 (0/0)", "internal")
		waitMessages(t, account+" has messages", "2/0", subs...)
		eventually(t, 5*time.Second, func() string {
			for _, n := range member.Notifies() {
				if strings.Contains(n.Body, "Voice-Message: 2/0") {
					return ""
				}
			}
			return "the member is not told of its group's mailbox"
		})
		lon.messagesAt(account+"@"+tenant, "no", "0/2 (0/0)", "internal")
		waitMessages(t, account+" has none", "0/2", subs...)
	}
}
