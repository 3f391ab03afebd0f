package feed

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
)

// books is a Sink that keeps what it was told and whether it was told nonsense.
type books struct {
	epoch  string
	resets int
	regs   map[pbxmesh.RegistrationID]pbxmesh.Registration
	puts   int
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
func (b *books) Put(r pbxmesh.Registration)       { b.regs[r.ID()] = r; b.puts++ }
func (b *books) Remove(id pbxmesh.RegistrationID) { delete(b.regs, id) }
func (b *books) list() []string                   { return describe(slices.Collect(maps.Values(b.regs))) }
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

// fact is a step of a table test: "+user contact call" or "-user contact call".
type fact struct {
	seq           uint64
	gone          bool
	user          string
	contact, call string
}

func (f fact) apply(t interface{ Fatal(...any) }, tb *table) {
	reg := testReg(t, f.user, f.contact, f.call)
	if f.gone {
		tb.unregister(f.seq, reg.AOR, f.contact, f.call)
		return
	}
	tb.register(f.seq, reg)
}

// parseFacts numbers the steps from first on.
func parseFacts(first uint64, steps ...string) []fact {
	var out []fact
	for i, s := range steps {
		p := strings.Split(s[1:], " ")
		out = append(out, fact{seq: first + uint64(i), gone: s[0] == '-', user: p[0], contact: p[1], call: strings.TrimSuffix(p[2], "_")})
	}
	return out
}

func TestTableRules(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ steps, want []string }{
		"registers":                          {[]string{"+1001 c1 i1"}, []string{"1001 c1 i1"}},
		"refresh":                            {[]string{"+1001 c1 i1", "+1001 c1 i1"}, []string{"1001 c1 i1"}},
		"two devices":                        {[]string{"+1001 c1 i1", "+1001 c2 i2"}, []string{"1001 c1 i1", "1001 c2 i2"}},
		"unregisters":                        {[]string{"+1001 c1 i1", "-1001 c1 i1"}, nil},
		"unregister with another Call-ID":    {[]string{"+1001 c1 i1", "-1001 c1 i9"}, nil},
		"unregister from another contact":    {[]string{"+1001 c1 i1", "-1001 c9 i1"}, nil},
		"unregister of somebody else":        {[]string{"+1001 c1 i1", "-1002 c1 i1"}, []string{"1001 c1 i1"}},
		"unregister of another device":       {[]string{"+1001 c1 i1", "+1001 c2 i2", "-1001 c2 i9"}, []string{"1001 c1 i1"}},
		"new port, same Call-ID":             {[]string{"+1001 c1 i1", "+1001 c2 i1"}, []string{"1001 c2 i1"}},
		"new Call-ID, same contact":          {[]string{"+1001 c1 i1", "+1001 c1 i2"}, []string{"1001 c1 i2"}},
		"the replaced Call-ID may come back": {[]string{"+1001 c1 i1", "+1001 c1 i2", "+1001 c3 i1"}, []string{"1001 c1 i2", "1001 c3 i1"}},
		"one replaces two":                   {[]string{"+1001 c1 i1", "+1001 c2 i2", "+1001 c1 i2"}, []string{"1001 c1 i2"}},
		"registers again":                    {[]string{"+1001 c1 i1", "-1001 c1 i1", "+1001 c1 i1"}, []string{"1001 c1 i1"}},
		"removal without a contact":          {[]string{"+1001 c1 i1", "+1001 c2 i2", "-1001  i1"}, []string{"1001 c2 i2"}},
		"removal without a Call-ID":          {[]string{"+1001 c1 i1", "+1001 c2 i2", "-1001 c2 _"}, []string{"1001 c1 i1"}},
		"removal that names nothing":         {[]string{"+1001 c1 i1", "-1001  _"}, []string{"1001 c1 i1"}},
	} {
		facts := parseFacts(1, tc.steps...)
		permute(facts, func(order []fact) {
			b := newBooks()
			tb := newTable(b, "core")
			tb.snapshot(nil, 0)
			for _, f := range order {
				f.apply(t, tb)
			}
			if got := b.list(); !slices.Equal(got, tc.want) {
				t.Errorf("%s, in the order %v: %q, want %q", name, order, got, tc.want)
			}
			if got := describe(tb.all()); !slices.Equal(got, tc.want) || tb.size != len(tc.want) {
				t.Errorf("%s: the table says %q (size %d), its Sink %q", name, got, tb.size, tc.want)
			}
		})
	}
}

