package app

import (
	"context"
	crand "crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"pbxmesh/failover"
	"pbxmesh/registry"
)

// Bounds of the exchange of votes, in renewals of a lease: one knob makes a mesh quicker
// or slower as a whole.
const (
	voteLasts    = 3           // a vote counts for so many renewals after it was seen to hold
	voteReads    = 5           // looks within two renewals, while nobody tells of news
	voteMaxLasts = time.Minute // what a note may ask for at most, where three of our renewals are not longer
	voteMinPause = 50 * time.Millisecond
	voteTellGap  = 20 * time.Millisecond // between two reads, however often we are told

	// When this observer's vote says something new, the others' will soon, too: while nobody
	// can tell us, they are read more often for so long.
	voteNews      = 2 * time.Second
	voteNewsPause = 100 * time.Millisecond
)

// voter posts this observer's vote on the board of the registry, and reads the others'.
type voter struct {
	board   registry.Board
	tracker *failover.Tracker
	name    string
	renew   time.Duration
	now     func() time.Time
	gone    func() bool // the daemon was killed: say nothing any more
	log     *slog.Logger
	wake    chan struct{} // the vote says something new: post it
	listen  chan struct{} // the same, or another observer's does: read the others'
	told    told          // when another observer's vote says something new

	mu       sync.Mutex
	stats    voteStats
	taken    bool                  // the registry took the last vote
	posted   *postedVote           // our vote on the board, nil for none
	untold   bool                  // the registry did not take news
	after    uint64                // revision
	onBoard  map[string]uint64     // notes that end by themselves, our own included: their revisions
	heard    map[string]*heardVote // by observer
	reported map[string]bool       // observers whose bad note was logged, at most maxReported
}

// maxReported bounds the observers whose bad notes are logged.
const maxReported = 64

type heardVote struct {
	vote     failover.Vote // as it was posted
	posted   time.Time     // on our clock, as the next two
	seen     time.Time     // when it was last seen posted or gone on with
	ends     time.Time
	revision uint64
	lasts    time.Duration
}

// postedVote is our own vote as it stands on the board.
type postedVote struct {
	vote     failover.Vote
	text     string
	at       time.Time
	revision uint64 // 0 until the board was read
}

// voteStats count what the exchange of votes went through.
type voteStats struct {
	Posted, Held, PostErrors, Read, ReadErrors, Bad, Namesakes uint64
}

func newVoter(a *App, board registry.Board) *voter {
	v := &voter{
		board: board, tracker: a.tracker, name: a.cfg.Name, renew: a.cfg.Registry.LeaseRenew, now: a.now,
		gone: a.publisher.cut.Load, log: a.log.With("component", "votes"), wake: make(chan struct{}, 1), listen: make(chan struct{}, 1),
		heard: map[string]*heardVote{}, onBoard: map[string]uint64{}, reported: map[string]bool{},
	}
	v.told.kind, v.told.notify = registry.NoteVotes, func() { poke(v.listen) }
	return v
}

// instance tells this run of an observer from every other one of its name.
func instance() string { return crand.Text()[:12] }

// changed has the vote posted at once, and the others' read. It does not block.
func (v *voter) changed() {
	poke(v.wake)
	poke(v.listen)
}

// Stats returns the counters.
func (v *voter) Stats() voteStats {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stats
}

// post posts the vote when it says something new and has it go on with every renewal,
// until ctx ends; then it takes the vote back.
func (v *voter) post(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		news := false
		select {
		case <-ctx.Done():
			v.takeBack(context.WithoutCancel(ctx))
			return ctx.Err()
		case <-timer.C:
		case <-v.wake:
			news = true
		}
		pause := v.renew*9/10 + rand.N(v.renew/5+1)
		if err := v.postOnce(ctx, news); err != nil {
			pause = min(pause, max(v.renew/4, voteMinPause))
		}
		// Several nodes lost at once are one vote or two, not one each.
		select {
		case <-ctx.Done():
		case <-time.After(voteMinPause):
		}
		timer.Reset(pause)
	}
}

