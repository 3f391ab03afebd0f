package native

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
)

// say has the switch fire what scripts and modules say without a channel. The headers
// are those of FusionPBX, mod_conference and mod_valet_parking, a new unique-id each time.
func (s *fakeSwitch) say(proto, from, state string) {
	s.mu.Lock()
	s.said++
	id := fmt.Sprintf("5b7e6c7e-7f6f-4ea8-8f0a-%s-%d", proto, s.said)
	s.mu.Unlock()
	s.emit("PRESENCE_IN", "proto", proto, "login", from, "from", from, "event_type", "presence", "alt_event_type", "dialog", "status", "Active (1 waiting)",
		"rpid", "unknown", "event_count", "1", "unique-id", id, "Presence-Call-Direction", "outbound", "answer-state", state)
}

// shown returns what the switch's phones were told since the last call, as "from state".
func (s *fakeSwitch) shown() string {
	synctest.Wait()
	var out []string
	for _, e := range s.events() {
		if e.headers["orig-event-name"] == "PRESENCE_IN" {
			out = append(out, e.headers["orig-from"]+" "+e.headers["orig-answer-state"])
		}
	}
	return strings.Join(out, ", ")
}

func (p *pair) expectShown(t *testing.T, what, want string) {
	t.Helper()
	if got := p.buffalo.shown(); got != want {
		t.Errorf("%s: shown %q, want %q", what, got, want)
	}
}

