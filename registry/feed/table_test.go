package feed

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// books is a Sink that keeps what it was told and whether it was told nonsense.
type books struct {
	epoch  string
	resets int
	regs   map[pbxmesh.RegistrationID]pbxmesh.Registration
	puts   int

	removed func(pbxmesh.RegistrationID) // after a Remove; may be nil
}

func newBooks() *books { return &books{regs: map[pbxmesh.RegistrationID]pbxmesh.Registration{}} }

func (b *books) Reset(epoch string, regs []pbxmesh.Registration) {
	b.epoch = epoch
	b.resets++
	clear(b.regs)
	for _, r := range regs {
		b.regs[r.ID()] = r
	}
}
func (b *books) Put(r pbxmesh.Registration) { b.regs[r.ID()] = r; b.puts++ }
func (b *books) Remove(id pbxmesh.RegistrationID) {
	delete(b.regs, id)
	if b.removed != nil {
		b.removed(id)
	}
}
func (b *books) list() []string { return describe(slices.Collect(maps.Values(b.regs))) }
func describe(regs []pbxmesh.Registration) []string {
	out := make([]string, 0, len(regs))
	for _, r := range regs {
		out = append(out, r.AOR.User()+" "+r.Contact+" "+r.CallID)
	}
	slices.Sort(out)
	return out
}

var testNow = time.Date(2026, 11, 22, 15, 0, 0, 0, time.UTC)

func testReg(t interface{ Fatal(...any) }, user, contact, call string) pbxmesh.Registration {
	aor, err := pbxmesh.NewAOR(user, "pbx.test")
	if err != nil {
		t.Fatal(err)
	}
	return pbxmesh.Registration{AOR: aor, Node: "buffalo", CallID: call, Contact: contact, Profile: "internal", Expires: testNow.Add(time.Hour)}
}

// fact is a step of a test: "+user contact call" or "-user contact call", "_" for
// nothing.
type fact struct {
	seq           uint64
	gone          bool
	user          string
	contact, call string
}

// parseFacts numbers the steps from first on.
func parseFacts(first uint64, steps ...string) []fact {
	var out []fact
	for i, s := range steps {
		p := strings.Split(s[1:], " ")
		for i := range p {
			if p[i] == "_" {
				p[i] = ""
			}
		}
		out = append(out, fact{seq: first + uint64(i), gone: s[0] == '-', user: p[0], contact: p[1], call: p[2]})
	}
	return out
}

// apply plays a step to a table and reports whether the switch has to be asked.
func (f fact) apply(t interface{ Fatal(...any) }, tb *table) (vague bool) {
	b := testBinding(t, f.user, f.contact, f.call)
	if f.gone {
		return tb.unregister(f.seq, b.reg.AOR, endOf{profile: "internal", uri: f.contact, callID: f.call}, testNow)
	}
	vague, _ = tb.register(f.seq, b)
	return vague
}

func testBinding(t interface{ Fatal(...any) }, user, contact, call string) binding {
	reg := testReg(t, user, contact, call)
	return binding{reg: reg, spelled: reg.AOR.String()}
}

