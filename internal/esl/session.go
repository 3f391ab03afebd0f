package esl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/percipia/eslgo"
)

const (
	// windowBatches bounds the batches, and with them eslgo's goroutines, that are
	// on their way from the guard to a handler. With batchBytes it bounds the
	// memory of a burst to some 2 MB a connection.
	windowBatches = 32
	batchBytes    = 64 << 10

	// endOfMessage is what eslgo puts behind every command.
	endOfMessage = len(eslgo.EndOfMessage)

	// detachTimeout bounds each step of taking eslgo down. It is longer than the
	// 5 s for which eslgo may hold a message that nobody takes.
	detachTimeout = 10 * time.Second
)

// sessionConfig is what Conn and Call share. All fields but farewell are set.
type sessionConfig struct {
	commandTimeout time.Duration
	onEvent        func(*Event) // one call at a time, in the order of the wire
	log            *slog.Logger
	label          string // the peer, for errors

	// farewell returns what the peer is told last, whatever ended the session; ""
	// for nothing.
	farewell func() string
}

// session is a connection past its greeting: the guard and eslgo behind it.
type session struct {
	cfg  sessionConfig
	peer net.Conn // the switch
	in   *frameReader
	link *link

	slot chan struct{} // whoever put its token in may send a command

	mu    sync.Mutex
	err   error
	want  int  // bytes of the command that eslgo is about to write
	owed  bool // eslgo waits for a reply to that command
	sent  bool // the switch has been given that command
	bye   bool // eslgo is being taken down
	muted bool // Close was called: no handler is called any more

	closing  chan struct{} // closed with err set
	finished chan struct{} // closed when nothing runs any more
	byeSeen  chan struct{} // closed when eslgo answered the last auth/request

	window  chan struct{} // one token for every batch on its way
	relays  sync.WaitGroup
	down    chan struct{} // closed when relayDown has ended
	ordered sequencer
}

// newSession attaches eslgo to a peer that is ready for commands. in may hold
// bytes already. On error the peer is closed.
func newSession(peer net.Conn, in *frameReader, cfg sessionConfig) (*session, error) {
	s := &session{
		cfg: cfg, peer: peer, in: in,
		slot:    make(chan struct{}, 1),
		closing: make(chan struct{}), finished: make(chan struct{}),
		byeSeen: make(chan struct{}), down: make(chan struct{}),
		window: make(chan struct{}, windowBatches),
	}
	l, err := attach(guardLog{s}, func() { peer.Close() })
	if err != nil {
		peer.Close()
		return nil, err
	}
	s.link = l
	l.conn.RegisterEventListener(eslgo.EventListenAll, s.onBatch)
	s.in.setDeadline = readDeadline(peer, cfg.commandTimeout)
	s.relays.Add(1)
	go s.relayDown()
	go s.relayUp()
	go s.supervise()
	return s, nil
}

// fail ends the session; the first cause stands. It does not wait.
func (s *session) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.closing)
	}
}

