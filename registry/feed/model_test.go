package feed

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// modes of multiple registrations, as the profile has them.
const (
	byContact = "contact" // "true" means it too
	byCallID  = "call-id"
	off       = "off"
)

// modelRow is a row of the model's table.
type modelRow struct {
	user, contact, call string
	wrote               int // when it was written last
	doomed              bool
}

// model is a switch's table with what it tells, as read in mod_sofia: what an
// operation does to the rows and which event it fires, before or after the rows
// change.
type model struct {
	mode   string
	rows   []modelRow
	seq    uint64
	clock  int
	later  time.Duration // since the test began
	events []string      // fired, in order
	doomed []func()      // deletions that are queued
	asked  func()        // runs when the model is asked, before it answers
}

func (m *model) fire(subclass string, pairs ...string) {
	m.seq++
	m.events = append(m.events, custom("core-1", m.seq, subclass, pairs...))
}

func (m *model) del(match func(r *modelRow) bool) {
	m.rows = slices.DeleteFunc(m.rows, func(r modelRow) bool { return match(&r) })
}

func (m *model) register(user, contact, call string) {
	m.clock++
	row := modelRow{user: user, contact: contact, call: call, wrote: m.clock}
	if m.mode == off {
		m.del(func(r *modelRow) bool { return r.user == user })
	} else {
		m.del(func(r *modelRow) bool { return r.user == user && r.contact == contact })
	}
	if m.mode == byCallID {
		m.del(func(r *modelRow) bool { return r.call == call })
	}
	m.rows = append(m.rows, row)
	m.fire("sofia::register", "from-user", user, "from-host", "pbx.test", "contact", `"" <`+contact+`>`, "call-id", call,
		"expires", fmt.Sprint(90000+2*m.clock), "network-ip", "127.0.4.1", "network-port", "5062", "status", "Registered(UDP)", "user-agent", "unknown")
}

// unregister is a REGISTER with an expiry of 0; contact "" stands for "*".
func (m *model) unregister(user, contact, call string) {
	m.del(func(r *modelRow) bool {
		switch m.mode {
		case off:
			return r.user == user
		case byCallID:
			return r.call == call
		}
		return r.user == user && r.contact == contact
	})
	if contact == "" {
		contact = "sip:(null)@(null)"
	}
	m.fire("sofia::unregister", "from-user", user, "from-host", "pbx.test", "contact", `"" <`+contact+`>`, "call-id", call, "expires", "0")
}

// doom tells first and deletes later exactly these rows.
func (m *model) doom(match func(r *modelRow) bool) (hit []modelRow) {
	for i := range m.rows {
		if r := &m.rows[i]; !r.doomed && match(r) {
			r.doomed = true
			hit = append(hit, *r)
		}
	}
	m.doomed = append(m.doomed, func() { m.del(func(r *modelRow) bool { return slices.Contains(hit, *r) }) })
	return hit
}

// disconnect is the end of the connection over which a row was written.
func (m *model) disconnect(r modelRow) {
	m.doom(func(o *modelRow) bool { return *o == r })
	m.fire("sofia::unregister", "from-user", r.user, "from-host", "pbx.test", "call-id", r.call, "reason", "socket-disconnection")
}

// flush is flush_inbound_reg for one user.
func (m *model) flush(user string) {
	for _, r := range m.doom(func(r *modelRow) bool { return r.user == user }) {
		m.fire("sofia::expire", "user", r.user, "host", "pbx.test", "contact", `"" <`+r.contact+`>`, "call-id", r.call, "expires", "99")
	}
}

// delete runs the oldest deletion that is queued.
func (m *model) delete() {
	if len(m.doomed) > 0 {
		m.doomed[0]()
		m.doomed = m.doomed[1:]
	}
}

// API answers "sofia xmlstatus profile internal reg" and "… user U@D".
func (m *model) API(_ context.Context, command string) (string, error) {
	if m.asked != nil {
		m.asked()
	}
	user := ""
	if w := strings.Fields(command); w[4] == "user" {
		user = w[5]
	}
	s := scripted{rows: map[string][]row{"internal": m.table()}}
	return s.xml("internal", user), nil
}

