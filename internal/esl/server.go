package esl

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Defaults of ServerConfig.
const (
	DefaultMaxCalls       = 1000
	DefaultConnectTimeout = 2 * time.Second
)

// ServerConfig says how to serve the `socket` application.
type ServerConfig struct {
	// Handler runs once for every call, in a goroutine of its own. The call goes
	// back to the dialplan when it returns. ctx ends with the connection and with
	// Shutdown's patience.
	Handler func(ctx context.Context, call *Call)

	// MaxCalls bounds the calls handled at once. One more is hung up on at once,
	// so that its dialplan goes on without us.
	MaxCalls int

	// ConnectTimeout bounds the time from accepting to the channel data.
	ConnectTimeout time.Duration

	// CommandTimeout bounds each command. See Config.CommandTimeout.
	CommandTimeout time.Duration

	// MaxFrame bounds one frame's body in bytes, DefaultMaxFrame when 0.
	MaxFrame int

	// Logger may be nil.
	Logger *slog.Logger
}

// Server accepts connections of the `socket` application.
type Server struct {
	cfg    ServerConfig
	places chan struct{}

	ctx    context.Context // of all handlers
	cancel context.CancelCauseFunc

	mu        sync.Mutex
	stopped   bool
	stop      chan struct{} // closed with stopped
	listeners map[net.Listener]struct{}
	wg        sync.WaitGroup // calls, counted under mu while not stopped
}

// NewServer returns a server that does nothing before Serve.
func NewServer(cfg ServerConfig) *Server {
	if cfg.MaxCalls <= 0 {
		cfg.MaxCalls = DefaultMaxCalls
	}
	cfg.ConnectTimeout = positive(cfg.ConnectTimeout, DefaultConnectTimeout)
	cfg.CommandTimeout = positive(cfg.CommandTimeout, DefaultCommandTimeout)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	return &Server{
		cfg: cfg, places: make(chan struct{}, cfg.MaxCalls),
		ctx: ctx, cancel: cancel,
		stop: make(chan struct{}), listeners: make(map[net.Listener]struct{}),
	}
}

// Serve accepts calls from l until Shutdown (nil), or until l is closed by
// somebody else (its error). Other errors of Accept, such as no file descriptors
// left, are logged and tried again after 5 ms to 1 s. Serve closes l.
func (s *Server) Serve(l net.Listener) error {
	defer l.Close()
	if s.cfg.Handler == nil {
		return errors.New("serve event sockets: no handler")
	}
	if !s.track(l) {
		return nil
	}
	defer s.untrack(l)
	const first, last = 5 * time.Millisecond, time.Second
	delay := first
	for {
		peer, err := l.Accept()
		if err == nil {
			delay = first
			s.admit(peer)
			continue
		}
		select {
		case <-s.stop:
			return nil
		default:
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("serve event sockets: %w", err)
		}
		s.cfg.Logger.Error("cannot accept a call, trying again", "err", err, "after", delay)
		select {
		case <-s.stop:
			return nil
		case <-time.After(delay):
		}
		delay = min(2*delay, last)
	}
}

func (s *Server) track(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.listeners[l] = struct{}{}
	return true
}

func (s *Server) untrack(l net.Listener) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, l)
}

// turnAwayTimeout bounds the one write to a caller that is turned away.
const turnAwayTimeout = 100 * time.Millisecond

// turnAway gives a call back that nobody will handle. A channel that has not parked
// yet stays parked for ever unless it was told to resume; see Call.Resume.
func turnAway(peer net.Conn) {
	_ = peer.SetWriteDeadline(time.Now().Add(turnAwayTimeout))
	_, _ = peer.Write([]byte(resumeCommand)) // to a peer that is gone: nothing left to do
	_ = peer.Close()
}

// admit starts a call or turns it away.
func (s *Server) admit(peer net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		turnAway(peer)
		return
	}
	select {
	case s.places <- struct{}{}:
	default:
		turnAway(peer)
		s.cfg.Logger.Warn("too many calls at once, this one goes on without us", "max", s.cfg.MaxCalls, "peer", peer.RemoteAddr())
		return
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		defer func() { <-s.places }()
		s.serve(peer)
	}()
}

// serve runs one call from connect to close.
func (s *Server) serve(peer net.Conn) {
	call := newCall()
	log := s.cfg.Logger
	session, err := newSession(peer, newFrameReader(peer, s.cfg.MaxFrame, callBuffer), sessionConfig{
		commandTimeout: s.cfg.CommandTimeout,
		onEvent:        call.push,
		log:            log,
		label:          peer.RemoteAddr().String(),
		farewell:       call.farewell,
	})
	if err != nil {
		log.Error("cannot take a call", "err", err)
		turnAway(peer)
		return
	}
	defer session.close()
	call.s = session

	ctx, cancel := context.WithCancelCause(s.ctx)
	defer cancel(nil)
	stopClose := context.AfterFunc(s.ctx, func() { session.fail(ErrClosed) })
	defer stopClose()

	connectCtx, cancelConnect := context.WithTimeout(ctx, s.cfg.ConnectTimeout)
	r, err := session.command(connectCtx, "connect\n\n")
	cancelConnect()
	if err != nil {
		log.Warn("a caller of our socket did not send its channel data", "err", err)
		return
	}
	call.data = r.head
	if call.UUID() == "" {
		log.Warn("a caller of our socket is no channel", "peer", session.cfg.label, "reply", shorten(r.text()))
		return
	}
	watch := make(chan struct{})
	go func() { // the handler's context ends after the connection's last event
		defer close(watch)
		select {
		case <-session.finished:
			cancel(session.closedError())
		case <-ctx.Done():
		}
	}()
	s.cfg.Handler(ctx, call)
	cancel(nil)
	<-watch
}

// Shutdown stops accepting at once and waits for the handlers. When ctx ends
// first, their contexts are cancelled and their sockets closed, which gives each
// call back to its dialplan; then Shutdown returns ctx's error, after the handlers
// have returned (it waits 20 s for them, no longer). It may be called often.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.stopped {
		s.stopped = true
		close(s.stop)
	}
	for l := range s.listeners {
		l.Close()
	}
	s.mu.Unlock()

	idle := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(idle)
	}()
	defer s.cancel(ErrClosed)
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		s.cancel(ErrClosed)
		select {
		case <-idle:
		case <-time.After(2 * detachTimeout):
			s.cfg.Logger.Error("a call's handler does not return, not waiting any longer")
		}
		return context.Cause(ctx)
	}
}
