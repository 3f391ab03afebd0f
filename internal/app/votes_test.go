package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/registrytest"
)

// ballot is a board on a clock that the test moves, with the voters at it.
type ballot struct {
	t     *testing.T
	store *memory.Store
	now   time.Time
}

func newBallot(t *testing.T) *ballot {
	t.Helper()
	b := &ballot{t: t, now: time.Unix(1_800_000_000, 0)}
	b.store = memory.New(memory.Options{Now: func() time.Time { return b.now }})
	return b
}

// poll is one observer of the test.
type poll struct {
	*voter
	log  bytes.Buffer
	dead atomic.Bool
}

// voter makes an observer of a, b and c, which answer it, with a lease renewal of 1 s.
func (b *ballot) voter(name, instance string) *poll {
	b.t.Helper()
	p := &poll{}
	logger := slog.New(slog.NewTextHandler(&p.log, nil))
	tracker, err := failover.New(failover.Options{Observer: name, Instance: instance})
	if err != nil {
		b.t.Fatal(err)
	}
	tracker.SetMembers(b.now, []pbxmesh.Node{{ID: "a"}, {ID: "b"}, {ID: "c"}})
	for _, id := range []pbxmesh.NodeID{"a", "b", "c"} {
		tracker.Probe(failover.ProbeResult{Node: id, Path: failover.PathMesh, Outcome: failover.OutcomeOK, Code: 200, At: b.now})
	}
	p.voter = &voter{
		board: b.store, tracker: tracker, name: name, renew: time.Second, now: func() time.Time { return b.now },
		gone: p.dead.Load, log: logger, wake: make(chan struct{}, 1),
		heard: map[string]*heardVote{}, beats: map[string]uint64{}, spoilt: map[string]bool{}, reported: map[string]bool{},
	}
	p.told.kind, p.told.notify = registry.NoteVotes, p.hasNews
	return p
}

// TestNewsIsToldLate: what the registry did not take when it was new is told when it does.
func TestNewsIsToldLate(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	a, told := b.voter("a", "1"), make(chan struct{}, 8)
	go func() {
		_ = b.store.Watch(t.Context(), registry.NoteVotes, func() { told <- struct{}{} })
	}()
	<-told // it watches
	b.store.SetDown(errors.New("test"))
	if err := a.postOnce(t.Context(), true); !errors.Is(err, pbxmesh.ErrUnavailable) {
		t.Fatalf("a registry that is away: %v", err)
	}
	b.store.SetDown(nil)
	for len(told) > 0 {
		<-told
	}
	a.posts(t)
	if len(told) != 1 {
		t.Errorf("told %d times, want once", len(told))
	}
	b.now = b.now.Add(time.Second)
	a.posts(t)
	if len(told) != 1 {
		t.Error("what is no news is told, too")
	}
}

// write puts a text on the board, as anyone with the registry's password can.
func (b *ballot) write(key, value string, ttl time.Duration) {
	b.t.Helper()
	if err := b.store.Post(b.t.Context(), registry.Note{Kind: registry.NoteVotes, Key: key, Value: value, TTL: ttl}); err != nil {
		b.t.Fatal(err)
	}
}

func (p *poll) posts(t *testing.T) {
	t.Helper()
	if err := p.postOnce(t.Context(), false); err != nil {
		t.Fatal(err)
	}
}

// hears reads the board and returns who counts, in the order of the wanted names.
func (p *poll) hears(t *testing.T, want ...string) map[string]failover.SeenVote {
	t.Helper()
	if err := p.readOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := map[string]failover.SeenVote{}
	for _, v := range p.fresh(p.now()) {
		got[v.Observer] = v
	}
	for _, name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("%s is not heard", name)
		}
	}
	if len(got) != len(want) {
		t.Errorf("heard are %v, want %q", got, want)
	}
	return got
}