// TestTableRules: what an event says without doubt is done at once; what it says by
// half is a question, and takes nothing away.
func TestTableRules(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		steps, want []string
		asks        bool
	}{
		"registers":                          {[]string{"+1001 c1 i1"}, []string{"1001 c1 i1"}, false},
		"refresh":                            {[]string{"+1001 c1 i1", "+1001 c1 i1"}, []string{"1001 c1 i1"}, false},
		"two devices":                        {[]string{"+1001 c1 i1", "+1001 c2 i2"}, []string{"1001 c1 i1", "1001 c2 i2"}, true},
		"unregisters":                        {[]string{"+1001 c1 i1", "-1001 c1 i1"}, nil, false},
		"unregister with another Call-ID":    {[]string{"+1001 c1 i1", "-1001 c1 i9"}, []string{"1001 c1 i1"}, true},
		"unregister from another contact":    {[]string{"+1001 c1 i1", "-1001 c9 i1"}, []string{"1001 c1 i1"}, true},
		"unregister of somebody else":        {[]string{"+1001 c1 i1", "-1002 c1 i1"}, []string{"1001 c1 i1"}, false},
		"unregister of another device":       {[]string{"+1001 c1 i1", "-1001 c2 i9"}, []string{"1001 c1 i1"}, true},
		"new port, same Call-ID":             {[]string{"+1001 c1 i1", "+1001 c2 i1"}, []string{"1001 c2 i1"}, false},
		"unregister of the old port":         {[]string{"+1001 c1 i1", "+1001 c2 i1", "-1001 c1 i1"}, []string{"1001 c2 i1"}, true},
		"unregister beside an old port":      {[]string{"+1001 c1 i1", "+1001 c2 i1", "-1001 c2 i1"}, []string{"1001 c2 i1"}, true},
		"new Call-ID, same contact":          {[]string{"+1001 c1 i1", "+1001 c1 i2"}, []string{"1001 c1 i2"}, false},
		"unregister of the old Call-ID":      {[]string{"+1001 c1 i1", "+1001 c1 i2", "-1001 c1 i1"}, []string{"1001 c1 i2"}, true},
		"the replaced Call-ID may come back": {[]string{"+1001 c1 i1", "+1001 c1 i2", "+1001 c3 i1"}, []string{"1001 c1 i2", "1001 c3 i1"}, true},
		"one replaces two":                   {[]string{"+1001 c1 i1", "+1001 c2 i2", "+1001 c1 i2"}, []string{"1001 c1 i2"}, true},
		"registers again":                    {[]string{"+1001 c1 i1", "-1001 c1 i1", "+1001 c1 i1"}, []string{"1001 c1 i1"}, false},
		"end of a connection":                {[]string{"+1001 c1 i1", "-1001 _ i1"}, []string{"1001 c1 i1"}, true},
		"removal without a Call-ID":          {[]string{"+1001 c1 i1", "-1001 c1 _"}, []string{"1001 c1 i1"}, true},
		"removal that names nothing":         {[]string{"+1001 c1 i1", "-1001 _ _"}, []string{"1001 c1 i1"}, true},
		"end of nobody we know":              {[]string{"-1001 c1 i1"}, nil, false},
		"the same contact of two users":      {[]string{"+1001 c1 i1", "+1002 c1 i2"}, []string{"1001 c1 i1", "1002 c1 i2"}, false},
	} {
		b := newBooks()
		tb := newTable(b, "core")
		tb.snapshot(nil, 0, testNow)
		asks := false
		for _, f := range parseFacts(1, tc.steps...) {
			asks = f.apply(t, tb) || asks
		}
		if got := b.list(); !slices.Equal(got, tc.want) || asks != tc.asks {
			t.Errorf("%s: %q (asks %v), want %q (%v)", name, got, asks, tc.want, tc.asks)
		}
		if got := describe(tb.all()); !slices.Equal(got, tc.want) || tb.size != len(tc.want) {
			t.Errorf("%s: the table says %q (size %d), its Sink %q", name, got, tb.size, tc.want)
		}
	}
}

