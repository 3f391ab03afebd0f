// Package lookup asks the registry on behalf of the hooks, so that a directory
// which is slow, hangs or panics costs a call its deadline and nothing else.
//
// It owns the bound on questions under way and their end. It refuses to decide
// anything, and to read a registry by itself: the hooks bring what is asked.
package lookup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh"
)

// Errors of Ask; compare with errors.Is.
var (
	ErrTooMany = errors.New("too many look-ups are under way: the directory does not answer")
	ErrPanic   = errors.New("the directory panicked")
)

// Asker bounds the questions to one directory. Make it with New.
type Asker struct {
	places          chan struct{}
	log             *slog.Logger
	running, panics atomic.Uint64

	drainMu sync.Mutex
	drained int
}

// New returns an Asker for at most places questions at once, those included whose
// caller has given up.
func New(places int, log *slog.Logger) *Asker {
	return &Asker{places: make(chan struct{}, places), log: log}
}

// Running returns how many questions are under way, overdue ones included.
func (a *Asker) Running() uint64 { return a.running.Load() }

// Panics returns how many questions ended in a panic.
func (a *Asker) Panics() uint64 { return a.panics.Load() }

// Ask runs question under ctx's deadline. The question may ignore ctx, so it runs
// on a goroutine: the caller goes on without it, and the goroutine keeps its place
// until the question ends. ErrTooMany, ErrPanic, ctx's cause, or question's error.
func Ask[T any](ctx context.Context, a *Asker, aor pbxmesh.AOR, question func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	select {
	case a.places <- struct{}{}:
	default:
		return none, ErrTooMany
	}
	a.running.Add(1)
	answer := make(chan result, 1)
	go func() {
		var r result
		defer func() {
			if p := recover(); p != nil {
				a.panics.Add(1)
				a.log.Error("the directory panicked", "aor", aor, "panic", p, "stack", string(debug.Stack()))
				r = result{err: fmt.Errorf("%w: %v", ErrPanic, p)}
			}
			a.running.Add(^uint64(0))
			<-a.places
			answer <- r
		}()
		r.value, r.err = question()
	}()
	select {
	case r := <-answer:
		return r.value, r.err
	case <-ctx.Done():
		return none, fmt.Errorf("the directory does not answer in time: %w", context.Cause(ctx))
	}
}

// Drain takes every place for good and so waits until the directory has let go of
// every question, or until ctx ends. It may be called often; nothing can be asked
// afterwards.
func (a *Asker) Drain(ctx context.Context) error {
	a.drainMu.Lock()
	defer a.drainMu.Unlock()
	for ; a.drained < cap(a.places); a.drained++ {
		select {
		case a.places <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("%d look-ups hang in the directory: %w", a.running.Load(), context.Cause(ctx))
		}
	}
	return nil
}

// Registry is the part of a hook's directory that View needs.
type Registry interface {
	Lookup(ctx context.Context, aor pbxmesh.AOR) (regs []*pbxmesh.Registration, age time.Duration, err error)
}

// View is what a decision needs from outside.
type View struct {
	Regs []*pbxmesh.Registration
	Age  time.Duration
	Mesh *pbxmesh.Mesh
}

// Look returns the view for aor. Nobody there is an empty view and no error.
func (a *Asker) Look(ctx context.Context, aor pbxmesh.AOR, registry Registry, mesh func() *pbxmesh.Mesh) (View, error) {
	return Ask(ctx, a, aor, func() (v View, err error) {
		v.Regs, v.Age, err = registry.Lookup(ctx, aor)
		// The picture comes second: one taken before the records might not know the
		// node of a record yet.
		v.Mesh = mesh()
		if errors.Is(err, pbxmesh.ErrNotRegistered) {
			v.Regs, err = nil, nil
		}
		return v, err
	})
}