func TestVotesTravel(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la, ja := b.voter("losangeles", "run1"), b.voter("jacksonville", "run1")
	la.posts(t)
	ja.posts(t)
	notes, _, _, err := b.store.Notes(t.Context(), registry.NoteVotes, 0)
	if err != nil || len(notes) != 2 {
		t.Fatalf("on the board: %v, %v", notes, err)
	}
	for _, n := range notes {
		if n.TTL != voteNote*time.Second {
			t.Errorf("the note of %s holds for %v, want %d renewals", n.Key, n.TTL, voteNote)
		}
	}
	// Its own note is no other observer.
	v := la.hears(t, "jacksonville")["jacksonville"]
	if !v.Seen.Equal(b.now) || v.Instance != "run1" || len(v.Nodes) != 3 || v.Nodes["a"].Phones != failover.WordAnswers {
		t.Errorf("what jacksonville said arrived as %+v", v)
	}
	if s := la.Stats(); s.Posted != 1 || s.Read != 1 || s.Bad != 0 || s.Namesakes != 0 || s.PostErrors != 0 || s.ReadErrors != 0 {
		t.Errorf("counted %+v", s)
	}
}

// TestVoteLasts holds a vote to three renewals from when it was seen posted, and does
// not take reading it again for posting it again.
func TestVoteLasts(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la := b.voter("losangeles", "run1")
	text, err := failover.EncodeVote(&failover.Vote{Observer: "jacksonville", Instance: "x"})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name      string
		ttl, want time.Duration
	}{
		{"that of an observer with our pace", 3 * time.Second, 3 * time.Second},
		{"a hasty one", time.Second, 3 * time.Second},
		{"a slow one", 20 * time.Second, 20 * time.Second},
		{"for a year", 365 * 24 * time.Hour, voteMaxLasts},
		{"for ever", 0, 3 * time.Second},
	} {
		b.write("jacksonville", text, tt.ttl)
		began := b.now
		la.hears(t, "jacksonville")
		b.now = began.Add(tt.want)
		la.after = 0 // as after a reconnect: everything is read again
		if v := la.hears(t, "jacksonville")["jacksonville"]; !v.Seen.Equal(began) {
			t.Errorf("%s: seen at %v, want when it was posted, %v", tt.name, v.Seen, began)
		}
		b.now = b.now.Add(time.Nanosecond)
		if votes := la.fresh(b.now); len(votes) != 0 || len(la.heard) != 0 {
			t.Errorf("%s: after %v it counts still: %v", tt.name, tt.want, votes)
		}
		b.write("jacksonville", "", 0) // taken back
		la.hears(t)
	}
}

