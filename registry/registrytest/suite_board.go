package registrytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
)

func note(kind registry.NoteKind, key, value string) registry.Note {
	return registry.Note{Kind: kind, Key: key, Value: value}
}

func (b *backend) post(notes ...registry.Note) {
	b.t.Helper()
	if err := b.Post(ctx(b.t), notes...); err != nil {
		b.t.Fatalf("post: %v", err)
	}
}

// notes returns what is newer than after as key -> value.
func (b *backend) notes(kind registry.NoteKind, after uint64) (map[string]string, uint64) {
	b.t.Helper()
	list, next, bad, err := b.Notes(ctx(b.t), kind, after)
	if err != nil || bad != 0 {
		b.t.Fatalf("notes of %s: bad %d, err %v", kind, bad, err)
	}
	got := map[string]string{}
	for _, n := range list {
		if _, twice := got[n.Key]; twice || n.Kind != kind || n.Revision == 0 || n.Revision > next || n.Revision <= after && after <= next {
			b.t.Fatalf("note %+v after %d, next %d, twice %v", n, after, next, twice)
		}
		got[n.Key] = n.Value
	}
	return got, next
}

func (b *backend) onBoard(kind registry.NoteKind, want map[string]string) uint64 {
	b.t.Helper()
	got, next := b.notes(kind, 0)
	if !maps.Equal(got, want) {
		b.t.Fatalf("%s: %.999q, want %.999q", kind, got, want)
	}
	return next
}

func testNotes(t *testing.T, b *backend) {
	b.onBoard(registry.NoteVotes, map[string]string{})
	b.post(note(registry.NoteVotes, "buffalo", "1"), note(registry.NoteVotes, "london", "2"), note(registry.NoteWanted, "london", "out"))
	b.onBoard(registry.NoteVotes, map[string]string{"buffalo": "1", "london": "2"})
	b.onBoard(registry.NoteWanted, map[string]string{"london": "out"})
	b.onBoard(registry.NoteLatency, map[string]string{})
	b.post(note(registry.NoteVotes, "buffalo", "3"), note(registry.NoteVotes, "london", ""), note(registry.NoteVotes, "nobody", ""))
	b.onBoard(registry.NoteVotes, map[string]string{"buffalo": "3"})
	b.onBoard(registry.NoteWanted, map[string]string{"london": "out"})
	b.post(note(registry.NoteVotes, "buffalo", "4"), note(registry.NoteVotes, "buffalo", "5")) // the last one counts
	b.onBoard(registry.NoteVotes, map[string]string{"buffalo": "5"})
	b.post()
	if err := b.Forget(ctx(t), london); err != nil {
		t.Fatal(err)
	}
	b.onBoard(registry.NoteWanted, map[string]string{"london": "out"}) // stores do not know what keys mean
}

func testNotesAfter(t *testing.T, b *backend) {
	b.post(note(registry.NoteVotes, "a", "1"), note(registry.NoteVotes, "b", "1"))
	_, first := b.notes(registry.NoteVotes, 0)
	if got, next := b.notes(registry.NoteVotes, first); len(got) != 0 || next != first {
		t.Fatalf("nothing was posted: %v, next %d after %d", got, next, first)
	}
	b.post(note(registry.NoteWanted, "a", "1"))
	if got, next := b.notes(registry.NoteVotes, first); len(got) != 0 || next != first {
		t.Fatalf("another kind was posted: %v, next %d after %d", got, next, first)
	}
	b.post(note(registry.NoteVotes, "b", "2"))
	got, second := b.notes(registry.NoteVotes, first)
	if !maps.Equal(got, map[string]string{"b": "2"}) || second <= first {
		t.Fatalf("newer than %d: %v, next %d", first, got, second)
	}
	b.post(note(registry.NoteVotes, "b", "2")) // the same once more is news: it holds longer
	got, third := b.notes(registry.NoteVotes, second)
	if !maps.Equal(got, map[string]string{"b": "2"}) || third <= second {
		t.Fatalf("newer than %d: %v, next %d", second, got, third)
	}
	b.post(note(registry.NoteVotes, "b", ""))
	got, fourth := b.notes(registry.NoteVotes, third)
	if len(got) != 0 || fourth <= third {
		t.Fatalf("taken back: %v, next %d after %d", got, fourth, third)
	}
	b.onBoard(registry.NoteVotes, map[string]string{"a": "1"})
	// A reader that knows more than the store: the store lost it.
	got, next := b.notes(registry.NoteVotes, registry.MaxNumber)
	if !maps.Equal(got, map[string]string{"a": "1"}) || next != fourth {
		t.Fatalf("after a loss: %v, next %d, want all and %d", got, next, fourth)
	}
}