// postOnce posts the vote, or has the posted one go on while it says the same; the others
// read it at once when it is news.
func (v *voter) postOnce(ctx context.Context, news bool) error {
	if v.gone() {
		return nil
	}
	v.mu.Lock()
	news = news || v.untold
	v.mu.Unlock()
	now := v.now()
	vote := v.tracker.Vote(now)
	callCtx, cancel := context.WithTimeout(ctx, v.deadline())
	defer cancel()
	held, err := v.hold(callCtx, &vote, now, news)
	var text string
	if !held {
		if text, err = failover.EncodeVote(&vote); err == nil {
			err = v.board.Post(callCtx, registry.Note{Kind: registry.NoteVotes, Key: v.name, Value: text, TTL: voteLasts * v.renew, Tell: news})
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.taken, v.untold = err == nil, news && err != nil
	if held {
		v.stats.Held++
	} else {
		v.stats.Posted++
		v.posted = nil
		if err == nil {
			v.posted = &postedVote{vote: vote, text: text, at: now}
		}
	}
	if err != nil && ctx.Err() == nil {
		if v.stats.PostErrors++; v.stats.PostErrors == 1 {
			v.log.Warn("the vote of this observer cannot be posted; others decide without it", "error", err)
		}
	}
	return err
}

// hold has the posted vote go on when vote says the same, and reports whether it does.
func (v *voter) hold(ctx context.Context, vote *failover.Vote, now time.Time, news bool) (bool, error) {
	v.mu.Lock()
	p := v.posted
	if news || p == nil || !vote.Same(p.vote.After(now.Sub(p.at))) {
		v.mu.Unlock()
		return false, nil
	}
	revision := p.revision
	v.mu.Unlock()
	err := v.board.Hold(ctx, registry.NoteVotes, v.name, revision, voteLasts*v.renew)
	return !errors.Is(err, registry.ErrLost), err
}

// takeBack removes the vote of a daemon that stops from the board: who starts from now on
// does not hear it, and who has heard it lets it run out.
func (v *voter) takeBack(ctx context.Context) {
	if v.gone() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, v.deadline())
	defer cancel()
	if err := v.board.Post(ctx, registry.Note{Kind: registry.NoteVotes, Key: v.name}); err != nil {
		v.log.Debug("the vote was not taken back and ends by itself", "error", err)
	}
}

func (v *voter) deadline() time.Duration { return max(v.renew, 500*time.Millisecond) }

// read reads the others' votes now and then, and often while there is news, until ctx ends.
func (v *voter) read(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var news time.Time
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-v.listen:
			news = time.Now()
		case <-timer.C:
		}
		began := time.Now()
		read := v.readOnce(ctx) == nil
		if ctx.Err() == nil {
			now := v.now()
			v.tracker.Votes(now, v.fresh(now), read && v.tookOurs())
		}
		pause := max(v.renew, voteMinPause)
		if !v.told.yes.Load() {
			pause = max(2*v.renew/voteReads, voteMinPause)
			if time.Since(news) < voteNews {
				pause = min(pause, voteNewsPause)
			}
		}
		timer.Reset(max(pause-time.Since(began), voteMinPause))
		select {
		case <-ctx.Done():
		case <-time.After(voteTellGap - time.Since(began)):
		}
	}
}

// watch has the others' votes read as soon as one says something new, until ctx ends.
func (v *voter) watch(ctx context.Context) error { return v.told.watch(ctx, v.board, v.renew, v.log) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// tookOurs reports whether the registry took this observer's last vote.
func (v *voter) tookOurs() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.taken
}

// readOnce looks which votes go on, and reads those that are new; all of them when others
// hold than are known.
func (v *voter) readOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, v.deadline())
	defer cancel()
	err := v.look(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats.Read++
	if err != nil {
		v.stats.ReadErrors++
	}
	return err
}