// TestVoteGoesOn posts a vote once while it says the same: who reads the board sees that it
// goes on, when it ends, and how old it is, and reads it once.
func TestVoteGoesOn(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la, ja := b.voter("losangeles", "run1"), b.voter("jacksonville", "run1")
	paris := b.voter("paris", "run1")
	board := &countingBoard{Board: b.store}
	la.board = board
	paris.posts(t)
	ja.posts(t)
	_, head, _, _ := b.store.Notes(t.Context(), registry.NoteVotes, 0)
	for range 600 { // ten minutes
		la.hears(t, "jacksonville", "paris")
		b.now = b.now.Add(time.Second)
		for _, p := range []*poll{ja, paris} {
			p.hears(t, map[*poll]string{ja: "paris", paris: "jacksonville"}[p])
			p.posts(t)
		}
	}
	if s := ja.Stats(); s.Posted != 1 || s.Held != 600 {
		t.Errorf("posted %d times and held %d times, want once and then held", s.Posted, s.Held)
	}
	if _, now, _, _ := b.store.Notes(t.Context(), registry.NoteVotes, 0); now != head {
		t.Error("somebody had to read what was no news")
	}
	if n := board.notes.Load(); n != 1 {
		t.Errorf("the board was read %d times", n)
	}
	// Whoever comes late knows how long things have been so, once it has seen who lives.
	late := b.voter("tokyo", "run1")
	late.hears(t)
	b.now = b.now.Add(time.Second)
	ja.posts(t)
	paris.posts(t)
	for _, p := range []*poll{la, late} {
		v := p.hears(t, "jacksonville", "paris")["jacksonville"]
		if f := v.Nodes["a"].For; (f - 600*time.Second).Abs() > 2*time.Second {
			t.Errorf("%s hears that a has been so for %s, want ten minutes", p.name, f)
		}
	}
	// One stops: it counts for three renewals after it was last heard.
	heard := b.now
	for range voteLasts {
		b.now = b.now.Add(time.Second)
		paris.posts(t)
		if v := la.hears(t, "jacksonville", "paris")["jacksonville"]; v.Seen.After(heard) {
			t.Fatalf("it was seen at %s, and last went on at %s", v.Seen, heard)
		}
	}
	b.now = b.now.Add(time.Second)
	paris.posts(t)
	la.hears(t, "paris")
	read := board.notes.Load()
	for range 10 {
		b.now = b.now.Add(time.Second)
		paris.posts(t)
		la.hears(t, "paris")
	}
	if n := board.notes.Load(); n != read {
		t.Errorf("the board was read %d times more for a vote that ended", n-read)
	}
	// A reader that was away for longer than votes last hears at once who went on meanwhile.
	for range voteLasts + 2 {
		b.now = b.now.Add(time.Second)
		paris.posts(t)
		la.fresh(b.now)
	}
	if votes := la.fresh(b.now); len(votes) != 0 {
		t.Errorf("heard %v, and nobody could be heard", votes)
	}
	la.hears(t, "paris")
	// What is new is posted and read, and a board that lost everything gets it again.
	ja.tracker.SetMembers(b.now, []pbxmesh.Node{{ID: "a"}, {ID: "b"}})
	ja.posts(t)
	if v := la.hears(t, "paris", "jacksonville")["jacksonville"]; len(v.Nodes) != 2 {
		t.Errorf("heard %+v", v)
	}
	b.store.Clear()
	for range 2 {
		b.now = b.now.Add(time.Second)
		for _, p := range []*poll{ja, paris} {
			if err := p.readOnce(t.Context()); err != nil {
				t.Fatal(err)
			}
			p.posts(t)
		}
		la.hears(t, "paris", "jacksonville")
	}
}

// countingBoard counts how often notes are read.
type countingBoard struct {
	registry.Board
	notes atomic.Int64
}

func (b *countingBoard) Notes(ctx context.Context, kind registry.NoteKind, after uint64) ([]registry.Note, uint64, int, error) {
	b.notes.Add(1)
	return b.Board.Notes(ctx, kind, after)
}

