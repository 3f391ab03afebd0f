package app

import (
	"context"
	crand "crypto/rand"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh/failover"
	"pbxmesh/registry"
)

// Bounds of the exchange of votes, in renewals of a lease: one knob makes a mesh quicker
// or slower as a whole.
const (
	voteLasts    = 3           // a vote counts for so many renewals after its observer was seen to live
	voteNote     = 30          // its note ends by itself after so many
	voteHeld     = 10          // and is put off every so many
	voteReads    = 5           // looks within two renewals, while nobody tells of news
	voteMaxLasts = time.Minute // what a note may ask for at most, where three of our renewals are not longer
	voteMinPause = 50 * time.Millisecond
	voteTellGap  = 20 * time.Millisecond // between two reads, however often we are told,
	voteTellEach = 2 * time.Millisecond  // and for each observer: every vote is counted again

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
	wake    news        // the vote says something new: post it
	listen  news        // the same, or another observer's does: read the others'
	news    atomic.Bool // somebody told of another observer's, and it was not read since
	told    told        // when another observer's vote says something new

	mu       sync.Mutex
	stats    voteStats
	taken    bool                  // the registry took the last vote
	posted   *postedVote           // our vote on the board, nil for none
	untold   bool                  // the registry did not take news
	after    uint64                // revision
	older    bool                  // there are votes of observers that do not beat
	all      time.Time             // when all votes were read last
	beats    map[string]uint64     // as they were seen last, by observer
	spoilt   map[string]bool       // observers whose note cannot be read
	heard    map[string]*heardVote // by observer
	beat     uint64                // the last one of our own
	reported map[string]bool       // observers whose bad note was logged, at most maxReported
}

// maxReported bounds the observers whose bad notes are logged.
const maxReported = 64

type heardVote struct {
	vote     failover.Vote // as it was posted
	posted   time.Time     // on our clock, as the next ones
	seen     time.Time     // when it was last seen posted, or its observer to live; zero for not yet
	taken    time.Time     // when it was read, or last seen
	ends     time.Time     // of its note, as it was read last
	revision uint64
	lasts    time.Duration
}

// postedVote is our own vote as it stands on the board.
type postedVote struct {
	vote     failover.Vote
	text     string
	at       time.Time
	held     time.Time // when the end of its note was last put off
	revision uint64    // 0 until the board was read
}

// voteStats count what the exchange of votes went through.
type voteStats struct {
	Posted, Held, PostErrors, Read, ReadErrors, Bad, Namesakes uint64
}

func newVoter(a *App, board registry.Board) *voter {
	v := &voter{
		board: board, tracker: a.tracker, name: a.cfg.Name, renew: a.cfg.Registry.LeaseRenew, now: a.now,
		gone: a.publisher.cut.Load, log: a.log.With("component", "votes"), wake: newNews(), listen: newNews(),
		heard: map[string]*heardVote{}, beats: map[string]uint64{}, spoilt: map[string]bool{}, reported: map[string]bool{},
	}
	v.told.kind, v.told.notify = registry.NoteVotes, v.hasNews
	return v
}

// hasNews takes in that another observer's vote says something new.
func (v *voter) hasNews() {
	v.news.Store(true)
	v.listen.tell()
}

// instance tells this run of an observer from every other one of its name.
func instance() string { return crand.Text()[:12] }

// changed has the vote posted at once, and the others' read. It does not block.
func (v *voter) changed() {
	v.wake.tell()
	v.listen.tell()
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
	vote.Beats = v.renew
	callCtx, cancel := context.WithTimeout(ctx, v.deadline())
	defer cancel()
	held, err := v.hold(callCtx, &vote, now, news)
	var text string
	if !held {
		if text, err = failover.EncodeVote(&vote); err == nil {
			err = v.board.Post(callCtx, registry.Note{Kind: registry.NoteVotes, Key: v.name, Value: text, TTL: voteNote * v.renew, Tell: news})
		}
	}
	if err == nil {
		v.mu.Lock()
		v.beat++
		beat := v.beat
		v.mu.Unlock()
		err = v.board.Beat(callCtx, registry.NoteVotes, v.name, beat)
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
			v.posted = &postedVote{vote: vote, text: text, at: now, held: now}
		}
	}
	if err != nil && ctx.Err() == nil {
		if v.stats.PostErrors++; v.stats.PostErrors == 1 {
			v.log.Warn("the vote of this observer cannot be posted; others decide without it", "error", err)
		}
	}
	return err
}

// hold reports whether the posted vote says what vote says, and puts off the end of its note now
// and then.
func (v *voter) hold(ctx context.Context, vote *failover.Vote, now time.Time, news bool) (bool, error) {
	v.mu.Lock()
	p := v.posted
	if news || p == nil || !vote.Same(p.vote.After(now.Sub(p.at))) {
		v.mu.Unlock()
		return false, nil
	}
	revision, due := p.revision, now.Sub(p.held) >= voteHeld*v.renew
	v.mu.Unlock()
	if !due {
		return true, nil
	}
	err := v.board.Hold(ctx, registry.NoteVotes, v.name, revision, voteNote*v.renew)
	if err == nil {
		v.mu.Lock()
		p.held = now
		v.mu.Unlock()
	}
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
		gap := voteTellGap
		if ctx.Err() == nil {
			now := v.now()
			votes := v.fresh(now)
			v.tracker.Votes(now, votes, read && v.tookOurs())
			gap += time.Duration(len(votes)) * voteTellEach
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
		case <-time.After(gap - time.Since(began)):
		}
	}
}

