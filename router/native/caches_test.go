package native

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// TestCaches: what one node deletes from its cache, the other deletes once.
func TestCaches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x, here, there := NewMemory(), newFakeSwitch(), newFakeSwitch()
		node := func(id pbxmesh.NodeID, s *fakeSwitch) func() {
			stop := start(t, NewCaches(CachesOptions{Local: id, Exchange: x, Dial: s.dial}).Run)
			time.Sleep(time.Second)
			return stop
		}
		deleted := func(argument, class string) {
			here.emit("CUSTOM", "Event-Subclass", class, "API-Command", "cache", "API-Command-Argument", argument)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		// ran returns how many scripts with each of these in it ran, of how many.
		ran := func(s *fakeSwitch, with string) (n, all int) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, script := range s.scripts {
				if strings.Contains(script, with) {
					n++
				}
			}
			all, s.scripts = len(s.scripts), nil
			return n, all
		}
		expect := func(what string, s *fakeSwitch, with string, want int) {
			t.Helper()
			if n, all := ran(s, with); n != want || all != want {
				t.Errorf("%s: %d of %d scripts say %q, want %d", what, n, all, with, want)
			}
		}
		node("buffalo", here)
		stop := node("london", there)

		deleted("delete directory:1002@a.test", "fusion::file")
		expect("do not disturb was set", there, `k="directory:1002@a.test"`, 1)
		expect("the node itself", here, "", 0)
		deleted("delete directory:1002@a.test", "fusion::file")
		expect("and taken back", there, `k="directory:1002@a.test"`, 1)
		deleted("delete pbx1:configuration:sofia.conf", "fusion::memcache")
		expect("memcache", there, `k="pbx1:configuration:sofia.conf"`, 1)
		deleted("flush", "fusion::file")
		expect("everything", there, `-maxdepth 1 -type f -delete`, 1)
		for _, hostile := range []string{
			`delete x" os.execute("true`, "delete ../../etc/passwd", "delete a b", "delete ", "delete *", "flush x", "set a b", "", "delete " + strings.Repeat("a", 201),
		} {
			deleted(hostile, "fusion::file")
			expect(hostile, there, "", 0)
		}
		for _, key := range []string{`x" os.execute("true`, "../x", ""} {
			if err := x.Publish(t.Context(), State{Kind: KindCache, Node: "evil", Key: key, AOR: noUser, Run: "r", Seq: 1, Change: 1}); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
			expect("a stranger's key", there, "", 0)
		}
		time.Sleep(5 * time.Minute)
		expect("repetitions", there, "", 0)

		// A node that was away hears what it missed, once; later it is nobody's business.
		stop()
		ran(there, "")
		deleted("delete directory:1003@a.test", "fusion::file")
		stop = node("london", there)
		if n, _ := ran(there, `k="directory:1003@a.test"`); n != 1 {
			t.Errorf("after its return it deleted the key that it missed %d times", n)
		}
		stop()
		time.Sleep(15 * time.Minute)
		ran(there, "")
		node("london", there)
		expect("much later", there, "", 0)
	})
}

// A switch that goes away in between is told when it is back.
func TestCachesSwitchAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x, s := NewMemory(), newFakeSwitch()
		start(t, NewCaches(CachesOptions{Local: "london", Exchange: x, Dial: s.dial}).Run)
		time.Sleep(time.Second)
		s.cut(true)
		st := State{Kind: KindCache, Node: "buffalo", Key: "dialplan:a.test", AOR: noUser, Run: "r", Seq: 1, Change: 1, TTL: time.Minute}
		if err := x.Publish(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		s.cut(false)
		time.Sleep(10 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.scripts) != 1 || !strings.Contains(s.scripts[0], `k="dialplan:a.test"`) {
			t.Errorf("the switch ran %q", s.scripts)
		}
	})
}

// dying is a connection that breaks under the first script.
type dying struct {
	Conn
	s    *fakeSwitch
	died *bool
}

func (d dying) API(ctx context.Context, command string) (string, error) {
	if strings.HasPrefix(command, "lua ") && !*d.died {
		*d.died = true
		d.s.cut(false)
	}
	return d.Conn.API(ctx, command)
}

// A connection that breaks while the switch deletes leaves nothing undone.
func TestCachesConnectionBreaks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		x, s, died := NewMemory(), newFakeSwitch(), false
		start(t, NewCaches(CachesOptions{Local: "london", Exchange: x, Dial: func(ctx context.Context, cfg esl.Config) (Conn, error) {
			c, err := s.dial(ctx, cfg)
			return dying{c, s, &died}, err
		}}).Run)
		time.Sleep(time.Second)
		st := State{Kind: KindCache, Node: "buffalo", Key: "directory:1002@a.test", AOR: noUser, Run: "r", Seq: 1, Change: 1, TTL: time.Minute}
		if err := x.Publish(t.Context(), st); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.scripts) != 1 || !strings.Contains(s.scripts[0], `k="directory:1002@a.test"`) || !strings.Contains(s.scripts[0], `string.gsub(k,":",".")`) {
			t.Errorf("the switch ran %q", s.scripts)
		}
	})
}