// TestStatuses plays what lights lamps without a call, on london, watched on buffalo.
func TestStatuses(t *testing.T) {
	t.Parallel()
	const on, off, anna = "confirmed", "terminated", "anna@a.test"
	probe := func(p *pair, proto, to string) {
		p.buffalo.emit("PRESENCE_PROBE", "to", to, "proto", proto, "expires", "3600")
		time.Sleep(time.Second)
	}
	cases := map[string]func(t *testing.T, p *pair){
		"its own end": func(t *testing.T, p *pair) {
			p.london.say("sip", anna, on)
			p.expectShown(t, "on", anna+" "+on)
			time.Sleep(time.Hour)
			p.expectShown(t, "repetitions", "")
			probe(p, "sip", anna)
			p.expectShown(t, "a late subscriber", anna+" "+on)
			p.london.say("sip", anna, on) // the job that says it again, with a new id
			p.expectShown(t, "the same again", "")
			p.london.say("sip", anna, off)
			p.expectShown(t, "off", anna+" "+off)
			probe(p, "sip", anna)
			time.Sleep(time.Hour)
			p.expectShown(t, "afterwards", anna+" "+off) // once more, like the end of a call
		},
		"of a user without a phone there": func(t *testing.T, p *pair) {
			p.london.say("sip", "5901@a.test", on)
			time.Sleep(time.Second)
			p.london.say("sip", "bob@a.test", "early")
			p.expectShown(t, "on", "5901@a.test "+on+", bob@a.test early")
		},
		"an end alone": func(t *testing.T, p *pair) {
			p.london.say("sip", anna, off)
			p.expectShown(t, "off", anna+" "+off)
		},
		"other protocols": func(t *testing.T, p *pair) {
			p.london.say("flow", "flow+*31@a.test", on)
			time.Sleep(time.Second)
			p.london.say("dnd", anna, on)
			time.Sleep(time.Second)
			p.london.say("agent", "John Smith@a.test", on)
			p.expectShown(t, "on", "*31@a.test "+on+", anna@a.test "+on+", john smith@a.test "+on+", John Smith@a.test "+on)
			probe(p, "flow", "flow+*31@a.test")
			p.expectShown(t, "a late subscriber", "*31@a.test "+on)
			p.london.say("dnd", anna, off)
			time.Sleep(10 * time.Second)
			p.expectShown(t, "off", "anna@a.test "+off+", anna@a.test "+off)
		},
		"a call puts it out": func(t *testing.T, p *pair) {
			p.london.say("sip", anna, on)
			synctest.Wait()
			p.london.call("c1", annaA, "answered", true)
			synctest.Wait()
			p.london.call("c1", annaA, "hangup", true)
			time.Sleep(time.Hour)
			p.expectShown(t, "all", anna+" "+on+", "+anna+" answered, "+anna+" hangup, "+anna+" hangup")
			probe(p, "sip", anna)
			p.expectShown(t, "a late subscriber", "")
		},
		"in a call it changes nothing": func(t *testing.T, p *pair) {
			p.london.call("c1", annaA, "answered", true)
			p.london.say("sip", anna, off)
			p.london.say("sip", anna, on)
			time.Sleep(time.Minute)
			p.expectShown(t, "the call", anna+" answered")
			p.buffalo.say("sip", anna, off) // hides the call from buffalo's own phones
			time.Sleep(time.Second)
			p.expectShown(t, "the call again", anna+" answered")
			p.london.call("c1", annaA, "hangup", true)
			p.expectShown(t, "its end", anna+" hangup")
		},
		"in a call here a word from there changes nothing": func(t *testing.T, p *pair) {
			p.buffalo.call("b1", bobA, "answered", true)
			p.london.say("sip", "bob@a.test", on)
			time.Sleep(time.Second)
			p.expectShown(t, "the call", "")
			p.buffalo.call("b1", bobA, "hangup", true)
			time.Sleep(time.Hour)
			if got := p.buffalo.shown(); strings.Contains(got, on) {
				t.Errorf("after the call: %q", got)
			}
		},
		"a call on another node puts it out": func(t *testing.T, p *pair) {
			p.buffalo.say("sip", anna, on)
			time.Sleep(time.Second)
			p.london.call("c1", annaA, "answered", true)
			time.Sleep(time.Second)
			p.london.call("c1", annaA, "hangup", true)
			time.Sleep(time.Minute)
			p.buffalo.shown()
			probe(p, "sip", anna)
			p.expectShown(t, "a late subscriber", "")
			if n := p.here.statuses.size(); n != 0 {
				t.Errorf("buffalo still holds %d", n)
			}
		},
		"a script that was asked knows": func(t *testing.T, p *pair) {
			p.london.say("dnd", anna, on)
			time.Sleep(time.Second)
			p.buffalo.emit("PRESENCE_PROBE", "to", "dnd+"+anna, "proto", "dnd", "expires", "3600")
			p.buffalo.say("dnd", anna, off)
			time.Sleep(time.Second)
			if n := p.there.statuses.size(); n != 0 {
				t.Errorf("london still holds %d", n)
			}
		},
		"with a scheme in front": func(t *testing.T, p *pair) {
			p.london.say("sip", "sip:"+anna, on)
			p.expectShown(t, "on", anna+" "+on)
		},
		"the event socket is lost for a moment": func(t *testing.T, p *pair) {
			p.london.say("sip", anna, on)
			p.expectShown(t, "on", anna+" "+on)
			p.london.cut(true)
			time.Sleep(time.Second)
			p.london.cut(false)
			time.Sleep(time.Minute)
			p.expectShown(t, "afterwards", "")
			if n := p.there.statuses.size(); n != 1 {
				t.Errorf("london holds %d", n)
			}
		},
		"ended on another node": func(t *testing.T, p *pair) {
			p.london.say("sip", anna, on)
			time.Sleep(time.Second)
			p.buffalo.shown()
			p.buffalo.say("sip", anna, off)
			time.Sleep(time.Hour)
			p.expectShown(t, "its own switch showed it", "")
			if n := p.there.statuses.size(); n != 0 {
				t.Errorf("london still holds %d", n)
			}
			p.london.mu.Lock()
			last := p.london.sent[len(p.london.sent)-1].headers
			p.london.mu.Unlock()
			if last["orig-from"] != anna || last["orig-answer-state"] != off {
				t.Errorf("london's phones were told %v", last)
			}
		},
		"the answer to a probe is no news": func(t *testing.T, p *pair) {
			p.london.say("voicemail", anna, on)
			time.Sleep(time.Second)
			p.buffalo.shown()
			p.buffalo.emit("PRESENCE_PROBE", "to", "voicemail+"+anna, "proto", "voicemail", "expires", "3600")
			time.Sleep(400 * time.Millisecond)
			p.buffalo.say("voicemail", anna, off) // a script there knows of no message
			time.Sleep(time.Second)
			p.expectShown(t, "the last word", anna+" "+on+", "+anna+" "+on)
			if n := p.there.statuses.size(); n != 1 {
				t.Errorf("london holds %d", n)
			}
		},
		"each switch has its own conference": func(t *testing.T, p *pair) {
			p.london.say("conf", "3001@a.test", on)
			p.buffalo.say("conf", "3001@a.test", on)
			time.Sleep(time.Second)
			p.expectShown(t, "both", "3001@a.test "+on)
			p.buffalo.say("conf", "3001@a.test", off)
			time.Sleep(time.Second)
			p.expectShown(t, "london's goes on", "3001@a.test "+on)
			p.london.say("conf", "3001@a.test", off)
			time.Sleep(time.Minute)
			p.expectShown(t, "over", "3001@a.test "+off+", 3001@a.test "+off)
		},
		"the node goes down": func(t *testing.T, p *pair) {
			p.london.say("park", "5901@a.test", on)
			p.buffalo.shown()
			p.stopThere()
			p.world.setNode("london", addr(2), pbxmesh.ObservedDown, pbxmesh.WantedInService)
			p.here.NodesChanged()
			p.expectShown(t, "out", "5901@a.test hangup")
		},
		"the switch is killed and comes back": func(t *testing.T, p *pair) {
			p.london.say("park", "5901@a.test", on)
			p.buffalo.shown()
			p.london.restart()
			time.Sleep(6 * time.Second)
			p.expectShown(t, "out", "5901@a.test hangup, 5901@a.test hangup")
		},
		"switch and daemon start anew": func(t *testing.T, p *pair) {
			p.london.say("sip", anna, on)
			p.buffalo.shown()
			p.stopThere()
			p.london.restart()
			p.startThere(t)
			time.Sleep(6 * time.Second)
			p.expectShown(t, "out", anna+" hangup, "+anna+" hangup")
		},
		"the daemon is killed": func(t *testing.T, p *pair) {
			p.london.say("sip", anna, on)
			p.buffalo.shown()
			p.stopThere()
			time.Sleep(3 * time.Minute)
			p.expectShown(t, "out", anna+" hangup, "+anna+" hangup")
		},
		"the daemon is killed and comes back": func(t *testing.T, p *pair) {
			p.london.say("sip", anna, on)
			p.buffalo.shown()
			p.stopThere()
			time.Sleep(time.Minute)
			p.startThere(t)
			time.Sleep(time.Hour)
			probe(p, "sip", anna)
			if got := p.buffalo.shown(); got == "" || strings.Contains(got, "hangup") {
				t.Errorf("after the daemon's return: %q", got)
			}
			p.london.say("sip", anna, off)
			p.expectShown(t, "off", anna+" "+off)
		},
		"what a phone publishes": func(t *testing.T, p *pair) {
			p.london.emit("PRESENCE_IN", "proto", "sip", "rpid", "away", "login", "sip:x", "sip_profile", "internal", "user-agent", "Desk", "from", anna, "status", "Lunch")
			p.expectShown(t, "away", anna+" ")
			p.london.emit("PRESENCE_IN", "proto", "sip", "rpid", "Unregistered", "login", "sip:x", "sip_profile", "internal", "user-agent", "Desk", "from", anna, "status", "Unregistered")
			time.Sleep(time.Second)
			p.expectShown(t, "gone", anna+" hangup")
		},
		"devices and answers to one phone": func(t *testing.T, p *pair) {
			p.london.emit("PRESENCE_IN", "proto", "sip", "from", anna, "status", "Registered", "login", "internal", "presence-source", "register")
			p.london.emit("PRESENCE_IN", "proto", "sip", "from", anna, "status", "Unregistered", "rpid", "away", "login", "sip:x")
			p.london.emit("PRESENCE_IN", "proto", "sip", "from", anna, "status", "Registered", "sip_profile", "internal", "call-id", "1", "unique-id", "c1", "answer-state", "confirmed")
			p.london.emit("PRESENCE_IN", "proto", "sip", "from", anna, "status", "Unregistered", "sip_profile", "internal")
			p.london.emit("PRESENCE_IN", "proto", "sip", "from", anna, "status", "Active (1 waiting)", "sip_profile", "internal", "unique-id", "1", "answer-state", on)
			p.london.emit("PRESENCE_IN", "proto", "sip", "from", "a\n@a.test", "unique-id", "1", "answer-state", on)
			p.london.emit("PRESENCE_IN", "proto", "sip", "from", "nobody", "unique-id", "1", "answer-state", on)
			time.Sleep(time.Second)
			p.expectShown(t, "nothing", "")
		},
	}
	for name, play := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				play(t, p)
			})
		})
	}
}