func testNoteEnds(t *testing.T, b *backend) {
	short := note(registry.NoteVotes, "short", "1")
	short.TTL = 150*time.Millisecond + time.Nanosecond
	long := note(registry.NoteVotes, "long", "1")
	long.TTL = time.Hour
	b.post(short, long, note(registry.NoteVotes, "ever", "1"))
	list, next, _, err := b.Notes(ctx(t), registry.NoteVotes, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		switch {
		case n.Key == "ever" && n.TTL == 0, n.Key == "long" && n.TTL > 59*time.Minute && n.TTL <= time.Hour,
			n.Key == "short" && n.TTL > 0 && n.TTL <= 151*time.Millisecond:
		default:
			t.Errorf("%s holds for %s", n.Key, n.TTL)
		}
	}
	WaitFor(t, "the note to end", func() bool {
		got, again := b.notes(registry.NoteVotes, 0)
		if again != next {
			t.Fatalf("a note that ended changed the revision from %d to %d", next, again)
		}
		return maps.Equal(got, map[string]string{"long": "1", "ever": "1"})
	})
	long.TTL = 0
	b.post(long)
	short.TTL = time.Hour
	b.post(short)
	b.onBoard(registry.NoteVotes, map[string]string{"long": "1", "ever": "1", "short": "1"})
}

func testNoteLimits(t *testing.T, b *backend) {
	odd := note("abcdefghijklmnop", strings.Repeat("k", registry.MaxKeyLen), strings.Repeat("\x00\xff\r\n", registry.MaxNoteLen/4))
	odd.TTL = registry.MaxNoteTTL
	b.post(odd)
	b.onBoard(odd.Kind, map[string]string{odd.Key: odd.Value})
	good := note(registry.NoteVotes, "good", "1")
	for name, change := range map[string]func(*registry.Note){
		"no kind":      func(n *registry.Note) { n.Kind = "" },
		"kind":         func(n *registry.Note) { n.Kind = "a:b" },
		"no key":       func(n *registry.Note) { n.Key = "" },
		"long key":     func(n *registry.Note) { n.Key = strings.Repeat("k", registry.MaxKeyLen+1) },
		"key":          func(n *registry.Note) { n.Key = "a b" },
		"long value":   func(n *registry.Note) { n.Value = strings.Repeat("v", registry.MaxNoteLen+1) },
		"negative end": func(n *registry.Note) { n.TTL = -1 },
		"endless end":  func(n *registry.Note) { n.TTL = registry.MaxNoteTTL + 1 },
	} {
		n := note(registry.NoteVotes, "bad", "1")
		change(&n)
		b.fails(name, b.Post(ctx(t), good, n), pbxmesh.ErrInvalidRecord)
	}
	b.onBoard(registry.NoteVotes, map[string]string{})
}

func testNoteBulk(t *testing.T, b *backend) {
	const n = 1000
	notes, want := make([]registry.Note, n), make(map[string]string, n)
	for i := range notes {
		notes[i] = note(registry.NoteLatency, fmt.Sprintf("london/%d", i), strings.Repeat(string(rune('a'+i%26)), 16<<10-i))
		want[notes[i].Key] = notes[i].Value
	}
	b.post(notes...)
	next := b.onBoard(registry.NoteLatency, want)
	b.post(notes[7], notes[500])
	if got, _ := b.notes(registry.NoteLatency, next); len(got) != 2 || got["london/7"] == "" || got["london/500"] == "" {
		t.Fatalf("%d notes are newer, want two", len(got))
	}
}

