package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// lossy is an exchange that loses what lose says.
type lossy struct {
	*Memory
	mu   sync.Mutex
	lose func(State) bool
}

func (x *lossy) Publish(ctx context.Context, st State) error {
	x.mu.Lock()
	lost := x.lose != nil && x.lose(st)
	x.mu.Unlock()
	if lost {
		return errors.New("lost")
	}
	return x.Memory.Publish(ctx, st)
}

func (x *lossy) setLose(fn func(State) bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.lose = fn
}

// pair is two nodes with lamps between them.
type pair struct {
	world           *world
	exchange        *lossy
	buffalo, london *fakeSwitch
	here, there     *Lamps
	stopThere       func()
}

func newPair(t *testing.T) *pair {
	p := &pair{world: newWorld(), exchange: &lossy{Memory: NewMemory()}, buffalo: newFakeSwitch(), london: newFakeSwitch()}
	p.london.core = "london-0"
	p.world.setNode("buffalo", addr(1), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	p.world.setNode("london", addr(2), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	p.world.register(annaA, "london", 24*time.Hour)
	p.world.register(bobA, "buffalo", 24*time.Hour)
	p.here = NewLamps(LampsOptions{Local: "buffalo", Directory: p.world, Nodes: p.world, Exchange: p.exchange, Dial: p.buffalo.dial})
	start(t, p.here.Run)
	p.startThere(t)
	time.Sleep(time.Second)
	return p
}

func (p *pair) startThere(t *testing.T) {
	p.there = NewLamps(LampsOptions{Local: "london", Directory: p.world, Nodes: p.world, Exchange: p.exchange, Dial: p.london.dial})
	p.stopThere = start(t, p.there.Run)
}

func (p *pair) expect(t *testing.T, aor pbxmesh.AOR, state, uuid string) {
	t.Helper()
	synctest.Wait()
	if s, u := p.buffalo.lamp(aor); s != state || u != uuid {
		t.Errorf("the lamp of %s was last shown %q of call %q, want %q of %q", aor, s, u, state, uuid)
	}
}

// TestLampsRecorded plays a real switch's events of a call from 1005 to 1002.
func TestLampsRecorded(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("testdata/events-presence-mwi-during-call.txt")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.london.mu.Lock()
		p.london.channels["8d1eb582-773f-489c-a131-e09e5f9fe9d0"] = channelRow{UUID: "8d1eb582-773f-489c-a131-e09e5f9fe9d0"}
		p.london.mu.Unlock()
		p.there.mu.Lock()
		p.there.core = "5602e65b-d284-48e6-b97a-e06c131d920c"
		p.there.mu.Unlock()
		p.world.register(mustAOR(t, "1002@pbx.test"), "london", time.Hour)
		for part := range strings.SplitSeq(string(text), "\n--\n") {
			p.there.onEvent(esl.ParseEvent(strings.TrimLeft(part, "\n")))
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Second)
		var got []string
		for _, e := range p.buffalo.events() {
			h := e.headers
			got = append(got, strings.Join([]string{e.name, h["Event-Subclass"], h["orig-event-name"], h["orig-from"], h["orig-answer-state"], h["orig-channel-state"]}, " "))
			if h["orig-Unique-ID"] != "8d1eb582-773f-489c-a131-e09e5f9fe9d0" || h["orig-Caller-Caller-ID-Number"] != "1005" || h["orig-alt_event_type"] != "dialog" || h["orig-proto"] != "any" {
				t.Errorf("headers %v", h)
			}
		}
		const head = "CUSTOM multicast::event PRESENCE_IN 1002@pbx.test "
		want := []string{head + "ringing CS_ROUTING", head + "answered CS_CONSUME_MEDIA", head + "hangup CS_HANGUP", head + "hangup CS_HANGUP"}
		if !slices.Equal(got, want) {
			t.Errorf("shown\n%s\nwant (the end twice, and nothing about the caller, who has no phone there)\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// TestLampsCannotStick takes away whatever would put a lamp out.
func TestLampsCannotStick(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		fault  func(t *testing.T, p *pair)
		within time.Duration
	}{
		{"hangup", func(_ *testing.T, p *pair) { p.london.call("c1", annaA, "hangup", true) }, 100 * time.Millisecond},
		{"the event of the hangup is lost", func(_ *testing.T, p *pair) { p.london.call("c1", annaA, "hangup", false) }, 13 * time.Second},
		{"the exchange loses the end", func(_ *testing.T, p *pair) {
			p.exchange.setLose(func(st State) bool { return st.Ended })
			p.london.call("c1", annaA, "hangup", true)
		}, 25 * time.Second},
		{"the daemon is killed", func(_ *testing.T, p *pair) { p.stopThere() }, 25 * time.Second},
		{"the node goes down", func(_ *testing.T, p *pair) {
			p.stopThere()
			p.world.setNode("london", addr(2), pbxmesh.ObservedDown, pbxmesh.WantedInService)
			p.here.NodesChanged()
		}, 100 * time.Millisecond},
		{"the node goes down and nobody says so", func(_ *testing.T, p *pair) {
			p.world.setNode("london", addr(2), pbxmesh.ObservedDown, pbxmesh.WantedInService)
		}, time.Second},
		{"the switch is killed and comes back", func(_ *testing.T, p *pair) { p.london.restart() }, 6 * time.Second},
		{"switch and daemon start anew", func(t *testing.T, p *pair) {
			p.stopThere()
			p.london.restart()
			p.startThere(t)
			time.Sleep(time.Second)
			p.world.register(bobA, "london", time.Hour)
			p.london.call("c2", bobA, "answered", true)
		}, time.Second},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				p.london.call("c1", annaA, "ringing", true)
				p.expect(t, annaA, "ringing", "c1")
				p.london.call("c1", annaA, "answered", true)
				p.expect(t, annaA, "answered", "c1")
				time.Sleep(10 * time.Minute) // repetitions keep it and show nothing
				p.expect(t, annaA, "answered", "c1")
				if n := len(p.buffalo.events()); n != 2 {
					t.Errorf("%d events for a call that rang and was answered", n)
				}
				c.fault(t, p)
				time.Sleep(c.within)
				p.expect(t, annaA, "hangup", "c1")
				time.Sleep(10 * time.Minute)
				ends := 0
				for _, e := range p.buffalo.events() {
					if e.headers["orig-from"] == annaA.String() {
						ends++
					}
				}
				if ends != 2 {
					t.Errorf("the end was shown %d times, want 2", ends)
				}
				p.here.mu.Lock()
				defer p.here.mu.Unlock()
				if left := p.here.lamps[userLamp(annaA)]; left != nil {
					t.Errorf("something is left: %+v", left)
				}
			})
		})
	}
}