func (v *voter) look(ctx context.Context) error {
	for again := range 2 {
		left, head, err := v.board.Live(ctx, registry.NoteVotes)
		if err != nil {
			return err
		}
		v.mu.Lock()
		after := v.after
		known := head == after && len(left) == len(v.onBoard)
		if known {
			v.goOn(left, v.now())
		}
		v.mu.Unlock()
		if known {
			return nil
		}
		if again == 0 {
			if err := v.readNotes(ctx, after); err != nil {
				return err
			}
		}
	}
	return v.readNotes(ctx, 0)
}

// goOn takes in how long each note on the board holds, in the order of their keys. The
// caller holds v.mu.
func (v *voter) goOn(left []time.Duration, now time.Time) {
	for i, key := range slices.Sorted(maps.Keys(v.onBoard)) {
		if h := v.heard[key]; h != nil && h.revision == v.onBoard[key] {
			h.goOn(now, left[i])
		}
	}
}

// goOn takes in that the note holds for left: longer than was known when its observer went
// on with it since.
func (h *heardVote) goOn(now time.Time, left time.Duration) {
	if ends := now.Add(left); ends.Sub(h.ends) > voteMinPause {
		h.seen, h.ends = now, ends
	}
}

// readNotes reads the votes that are newer than after.
func (v *voter) readNotes(ctx context.Context, after uint64) error {
	notes, next, bad, err := v.board.Notes(ctx, registry.NoteVotes, after)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats.Bad += uint64(max(0, bad)) //nolint:gosec // not negative
	if after == 0 || next < after {
		clear(v.onBoard)
	}
	v.after = next
	now := v.now()
	for i := range notes {
		v.take(&notes[i], now)
	}
	return nil
}

// take takes in one note. The caller holds v.mu.
func (v *voter) take(n *registry.Note, now time.Time) {
	delete(v.onBoard, n.Key)
	if n.TTL > 0 {
		v.onBoard[n.Key] = n.Revision
	}
	if old := v.heard[n.Key]; old != nil && old.revision == n.Revision {
		if n.TTL > 0 {
			old.goOn(now, n.TTL)
		}
		return
	}
	vote, err := failover.DecodeVote(n.Key, n.Value)
	switch {
	case err != nil:
		v.stats.Bad++
		if !v.reported[n.Key] && len(v.reported) < maxReported {
			v.reported[n.Key] = true
			v.log.Warn("a vote cannot be read; its observer does not count here", "observer", n.Key, "error", err)
		}
		return
	case n.Key == v.name:
		if v.posted != nil && n.Value == v.posted.text {
			v.posted.revision = n.Revision
		}
		if own := v.tracker.Vote(now); vote.Instance != own.Instance {
			// Our own former life has such a note, for as long as it lasts.
			if v.stats.Namesakes++; v.stats.Namesakes > voteLasts+1 && v.stats.Namesakes%100 == voteLasts+2 {
				v.log.Warn("another observer calls itself as this one: give every daemon a name of its own, or their votes count as one", "name", v.name)
			}
		}
		return
	}
	lasts := max(min(n.TTL, voteMaxLasts), voteLasts*v.renew)
	v.heard[n.Key] = &heardVote{vote: vote, posted: now.Add(-n.Age), seen: now, ends: now.Add(n.TTL), revision: n.Revision, lasts: lasts}
}

// fresh returns the votes that count at now and forgets the others.
func (v *voter) fresh(now time.Time) []failover.SeenVote {
	v.mu.Lock()
	defer v.mu.Unlock()
	votes := make([]failover.SeenVote, 0, len(v.heard))
	for name, h := range v.heard {
		if now.Sub(h.seen) > h.lasts {
			delete(v.heard, name)
			delete(v.onBoard, name) // should it hold after all, it is read again
			continue
		}
		votes = append(votes, failover.SeenVote{Vote: h.vote.After(h.seen.Sub(h.posted)), Seen: h.seen})
	}
	return votes
}
