package app

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// stack holds the teardowns of what exists, named, in the order of creation.
type stack struct {
	mu    sync.Mutex
	items []teardown
}

type teardown struct {
	name string
	stop func(context.Context) error
}

// push registers how to stop something the moment it exists.
func (s *stack) push(name string, stop func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.items = append(s.items, teardown{name, stop})
}

// unwind stops everything, the newest first, and joins the errors. Each teardown
// runs once; a later call does nothing. ctx bounds the whole.
func (s *stack) unwind(ctx context.Context) error {
	s.mu.Lock()
	items := s.items
	s.items = nil
	s.mu.Unlock()
	var errs []error
	for i := len(items) - 1; i >= 0; i-- {
		if err := items[i].stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", items[i].name, err))
		}
	}
	return errors.Join(errs...)
}

// task runs f in a goroutine of its own until its teardown: the context ends, and
// the teardown waits for f. An error that is not the end of the context goes to
// failed, which ends the daemon: no part may be missing in silence.
func (a *App) task(name string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f(ctx); err != nil && ctx.Err() == nil {
			a.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
	a.teardowns.push(name, func(wait context.Context) error {
		cancel()
		select {
		case <-done:
			return nil
		case <-wait.Done():
			return fmt.Errorf("still running: %w", wait.Err())
		}
	})
}

// fail records the first reason why the daemon cannot go on.
func (a *App) fail(err error) {
	select {
	case a.failed <- err:
	default:
	}
}