// TestSpellingsAreBounded: nobody fills the memory, or the switch's queue, with spellings.
func TestSpellingsAreBounded(t *testing.T) {
	t.Parallel()
	s, key, now := spellings{}, userLamp(annaA), time.Now()
	for i := range 2 * maxSpellings {
		s.learn(key, fmt.Sprintf("%0*b@a.test", 5, i), now, time.Hour)
	}
	if n := len(s.of(key)); n != maxSpellings {
		t.Errorf("%d spellings", n)
	}
	s.expire(now.Add(time.Hour + spellingMargin + time.Second))
	if len(s) != 0 {
		t.Errorf("%d users are left", len(s))
	}
}

// TestLampsSpellings watches a user in other spellings than the switch calls it by.
func TestLampsSpellings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		shown := func(s *fakeSwitch) []string {
			got := strings.Split(s.shown(), ", ")
			slices.Sort(got)
			return got
		}
		expect := func(what string, s *fakeSwitch, want ...string) {
			t.Helper()
			if got := shown(s); !slices.Equal(got, want) {
				t.Errorf("%s: shown %q, want %q", what, got, want)
			}
		}
		ring := func(state string) {
			p.london.emit("PRESENCE_IN", "Channel-Name", "sofia/internal/x", "proto", "any", "from", "Anna@A.test", "Unique-ID", "c1",
				"answer-state", state, "status", map[string]string{"early": "CS_ROUTING", "hangup": "CS_HANGUP"}[state])
			time.Sleep(time.Second)
		}
		ring("early")
		expect("its own text and lower case", p.buffalo, "Anna@A.test early", "anna@a.test early")
		expect("on its own switch all but its own text", p.london, "anna@a.test early")
		for _, s := range []*fakeSwitch{p.buffalo, p.london} {
			s.emit("PRESENCE_PROBE", "to", "ANNA@a.test", "proto", "sip", "probe-type", "dialog", "expires", "600")
		}
		time.Sleep(time.Second)
		expect("a late subscriber", p.buffalo, "ANNA@a.test early", "Anna@A.test early", "anna@a.test early")
		expect("a late subscriber of its own switch", p.london, "ANNA@a.test early", "anna@a.test early")
		ring("hangup")
		expect("its end", p.buffalo, "ANNA@a.test hangup", "Anna@A.test hangup", "anna@a.test hangup")
		expect("its end on its own switch", p.london, "ANNA@a.test hangup", "anna@a.test hangup")
		time.Sleep(20 * time.Minute)
		shown(p.buffalo)
		p.world.mu.Lock()
		p.world.regs[annaA][0].Contact = "sip:AnnA@192.0.2.7:5060"
		p.world.mu.Unlock()
		ring("early")
		expect("the subscription is over, the phone calls itself so", p.buffalo, "AnnA@a.test early", "Anna@A.test early", "anna@a.test early")
	})
}

// TestListedUUID compares events and lists, which the switch encodes differently.
func TestListedUUID(t *testing.T) {
	t.Parallel()
	for listed, header := range map[string]string{
		"2f036e00-7eb9-44a5-9c03-aadb99d87568": "2f036e00-7eb9-44a5-9c03-aadb99d87568",
		"5ea7a1dd@192.0.2.10":                  "5ea7a1dd%40192.0.2.10",
		"a%41b":                                "a%41b", "a%4": "a%254", "100%": "100%25", "a%zz@h": "a%25zz%40h", "a%4ab": "a%254ab",
	} {
		if got := fakeRaw("Unique-ID: " + header + "\n").Get("Unique-ID"); got != listedUUID(listed) {
			t.Errorf("%q: %q by its events, %q by the list", listed, got, listedUUID(listed))
		}
	}
}