// cause returns why the session ended, nil while it lives.
func (s *session) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// closedError is what a command gets on a session that has ended.
func (s *session) closedError() error {
	err := s.cause()
	if err == nil || errors.Is(err, ErrClosed) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// close ends the session and waits until nothing of it runs.
func (s *session) close() {
	s.mu.Lock()
	s.muted = true
	s.mu.Unlock()
	s.fail(ErrClosed)
	<-s.finished
}

// reply is an answer as the switch gave it.
type reply struct {
	head *Event // the frame's headers
	body string
}

// text returns Reply-Text, or the body of an answer without one.
func (r reply) text() string {
	if r.head.Has("Reply-Text") {
		return strings.TrimSpace(r.head.Get("Reply-Text"))
	}
	return r.body
}

// command sends m and returns the switch's answer. One command at a time is on
// its way: the others wait for their turn as long as ctx lets them. Once m is on
// its way, ctx or the command timeout running out ends the session, because the
// late answer could not be told from the next command's.
func (s *session) command(ctx context.Context, m message) (reply, error) {
	select {
	case s.slot <- struct{}{}:
	case <-ctx.Done():
		return reply{}, fmt.Errorf("wait for the command before: %w", context.Cause(ctx))
	case <-s.closing:
		return reply{}, s.closedError()
	}
	defer func() { <-s.slot }()
	if err := ctx.Err(); err != nil {
		return reply{}, context.Cause(ctx)
	}
	if err := s.expect(len(m) + endOfMessage); err != nil {
		return reply{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.commandTimeout, context.DeadlineExceeded)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		s.fail(fmt.Errorf("%w: %s, command %s: %w", ErrTimeout, s.cfg.label, shorten(firstWords(m)), context.Cause(ctx)))
	})
	// No context for eslgo: the guard answers every command, if need be itself.
	raw, err := s.link.conn.SendCommand(context.Background(), m) //nolint:contextcheck // see above
	if !stop() {
		<-s.closing // the AfterFunc has started; it sets the cause
	}
	if err == nil && raw.Headers.Get("Head") != noReply {
		return unwrapReply(raw) // even if the session has ended since
	}
	s.fail(fmt.Errorf("%w: %s: eslgo gave up: %w", ErrClosed, s.cfg.label, err))
	if cause := s.cause(); ctx.Err() != nil && errors.Is(cause, ErrTimeout) {
		return reply{}, cause // it is this command that ran out of time
	}
	return reply{}, s.closedError()
}

// noReply marks the guard's own answer to a command that gets no other.
const noReply = "none"

// expect announces a command of n bytes to the relay.
func (s *session) expect(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		if errors.Is(s.err, ErrClosed) {
			return s.err
		}
		return fmt.Errorf("%w: %w", ErrClosed, s.err)
	}
	s.want, s.owed, s.sent = n, true, false
	return nil
}

// settle reports whether eslgo waits for a reply, which then it does no more. A
// reply of the switch counts only when the switch was asked, and not once the session
// has ended: what comes then answers the farewell.
func (s *session) settle(fromSwitch bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.owed || fromSwitch && (!s.sent || s.err != nil) {
		return false
	}
	s.owed = false
	return true
}

// unwrapReply undoes wrapReply.
func unwrapReply(raw *eslgo.RawResponse) (reply, error) {
	n, err := strconv.Atoi(raw.Headers.Get("Head"))
	if err != nil || n < 0 || n > len(raw.Body) {
		return reply{}, fmt.Errorf("%w: eslgo returned a reply that is not ours", ErrProtocol)
	}
	return reply{head: newEvent(string(raw.Body[:n])), body: string(raw.Body[n:])}, nil
}

func firstWords(m message) string {
	line, _, _ := strings.Cut(string(m), "\n")
	if w := strings.SplitN(line, " ", 3); len(w) > 2 {
		return w[0] + " " + w[1]
	}
	return line
}

// supervise waits for the end of the session and takes it apart.
func (s *session) supervise() {
	<-s.closing
	if s.cfg.farewell != nil {
		if text := s.cfg.farewell(); text != "" {
			_ = s.peer.SetWriteDeadline(time.Now().Add(turnAwayTimeout))
			_, _ = s.peer.Write([]byte(text)) // to a peer that is gone: nothing left to do
		}
	}
	s.peer.Close()
	<-s.down
	s.detach()
	s.relays.Wait()
	s.link.inner.Close()
	s.drainWindow()
	close(s.finished)
}

// detach takes eslgo down so that none of its goroutines is left and none of them
// reads the channel table, which has no lock for all of its readers, while Close
// empties it. In this order: the command in flight gets an answer from us; an
// auth/request makes authLoop ask us, and we never answer, so that it sits in
// SendCommand under the lock that Close takes; then a disconnect notice makes
// disconnectLoop itself call Close, which wakes authLoop and closes the socket.
func (s *session) detach() {
	if s.settle(false) {
		s.writeInner([]byte("Content-Type: command/reply\nHead: " + noReply + "\n\n"))
	}
	select {
	case s.slot <- struct{}{}: // never given back: nobody sends any more
	case <-time.After(detachTimeout):
	}
	s.mu.Lock()
	s.bye = true
	s.mu.Unlock()
	s.writeInner([]byte(wireAuthRequest))
	select {
	case <-s.byeSeen:
	case <-time.After(detachTimeout):
		s.cfg.log.Error("eslgo does not answer, closing it by force", "peer", s.cfg.label)
	}
	s.writeInner([]byte(wireDisconnect))
	select {
	case <-s.link.gone:
	case <-time.After(detachTimeout):
		s.cfg.log.Error("eslgo does not close, closing its socket", "peer", s.cfg.label)
		s.link.inner.Close()
		go s.link.conn.Close()
	}
}