// permute calls f with every order of facts.
func permute(facts []fact, f func([]fact)) {
	var step func(int)
	step = func(k int) {
		if k == len(facts) {
			f(facts)
			return
		}
		for i := k; i < len(facts); i++ {
			facts[k], facts[i] = facts[i], facts[k]
			step(k + 1)
			facts[k], facts[i] = facts[i], facts[k]
		}
	}
	step(0)
}

// truth is the definition: a registration lives iff no later fact of its address
// has its contact or its Call-ID.
func truth(facts []fact) []string {
	var out []string
	for _, f := range facts {
		if f.gone {
			continue
		}
		lives := true
		for _, g := range facts {
			if g.seq > f.seq && g.user == f.user && (g.contact == f.contact && g.contact != "" || g.call == f.call && g.call != "") {
				lives = false
			}
		}
		if lives {
			out = append(out, f.user+" "+f.contact+" "+f.call)
		}
	}
	slices.Sort(out)
	return out
}

func drawFacts(t *rapid.T, first uint64, label string) []fact {
	n := rapid.IntRange(0, 40).Draw(t, label)
	var out []fact
	for i := range n {
		out = append(out, fact{
			seq:     first + uint64(i),
			gone:    rapid.Bool().Draw(t, "gone"),
			user:    rapid.SampledFrom([]string{"1001", "1002"}).Draw(t, "user"),
			contact: rapid.SampledFrom([]string{"c1", "c2", "c3"}).Draw(t, "contact"),
			call:    rapid.SampledFrom([]string{"i1", "i2", "i3", "i4"}).Draw(t, "call"),
		})
	}
	return out
}

// TestTableAnyOrder: any interleaving, duplicates included, ends where the
// definition says, and so does the Sink.
func TestTableAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		facts := drawFacts(t, 1, "facts")
		order := slices.Concat(facts, facts[:len(facts)/3])
		order = rapid.Permutation(order).Draw(t, "order")
		b := newBooks()
		tb := newTable(b, "core")
		tb.snapshot(nil, 0)
		for _, f := range order {
			f.apply(t, tb)
		}
		if want := truth(facts); !slices.Equal(b.list(), want) || !slices.Equal(describe(tb.all()), want) {
			t.Fatalf("Sink %q, table %q, want %q", b.list(), describe(tb.all()), want)
		}
		if marks := countMarks(tb); marks != tb.marks {
			t.Fatalf("%d marks counted as %d", marks, tb.marks)
		}
	})
}

// TestTableSnapshotAnyOrder: facts 1..n happen in the switch; a snapshot is asked
// for when some of them have been seen and shows the switch at any later moment;
// some of the others come before the answer, the rest after it, in any order. The
// end is the true one whatever the split.
func TestTableSnapshotAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		facts := drawFacts(t, 1, "facts")
		order := slices.Clone(facts)
		asked := rapid.IntRange(0, len(order)).Draw(t, "asked")
		// What was seen before the question may lack earlier ones: they come late.
		rapid.Permutation(order).Draw(t, "order")
		order = rapid.Permutation(order).Draw(t, "order")
		answered := rapid.IntRange(asked, len(order)).Draw(t, "answered")
		b := newBooks()
		tb := newTable(b, "core")
		tb.snapshot(nil, 0)
		for _, f := range order[:asked] {
			f.apply(t, tb)
		}
		barrier := tb.high
		at := rapid.IntRange(int(barrier), len(facts)).Draw(t, "the switch is at")
		for _, f := range order[asked:answered] {
			f.apply(t, tb)
		}
		var rows []pbxmesh.Registration
		for _, line := range truth(facts[:at]) {
			p := strings.Fields(line)
			rows = append(rows, testReg(t, p[0], p[1], p[2]))
		}
		tb.snapshot(rows, barrier)
		for _, f := range order[answered:] {
			f.apply(t, tb)
		}
		want := truth(facts)
		if got := describe(tb.all()); !slices.Equal(got, want) {
			t.Fatalf("table %q, want %q (barrier %d, switch at %d)", got, want, barrier, at)
		}
		if !slices.Equal(b.list(), want) || tb.size != len(want) || countMarks(tb) != tb.marks {
			t.Fatalf("Sink %q, table %q, size %d, marks %d of %d", b.list(), want, tb.size, tb.marks, countMarks(tb))
		}
	})
}

