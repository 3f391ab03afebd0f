package drain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

func TestBookSays(t *testing.T) {
	t.Parallel()
	b := NewBook()
	if w := b.Get("london"); w.Wanted != pbxmesh.WantedInService || w.Node != "london" || !w.At.IsZero() {
		t.Errorf("nobody said anything, and %+v is wanted", w)
	}
	say := func(after time.Duration, wanted pbxmesh.Wanted, by string) Wish {
		t.Helper()
		w, err := b.Say(start.Add(after), Wish{Node: "london", Wanted: wanted, By: by})
		if err != nil {
			t.Fatal(err)
		}
		if got := b.Get("london"); got != w {
			t.Errorf("said %+v, and %+v stands", w, got)
		}
		return w
	}
	first := say(0, pbxmesh.WantedDraining, "alice")
	if first.Rev != 1 || first.Turn != 1 || !first.At.Equal(start) || !first.Since.Equal(start) {
		t.Errorf("the first wish is %+v", first)
	}
	// The same again, by another operator: the drain goes on as it was.
	if w := say(time.Minute, pbxmesh.WantedDraining, "bob"); w.Rev != 2 || w.Turn != 1 || w.By != "bob" || !w.Since.Equal(start) || !w.At.Equal(start.Add(time.Minute)) {
		t.Errorf("said again: %+v", w)
	}
	if w := say(2*time.Minute, pbxmesh.WantedInService, "bob"); w.Rev != 3 || w.Turn != 3 || !w.Since.Equal(start.Add(2*time.Minute)) {
		t.Errorf("taken back: %+v", w)
	}
	if w := say(3*time.Minute, pbxmesh.WantedDraining, "bob"); w.Turn != 4 {
		t.Errorf("a new drain has the turn %d", w.Turn)
	}
	// A clock that went back does not matter to a newer wish.
	if w := say(-time.Hour, pbxmesh.WantedOut, "bob"); w.Rev != 5 {
		t.Errorf("after the clock went back: %+v", w)
	}
	before := b.Get("london")
	if _, err := b.Say(start, Wish{Node: "london", By: "\x07"}); !errors.Is(err, ErrWish) || b.Get("london") != before {
		t.Errorf("a wish out of bounds: %v, and %+v stands", err, b.Get("london"))
	}
}

func TestBookMerges(t *testing.T) {
	t.Parallel()
	b := NewBook()
	w, older, newer := valid(), valid(), valid()
	older.Rev, newer.Rev = w.Rev-1, w.Rev+1
	for i, step := range []struct {
		wish  Wish
		taken bool
	}{{w, true}, {w, false}, {older, false}, {newer, true}, {w, false}} {
		if got := b.Merge(step.wish); got != step.taken {
			t.Errorf("step %d: taken %v", i, got)
		}
	}
	if got := b.Get("london"); got != newer {
		t.Errorf("%+v stands", got)
	}
}

func TestBookIsBounded(t *testing.T) {
	t.Parallel()
	b := NewBook()
	for i := range maxWishes {
		w := valid()
		w.Node = pbxmesh.NodeID(fmt.Sprintf("node-%04d", i))
		if !b.Merge(w) {
			t.Fatalf("wish %d is lost", i)
		}
	}
	more := valid()
	if b.Merge(more) {
		t.Error("one more than the bound is held")
	}
	if _, err := b.Say(start, more); !errors.Is(err, ErrWish) || !strings.Contains(err.Error(), "about more than 4096 nodes") {
		t.Errorf("one more was said: %v", err)
	}
	if _, err := b.Say(start, Wish{Node: "node-0000"}); err != nil {
		t.Errorf("a node that is known: %v", err)
	}
	// The largest book can be read again.
	path := filepath.Join(t.TempDir(), "wanted")
	if err := b.Save(path); err != nil {
		t.Fatal(err)
	}
	again := NewBook()
	if err := again.Load(path); err != nil || len(again.All()) != maxWishes {
		t.Errorf("read again: %d wishes, %v", len(again.All()), err)
	}
}

func TestBookFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "wanted")
	b := NewBook()
	if err := b.Load(path); err != nil {
		t.Errorf("no file yet: %v", err)
	}
	for _, node := range []pbxmesh.NodeID{"london", "buffalo"} {
		if _, err := b.Say(start, Wish{Node: node, Wanted: pbxmesh.WantedDraining, By: "alice", Reason: "kernel"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Save(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
	again := NewBook()
	if err := again.Load(path); err != nil || !slices.Equal(again.All(), b.All()) || again.All()[0].Node != "buffalo" {
		t.Errorf("read again: %+v, %v", again.All(), err)
	}
	// What was heard since is not undone by an old file.
	newer, err := again.Say(start.Add(time.Hour), Wish{Node: "london"})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Load(path); err != nil || again.Get("london") != newer {
		t.Errorf("an old file undid what stands: %+v, %v", again.Get("london"), err)
	}
	if err := b.Save(filepath.Join(path, "below")); err == nil || !strings.Contains(err.Error(), "save what operators want") {
		t.Errorf("saved below a file: %v", err)
	}
	if err := b.Load(filepath.Dir(path)); err == nil || !strings.Contains(err.Error(), "load what operators want") {
		t.Errorf("a folder was loaded: %v", err)
	}
}

// A file that was damaged loses its damaged lines only, and says which.
func TestBookDamagedFile(t *testing.T) {
	t.Parallel()
	w := valid()
	good, err := w.Encode()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "wanted")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{\n\n" + `{"node":"paris","v":1,"wanted":"out"}` + "\r\n" + good + "\r\nx\ny\nz")
	b := NewBook()
	err = b.Load(path)
	if !errors.Is(err, ErrWish) || b.Get("london") != w || len(b.All()) != 1 {
		t.Errorf("loaded %+v, %v", b.All(), err)
	}
	for _, says := range []string{"line 1: unexpected end of JSON input", "line 3: invalid wish: paris wants 2, number 0 since 0", "line 5: invalid character"} {
		if err == nil || !strings.Contains(err.Error(), path+" "+says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 3 {
		t.Errorf("%d lines of trouble are named, 3 are enough", n)
	}
	write(strings.Repeat("\n", maxBook+1))
	if err := b.Load(path); !errors.Is(err, ErrWish) || !strings.Contains(err.Error(), fmt.Sprintf("more than %d bytes", maxBook)) {
		t.Errorf("a file without end: %v", err)
	}
}
