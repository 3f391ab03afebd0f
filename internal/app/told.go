package app

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"pbxmesh/registry"
)

// told knows of one kind of notes whether somebody tells this daemon of new ones: while
// nobody does, they are read more often.
type told struct {
	kind   registry.NoteKind
	yes    atomic.Bool
	notify func() // there may be new notes; it does not block
}

// watch is told until ctx ends, and tries again after pause when the registry ends it.
func (t *told) watch(ctx context.Context, board registry.Board, pause time.Duration, log *slog.Logger) error {
	for {
		err := board.Watch(ctx, t.kind, func() {
			t.yes.Store(true)
			t.notify()
		})
		t.yes.Store(false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.LogAttrs(ctx, slog.LevelDebug, "nobody tells of new notes; they are read now and then", slog.String("kind", string(t.kind)), slog.Any("error", err))
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
