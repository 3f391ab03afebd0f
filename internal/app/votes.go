package app

import (
	"context"
	crand "crypto/rand"
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
	voteLasts    = 3           // a vote counts for so many renewals after it was seen posted
	votePosts    = 2           // votes within a renewal
	voteReads    = 5           // reads within two renewals
	voteMaxLasts = time.Minute // what a note may ask for at most
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
	told    atomic.Bool   // we are told when another observer's vote says something new

	mu       sync.Mutex
	stats    voteStats
	taken    bool                  // the registry took the last vote
	after    uint64                // revision
	heard    map[string]*heardVote // by observer
	reported map[string]bool       // observers whose bad note was logged, at most maxReported
}

// maxReported bounds the observers whose bad notes are logged.
const maxReported = 64

type heardVote struct {
	vote     failover.Vote
	seen     time.Time
	revision uint64
	lasts    time.Duration
}

// voteStats count what the exchange of votes went through.
type voteStats struct {
	Posted, PostErrors, Read, ReadErrors, Bad, Namesakes uint64
}

func newVoter(a *App, board registry.Board) *voter {
	return &voter{
		board: board, tracker: a.tracker, name: a.cfg.Name, renew: a.cfg.Registry.LeaseRenew, now: a.now,
		gone: a.publisher.cut.Load, log: a.log.With("component", "votes"), wake: make(chan struct{}, 1), listen: make(chan struct{}, 1),
		heard: map[string]*heardVote{}, reported: map[string]bool{},
	}
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

// post posts the vote twice within a renewal and when it says something new, until ctx
// ends; then it takes the vote back.
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
		pause := v.renew / votePosts
		pause = pause*9/10 + rand.N(pause/5+1)
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

// postOnce posts the vote; the others read it at once when it is news.
func (v *voter) postOnce(ctx context.Context, news bool) error {
	if v.gone() {
		return nil
	}
	vote := v.tracker.Vote(v.now())
	text, err := failover.EncodeVote(&vote)
	if err == nil {
		callCtx, cancel := context.WithTimeout(ctx, v.deadline())
		defer cancel()
		err = v.board.Post(callCtx, registry.Note{Kind: registry.NoteVotes, Key: v.name, Value: text, TTL: voteLasts * v.renew, Tell: news})
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats.Posted++
	v.taken = err == nil
	if err != nil && ctx.Err() == nil {
		if v.stats.PostErrors++; v.stats.PostErrors == 1 {
			v.log.Warn("the vote of this observer cannot be posted; others decide without it", "error", err)
		}
	}
	return err
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
		pause := max(2*v.renew/voteReads, voteMinPause)
		if time.Since(news) < voteNews && !v.told.Load() {
			pause = min(pause, voteNewsPause)
		}
		timer.Reset(max(pause-time.Since(began), voteMinPause))
		select {
		case <-ctx.Done():
		case <-time.After(voteTellGap - time.Since(began)):
		}
	}
}

// watch has the others' votes read as soon as one says something new, until ctx ends.
// While the registry does not tell, they are read now and then.
func (v *voter) watch(ctx context.Context) error {
	for {
		err := v.board.Watch(ctx, registry.NoteVotes, func() {
			v.told.Store(true)
			poke(v.listen)
		})
		v.told.Store(false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.log.Debug("nobody tells of votes that say something new; they are read now and then", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(v.renew):
		}
	}
}

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

func (v *voter) readOnce(ctx context.Context) error {
	callCtx, cancel := context.WithTimeout(ctx, v.deadline())
	defer cancel()
	v.mu.Lock()
	after := v.after
	v.mu.Unlock()
	notes, next, bad, err := v.board.Notes(callCtx, registry.NoteVotes, after)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stats.Read++
	if err != nil {
		v.stats.ReadErrors++
		return err
	}
	v.stats.Bad += uint64(max(0, bad)) //nolint:gosec // not negative
	v.after = next
	now := v.now()
	for i := range notes {
		v.take(&notes[i], now)
	}
	return nil
}

// take takes in one note. The caller holds v.mu.
func (v *voter) take(n *registry.Note, now time.Time) {
	if old := v.heard[n.Key]; old != nil && old.revision == n.Revision {
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
		if own := v.tracker.Vote(now); vote.Instance != own.Instance {
			// Our own former life has such a note, for as long as it lasts.
			if v.stats.Namesakes++; v.stats.Namesakes > voteLasts+1 && v.stats.Namesakes%100 == voteLasts+2 {
				v.log.Warn("another observer calls itself as this one: give every daemon a name of its own, or their votes count as one", "name", v.name)
			}
		}
		return
	}
	lasts := min(max(n.TTL, voteLasts*v.renew), voteMaxLasts)
	v.heard[n.Key] = &heardVote{vote: vote, seen: now, revision: n.Revision, lasts: lasts}
}

// fresh returns the votes that count at now and forgets the others.
func (v *voter) fresh(now time.Time) []failover.SeenVote {
	v.mu.Lock()
	defer v.mu.Unlock()
	votes := make([]failover.SeenVote, 0, len(v.heard))
	for name, h := range v.heard {
		if now.Sub(h.seen) > h.lasts {
			delete(v.heard, name)
			continue
		}
		votes = append(votes, failover.SeenVote{Vote: h.vote, Seen: h.seen})
	}
	return votes
}
