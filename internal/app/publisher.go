package app

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
)

// publisher passes on what the daemon writes, records and notes, until it is cut. A
// cut one acts as a process that is gone: nothing reaches the store any more, no
// farewell either. Everything in this package that uses the board goes through it.
type publisher struct {
	registry.Records // reading tells nobody anything

	to  publisherBoard
	cut atomic.Bool
}

type publisherBoard interface {
	registry.Publisher
	registry.Board
}

var _ publisherBoard = (*publisher)(nil)

func (p *publisher) gone() error {
	if p.cut.Load() {
		return fmt.Errorf("%w: this daemon was killed", pbxmesh.ErrUnavailable)
	}
	return nil
}

// Publish implements registry.Publisher.
func (p *publisher) Publish(ctx context.Context, pub registry.Publication) (uint64, error) {
	if err := p.gone(); err != nil {
		return 0, err
	}
	return p.to.Publish(ctx, pub)
}

// Append implements registry.Publisher.
func (p *publisher) Append(ctx context.Context, b registry.Batch) error {
	if err := p.gone(); err != nil {
		return err
	}
	return p.to.Append(ctx, b)
}

// Renew implements registry.Publisher.
func (p *publisher) Renew(ctx context.Context, l registry.Lease) error {
	if err := p.gone(); err != nil {
		return err
	}
	return p.to.Renew(ctx, l)
}

// Leave implements registry.Publisher.
func (p *publisher) Leave(ctx context.Context, l registry.Lease) error {
	if err := p.gone(); err != nil {
		return err
	}
	return p.to.Leave(ctx, l)
}

// Announce implements registry.Publisher.
func (p *publisher) Announce(ctx context.Context, a registry.Announcement) error {
	if err := p.gone(); err != nil {
		return err
	}
	return p.to.Announce(ctx, a)
}

// Post implements registry.Board.
func (p *publisher) Post(ctx context.Context, notes ...registry.Note) error {
	if err := p.gone(); err != nil {
		return err
	}
	return p.to.Post(ctx, notes...)
}

// Hold implements registry.Board.
func (p *publisher) Hold(ctx context.Context, kind registry.NoteKind, key string, revision uint64, ttl time.Duration) error {
	if err := p.gone(); err != nil {
		return err
	}
	return p.to.Hold(ctx, kind, key, revision, ttl)
}

// Beat implements registry.Board.
func (p *publisher) Beat(ctx context.Context, kind registry.NoteKind, key string, beat uint64) error {
	if err := p.gone(); err != nil {
		return err
	}
	return p.to.Beat(ctx, kind, key, beat)
}

// Beats implements registry.Board.
func (p *publisher) Beats(ctx context.Context, kind registry.NoteKind) (map[string]uint64, uint64, error) {
	if err := p.gone(); err != nil {
		return nil, 0, err
	}
	return p.to.Beats(ctx, kind)
}

// Watch implements registry.Board.
func (p *publisher) Watch(ctx context.Context, kind registry.NoteKind, fn func()) error {
	if err := p.gone(); err != nil {
		return err
	}
	return p.to.Watch(ctx, kind, fn)
}

// Notes implements registry.Board.
func (p *publisher) Notes(ctx context.Context, kind registry.NoteKind, after uint64) ([]registry.Note, uint64, int, error) {
	if err := p.gone(); err != nil {
		return nil, after, 0, err
	}
	return p.to.Notes(ctx, kind, after)
}