func countMarks(tb *table) (n int) {
	for _, d := range tb.aors {
		n += len(d.contacts) + len(d.calls)
	}
	return n
}

// TestTableSnapshotForgets: memory goes back when a snapshot makes facts old.
func TestTableSnapshotForgets(t *testing.T) {
	t.Parallel()
	b := newBooks()
	tb := newTable(b, "core")
	tb.snapshot(nil, 0)
	for i := range uint64(1000) {
		fact{seq: 2*i + 1, user: "1001", contact: fmt.Sprint("c", i), call: fmt.Sprint("i", i)}.apply(t, tb)
		fact{seq: 2*i + 2, gone: true, user: "1001", contact: fmt.Sprint("c", i), call: fmt.Sprint("i", i)}.apply(t, tb)
	}
	if tb.marks < 2000 {
		t.Fatalf("%d marks", tb.marks)
	}
	if r := tb.snapshot([]pbxmesh.Registration{testReg(t, "1002", "c", "i")}, tb.high); r != (repairs{added: 1}) {
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
	one, two := testReg(t, "1001", "c1", "i1"), testReg(t, "1002", "c2", "i2")
	if tb.snapshot([]pbxmesh.Registration{one, two}, 0); b.resets != 1 || b.epoch != "core" || len(b.regs) != 2 {
		t.Fatalf("after the first snapshot: %+v", b)
	}
	late, later := one, two
	late.Expires = late.Expires.Add(time.Second)
	later.Expires = later.Expires.Add(time.Minute)
	if r := tb.snapshot([]pbxmesh.Registration{late, later}, 0); r != (repairs{changed: 1}) || b.puts != 1 || b.resets != 1 {
		t.Errorf("repairs %+v, %d puts, %d resets", r, b.puts, b.resets)
	}
	moved := one
	moved.Contact = "c9"
	twice := moved
	twice.CallID, twice.Expires = "i9", twice.Expires.Add(-time.Minute) // same contact: the later to expire counts
	if r := tb.snapshot([]pbxmesh.Registration{moved, twice}, 0); r != (repairs{changed: 1, removed: 1}) || tb.size != 1 {
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
	oldPort, newPort := testReg(t, "1001", "c1", "i1"), testReg(t, "1001", "c2", "i1")
	for name, order := range map[string][]pbxmesh.Registration{"old first": {oldPort, newPort}, "new first": {newPort, oldPort}} {
		b := newBooks()
		tb := newTable(b, "core")
		tb.snapshot(nil, 0)
		tb.register(1, oldPort)
		tb.register(2, newPort)
		if r := tb.snapshot(order, 2); r.total() != 0 || !slices.Equal(b.list(), []string{"1001 c2 i1"}) || tb.size != 1 {
			t.Errorf("%s: repairs %+v, %q", name, r, b.list())
		}
		later := oldPort
		later.Expires = later.Expires.Add(time.Minute)
		if tb.snapshot([]pbxmesh.Registration{later, newPort}, 2); !slices.Equal(b.list(), []string{"1001 c1 i1"}) {
			t.Errorf("%s: the row that lasts longer is not the one: %q", name, b.list())
		}
	}
}