// watch has the others' votes read as soon as one says something new, until ctx ends.
func (v *voter) watch(ctx context.Context) error { return v.told.watch(ctx, v.board, v.renew, v.log) }

// tookOurs reports whether the registry took this observer's last vote.
func (v *voter) tookOurs() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.taken
}

// readOnce looks which observers live, and reads the votes that are new; all of them when one
// lives whose vote is not known.
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
	v.mu.Lock()
	after, posted := v.after, v.posted
	// A daemon of an older version puts off the end of its note, and nothing else says that it lives.
	all := v.older && v.now().Sub(v.all) >= v.renew
	v.mu.Unlock()
	news := v.news.Swap(false)
	beats, head, err := v.board.Beats(ctx, registry.NoteVotes)
	if err == nil && all {
		err = v.readNotes(ctx, 0, posted)
	} else if err == nil && (news || head != after) {
		err = v.readNotes(ctx, after, posted)
	}
	if err != nil {
		v.news.Store(v.news.Load() || news)
		return err
	}
	if !v.live(beats, v.now()) {
		return nil
	}
	return v.readNotes(ctx, 0, posted)
}

// live takes in which observers live, and reports whether the vote of one of them is not known.
func (v *voter) live(beats map[string]uint64, now time.Time) (unknown bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, beat := range beats {
		before, known := v.beats[name]
		if known && before == beat {
			continue
		}
		switch h := v.heard[name]; {
		case !known: // it may have been there for long
		case h != nil && h.vote.Beats > 0:
			h.seen, h.taken = now, now
		case h == nil && name != v.name && !v.spoilt[name]:
			unknown = true
		}
	}
	v.beats = beats
	return unknown
}

// readNotes reads the votes that are newer than after. posted is our own vote as it stood before.
func (v *voter) readNotes(ctx context.Context, after uint64, posted *postedVote) error {
	notes, next, bad, err := v.board.Notes(ctx, registry.NoteVotes, after)
	if err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats.Bad += uint64(max(0, bad)) //nolint:gosec // not negative
	lost := next < v.after
	v.after = next
	now := v.now()
	if after == 0 {
		v.older, v.all = false, now
	}
	for i := range notes {
		lost = lost && notes[i].Key != v.name
		v.take(&notes[i], now)
	}
	if lost && v.posted == posted { // with all that was on the board
		v.posted = nil
	}
	return nil
}

// take takes in one note. The caller holds v.mu.
func (v *voter) take(n *registry.Note, now time.Time) {
	if old := v.heard[n.Key]; old != nil && old.revision == n.Revision {
		v.older = v.older || old.vote.Beats == 0
		if ends := now.Add(n.TTL); old.vote.Beats == 0 && n.TTL > 0 && ends.After(old.ends.Add(v.renew/4)) {
			old.seen, old.taken, old.ends = now, now, ends
		}
		return
	}
	delete(v.spoilt, n.Key)
	vote, err := failover.DecodeVote(n.Key, n.Value)
	switch {
	case err != nil:
		v.stats.Bad++
		if len(v.spoilt) < registry.MaxNotes {
			v.spoilt[n.Key] = true
		}
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
			// Our own former life has such a note, until ours takes its place.
			v.posted = nil
			if v.stats.Namesakes++; v.stats.Namesakes > voteLasts+1 && v.stats.Namesakes%100 == voteLasts+2 {
				v.log.Warn("another observer calls itself as this one: give every daemon a name of its own, or their votes count as one", "name", v.name)
			}
		}
		return
	}
	h := &heardVote{vote: vote, posted: now.Add(-n.Age), seen: now, taken: now, ends: now.Add(n.TTL), revision: n.Revision, lasts: n.TTL}
	v.older = v.older || vote.Beats == 0
	if vote.Beats > 0 {
		h.lasts = voteLasts * vote.Beats
	}
	h.lasts = max(min(h.lasts, voteMaxLasts), voteLasts*v.renew)
	if vote.Beats > 0 && n.Age > h.lasts {
		h.seen = time.Time{} // its observer may be gone
	}
	v.heard[n.Key] = h
}

// fresh returns the votes that count at now and forgets the others.
func (v *voter) fresh(now time.Time) []failover.SeenVote {
	v.mu.Lock()
	defer v.mu.Unlock()
	votes := make([]failover.SeenVote, 0, len(v.heard))
	for name, h := range v.heard {
		if now.Sub(h.seen) > h.lasts {
			if h.vote.Beats == 0 || now.Sub(h.taken) > voteNote*h.lasts {
				delete(v.heard, name) // should its observer live after all, it is read again
			}
			continue
		}
		votes = append(votes, failover.SeenVote{Vote: h.vote.After(h.seen.Sub(h.posted)), Seen: h.seen})
	}
	return votes
}