// TestLampsListBehindEvents starts a daemon during a call whose answer it did not
// hear, while the switch's list still shows it ringing, as a real one's does for a
// moment.
func TestLampsListBehindEvents(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.stopThere()
		p.london.call("c1", annaA, "ringing", false)
		p.startThere(t)
		time.Sleep(time.Second)
		p.expect(t, annaA, "ringing", "c1")
		p.london.call("c1", annaA, "answered", false)
		time.Sleep(2 * time.Second)
		p.expect(t, annaA, "answered", "c1")
		p.london.call("c1", annaA, "hangup", true)
		p.expect(t, annaA, "hangup", "c1")
	})
}

// TestLampsListBehindTheEnd: the list that follows a connection still shows a call that was
// heard to end, as a real one's does for a moment. It is over all the same.
func TestLampsListBehindTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.stopThere()
		p.startThere(t)
		time.Sleep(relistAfter - 100*time.Millisecond)
		p.london.call("c1", annaA, "answered", true)
		p.expect(t, annaA, "answered", "c1")
		p.london.call("c1", annaA, "hangup", true)
		p.london.call("c1", annaA, "answered", false) // in the list again
		time.Sleep(time.Second)
		p.expect(t, annaA, "hangup", "c1")
		p.london.call("c1", annaA, "hangup", false)
		time.Sleep(time.Minute)
		p.expect(t, annaA, "hangup", "c1")
		if s := p.there.Stats(); s.Mended != 0 {
			t.Errorf("the list put %d calls right", s.Mended)
		}
	})
}