// drainWindow waits until every batch that was handed to eslgo has been handled.
func (s *session) drainWindow() {
	limit := time.NewTimer(detachTimeout)
	defer limit.Stop()
	for range windowBatches {
		select {
		case s.window <- struct{}{}:
		case <-limit.C:
			s.cfg.log.Error("an event handler does not return, not waiting any longer", "peer", s.cfg.label)
			return
		}
	}
}

func (s *session) writeInner(b []byte) {
	if _, err := s.link.inner.Write(b); err != nil {
		s.fail(fmt.Errorf("%w: write to eslgo: %w", ErrClosed, err))
	}
}

// relayUp passes commands from eslgo to the switch.
func (s *session) relayUp() {
	defer s.relays.Done()
	buf := make([]byte, 4<<10)
	have := 0
	for {
		n, err := s.link.inner.Read(buf[have:])
		if have += n; err != nil {
			if !errors.Is(err, io.EOF) {
				s.fail(fmt.Errorf("%w: read from eslgo: %w", ErrClosed, err))
			}
			return
		}
		s.mu.Lock()
		want, bye := s.want, s.bye
		if have >= want {
			s.want, s.sent = 0, true
		}
		s.mu.Unlock()
		switch {
		case bye:
			// What is left of a command that got our own answer comes first.
			have = s.awaitBye(buf, have)
		case have > want:
			s.fail(fmt.Errorf("%w: eslgo wrote %d bytes instead of %d", ErrProtocol, have, want))
			have = 0
		case have < want:
			if want > len(buf) {
				buf = append(make([]byte, 0, want), buf[:have]...)[:want]
			}
		default:
			s.writePeer(buf[:have-endOfMessage])
			have = 0
		}
	}
}

// awaitBye looks for authLoop's request at the end of what eslgo wrote and returns
// how many bytes to keep.
func (s *session) awaitBye(buf []byte, have int) int {
	if !bytes.HasSuffix(buf[:have], []byte("auth "+s.link.secret+eslgo.EndOfMessage)) {
		if keep := len(buf) / 2; have > keep {
			return copy(buf, buf[have-keep:have])
		}
		return have
	}
	select {
	case <-s.byeSeen:
	default:
		close(s.byeSeen)
	}
	return 0
}

func (s *session) writePeer(b []byte) {
	_ = s.peer.SetWriteDeadline(time.Now().Add(s.cfg.commandTimeout))
	if _, err := s.peer.Write(b); err != nil {
		s.fail(s.lost("write", err))
	}
}

// lost wraps a network error into ErrClosed, with the peer's name.
func (s *session) lost(action string, err error) error {
	switch {
	case errors.Is(err, ErrProtocol):
		return fmt.Errorf("%s: %w", s.cfg.label, err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("%w: the switch at %s hung up: %w", ErrClosed, s.cfg.label, err)
	default:
		return fmt.Errorf("%w: %s %s: %w", ErrClosed, action, s.cfg.label, err)
	}
}

// guardLog is eslgo's logger: while the session lives, every warning means that
// eslgo dropped something or stopped reading, and nothing else tells us.
type guardLog struct{ s *session }

func (guardLog) Debug(string, ...any) {}
func (guardLog) Info(string, ...any)  {}
func (g guardLog) Error(format string, args ...any) {
	g.Warn(format, args...)
}

func (g guardLog) Warn(format string, _ ...any) {
	line, _, _ := strings.Cut(format, "\n")
	g.s.fail(fmt.Errorf("%w: eslgo reports %s", ErrClosed, shorten(line)))
}
