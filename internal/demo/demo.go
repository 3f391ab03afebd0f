package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
)

// stepTimeout bounds one step of the story.
const stepTimeout = 30 * time.Second

// Options say how the demo runs.
type Options struct {
	// Once ends the demo after the last step; otherwise it stays up until the
	// context ends.
	Once bool

	// Registry is "memory" or the URL of a Redis. Keys there start with a prefix of
	// this run and are removed at the end.
	Registry string

	// Out gets the story; Log, when it is not nil, what the daemons log.
	Out io.Writer

	// Version is what the daemons say they are.
	Version control.VersionReply

	// Verbose also prints the daemons' logs.
	Verbose bool
}

// Run plays the story. It returns nil when every step held, and the failed step
// otherwise. Without Once it then waits for ctx and returns ctx's error.
func Run(ctx context.Context, o Options) (err error) {
	if o.Registry == "" {
		o.Registry = string(config.MemoryURL)
	}
	level := slog.LevelError + 1 // nothing
	if o.Verbose {
		level = slog.LevelInfo
	}
	log := slog.New(slog.NewTextHandler(o.Out, &slog.HandlerOptions{Level: level}))
	s := newStage(o.Registry, log)
	s.version = o.Version
	defer func() {
		if closeErr := s.close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("take the stage down: %w", closeErr))
		}
	}()

	t := &teller{out: o.Out}
	began := time.Now()
	t.line("One phone system out of three switches: two name servers, phones in three towns")
	t.line("registry %s; every address is a loopback address of this machine", describe(o.Registry))
	for i, st := range story {
		if err := t.tell(ctx, i+1, s, st); err != nil {
			return err
		}
	}
	t.line("")
	t.line("All %d steps held, in %s.", len(story), time.Since(began).Round(time.Millisecond))
	if o.Once {
		return nil
	}
	s.printTry(t)
	<-ctx.Done()
	t.line("")
	return ctx.Err()
}

func describe(registry string) string {
	if registry == string(config.MemoryURL) {
		return "in memory (try --registry redis://127.0.0.1:6379/0)"
	}
	return registry
}

// teller prints the story.
type teller struct{ out io.Writer }

func (t *teller) line(format string, args ...any) {
	_, _ = fmt.Fprintf(t.out, format+"\n", args...)
}

// detail prints a line of evidence below a step.
func (t *teller) detail(format string, args ...any) { t.line("          "+format, args...) }

// step is one event of the story.
type step struct {
	name string

	// run does it and returns how long the event itself took, without what was
	// needed to prove it. A zero duration means: all of it.
	run func(context.Context, *stage, *teller) (time.Duration, error)
}

func (t *teller) tell(ctx context.Context, n int, s *stage, st step) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	t.line("")
	t.line("%2d. %s", n, st.name)
	began := time.Now()
	took, err := st.run(ctx, s, t)
	if took == 0 {
		took = time.Since(began)
	}
	if err != nil {
		t.line("    FAILED after %s: %v", time.Since(began).Round(time.Millisecond), err)
		return fmt.Errorf("step %d (%s): %w", n, st.name, err)
	}
	t.line("    ok, %s", round(took))
	return nil
}

// round keeps three figures or so.
func round(d time.Duration) time.Duration {
	switch {
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > 10*time.Millisecond:
		return d.Round(100 * time.Microsecond)
	default:
		return d.Round(time.Microsecond)
	}
}