func TestHostileVotes(t *testing.T) {
	t.Parallel()
	var many strings.Builder
	for i := range failover.MaxVoteNodes + 1 {
		fmt.Fprintf(&many, `"n%d":{},`, i)
	}
	for name, text := range map[string]string{
		"no JSON":               "silent, all of them",
		"a list":                `[]`,
		"half a vote":           `{"v":1,"o":"mallory","i":"x","n":{"a":{"w":"sil`,
		"another one's name":    `{"v":1,"o":"jacksonville","i":"x","n":{"a":{"w":"silent"}}}`,
		"a later version":       `{"v":2,"o":"mallory","i":"x","n":{"a":{"w":"silent"}}}`,
		"no version":            `{"o":"mallory","i":"x","n":{"a":{"w":"silent"}}}`,
		"load below none":       `{"v":1,"o":"mallory","i":"x","self":"a","load":-1,"n":{}}`,
		"load above all":        `{"v":1,"o":"mallory","i":"x","self":"a","load":1001,"n":{}}`,
		"a reason with a bell":  `{"v":1,"o":"mallory","i":"x","self":"a","load":1,"why":"\u0007","n":{}}`,
		"a long reason":         `{"v":1,"o":"mallory","i":"x","self":"a","load":1,"why":"` + strings.Repeat("x", 121) + `","n":{}}`,
		"beside no node's name": `{"v":1,"o":"mallory","i":"x","self":"a b","n":{}}`,
		"about no node's name":  `{"v":1,"o":"mallory","i":"x","n":{"a\nlevel=ERROR":{"w":"silent"}}}`,
		"a negative age":        `{"v":1,"o":"mallory","i":"x","n":{"a":{"w":"silent","f":-1}}}`,
		"a hold of a day":       `{"v":1,"o":"mallory","i":"x","n":{"a":{"w":"answers","ra":1,"rh":86400000}}}`,
		"an age past int64":     `{"v":1,"o":"mallory","i":"x","n":{"a":{"f":9223372036854775808}}}`,
		"too many nodes":        `{"v":1,"o":"mallory","i":"x","n":{` + strings.TrimSuffix(many.String(), ",") + `}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBallot(t)
			la := b.voter("losangeles", "run1")
			b.voter("jacksonville", "run1").posts(t)
			for i := range 3 {
				b.write("mallory", text, time.Minute)
				la.hears(t, "jacksonville")
				if s := la.Stats(); s.Bad != uint64(i)+1 { //nolint:gosec // small
					t.Errorf("%d bad notes counted, want %d", s.Bad, i+1)
				}
			}
			if n := strings.Count(la.log.String(), "\n"); n != 1 || !strings.Contains(la.log.String(), "observer=mallory") {
				t.Errorf("%d lines in the log, want one about mallory:\n%s", n, la.log.String())
			}
		})
	}
}

// TestBadNoteTakesNothingBack leaves what an observer said before its note was spoilt.
func TestBadNoteTakesNothingBack(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la, ja := b.voter("losangeles", "run1"), b.voter("jacksonville", "run1")
	ja.posts(t)
	la.hears(t, "jacksonville")
	b.write("jacksonville", "spoilt", time.Minute)
	la.hears(t, "jacksonville")
	b.now = b.now.Add(voteLasts*time.Second + 1)
	la.hears(t)
	ja.posts(t)
	la.hears(t, "jacksonville")
}

func TestBadNotesDoNotFloodTheLog(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la := b.voter("losangeles", "run1")
	for i := range 3 * maxReported {
		b.write(fmt.Sprintf("mallory%d", i), "nonsense", time.Minute)
	}
	la.hears(t)
	if n := strings.Count(la.log.String(), "\n"); n != maxReported || len(la.reported) != maxReported {
		t.Errorf("%d lines about %d observers, want %d", n, len(la.reported), maxReported)
	}
	if s := la.Stats(); s.Bad != 3*maxReported {
		t.Errorf("%d bad notes counted, want %d", s.Bad, 3*maxReported)
	}
}

// TestNamesake tells a second daemon of the same name, which is a mistake, from this
// daemon's own former life, which is none.
func TestNamesake(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la, twin := b.voter("losangeles", "run2"), b.voter("losangeles", "run1")
	twin.posts(t)
	la.hears(t)
	la.posts(t)
	la.hears(t)
	if la.log.Len() != 0 {
		t.Errorf("its own former life is in the log:\n%s", la.log.String())
	}
	for range 50 {
		for _, p := range []*poll{twin, la} {
			p.hears(t)
			p.posts(t)
		}
	}
	if n := strings.Count(la.log.String(), "another observer calls itself as this one"); n != 1 {
		t.Errorf("%d lines about the other one, want 1:\n%s", n, la.log.String())
	}
	if s := la.Stats(); s.Namesakes != 51 {
		t.Errorf("%d of its notes counted, want 51", s.Namesakes)
	}
}

// TestVotesWhileTheStoreIsAway counts failures, logs one line, and goes on afterwards.
func TestVotesWhileTheStoreIsAway(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la, ja := b.voter("losangeles", "run1"), b.voter("jacksonville", "run1")
	ja.posts(t)
	la.hears(t, "jacksonville")
	b.store.SetDown(errors.New("no route"))
	for range 5 {
		if err := la.postOnce(t.Context(), false); !errors.Is(err, pbxmesh.ErrUnavailable) {
			t.Errorf("post: %v", err)
		}
		if err := la.readOnce(t.Context()); !errors.Is(err, pbxmesh.ErrUnavailable) {
			t.Errorf("read: %v", err)
		}
	}
	if votes := la.fresh(b.now); len(votes) != 1 {
		t.Errorf("what was heard before does not hold any more: %v", votes)
	}
	if s := la.Stats(); s.PostErrors != 5 || s.ReadErrors != 5 {
		t.Errorf("counted %+v", s)
	}
	if n := strings.Count(la.log.String(), "cannot be posted"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, la.log.String())
	}
	b.now = b.now.Add(voteLasts*time.Second + 1)
	if votes := la.fresh(b.now); len(votes) != 0 {
		t.Errorf("the vote counts while nobody can know that it was posted again: %v", votes)
	}
	b.store.SetDown(nil)
	b.store.Clear() // and it lost everything
	if err := ja.readOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	ja.posts(t)
	la.posts(t)
	la.hears(t, "jacksonville")
	ja.hears(t, "losangeles")
}

// TestEndOfADaemonIsNoFailedPost does not count what the daemon's own end cut short.
func TestEndOfADaemonIsNoFailedPost(t *testing.T) {
	t.Parallel()
	la := newBallot(t).voter("losangeles", "run1")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := la.postOnce(ctx, false); err == nil {
		t.Error("posted after the end")
	}
	if s := la.Stats(); s.PostErrors != 0 || la.log.Len() != 0 {
		t.Errorf("counted %+v, logged %q", s, la.log.String())
	}
}

func TestKilledDaemonSaysNothing(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la, ja := b.voter("losangeles", "run1"), b.voter("jacksonville", "run1")
	la.posts(t)
	la.dead.Store(true)
	la.posts(t)
	la.takeBack(t.Context())
	if s := la.Stats(); s.Posted != 1 {
		t.Errorf("posted %d times, want once, before the end", s.Posted)
	}
	ja.hears(t, "losangeles") // until it runs out, as with kill -9
}

// seenBoard tells of every note that is posted.
type seenBoard struct {
	registry.Board
	posted chan registry.Note
}

func (b seenBoard) Post(ctx context.Context, notes ...registry.Note) error {
	err := b.Board.Post(ctx, notes...)
	for _, n := range notes {
		b.posted <- n
	}
	return err
}

// TestVoteIsPostedAtOnce has a renewal of an hour: only what is new is posted, and at
// the end the vote is taken back.
func TestVoteIsPostedAtOnce(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la := b.voter("losangeles", "run1")
	la.renew = time.Hour
	board := seenBoard{b.store, make(chan registry.Note, 8)}
	la.board = board
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- la.post(ctx) }()
	next := func() registry.Note {
		t.Helper()
		select {
		case n := <-board.posted:
			return n
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is posted")
			return registry.Note{}
		}
	}
	if n := next(); n.Key != "losangeles" || n.Value == "" {
		t.Errorf("first %+v", n)
	}
	for range 100 { // it does not block
		la.changed()
	}
	if n := next(); n.Value == "" {
		t.Errorf("then %+v", n)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	var last registry.Note
	for len(board.posted) > 0 {
		last = next()
	}
	if last.Key != "losangeles" || last.Value != "" {
		t.Errorf("the last note is %+v, want the vote taken back", last)
	}
	if notes, _, _, err := b.store.Notes(t.Context(), registry.NoteVotes, 0); err != nil || len(notes) != 0 {
		t.Errorf("left on the board: %v, %v", notes, err)
	}
}

// TestNewsIsHeardAtOnce has renewals of an hour: only who is told of it hears what another
// observer says.
func TestNewsIsHeardAtOnce(t *testing.T) {
	t.Parallel()
	b := newBallot(t)
	la, ja := b.voter("losangeles", "run1"), b.voter("jacksonville", "run1")
	la.renew, ja.renew = time.Hour, time.Hour
	la.listen = make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{la.read, la.watch} {
		wg.Go(func() {
			if err := run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		})
	}
	registrytest.WaitFor(t, "the observer to watch and to have read", func() bool { return la.told.yes.Load() && la.Stats().Read > 0 })
	if err := ja.postOnce(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	read := la.Stats().Read
	if err := ja.postOnce(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	registrytest.WaitFor(t, "the news to be heard", func() bool { return len(la.fresh(b.now)) == 1 })
	if n := la.Stats().Read - read; n > 2 {
		t.Errorf("read %d times for one piece of news", n)
	}
	cancel()
	wg.Wait()
}
