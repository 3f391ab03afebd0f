package byname_test

import (
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

// TestScenarioBrowserNodeKilled kills the node that a browser is on. By the zone's name it
// comes back on the next one, and when the first returns it still rings once.
func TestScenarioBrowserNodeKilled(t *testing.T) {
	m := newMesh(t)
	b := newBrowser(m)
	p := m.tab(b, "1001", zone, "london")
	caller := m.ours("1002", "singapore")
	caller.SetBehaviour(phone.AutoAnswer(0))
	m.callOnce(caller, p)

	began := time.Now()
	m.kill("london")
	if _, err := p.WaitRegistered(m.ctx(), 2); err != nil {
		t.Fatal(err)
	}
	registered := time.Since(began)
	m.eventually("singapore knows it on buffalo", func() bool {
		return slices.Contains(m.where(m.nodes["singapore"].app, "1001"), "buffalo")
	})
	m.callOnce(caller, p)
	called := time.Since(began)
	out, err := p.Call(m.ctx(), "1002")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.WaitConfirmed(m.ctx()); err != nil {
		t.Fatal(err)
	}
	m.end(out, out)
	t.Logf("killed: registered on buffalo after %s, was called after %s, called after %s",
		registered.Round(time.Millisecond), called.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	if registered > 20*time.Second {
		t.Errorf("away for %s", registered)
	}

	// london is back, and its switch brings the old binding with it.
	m.revive("london")
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
