package feed

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gobwas/ws/wsutil"

	"pbxmesh"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/fixtures/sipwire"
)

// freePort returns a TCP port of host that nobody uses.
func freePort(t *testing.T, host string) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// neverAway fails the test when 1001 is without a registration, until the returned
// function is called.
func neverAway(t *testing.T, sink *lockedBooks) (end func()) {
	t.Helper()
	set := func(f func(pbxmesh.RegistrationID)) {
		sink.mu.Lock()
		defer sink.mu.Unlock()
		sink.b.removed = f
	}
	set(func(id pbxmesh.RegistrationID) {
		for have := range sink.b.regs {
			if have.AOR == id.AOR {
				return
			}
		}
		t.Errorf("%s is nowhere after %s was removed", id.AOR, id.CallID)
	})
	return func() { set(nil) }
}

// calls are the Call-IDs of what the Sink holds.
func calls(sink *lockedBooks) (out []string) {
	for _, reg := range sink.regs() {
		out = append(out, reg.CallID)
	}
	slices.Sort(out)
	return out
}

func expectCalls(t *testing.T, what string, sink *lockedBooks, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, what, func() bool { return slices.Equal(calls(sink), want) })
}

// TestScenarioFlows plays on a real switch what phones do to their connections: a
// binding is there as long as the switch has it, and gone within seconds afterwards.
func TestScenarioFlows(t *testing.T) {
	const host = "127.0.91.2"
	websocket := freePort(t, host)
	sw := startReal(t, host, realswitch.WithLateMargin(time.Second), realswitch.WithInternalParam("ws-binding", websocket.String()),
		realswitch.WithInternalParam("tcp-unreg-on-socket-close", "true"))
	f, sink := followReal(t, sw, time.Second)
	api := func(command string) string {
		t.Helper()
		out, err := sw.API(t.Context(), command)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	browser := func(call string) *rawPhone {
		p := rawOver(t, "ws", "", websocket)
		p.call, p.contact = call, "<sip:tab@device.invalid;transport=ws>"
		return p
	}
	empty := func(what string) {
		t.Helper()
		for _, p := range []string{"1001@pbx.test", "1002@pbx.test"} {
			api("sofia profile internal flush_inbound_reg " + p)
		}
		expectRegs(t, "nothing left after "+what, sink)
		quiet(t, f, 0)
	}

	t.Run("a new Call-ID at every REGISTER", func(t *testing.T) {
		p := rawOver(t, "udp", "127.0.93.1", sw.SIP())
		p.must(600)
		expectCalls(t, "registered", sink, p.call)
		end := neverAway(t, sink)
		for range 30 {
			p.call = sipwire.NewTag()
			p.must(600)
		}
		expectCalls(t, "the last one", sink, p.call)
		end()
		empty(t.Name())
	})

	t.Run("a browser tab is closed", func(t *testing.T) {
		var worst time.Duration
		for i := range 12 {
			p := browser(fmt.Sprint("tab-", i))
			p.must(600)
			expectCalls(t, "registered", sink, p.call)
			began := time.Now()
			if i%2 == 0 {
				_ = wsutil.WriteClientMessage(p.conn, 8, nil) // a close frame
			}
			p.conn.Close()
			// A snapshot at the worst moment: as soon as the event is in.
			events := f.Status().Events
			eventually(t, "told", func() bool { return f.Status().Events > events || len(calls(sink)) == 0 })
			f.askSnapshot()
			expectRegs(t, "gone", sink)
			worst = max(worst, time.Since(began))
		}
		t.Logf("gone after %v at worst", worst.Round(time.Millisecond))
		if worst > 5*time.Second {
			t.Errorf("it took %v", worst)
		}
		snapshots(t, f, 2)
		expectRegs(t, "still gone", sink)
		empty(t.Name())
	})

	t.Run("a browser is back before its old connection ends", func(t *testing.T) {
		for i := range 6 {
			call := fmt.Sprint("back-", i)
			first := browser(call)
			first.must(600)
			expectCalls(t, "registered", sink, call)
			end := neverAway(t, sink)
			second := browser(call)
			second.must(600)
			events := f.Status().Events
			first.conn.Close()
			eventually(t, "one row", func() bool {
				return f.Status().Events > events && strings.Count(api("sofia xmlstatus profile internal user 1001@pbx.test"), "<registration>") == 1
			})
			asked := f.Status().Questions
			eventually(t, "asked since", func() bool { return f.Status().Questions > asked })
			if got := sink.regs(); len(got) != 1 || got[0].Source.String() != second.conn.LocalAddr().String() {
				t.Errorf("%+v, want the flow from %s", got, second.conn.LocalAddr())
			}
			end()
			second.conn.Close()
			expectRegs(t, "gone with the second one", sink)
		}
		empty(t.Name())
	})

	t.Run("TCP connection ends", func(t *testing.T) {
		p := rawOver(t, "tcp", "127.0.93.1", sw.SIP())
		p.contact = strings.Replace(p.contact, ">", ";transport=tcp>", 1)
		p.must(600)
		expectCalls(t, "registered", sink, p.call)
		p.conn.Close()
		began := time.Now()
		expectRegs(t, "gone", sink)
		t.Logf("gone after %v", time.Since(began).Round(time.Millisecond))
		empty(t.Name())
	})

	t.Run("the row of an old port expires", func(t *testing.T) {
		old, moved := rawOver(t, "udp", "127.0.93.1", sw.SIP()), rawOver(t, "udp", "127.0.93.1", sw.SIP())
		moved.call = old.call
		old.must(2)
		moved.must(600)
		eventually(t, "moved", func() bool { r := sink.regs(); return len(r) == 1 && strings.Contains(moved.contact, r[0].Contact) })
		end := neverAway(t, sink)
		events := f.Status().Events
		eventually(t, "the old row is gone", func() bool {
			return f.Status().Events > events && strings.Count(api("sofia xmlstatus profile internal user 1001@pbx.test"), "<registration>") == 1
		})
		quiet(t, f, 0)
		if r := sink.regs(); len(r) != 1 || !strings.Contains(moved.contact, r[0].Contact) {
			t.Errorf("%+v", r)
		}
		end()
		empty(t.Name())
	})

	t.Run("a goodbye of all contacts", func(t *testing.T) {
		p, q := rawOver(t, "udp", "127.0.93.1", sw.SIP()), rawOver(t, "udp", "127.0.93.1", sw.SIP())
		p.must(600)
		q.must(600)
		expectCalls(t, "two", sink, p.call, q.call)
		end := neverAway(t, sink)
		contact := p.contact
		p.contact = "*"
		p.must(0)
		events := f.Status().Questions
		eventually(t, "asked", func() bool { return f.Status().Questions > events || len(calls(sink)) == 2 })
		quiet(t, f, 0)
		expectCalls(t, "the switch keeps both", sink, p.call, q.call)
		end()
		// Under another display name it is the goodbye of nobody.
		p.contact = `"Bob" ` + contact
		p.must(0)
		quiet(t, f, 0)
		sameAsSwitch(t, sw, f, sink)
		empty(t.Name())
	})

	t.Run("flushed", func(t *testing.T) {
		for _, what := range []string{"", " 1001@pbx.test", " pbx.test", " CALL"} {
			p := rawOver(t, "udp", "127.0.93.1", sw.SIP())
			p.must(600)
			expectCalls(t, "registered", sink, p.call)
			api("sofia profile internal flush_inbound_reg" + strings.Replace(what, "CALL", p.call, 1))
			for range 5 {
				f.askSnapshot()
			}
			expectRegs(t, "flushed"+what, sink)
			quiet(t, f, 0)
			snapshots(t, f, 1)
			expectRegs(t, "still gone", sink)
		}
	})

	t.Run("the profile restarts", func(t *testing.T) {
		p := rawOver(t, "udp", "127.0.93.1", sw.SIP())
		p.must(600)
		expectCalls(t, "registered", sink, p.call)
		before := f.Status().Snapshots
		api("sofia profile internal restart")
		eventually(t, "read once more", func() bool { return f.Status().Snapshots > before && f.Status().Err == nil })
		sameAsSwitch(t, sw, f, sink)
		p.must(600)
		expectCalls(t, "registered", sink, p.call)
	})
}
