package native

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"pbxmesh/internal/esl"
)

// Conn is what this package needs of an event socket connection; *esl.Conn is one.
type Conn interface {
	API(ctx context.Context, command string) (string, error)
	Subscribe(ctx context.Context, events, subclasses []string) error
	SendEvent(ctx context.Context, name string, headers []esl.Header, body []byte) error
	Done() <-chan struct{}
	Err() error
	Close() error
}

var _ Conn = (*esl.Conn)(nil)

// Dialer opens a connection to the local switch. cfg.OnEvent gets its events.
type Dialer func(ctx context.Context, cfg esl.Config) (Conn, error)

// dialESL is the Dialer of everything but tests.
func dialESL(ctx context.Context, cfg esl.Config) (Conn, error) {
	c, err := esl.Dial(ctx, cfg)
	if err != nil {
		return nil, err // not c: a nil *esl.Conn would be a Conn that is not nil
	}
	return c, nil
}

// Reconnection delays: doubled after each failure and jittered by half. A session
// that lasted longer than steadyAfter starts from the beginning again.
const (
	backoffMin  = 100 * time.Millisecond
	backoffMax  = 5 * time.Second
	steadyAfter = 10 * time.Second
)

// link keeps one connection to the local switch.
type link struct {
	dial Dialer
	cfg  esl.Config
	log  *slog.Logger
	what string // who uses it, for the log
}

// run connects and calls session, again and again until ctx ends. session gets a
// context that ends with the connection, and owns the connection while it runs.
func (l *link) run(ctx context.Context, onEvent func(*esl.Event), state func(error), session func(context.Context, Conn) error) {
	delay, told := backoffMin, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := l.once(ctx, onEvent, state, session)
		if ctx.Err() != nil {
			return
		}
		state(err)
		if lasted := time.Since(began); lasted > steadyAfter {
			delay, told = backoffMin, ""
		}
		// The same complaint every five seconds tells nobody more.
		if text := err.Error(); text != told {
			l.log.Warn("event socket connection ended", "use", l.what, "err", err)
			told = text
		}
		t := time.NewTimer(jitter(delay))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		delay = min(2*delay, backoffMax)
	}
}

func (l *link) once(ctx context.Context, onEvent func(*esl.Event), state func(error), session func(context.Context, Conn) error) error {
	cfg := l.cfg
	cfg.OnEvent = onEvent
	conn, err := l.dial(ctx, cfg)
	if err != nil {
		return err
	}
	defer conn.Close()
	sctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-conn.Done():
			cancel(conn.Err())
		case <-stop:
		}
	}()
	state(nil)
	err = session(sctx, conn)
	close(stop)
	<-watched
	if cause := conn.Err(); cause != nil {
		return cause
	}
	if err == nil {
		err = context.Cause(sctx)
	}
	if err == nil {
		err = esl.ErrClosed
	}
	return err
}

// jitter returns d shortened by up to half.
func jitter(d time.Duration) time.Duration {
	return d - time.Duration(rand.Int64N(int64(d)/2+1))
}