// TestLampsLateEvent: the switch's threads let an event of a call be overtaken by its end,
// and one of a script by what it said next.
func TestLampsLateEvent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		event := func(sequence, state string) {
			p.london.emit("PRESENCE_IN", "Channel-Name", "sofia/internal/x", "proto", "any", "from", annaA.String(), "Unique-ID", "c1", "answer-state", state,
				"alt_event_type", "dialog", "presence-call-direction", "outbound", "Event-Sequence", sequence)
		}
		event("1000", "ringing")
		p.expect(t, annaA, "ringing", "c1")
		event("1009", "hangup")
		event("1004", "answered")
		time.Sleep(time.Second)
		p.expect(t, annaA, "hangup", "c1")
		if s := p.there.Stats(); s.Late != 1 || s.Told.Own != 0 {
			t.Errorf("%+v", s)
		}
		status := func(sequence, state string) {
			p.london.emit("PRESENCE_IN", "proto", "dnd", "from", "dnd+"+annaA.String(), "Unique-ID", "s1", "answer-state", state,
				"alt_event_type", "dialog", "event_type", "presence", "status", "Active (1 waiting)", "Event-Sequence", sequence)
		}
		status("2001", "confirmed")
		status("2004", "terminated")
		status("2003", "confirmed")
		time.Sleep(time.Second)
		if s := p.there.Stats(); s.Late != 2 || s.Statuses.Own != 0 {
			t.Errorf("%+v", s)
		}
		// In another life of the switch the count begins anew.
		p.london.restart()
		time.Sleep(10 * time.Second)
		event("12", "answered")
		p.expect(t, annaA, "answered", "c1")
	})
}

// TestLampsEncodedUUID: events show a "%41" of a UUID decoded, the list of channels does
// not. It is one call all the same.
func TestLampsEncodedUUID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.london.call("%41c1@h%4a", annaA, "answered", true)
		p.expect(t, annaA, "answered", "Ac1@h%4a")
		time.Sleep(time.Minute)
		p.expect(t, annaA, "answered", "Ac1@h%4a")
		if s := p.there.Stats(); s.Mended != 0 {
			t.Errorf("the list put %d calls right", s.Mended)
		}
		p.london.call("%41c1@h%4a", annaA, "hangup", true)
		p.expect(t, annaA, "hangup", "Ac1@h%4a")
	})
}

func TestLampsLastWord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		p.london.call("c1", annaA, "answered", true)
		p.london.call("c2", annaA, "ringing", true)
		p.expect(t, annaA, "ringing", "c2")
		p.london.call("c2", annaA, "hangup", true)
		p.expect(t, annaA, "answered", "c1") // not the end of c2: anna still talks

		p.buffalo.events()
		p.buffalo.emit("PRESENCE_PROBE", "to", "sip:anna@a.test", "proto", "sip", "probe-type", "dialog")
		p.buffalo.emit("PRESENCE_PROBE", "to", "bob@a.test")
		time.Sleep(time.Second)
		p.expect(t, annaA, "answered", "c1")
		if n := len(p.buffalo.events()); n != 1 {
			t.Errorf("%d events after a probe, want 1", n)
		}

		// A local leg to anna ends: the switch puts the lamp out, and we light it again.
		p.buffalo.call("c1-here", annaA, "hangup", true)
		time.Sleep(time.Second)
		p.expect(t, annaA, "answered", "c1")

		p.buffalo.restart()
		time.Sleep(6 * time.Second)
		p.expect(t, annaA, "answered", "c1")

		p.london.call("c1", annaA, "hangup", true)
		p.expect(t, annaA, "hangup", "c1")
	})
}

// TestLampsTellOnlyTheirOwn feeds what must not be passed on.
func TestLampsTellOnlyTheirOwn(t *testing.T) {
	t.Parallel()
	base := func() map[string]string {
		return map[string]string{
			"Event-Name": "PRESENCE_IN", "Core-UUID": "london-0", "Channel-Name": "sofia/internal/x", "proto": "any", "from": annaA.String(),
			"Unique-ID": "c1", "answer-state": "answered", "status": "answered",
		}
	}
	cases := []struct {
		name   string
		change func(map[string]string)
		want   int
	}{
		{"a local user's call", func(map[string]string) {}, 1},
		{"upper case", func(h map[string]string) { h["from"] = "ANNA@A.Test" }, 1},
		{"a ring group's number", func(h map[string]string) { h["from"] = "8001@A.test" }, 1},
		{"a caller from outside", func(h map[string]string) { h["from"] = "4930123@carrier.test" }, 0},
		{"another node's user", func(h map[string]string) { h["from"] = bobA.String() }, 0},
		{"another switch's event", func(h map[string]string) { h["Core-UUID"] = "buffalo-0" }, 0},
		{"an event of ours", func(h map[string]string) { h[originHeader] = "buffalo" }, 0},
		{"a conference", func(h map[string]string) { h["proto"] = "conf" }, 0},
		{"a device", func(h map[string]string) { delete(h, "Unique-ID") }, 0},
		{"a hostile user", func(h map[string]string) { h["from"] = "a|b@a.test" }, 0},
		{"a hostile unique id", func(h map[string]string) { h["Unique-ID"] = "a\n\nb" }, 0},
		{"a caller's Call-ID as UUID", func(h map[string]string) { h["Unique-ID"] = "5ea7<1d>&d=e/7@192.0.2.10" }, 1},
		{"a UUID with a blank", func(h map[string]string) { h["Unique-ID"] = "my call" }, 1},
		{"the end of a call never told", func(h map[string]string) { h["status"] = "CS_HANGUP" }, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := newPair(t)
				h := base()
				c.change(h)
				var pairs []string
				for k, v := range h {
					pairs = append(pairs, k, v)
				}
				p.there.onEvent(fakeEvent(pairs...))
				synctest.Wait()
				if got := p.there.Stats().Told.Published + p.there.Stats().Statuses.Published; got != uint64(c.want) {
					t.Errorf("published %d, want %d", got, c.want)
				}
			})
		})
	}
}

