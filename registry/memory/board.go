package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
)

// board holds the notes of one kind.
type board struct {
	head  uint64 // highest revision ever given
	notes map[string]posted
	beats map[string]uint64
}

type posted struct {
	registry.Note
	at   time.Time
	ends time.Time // zero: never
}

// Post implements registry.Board.
func (s *Store) Post(ctx context.Context, notes ...registry.Note) error {
	for i := range notes {
		if err := notes[i].Validate(); err != nil {
			return fmt.Errorf("post: %w", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	var full error
	tell := make(map[registry.NoteKind]bool)
	now := s.now()
	for _, b := range s.boards {
		for k, p := range b.notes {
			if p.over(now) {
				delete(b.notes, k)
				delete(b.beats, k)
			}
		}
	}
	for _, n := range notes {
		b := s.board(n.Kind)
		_, known := b.notes[n.Key]
		tell[n.Kind] = tell[n.Kind] || n.Tell
		switch {
		case n.Value == "" && !known:
			continue
		case n.Value != "" && !known && len(b.notes) >= registry.MaxNotes:
			full = errors.Join(full, fmt.Errorf("memory store: post %s: %w", n.Kind, registry.ErrBoardFull))
			continue
		}
		// The clock keeps revisions growing over a Clear, as the store has forgotten
		// the last one.
		b.head = max(b.head+1, uint64(max(0, now.UnixMicro())))
		if n.Value == "" {
			delete(b.notes, n.Key)
			delete(b.beats, n.Key)
			continue
		}
		n.Revision, n.Tell = b.head, false
		p := posted{Note: n, at: now}
		if n.TTL > 0 {
			p.ends = now.Add(wholeMillis(n.TTL))
		}
		b.notes[n.Key] = p
	}
	for f := range s.watchers {
		if tell[f.kind] {
			f.fn()
		}
	}
	return full
}

// watcher is a call of Watch.
type watcher struct {
	kind registry.NoteKind
	fn   func()
}

// Watch implements registry.Board.
func (s *Store) Watch(ctx context.Context, kind registry.NoteKind, fn func()) error {
	f := &watcher{kind, fn}
	s.mu.Lock()
	if err := s.ready(ctx); err != nil {
		s.mu.Unlock()
		return err
	}
	s.watchers[f] = true
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, f)
	}()
	fn()
	<-ctx.Done()
	return context.Cause(ctx)
}

// Notes implements registry.Board.
func (s *Store) Notes(ctx context.Context, kind registry.NoteKind, after uint64) ([]registry.Note, uint64, int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return nil, after, 0, err
	}
	b := s.boards[kind]
	switch {
	case b == nil:
		return nil, 0, 0, nil
	case b.head == after:
		return nil, after, 0, nil
	case b.head < after: // the notes were lost meanwhile
		after = 0
	}
	var notes []registry.Note
	now := s.now()
	for _, p := range b.notes {
		if p.Revision <= after || p.over(now) {
			continue
		}
		if p.TTL > 0 {
			p.TTL = wholeMillis(p.ends.Sub(now))
		}
		p.Age = max(0, now.Sub(p.at))
		notes = append(notes, p.Note)
	}
	return notes, b.head, 0, nil
}

// Hold implements registry.Board.
func (s *Store) Hold(ctx context.Context, kind registry.NoteKind, key string, revision uint64, ttl time.Duration) error {
	if err := (&registry.Note{Kind: kind, Key: key, TTL: ttl}).Validate(); err != nil || ttl == 0 {
		return errors.Join(fmt.Errorf("%w: hold for %s", pbxmesh.ErrInvalidRecord, ttl), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	if b := s.boards[kind]; b != nil {
		if p, known := b.notes[key]; known && p.Revision == revision && !p.over(s.now()) {
			p.TTL, p.ends = ttl, s.now().Add(wholeMillis(ttl))
			b.notes[key] = p
			return nil
		}
	}
	return fmt.Errorf("%w: note %s of %s", registry.ErrLost, key, kind)
}

// Beat implements registry.Board.
func (s *Store) Beat(ctx context.Context, kind registry.NoteKind, key string, beat uint64) error {
	if err := (&registry.Note{Kind: kind, Key: key}).Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return err
	}
	s.board(kind).beats[key] = beat % registry.BeatTurn
	return nil
}

// Beats implements registry.Board.
func (s *Store) Beats(ctx context.Context, kind registry.NoteKind) (map[string]uint64, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.ready(ctx); err != nil {
		return nil, 0, err
	}
	b := s.boards[kind]
	if b == nil {
		return nil, 0, nil
	}
	return maps.Clone(b.beats), b.head, nil
}

// board returns the notes of a kind. The caller holds s.mu.
func (s *Store) board(kind registry.NoteKind) *board {
	b := s.boards[kind]
	if b == nil {
		b = &board{notes: make(map[string]posted), beats: make(map[string]uint64)}
		s.boards[kind] = b
	}
	return b
}

func (p *posted) over(now time.Time) bool { return !p.ends.IsZero() && !now.Before(p.ends) }

// wholeMillis rounds up: a note holds at least as long as it was posted for.
func wholeMillis(d time.Duration) time.Duration {
	return (d + time.Millisecond - 1).Truncate(time.Millisecond)
}
