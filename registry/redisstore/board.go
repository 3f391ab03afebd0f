package redisstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
)

// boardPage bounds what one call carries, in bytes of values: many large notes neither
// hold up the server nor run into a timeout.
const boardPage = 1 << 20

// boardTag is the hash tag of the board. No node can have this name.
const boardTag = ":{#board}:"

func (s *Store) boardKey(kind registry.NoteKind, part string) string {
	return s.base + boardTag + string(kind) + ":" + part
}

func (s *Store) headsKey() string { return s.base + boardTag + "heads" }

// boardKeys are what both scripts are given of a kind.
func (s *Store) boardKeys(kind registry.NoteKind) []string {
	return []string{s.boardKey(kind, "notes"), s.boardKey(kind, "revisions"), s.boardKey(kind, "ends"), s.headsKey()}
}

// Post implements registry.Board.
func (s *Store) Post(ctx context.Context, notes ...registry.Note) error {
	var kinds []registry.NoteKind
	byKind := map[registry.NoteKind][]*registry.Note{}
	for i := range notes {
		n := &notes[i]
		if err := n.Validate(); err != nil {
			return fmt.Errorf("post: %w", err)
		}
		if byKind[n.Kind] == nil {
			kinds = append(kinds, n.Kind)
		}
		byKind[n.Kind] = append(byKind[n.Kind], n)
	}
	var full error
	for _, kind := range kinds {
		rest := byKind[kind]
		for len(rest) > 0 {
			n, size := 0, 0
			for n < len(rest) && n < registry.MaxBatch && (n == 0 || size+len(rest[n].Value) <= boardPage) {
				size += len(rest[n].Value)
				n++
			}
			switch err := s.post(ctx, kind, rest[:n]); {
			case errors.Is(err, registry.ErrBoardFull):
				full = errors.Join(full, err)
			case err != nil:
				return err
			}
			rest = rest[n:]
		}
	}
	return full
}

func (s *Store) post(ctx context.Context, kind registry.NoteKind, notes []*registry.Note) error {
	args := make([]any, 0, 3+3*len(notes))
	channel := ""
	if slices.ContainsFunc(notes, func(n *registry.Note) bool { return n.Tell }) {
		channel = s.boardChannel(kind)
	}
	args = append(args, string(kind), registry.MaxNotes, channel)
	for _, n := range notes {
		// A part of a millisecond counts as one.
		args = append(args, n.Key, int64((n.TTL+time.Millisecond-1)/time.Millisecond), n.Value)
	}
	answer, err := s.board(ctx, "post "+string(kind), postNotes, s.boardKeys(kind), args...)
	s.news(kind)
	if err != nil {
		return err
	}
	if len(answer) < 2 || answer[1] != "0" {
		return fmt.Errorf("redis: post %s: %w", kind, registry.ErrBoardFull)
	}
	return nil
}

// Notes implements registry.Board.
func (s *Store) Notes(ctx context.Context, kind registry.NoteKind, after uint64) ([]registry.Note, uint64, int, error) {
	if !kind.Valid() {
		return nil, after, 0, fmt.Errorf("%w: notes of the kind %+.40q", pbxmesh.ErrInvalidRecord, string(kind))
	}
	from := s.reader()
	if after == 0 && !s.readsOld() { // who asks for all must know
		from = s.client
	}
	if s.noNews(kind, after, from) {
		return nil, after, 0, nil
	}
	notes, next, bad, err := s.notesAt(ctx, from, kind, after)
	// A replica that has not come as far as this reader lost nothing.
	if from != s.client && (errors.Is(err, pbxmesh.ErrUnavailable) || err == nil && next < after) && ctx.Err() == nil {
		return s.notesAt(ctx, s.client, kind, after)
	}
	return notes, next, bad, err
}

func (s *Store) notesAt(ctx context.Context, from redis.UniversalClient, kind registry.NoteKind, after uint64) ([]registry.Note, uint64, int, error) {
	var (
		notes []registry.Note
		bad   int
		at    = after
		until uint64
	)
	// What is posted meanwhile comes at the end, again and again: the first page says
	// how far this call reads.
	for first := true; ; first = false {
		var answer []string
		err := s.readAt(ctx, from, func(ctx context.Context, c redis.UniversalClient) (err error) {
			answer, err = boardAt(ctx, c, "read "+string(kind), readNotes, s.boardKeys(kind), strconv.FormatUint(at, 10),
				registry.MaxNoteLen, registry.MaxKeyLen, boardPage, 2*registry.MaxNotes)
			return err
		})
		if err != nil {
			return nil, after, bad, err
		}
		page, err := parsePage(kind, answer)
		if err != nil {
			return nil, after, bad, wrap("read "+string(kind), err)
		}
		notes, bad = append(notes, page.notes...), bad+page.bad
		if first {
			until = page.head
		}
		switch {
		case !page.more:
			return notes, page.head, bad, nil
		case page.next >= until || !first && page.next <= at:
			return notes, page.next, bad, nil
		}
		at = page.next
	}
}

// noNews reports whether the last look, at the server that is to be read, saw that nothing was posted since after, and nobody told
// of anything.
func (s *Store) noNews(kind registry.NoteKind, after uint64, from redis.UniversalClient) bool {
	s.seen.mu.Lock()
	defer s.seen.mu.Unlock()
	l := &s.seen.look
	return l.sum != "" && l.from == from && time.Since(l.at) < notesAge && !s.seen.news[string(kind)] && l.head(kind) == after
}