func testBoardFull(t *testing.T, b *backend) {
	notes := make([]registry.Note, registry.MaxNotes)
	for i := range notes {
		notes[i] = note(registry.NoteVotes, fmt.Sprint(i), "1")
	}
	b.post(notes...)
	err := b.Post(ctx(t), note(registry.NoteVotes, "new", "1"), note(registry.NoteVotes, "7", "2"), note(registry.NoteWanted, "new", "1"))
	b.fails("post without room", err, registry.ErrBoardFull)
	got, _ := b.notes(registry.NoteVotes, 0)
	if _, there := got["new"]; there || got["7"] != "2" {
		t.Fatalf("a newcomer is there: %v; who was there is %q, want 2", there, got["7"])
	}
	b.onBoard(registry.NoteWanted, map[string]string{"new": "1"})
	b.post(note(registry.NoteVotes, "8", ""), note(registry.NoteVotes, "new", "1"))
	notes[0].TTL = 50 * time.Millisecond
	b.post(notes[0])
	WaitFor(t, "room where a note ended", func() bool {
		err := b.Post(ctx(t), note(registry.NoteVotes, "newer", "1"))
		if err != nil && !errors.Is(err, registry.ErrBoardFull) {
			t.Fatal(err)
		}
		return err == nil
	})
	if got, _ := b.notes(registry.NoteVotes, 0); len(got) != registry.MaxNotes || got["new"] == "" || got["newer"] == "" {
		t.Fatalf("%d notes, want %d with both newcomers", len(got), registry.MaxNotes)
	}
}

// testWatch: who watches a kind hears of what is posted with Tell, of that kind alone, and reads
// what is on the board by then.
func testWatch(t *testing.T, b *backend) {
	ctx, cancel := context.WithCancel(t.Context())
	type watcher struct {
		told  chan struct{}
		ended chan error
	}
	watch := func(kind registry.NoteKind) watcher {
		w := watcher{make(chan struct{}, 64), make(chan error, 1)}
		go func() { w.ended <- b.Watch(ctx, kind, func() { w.told <- struct{}{} }) }()
		select {
		case <-w.told: // it watches now
		case err := <-w.ended:
			t.Fatalf("watch %s: %v", kind, err)
		case <-time.After(20 * time.Second):
			t.Fatalf("watch %s: nothing is told", kind)
		}
		return w
	}
	one, two, other := watch(registry.NoteVotes), watch(registry.NoteVotes), watch(registry.NoteWanted)
	tell := note(registry.NoteVotes, "london", "1")
	tell.Tell = true
	b.post(note(registry.NoteVotes, "buffalo", "1")) // nobody is told of this one
	b.post(tell)
	for _, w := range []watcher{one, two} {
		select {
		case <-w.told:
		case <-time.After(20 * time.Second):
			t.Fatal("a note was posted, and who watches is not told")
		}
	}
	got, next := b.notes(registry.NoteVotes, 0)
	if !maps.Equal(got, map[string]string{"buffalo": "1", "london": "1"}) {
		t.Errorf("told, and on the board is %v", got)
	}
	// One that is taken back is news, too.
	tell.Value = ""
	b.post(tell)
	<-one.told
	if _, after := b.notes(registry.NoteVotes, next); after <= next {
		t.Errorf("told of a note that was taken back, and the board says %d after %d", after, next)
	}
	<-two.told
	if len(one.told)+len(two.told)+len(other.told) != 0 {
		t.Errorf("told too often: %d and %d times, of another kind %d", len(one.told), len(two.told), len(other.told))
	}
	cancel()
	for _, w := range []watcher{one, two, other} {
		if err := <-w.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	}
}