// table returns the rows for a scripted switch; what was written later lasts longer.
func (m *model) table() (rows []row) {
	for _, r := range m.rows {
		rows = append(rows, row{user: r.user + "@pbx.test", contact: r.contact, call: r.call, expsecs: 90000 + 2*r.wrote - int(m.later.Seconds())})
	}
	return rows
}

// modelled is a feed whose switch is a model.
type modelled struct {
	f *Feed
	*model
	sink *books
	sent int // events delivered
}

func newModelled(mode string) *modelled {
	sink, m := newBooks(), &model{mode: mode}
	f := New(Options{Node: "buffalo", Profiles: []string{"internal"}, Sink: sink, Now: func() time.Time { return testNow.Add(m.later) }, LateMargin: -1})
	f.mu.Lock()
	f.adopt("core-1")
	f.mu.Unlock()
	return &modelled{f: f, model: m, sink: sink}
}

// deliver hands over the i-th of the events that wait.
func (m *modelled) deliver(i int) {
	e := m.events[m.sent+i]
	copy(m.events[m.sent+1:], m.events[m.sent:m.sent+i])
	m.events[m.sent] = e
	m.sent++
	m.f.onEvent(esl.ParseEvent(e))
}

// quiet delivers and deletes all, lets the time pass in which the switch may still
// show what it has deleted, and answers every doubt.
func (m *modelled) quiet() {
	m.asked = nil
	for m.sent < len(m.events) {
		m.deliver(0)
	}
	for len(m.doomed) > 0 {
		m.delete()
	}
	m.later += lag
	for range 2 * len(pauses) {
		for aor := range m.f.doubts {
			_ = m.f.resolveOne(context.Background(), m.model, aor)
		}
	}
}

// check compares what the Sink holds with the rows: one record for all rows with one
// Call-ID, with the contact of one of them.
func (m *modelled) check(fatalf func(string, ...any)) {
	want := map[string]bool{}
	for _, r := range m.rows {
		want[r.user+" "+r.call] = true
	}
	for id, reg := range m.sink.regs {
		key := reg.AOR.User() + " " + id.CallID
		if !slices.ContainsFunc(m.rows, func(r modelRow) bool {
			return r.user == reg.AOR.User() && r.call == reg.CallID && r.contact == reg.Contact
		}) {
			fatalf("the Sink has %s %s, the switch has not: %+v", key, reg.Contact, m.rows)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		fatalf("the Sink lacks %v of %+v", want, m.rows)
	}
	if m.f.table.size != len(m.sink.regs) || len(m.f.table.all()) != len(m.sink.regs) || countMarks(m.f.table) != m.f.table.marks {
		fatalf("size %d, Sink %d, marks %d of %d", m.f.table.size, len(m.sink.regs), m.f.table.marks, countMarks(m.f.table))
	}
	for contact, owner := range m.f.table.owners {
		if !slices.ContainsFunc(m.f.table.all(), func(r pbxmesh.Registration) bool { return r.Contact == contact && r.AOR == owner }) {
			fatalf("contact %s belongs to %s, who has it not", contact, owner)
		}
	}
}

// step does one thing in the switch.
func (m *modelled) step(t *rapid.T) {
	user := rapid.SampledFrom([]string{"1001", "1002"}).Draw(t, "user")
	contact := rapid.SampledFrom([]string{"c1", "c2", "c3"}).Draw(t, "contact") + user
	call := rapid.SampledFrom([]string{"i1", "i2", "i3"}).Draw(t, "call") + user
	switch rapid.IntRange(0, 9).Draw(t, "step") {
	case 0, 1, 2, 3, 4:
		m.register(user, contact, call)
	case 5:
		m.unregister(user, contact, call)
	case 6:
		m.unregister(user, "", call)
	case 7:
		m.flush(user)
	default:
		if i := slices.IndexFunc(m.rows, func(r modelRow) bool { return r.user == user && !r.doomed }); i >= 0 {
			m.disconnect(m.rows[i])
		}
	}
}

// TestModelAnyOrder: whatever a switch does, in whatever order its events come,
// whenever it is asked and deletes: the end is what the switch has.
func TestModelAnyOrder(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{byContact, byCallID, off} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				m := newModelled(mode)
				_ = m.f.snapshot(t.Context(), m.model)
				anything := func(t *rapid.T) {
					switch rapid.IntRange(0, 5).Draw(t, "what") {
					case 0, 1, 2:
						m.step(t)
					case 3:
						m.delete()
					default:
						if n := len(m.events) - m.sent; n > 0 {
							m.deliver(rapid.IntRange(0, min(n-1, 3)).Draw(t, "event"))
						}
					}
				}
				m.asked = func() { // the world goes on while the switch is asked
					for range rapid.IntRange(0, 3).Draw(t, "meanwhile") {
						anything(t)
					}
				}
				for range rapid.IntRange(1, 40).Draw(t, "length") {
					switch rapid.IntRange(0, 7).Draw(t, "act") {
					case 0:
						_ = m.f.snapshot(t.Context(), m.model)
					case 1:
						for aor := range m.f.doubts {
							_ = m.f.resolveOne(t.Context(), m.model, aor)
							break
						}
					default:
						anything(t)
					}
				}
				m.quiet()
				m.check(t.Fatalf)
				before := m.sink.puts
				_ = m.f.snapshot(t.Context(), m.model)
				m.check(t.Fatalf)
				if r := m.f.Status().Repairs; m.sink.puts != before {
					t.Fatalf("a snapshot after the end told %d more (%d repairs in all)", m.sink.puts-before, r)
				}
			})
		})
	}
}