// TestTableEnds: an end takes out what it names, and nothing else.
func TestTableEnds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		seq  uint64 // two registrations were 1 and 9, of the same contact and Call-ID
		end  endOf
		want []string
		asks bool
	}{
		"after the registration":   {10, endOf{profile: "internal", uri: "c1", callID: "i1", name: `"Desk"`}, nil, false},
		"before it, and told late": {5, endOf{profile: "internal", uri: "c1", callID: "i1", name: `"Desk"`}, []string{"1001 c1 i1"}, true},
		"on another profile":       {10, endOf{profile: "external", uri: "c1", callID: "i1", name: `"Desk"`}, []string{"1001 c1 i1"}, false},
		"under another name":       {10, endOf{profile: "internal", uri: "c1", callID: "i1", name: `"Bob"`}, []string{"1001 c1 i1"}, true},
		"its row expired":          {10, endOf{profile: "internal", uri: "c1", callID: "i1", name: `"Desk"`, row: true}, nil, false},
		"the row of an old port":   {10, endOf{profile: "internal", uri: "c0", callID: "i1", name: `"Desk"`, row: true}, []string{"1001 c1 i1"}, true},
		"the row of an old call":   {10, endOf{profile: "internal", uri: "c1", callID: "i0", name: `"Desk"`, row: true}, []string{"1001 c1 i1"}, true},
		"somebody's row":           {10, endOf{profile: "internal", uri: "c0", callID: "i0", row: true}, []string{"1001 c1 i1"}, false},
	} {
		b := newBooks()
		tb := newTable(b, "core")
		tb.snapshot(nil, 0, testNow)
		for _, seq := range []uint64{1, 9} {
			r := testBinding(t, "1001", "c1", "i1")
			r.name = `"Desk"`
			tb.register(seq, r)
		}
		asks := tb.unregister(tc.seq, testReg(t, "1001", "c1", "i1").AOR, tc.end, testNow)
		if got := b.list(); !slices.Equal(got, tc.want) || asks != tc.asks {
			t.Errorf("%s: %q (asks %v), want %q (%v)", name, got, asks, tc.want, tc.asks)
		}
	}
}

// TestTablePutsBeforeItRemoves: a phone that takes a new Call-ID at every REGISTER is
// never nowhere, whether an event or the switch's answer tells.
func TestTablePutsBeforeItRemoves(t *testing.T) {
	t.Parallel()
	b := newBooks()
	tb := newTable(b, "core")
	tb.snapshot(nil, 0, testNow)
	b.removed = func(id pbxmesh.RegistrationID) {
		if len(b.regs) == 0 {
			t.Errorf("nothing is left after %s was removed", id.CallID)
		}
	}
	for i := range uint64(5) {
		fact{seq: i + 1, user: "1001", contact: "c1", call: fmt.Sprint("i", i)}.apply(t, tb)
	}
	tb.snapshot([]binding{testBinding(t, "1001", "c1", "i9")}, 9, testNow)
	tb.answer(testReg(t, "1001", "", "").AOR, []binding{testBinding(t, "1001", "c1", "i10")}, 10, testNow)
	if got := b.list(); !slices.Equal(got, []string{"1001 c1 i10"}) {
		t.Errorf("%q", got)
	}
}

// TestTableSameContactOfTwoUsers: a switch with multiple registrations deletes the
// rows of all users with the contact of a new one.
func TestTableSameContactOfTwoUsers(t *testing.T) {
	t.Parallel()
	tb := newTable(newBooks(), "core")
	tb.snapshot(nil, 0, testNow)
	one, two := testBinding(t, "1001", "sip:s@192.0.2.1", "i1"), testBinding(t, "1002", "sip:s@192.0.2.1", "i2")
	if _, other := tb.register(1, one); !other.IsZero() {
		t.Errorf("doubts about %v", other)
	}
	if _, other := tb.register(2, two); other != one.reg.AOR {
		t.Errorf("doubts about %v", other)
	}
	if _, other := tb.register(3, two); !other.IsZero() {
		t.Errorf("doubts about %v after a refresh", other)
	}
}

