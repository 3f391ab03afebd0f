package byname_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh/fixtures/browser"
	"pbxmesh/fixtures/phone"
)

// callOnce has a phone of ours call a browser, which must get exactly one INVITE, and
// returns how long it took until it rang.
func (m *mesh) callOnce(from *phone.Phone, to *browser.Phone) time.Duration {
	m.t.Helper()
	rung, invites := seen(to), len(to.Invites())
	began := time.Now()
	out, err := from.Call(m.ctx(), to.User())
	if err != nil {
		m.t.Fatal(err)
	}
	in, err := to.WaitIncoming(m.ctx(), rung+1)
	if err != nil {
		m.t.Fatal(err)
	}
	took := time.Since(began)
	if err := in.Answer(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	if _, err := out.WaitAnswered(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	m.bridged()
	if err := out.Hangup(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	if _, err := in.WaitEnded(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	if n := len(to.Invites()) - invites; n != 1 {
		m.t.Errorf("%s got %d INVITEs for one call", to.User(), n)
	}
	return took
}

// TestScenarioBrowserGoes closes tabs, again and again: nobody may be sent to a browser
// that is gone.
func TestScenarioBrowserGoes(t *testing.T) {
	m := newMesh(t)
	b := newBrowser(m)
	for range 6 {
		p := m.tab(b, "1001", zone, "london")
		if err := p.Close(m.ctx()); err != nil {
			t.Fatal(err)
		}
		took := m.everywhere("1001")
		t.Logf("gone everywhere %s after its tab was closed", took.Round(time.Millisecond))
		if took > 5*time.Second {
			t.Errorf("known for %s after its tab was closed", took)
		}
	}
}

// TestScenarioBrowserReconnects has a browser come back with the Call-ID that it had: when
// its old connection ended first, and when the switch hears of that end afterwards.
func TestScenarioBrowserReconnects(t *testing.T) {
	m := newMesh(t)
	b := newBrowser(m)
	p := m.tab(b, "1001", zone, "london")
	caller := m.ours("1002", "singapore")
	registered := 1
	for _, way := range []string{"connection lost", "connection replaced", "connection replaced", "connection lost"} {
		lose := p.Reconnect
		if way == "connection replaced" {
			lose = p.Roam
		}
		began := time.Now()
		if err := lose(m.ctx()); err != nil {
			t.Fatal(err)
		}
		registered++
		if _, err := p.WaitRegistered(m.ctx(), registered); err != nil {
			t.Fatal(err)
		}
		back := time.Since(began)
		m.everywhere("1001", "london")
		known := time.Since(began)
		// The old connection's end comes half a second later; nobody may lose the phone.
		for began := time.Now(); time.Since(began) < 3*time.Second; m.tick() {
			for _, a := range m.daemons() {
				if at := m.where(a, "1001"); !slices.Equal(at, []string{"london"}) {
					t.Fatalf("%s: %s after the new registration it is known on %v", way, time.Since(began).Round(time.Millisecond), at)
				}
			}
		}
		m.callOnce(caller, p)
		t.Logf("%s: registered again after %s, known everywhere after %s", way, back.Round(time.Millisecond), known.Round(time.Millisecond))
	}
	ids := map[string]bool{}
	for _, f := range p.Frames() {
		if f.Sent && strings.HasPrefix(f.Text, "REGISTER ") {
			ids[browser.Header(f.Text, "Call-ID")] = true
		}
	}
	if len(ids) != 1 {
		t.Errorf("the browser registered with %d Call-IDs: that was another case", len(ids))
	}
}

// chromiumKeeps is how long Chromium keeps an address at least, whatever its TTL says.
const chromiumKeeps = time.Minute

// TestScenarioBrowserNodeKilled kills what a browser is on. By the zone's name it comes
// back on the next node, rings once there, and still does when the first one returns.
func TestScenarioBrowserNodeKilled(t *testing.T) {
	m := newMesh(t)
	b := newBrowser(m)
	began := time.Now()
	p := m.tab(b, "1001", zone, "london")
	caller := m.ours("1002", "singapore")
	caller.SetBehaviour(phone.AutoAnswer(0))
	m.callOnce(caller, p)

	registered := 1
	for _, round := range []struct {
		what, to string
		kill     func()
		within   time.Duration
	}{
		// It looks the name up again, and the name servers have changed their answer before
		// JsSIP tries for the first time, after two seconds.
		{"its switch, a minute after its look-up", "buffalo", func() {
			for time.Since(began) < chromiumKeeps+time.Second {
				m.tick()
			}
			must(t, m.nodes["london"].sw.Kill())
		}, 10 * time.Second},
		// It tries the address that it knows until it forgets it, and JsSIP doubles the time
		// between its attempts up to 30 s.
		{"its node, right after its look-up", "london", func() {
			must(t, m.nodes["london"].sw.Start())
			m.answers("london")
			m.kill("buffalo")
		}, chromiumKeeps + 35*time.Second},
	} {
		round.kill()
		killed := time.Now()
		registered++
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		_, err := p.WaitRegistered(ctx, registered)
		cancel()
		must(t, err)
		back := time.Since(killed)
		// What is known of the dead one stays known, and is not rung.
		m.eventually("singapore's switch finds it on "+round.to, func() bool {
			contact, err := m.nodes["singapore"].sw.API(m.ctx(), "sofia_contact */1001@"+zone)
			return err == nil && strings.Contains(contact, m.nodes[round.to].sw.Mesh().Addr().String())
		})
		m.callOnce(caller, p)
		called := time.Since(killed)
		out, err := p.Call(m.ctx(), "1002")
		must(t, err)
		_, err = out.WaitConfirmed(m.ctx())
		must(t, err)
		m.end(out, out)
		t.Logf("killed %s: registered on %s after %s, was called after %s, called after %s", round.what, round.to,
			back.Round(time.Millisecond), called.Round(time.Millisecond), time.Since(killed).Round(time.Millisecond))
		if back > round.within {
			t.Errorf("killed %s: away for %s, want at most %s", round.what, back, round.within)
		}
	}
	// buffalo is back, and its switch brings the old binding with it.
	m.revive("buffalo")
	for range 3 {
		m.callOnce(caller, p)
	}
}

// tick waits a moment between two looks at what must not change.
func (m *mesh) tick() {
	tick := time.NewTimer(20 * time.Millisecond)
	defer tick.Stop()
	<-tick.C
}
