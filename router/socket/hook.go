package socket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"pbxmesh/internal/esl"
	"pbxmesh/router/lookup"
)

// Hook serves the `socket` application of one switch.
type Hook struct {
	opt    Options
	log    *slog.Logger
	server *esl.Server

	calls chan struct{} // a place for every call that is held
	ask   *lookup.Asker

	release context.Context // ends when calls in bridge are to be let go
	stop    context.CancelFunc

	counters counters
}

// New returns a hook that does nothing before Serve. The error names the option
// that cannot be.
func New(o Options) (*Hook, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	h := &Hook{
		opt: o, log: o.Logger.With("component", "socket"),
		calls: make(chan struct{}, o.MaxCalls),
	}
	h.ask = lookup.New(o.MaxCalls, h.log)
	h.release, h.stop = context.WithCancel(context.Background())
	h.server = esl.NewServer(esl.ServerConfig{
		Handler: h.handle,
		// Room to tell calls that we are overloaded. Beyond it they are hung up
		// on, and their dialplans go on without our variables.
		MaxCalls:       o.MaxCalls + max(64, o.MaxCalls/4),
		ConnectTimeout: o.ConnectTimeout,
		CommandTimeout: o.Budget,
		Logger:         h.log,
	})
	return h, nil
}

// Serve takes calls from l until Shutdown (nil) or until l fails (its error). It
// closes l. Several listeners may be served at once.
func (h *Hook) Serve(l net.Listener) error { return h.server.Serve(l) }

// Shutdown stops taking calls, finishes the decisions under way (at most Budget)
// and lets go of the calls that ring or talk: their sockets close and the calls go
// on. It returns when nothing of the hook runs any more, or with ctx's error when
// the directory holds a look-up longer than ctx allows. It may be called often.
func (h *Hook) Shutdown(ctx context.Context) error {
	h.stop()
	err := h.server.Shutdown(ctx)
	if drain := h.ask.Drain(ctx); drain != nil {
		err = errors.Join(err, fmt.Errorf("stop the socket hook: %w", drain))
	}
	return err
}