// Hold implements registry.Board.
func (s *Store) Hold(ctx context.Context, kind registry.NoteKind, key string, revision uint64, ttl time.Duration) error {
	if err := (&registry.Note{Kind: kind, Key: key, TTL: ttl, Revision: revision}).Validate(); err != nil || ttl == 0 {
		return errors.Join(fmt.Errorf("%w: hold for %s", pbxmesh.ErrInvalidRecord, ttl), err)
	}
	answer, err := s.board(ctx, "hold "+string(kind), holdNote, s.boardKeys(kind)[1:3], key, strconv.FormatUint(revision, 10),
		int64((ttl+time.Millisecond-1)/time.Millisecond))
	if err != nil {
		return err
	}
	if len(answer) < 2 || answer[1] != "1" {
		return fmt.Errorf("%w: redis: note %s of %s", registry.ErrLost, key, kind)
	}
	return nil
}

// Beat implements registry.Board.
func (s *Store) Beat(ctx context.Context, kind registry.NoteKind, key string, beat uint64) error {
	if err := (&registry.Note{Kind: kind, Key: key}).Validate(); err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	field := beatField(kind, key)
	err := wrap("beat "+string(kind), s.client.HSet(ctx, s.headsKey(), field, beatDigit(beat)).Err())
	if errors.Is(err, registry.ErrCorrupt) {
		return fmt.Errorf("%w: %w", pbxmesh.ErrUnavailable, err) // until somebody renews a lease or posts
	}
	return err
}

// Beats implements registry.Board.
func (s *Store) Beats(ctx context.Context, kind registry.NoteKind) (map[string]uint64, uint64, error) {
	if !kind.Valid() {
		return nil, 0, fmt.Errorf("%w: notes of the kind %+.40q", pbxmesh.ErrInvalidRecord, string(kind))
	}
	l, err := s.lookAt(ctx, lookAge)
	if err != nil {
		return nil, 0, err
	}
	if l.old {
		return nil, 0, errOld
	}
	beats := map[string]uint64{}
	for field, i := range l.fields {
		if of, key, ok := strings.Cut(field, "|"); ok && of == string(kind) {
			if beat := strings.Index(beatDigits, l.values[i]); beat >= 0 && len(l.values[i]) == 1 {
				beats[key] = uint64(beat)
			}
		}
	}
	return beats, l.head(kind), nil
}

// parseHead reads a revision, 0 for none.
func parseHead(text string) uint64 {
	head, err := strconv.ParseUint(text, 10, 53)
	if err != nil {
		return 0
	}
	return head
}

// board runs one of the board's scripts.
func (s *Store) board(ctx context.Context, doing string, script *redis.Script, keys []string, args ...any) ([]string, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return boardAt(ctx, s.client, doing, script, keys, args...)
}

func boardAt(ctx context.Context, client redis.UniversalClient, doing string, script *redis.Script, keys []string, args ...any) ([]string, error) {
	answer, err := script.Run(ctx, client, keys, args...).StringSlice()
	switch {
	case err != nil:
		return nil, wrap(doing, err)
	case len(answer) == 0 || answer[0] != "OK":
		return nil, fmt.Errorf("%w: redis: %s: unexpected answer", pbxmesh.ErrUnavailable, doing)
	}
	return answer, nil
}

// page is one answer of readNotes.
type page struct {
	notes []registry.Note
	head  uint64 // of the kind
	next  uint64 // where this page ends
	more  bool
	bad   int
}

var errPage = errors.New("the answer of the script is cut")

// parsePage reads "OK", head, next, more, bad, then key, revision, milliseconds left (0
// for ever), milliseconds since it was posted, and value of every note. The script made the frame; what stands in a note
// may be anyone's.
func parsePage(kind registry.NoteKind, answer []string) (page, error) {
	const frame, width = 5, 5
	if len(answer) < frame || (len(answer)-frame)%width != 0 {
		return page{}, errPage
	}
	var p page
	var errs [3]error
	p.head, errs[0] = strconv.ParseUint(answer[1], 10, 53)
	p.next, errs[1] = strconv.ParseUint(answer[2], 10, 53)
	bad, err := strconv.ParseUint(answer[4], 10, 31)
	errs[2] = err
	if err := errors.Join(errs[:]...); err != nil {
		return page{}, errPage
	}
	p.more, p.bad = answer[3] == "1", int(bad)
	for f := answer[frame:]; len(f) > 0; f = f[width:] {
		revision, err1 := strconv.ParseUint(f[1], 10, 53)
		left, err2 := strconv.ParseUint(f[2], 10, 43) // the longest time.Duration has as many milliseconds
		age, err3 := strconv.ParseUint(f[3], 10, 43)
		n := registry.Note{
			Kind: kind, Key: f[0], Value: f[4], TTL: time.Duration(left) * time.Millisecond,
			Revision: revision, Age: time.Duration(age) * time.Millisecond,
		}
		if err1 != nil || err2 != nil || err3 != nil || n.Value == "" || n.Validate() != nil {
			p.bad++
			continue
		}
		p.notes = append(p.notes, n)
	}
	return p, nil
}

// dissolveBoard removes everything of the board.
func (s *Store) dissolveBoard(ctx context.Context) error {
	fields, err := s.client.HKeys(ctx, s.headsKey()).Result()
	if err != nil && !errors.Is(wrap("", err), registry.ErrCorrupt) {
		return wrap("read the kinds of notes", err)
	}
	keys := []string{s.headsKey()}
	for _, field := range fields {
		if kind := registry.NoteKind(field); kind.Valid() {
			keys = append(keys, s.boardKeys(kind)[:3]...)
		}
	}
	return wrap("remove the notes", s.client.Unlink(ctx, keys...).Err())
}