// TestTableUserAgent: the switch keeps the user agent of a contact's first REGISTER.
func TestTableUserAgent(t *testing.T) {
	t.Parallel()
	b := newBooks()
	tb := newTable(b, "core")
	old, updated := testBinding(t, "1001", "c1", "i1"), testBinding(t, "1001", "c1", "i1")
	old.reg.UserAgent, updated.reg.UserAgent = "phone 1.0", "phone 2.0"
	tb.snapshot([]binding{old}, 0, testNow)
	tb.register(1, updated)
	for i := range uint64(3) {
		if r, _ := tb.snapshot([]binding{old}, i+1, testNow); r.total() != 0 {
			t.Errorf("repairs %+v", r)
		}
	}
	for _, reg := range b.regs {
		if reg.UserAgent != "phone 2.0" {
			t.Errorf("user agent %q", reg.UserAgent)
		}
	}
	elsewhere := testBinding(t, "1001", "c2", "i1") // whose event was lost
	elsewhere.reg.UserAgent = "phone 3.0"
	tb.snapshot([]binding{elsewhere}, 4, testNow)
	if regs := tb.all(); len(regs) != 1 || regs[0].UserAgent != "phone 3.0" {
		t.Errorf("what was heard of another contact was taken for it: %+v", regs)
	}
}

// TestTableRowOlderThanEvent: a row that was read before a phone registered anew counts
// no more, though it would last longer.
func TestTableRowOlderThanEvent(t *testing.T) {
	t.Parallel()
	b := newBooks()
	tb := newTable(b, "core")
	tb.snapshot(nil, 0, testNow)
	moved := testBinding(t, "1001", "c2", "i1")
	moved.reg.Expires = testNow.Add(time.Minute)
	tb.register(5, moved)
	tb.snapshot([]binding{testBinding(t, "1001", "c1", "i1")}, 4, testNow)
	if got := b.list(); !slices.Equal(got, []string{"1001 c2 i1"}) {
		t.Errorf("got %q", got)
	}
}

// TestDoubtRaisedMeanwhile: an answer does not settle what was asked after it.
func TestDoubtRaisedMeanwhile(t *testing.T) {
	t.Parallel()
	f := New(Options{Node: "buffalo", Profiles: []string{"internal"}, Sink: newBooks()})
	aor := testReg(t, "1001", "c1", "i1").AOR
	f.table.high = 5
	f.wonder(aor, question{})
	f.answered(aor, nil, false, 4)
	if f.doubts[aor] == nil {
		t.Error("settled by an answer that is older")
	}
	f.answered(aor, nil, false, 5)
	if f.doubts[aor] != nil {
		t.Error("not settled")
	}
}

// TestTableLaggingRow: what an event took out stays out while the switch may still
// show its row; a row that stays is believed.
func TestTableLaggingRow(t *testing.T) {
	t.Parallel()
	b := newBooks()
	tb := newTable(b, "core")
	one := testBinding(t, "1001", "c1", "i1")
	tb.snapshot(nil, 0, testNow)
	tb.register(1, one)
	tb.unregister(2, one.reg.AOR, endOf{profile: "internal", uri: "c1", callID: "i1", row: true}, testNow)
	for _, at := range []time.Duration{0, lag - 1} {
		if _, doubted := tb.snapshot([]binding{one}, 2, testNow.Add(at)); !slices.Equal(doubted, []pbxmesh.AOR{one.reg.AOR}) || len(b.regs) != 0 {
			t.Errorf("after %v: doubts %v, %q", at, doubted, b.list())
		}
		if _, again := tb.answer(one.reg.AOR, []binding{one}, 2, testNow.Add(at)); !again || len(b.regs) != 0 {
			t.Errorf("after %v: asked again %v, %q", at, again, b.list())
		}
	}
	if tb.answer(one.reg.AOR, []binding{one}, 2, testNow.Add(lag)); len(b.regs) != 1 {
		t.Error("a row that stays is not believed")
	}
	tb.unregister(3, one.reg.AOR, endOf{profile: "internal", uri: "c1", callID: "i1", row: true}, testNow)
	tb.register(4, one)
	if tb.snapshot([]binding{one}, 4, testNow); len(b.regs) != 1 {
		t.Error("a phone that came back is left out")
	}
}