// TestModelNeverAway: while events come as they are fired, a user who has a row that
// stays is never without a registration.
func TestModelNeverAway(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{byContact, byCallID, off} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				m := newModelled(mode)
				_ = m.f.snapshot(t.Context(), m.model)
				m.sink.removed = func(id pbxmesh.RegistrationID) {
					user := id.AOR.User()
					for have := range m.sink.regs {
						if have.AOR == id.AOR {
							return
						}
					}
					for _, r := range m.rows {
						if r.user == user && !r.doomed {
							t.Fatalf("%s is away, and the switch has %+v", user, m.rows)
						}
					}
				}
				for range rapid.IntRange(1, 40).Draw(t, "length") {
					switch rapid.IntRange(0, 6).Draw(t, "act") {
					case 0:
						_ = m.f.snapshot(t.Context(), m.model)
					case 1:
						for aor := range m.f.doubts {
							_ = m.f.resolveOne(t.Context(), m.model, aor)
							break
						}
					case 2:
						m.delete()
					default:
						m.step(t)
						for m.sent < len(m.events) {
							m.deliver(0)
						}
					}
				}
				m.quiet()
				m.check(t.Fatalf)
			})
		})
	}
}

func countMarks(tb *table) (n int) {
	for _, d := range tb.aors {
		n += len(d.contacts) + len(d.calls) + len(d.ends)
	}
	return n
}

func (m modelRow) String() string {
	return fmt.Sprint(m.user, " ", m.contact, " ", m.call, map[bool]string{true: " (about to go)"}[m.doomed])
}

// TestModelOvertaken: a row was flushed and written anew while its events wait, and one
// that was fired later overtakes them. The snapshot leaves the row out, because its end was
// told, and the event that brings it back is older than the snapshot: only another question
// can tell.
func TestModelOvertaken(t *testing.T) {
	t.Parallel()
	m := newModelled(byContact)
	snapshot := func() {
		t.Helper()
		if err := m.f.snapshot(t.Context(), m.model); err != nil {
			t.Fatal(err)
		}
	}
	snapshot()
	m.register("1002", "c1", "i1")
	m.flush("1002")
	m.register("1002", "c1", "i1")
	m.register("1001", "c2", "i2")
	m.asked = func() { m.deliver(1); m.asked = nil } // the end
	snapshot()
	m.deliver(2) // of the other user
	snapshot()
	m.quiet()
	m.check(t.Fatalf)
}