func testNoteHeld(t *testing.T, b *backend) {
	hold := func(key string, revision uint64, ttl time.Duration) error {
		return b.Hold(ctx(t), registry.NoteVotes, key, revision, ttl)
	}
	left := func() map[string]time.Duration {
		t.Helper()
		list, _, _, err := b.Notes(ctx(t), registry.NoteVotes, 0)
		if err != nil {
			t.Fatal(err)
		}
		left := map[string]time.Duration{}
		for _, n := range list {
			left[n.Key] = n.TTL
		}
		return left
	}
	b.fails("hold of what is not there", hold("london", 1, time.Second), registry.ErrLost)
	ends := func(key, value string, ttl time.Duration) registry.Note {
		return registry.Note{Kind: registry.NoteVotes, Key: key, Value: value, TTL: ttl}
	}
	b.post(ends("london", "1", time.Hour), ends("Buffalo", "2", 400*time.Millisecond), ends("paris", "3", time.Minute), ends("always", "4", 0))
	list, head, _, err := b.Notes(ctx(t), registry.NoteVotes, 0)
	if err != nil || len(list) != 4 {
		t.Fatalf("notes %v, err %v", list, err)
	}
	revision := map[string]uint64{}
	for _, n := range list {
		revision[n.Key] = n.Revision
		if n.Age < 0 || n.Age > 20*time.Second {
			t.Errorf("%s was posted %s ago", n.Key, n.Age)
		}
	}
	near := func(d, want time.Duration) bool { return d <= want && d > want-20*time.Second }
	if err := hold("Buffalo", revision["Buffalo"], 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	b.fails("hold of another revision", hold("london", revision["london"]+1, time.Hour), registry.ErrLost)
	b.fails("hold for no time", hold("london", revision["london"], 0), pbxmesh.ErrInvalidRecord)
	b.fails("hold for too long", hold("london", revision["london"], registry.MaxNoteTTL+1), pbxmesh.ErrInvalidRecord)
	if left := left(); !near(left["Buffalo"], 2*time.Minute) || !near(left["london"], time.Hour) || !near(left["paris"], time.Minute) {
		t.Fatalf("left %v", left)
	}
	if _, next, _, err := b.Notes(ctx(t), registry.NoteVotes, head); err != nil || next != head {
		t.Errorf("a note that is held is news: %d after %d, err %v", next, head, err)
	}
	// Posted again and taken back, it cannot be held as it was.
	b.post(ends("london", "5", time.Hour), ends("paris", "", 0))
	b.fails("hold of what was replaced", hold("london", revision["london"], time.Hour), registry.ErrLost)
	b.fails("hold of what was taken back", hold("paris", revision["paris"], time.Hour), registry.ErrLost)
	// What ended is not brought back.
	b.post(ends("short", "6", 10*time.Millisecond))
	list, _, _, err = b.Notes(ctx(t), registry.NoteVotes, head)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		revision[n.Key] = n.Revision
	}
	WaitFor(t, "the short note to end", func() bool { return len(left()) == 3 })
	b.fails("hold of what ended", hold("short", revision["short"], time.Hour), registry.ErrLost)
}

// testBeats: who posted a note says that it lives, and a reader sees it by the key.
func testBeats(t *testing.T, b *backend) {
	beats := func() (map[string]uint64, uint64) {
		t.Helper()
		got, head, err := b.Beats(ctx(t), registry.NoteVotes)
		if err != nil {
			t.Fatal(err)
		}
		return got, head
	}
	beat := func(kind registry.NoteKind, key string, n uint64) {
		t.Helper()
		if err := b.Beat(ctx(t), kind, key, n); err != nil {
			t.Fatal(err)
		}
	}
	if got, head := beats(); len(got) != 0 || head != 0 {
		t.Fatalf("an empty board has the beats %v at %d", got, head)
	}
	b.post(note(registry.NoteVotes, "london", "1"), note(registry.NoteVotes, "paris", "1"))
	_, head := b.notes(registry.NoteVotes, 0)
	beat(registry.NoteVotes, "london", 7)
	beat(registry.NoteVotes, "paris", registry.BeatTurn+3)
	beat(registry.NoteWanted, "london", 9)
	WaitFor(t, "the beats", func() bool {
		got, at := beats()
		return maps.Equal(got, map[string]uint64{"london": 7, "paris": 3}) && at == head
	})
	beat(registry.NoteVotes, "london", 8)
	WaitFor(t, "another beat", func() bool { got, at := beats(); return got["london"] == 8 && at == head })
	// They end with their notes.
	b.post(note(registry.NoteVotes, "london", ""))
	WaitFor(t, "the end of a beat", func() bool { got, at := beats(); return maps.Equal(got, map[string]uint64{"paris": 3}) && at > head })
	b.fails("a beat under an invalid key", b.Beat(ctx(t), registry.NoteVotes, "a b", 1), pbxmesh.ErrInvalidRecord)
}