// TestTableSnapshotForgets: memory goes back when a snapshot makes facts old.
func TestTableSnapshotForgets(t *testing.T) {
	t.Parallel()
	b := newBooks()
	tb := newTable(b, "core")
	tb.snapshot(nil, 0, testNow)
	for i := range uint64(1000) {
		fact{seq: 2*i + 1, user: "1001", contact: fmt.Sprint("c", i), call: fmt.Sprint("i", i)}.apply(t, tb)
		fact{seq: 2*i + 2, gone: true, user: "1001", contact: fmt.Sprint("c", i), call: fmt.Sprint("i", i)}.apply(t, tb)
	}
	if tb.marks < 1000 {
		t.Fatalf("%d marks", tb.marks)
	}
	if r, _ := tb.snapshot([]binding{testBinding(t, "1002", "c", "i")}, tb.high, testNow); r != (repairs{added: 1}) {
		t.Errorf("repairs %+v", r)
	}
	if tb.marks != 0 || len(tb.aors) != 1 {
		t.Errorf("%d marks, %d addresses after the snapshot", tb.marks, len(tb.aors))
	}
	// A fact of before the snapshot changes nothing any more.
	fact{seq: 5, user: "1001", contact: "c", call: "i"}.apply(t, tb)
	if got := b.list(); !slices.Equal(got, []string{"1002 c i"}) {
		t.Errorf("%q", got)
	}
}

func TestTableSnapshotTellsOnlyDifferences(t *testing.T) {
	t.Parallel()
	b := newBooks()
	tb := newTable(b, "core")
	one, two := testBinding(t, "1001", "c1", "i1"), testBinding(t, "1002", "c2", "i2")
	if tb.snapshot([]binding{one, two}, 0, testNow); b.resets != 1 || b.epoch != "core" || len(b.regs) != 2 {
		t.Fatalf("after the first snapshot: %+v", b)
	}
	late, later := one, two
	late.reg.Expires = late.reg.Expires.Add(time.Second)
	later.reg.Expires = later.reg.Expires.Add(time.Minute)
	if r, _ := tb.snapshot([]binding{late, later}, 0, testNow); r != (repairs{changed: 1}) || b.puts != 1 || b.resets != 1 {
		t.Errorf("repairs %+v, %d puts, %d resets", r, b.puts, b.resets)
	}
	moved := one
	moved.reg.Contact = "c9"
	twice := moved
	twice.reg.CallID, twice.reg.Expires = "i9", twice.reg.Expires.Add(-time.Minute) // same contact: the later to expire counts
	if r, _ := tb.snapshot([]binding{moved, twice}, 0, testNow); r != (repairs{changed: 1, removed: 1}) || tb.size != 1 {
		t.Errorf("repairs %+v, size %d", r, tb.size)
	}
	if got := b.list(); !slices.Equal(got, []string{"1001 c9 i1"}) {
		t.Errorf("%q", got)
	}
}

// TestTableSnapshotRowsThatShareACallID: recorded from a switch with
// multiple-registrations=true after a phone moved to another port.
func TestTableSnapshotRowsThatShareACallID(t *testing.T) {
	t.Parallel()
	oldPort, newPort := testBinding(t, "1001", "c1", "i1"), testBinding(t, "1001", "c2", "i1")
	for name, order := range map[string][]binding{"old first": {oldPort, newPort}, "new first": {newPort, oldPort}} {
		b := newBooks()
		tb := newTable(b, "core")
		tb.snapshot(nil, 0, testNow)
		tb.register(1, oldPort)
		tb.register(2, newPort)
		if r, _ := tb.snapshot(order, 2, testNow); r.total() != 0 || !slices.Equal(b.list(), []string{"1001 c2 i1"}) || tb.size != 1 {
			t.Errorf("%s: repairs %+v, %q", name, r, b.list())
		}
		later := oldPort
		later.reg.Expires = later.reg.Expires.Add(time.Minute)
		if tb.snapshot([]binding{later, newPort}, 2, testNow); !slices.Equal(b.list(), []string{"1001 c1 i1"}) {
			t.Errorf("%s: the row that lasts longer is not the one: %q", name, b.list())
		}
	}
}