// TestLampsOfNumbers: a ring group has no phone, and its lamp is told from the node that
// has the call, until the script says that the call is the group's no more.
func TestLampsOfNumbers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		group := mustAOR(t, "8001@a.test")
		p.london.call("c1", group, "ringing", true)
		p.expect(t, group, "ringing", "c1")
		p.london.call("c1", group, "answered", true)
		p.expect(t, group, "answered", "c1")
		time.Sleep(time.Minute)
		p.expect(t, group, "answered", "c1")
		p.london.emit("PRESENCE_IN", "Unique-ID", "c1", "proto", "any", "from", group.String(), "login", group.String(), "answer-state", "terminated")
		p.expect(t, group, "hangup", "c1")
		time.Sleep(time.Minute) // the caller is in the voicemail
		p.expect(t, group, "hangup", "c1")

		group = mustAOR(t, "8001@later.test")
		p.london.call("c2", group, "ringing", true)
		p.expect(t, group, "", "") // a domain that nobody has
		p.there.Changed(mustAOR(t, "anna@later.test"))
		p.london.call("c2", group, "answered", true)
		p.expect(t, group, "answered", "c2")
	})
}

// TestLampsProperty: whatever happens, half a quiet minute later every lamp shows
// what is true.
func TestLampsProperty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		deeds := rapid.SliceOfN(rapid.IntRange(0, 1<<20), 0, 60).Draw(rt, "deeds")
		var failed string
		synctest.Test(t, func(t *testing.T) { failed = playLamps(t, deeds) })
		if failed != "" {
			rt.Fatal(failed)
		}
	})
}

func playLamps(t *testing.T, deeds []int) string {
	p := newPair(t)
	users := []pbxmesh.AOR{annaA, aorOrPanic("carl@a.test")}
	p.world.register(users[1], "london", 24*time.Hour)
	for _, d := range deeds {
		call, lost := d>>4%4, d>>10%4 == 0
		uuid, aor := fmt.Sprintf("c%d", call), users[call%2]
		switch d % 11 {
		case 0, 1:
			p.london.call(uuid, aor, "ringing", !lost)
		case 2, 3:
			p.london.call(uuid, aor, "answered", !lost)
		case 4, 5:
			p.london.call(uuid, aor, "hangup", !lost)
		case 6:
			p.london.restart()
		case 7:
			p.buffalo.restart()
		case 8:
			n := d >> 4 % 8
			p.exchange.setLose(func(State) bool { n--; return n > 0 && n%2 == 0 })
		case 9:
			p.stopThere()
			time.Sleep(time.Duration(d>>4%40) * time.Second)
			p.startThere(t)
		default:
			time.Sleep(time.Duration(d>>4%30_000) * time.Millisecond)
		}
	}
	p.exchange.setLose(nil)
	time.Sleep(40 * time.Second)
	synctest.Wait()
	for _, aor := range users {
		want := ""
		p.london.mu.Lock()
		for _, c := range p.london.channels {
			if c.PresenceID == aor.String() && (want == "" || c.CallState == "ACTIVE") {
				want = map[string]string{"ACTIVE": "answered", "RINGING": "ringing"}[c.CallState]
			}
		}
		p.london.mu.Unlock()
		got, uuid := p.buffalo.lamp(aor)
		if got == "ringing" && want == "answered" {
			continue // a second call that rings was the last thing that changed
		}
		if got != want && !(want == "" && got == "hangup") {
			return fmt.Sprintf("%s: shown %q of %s, true is %q; %+v", aor, got, uuid, want, p.here.Stats())
		}
	}
	return ""
}
