package esl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"
)

// Defaults of Config and ServerConfig.
const (
	DefaultDialTimeout    = 5 * time.Second
	DefaultCommandTimeout = 10 * time.Second
	DefaultKeepAlive      = 10 * time.Second
)

// Config says how to connect to a switch's event socket.
type Config struct {
	// Address is host:port, usually 127.0.0.1:8021.
	Address string

	// Password is the `password` of event_socket.conf.xml.
	Password string

	// DialTimeout bounds connecting, greeting and authentication together.
	DialTimeout time.Duration

	// CommandTimeout bounds each command, from being sent to its reply, and the
	// time in which a frame that has begun must go on.
	CommandTimeout time.Duration

	// KeepAlive is how long the switch may be silent before it is asked for a
	// sign of life (`api uptime`, under CommandTimeout). Negative: never.
	KeepAlive time.Duration

	// MaxFrame bounds one frame's body in bytes, DefaultMaxFrame when 0.
	MaxFrame int

	// OnEvent gets every event, one at a time, in the order of the wire. While it
	// runs nothing else is read, so it must neither wait for a command of its own
	// connection nor call Close. nil drops events.
	OnEvent func(*Event)

	// Logger may be nil.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.DialTimeout = positive(c.DialTimeout, DefaultDialTimeout)
	c.CommandTimeout = positive(c.CommandTimeout, DefaultCommandTimeout)
	if c.KeepAlive == 0 {
		c.KeepAlive = DefaultKeepAlive
	}
	if c.OnEvent == nil {
		c.OnEvent = func(*Event) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

func positive(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// Conn is an authenticated connection to a switch. Its methods may be called from
// several goroutines.
type Conn struct {
	s         *session
	keepAlive time.Duration
	idle      *activity
	wg        sync.WaitGroup
}

// Dial connects and authenticates within cfg.DialTimeout and ctx. Errors are
// ErrACL, ErrAuth, ErrNoGreeting, ErrInvalidCommand (a password with control
// characters), the dialler's, or the context's.
func Dial(ctx context.Context, cfg Config) (*Conn, error) {
	cfg = cfg.withDefaults()
	if err := checkText("the password", cfg.Password); err != nil {
		return nil, fmt.Errorf("event socket %s: %w", cfg.Address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.DialTimeout)
	defer cancel()
	var d net.Dialer
	peer, err := d.DialContext(ctx, "tcp", cfg.Address)
	if err != nil {
		return nil, fmt.Errorf("event socket: %w (is FreeSWITCH running, and mod_event_socket loaded and listening there?)", err)
	}
	seen := &activity{Conn: peer}
	in := newFrameReader(seen, cfg.MaxFrame, readBuffer)
	if err := login(ctx, peer, in, cfg.Password); err != nil {
		peer.Close()
		return nil, fmt.Errorf("event socket %s: %w", cfg.Address, err)
	}
	s, err := newSession(peer, in, sessionConfig{
		commandTimeout: cfg.CommandTimeout,
		onEvent:        cfg.OnEvent,
		log:            cfg.Logger,
		label:          cfg.Address,
	})
	if err != nil {
		return nil, fmt.Errorf("event socket %s: %w", cfg.Address, err)
	}
	c := &Conn{s: s, keepAlive: cfg.KeepAlive, idle: seen}
	if cfg.KeepAlive > 0 {
		c.wg.Add(1)
		go c.supervise()
	}
	return c, nil
}

// login reads the greeting and authenticates, under ctx's deadline.
func login(ctx context.Context, peer net.Conn, in *frameReader, password string) error {
	deadline, _ := ctx.Deadline()
	_ = peer.SetDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = peer.SetDeadline(time.Unix(1, 0)) })
	err := greet(peer, in, password)
	if !stop() && err != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return context.Canceled // the caller's wish, whatever it looks like here
	}
	if err != nil {
		return err
	}
	return peer.SetDeadline(time.Time{})
}

func greet(peer net.Conn, in *frameReader, password string) error {
	f, err := in.next()
	switch {
	case err != nil:
		return fmt.Errorf("%w (%w)", ErrNoGreeting, err)
	case f.kind == kindRude:
		return ErrACL
	case f.kind != kindAuth:
		return fmt.Errorf("%w (it says %s)", ErrNoGreeting, shorten(string(f.header)))
	}
	if _, err := io.WriteString(peer, "auth "+password+"\n\n"); err != nil {
		return fmt.Errorf("send the password: %w", err)
	}
	f, err = in.next()
	switch {
	case err != nil:
		return fmt.Errorf("%w: no answer to our password (%w)", ErrTimeout, err)
	case f.kind == kindRude:
		return ErrACL
	case f.kind != kindReply:
		return fmt.Errorf("%w: %s in answer to our password", ErrProtocol, shorten(string(f.header)))
	}
	if text := newEvent(string(f.header)).Get("Reply-Text"); !strings.HasPrefix(text, "+OK") {
		return fmt.Errorf("%w (it says %s)", ErrAuth, shorten(text))
	}
	return nil
}

// activity remembers when bytes last arrived.
type activity struct {
	net.Conn
	mu   sync.Mutex
	last time.Time
}

func (a *activity) Read(p []byte) (int, error) {
	n, err := a.Conn.Read(p)
	a.mu.Lock()
	a.last = time.Now()
	a.mu.Unlock()
	return n, err
}

func (a *activity) since() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Since(a.last)
}

// supervise asks a silent switch for a sign of life.
func (c *Conn) supervise() {
	defer c.wg.Done()
	t := time.NewTimer(c.keepAlive)
	defer t.Stop()
	for {
		select {
		case <-c.s.closing:
			return
		case <-t.C:
		}
		quiet := c.idle.since()
		if quiet >= c.keepAlive {
			// A refusal is a sign of life as well; silence ends the session.
			_, _ = c.API(context.Background(), "uptime") //nolint:contextcheck // bounded by the command timeout
			quiet = 0
		}
		t.Reset(c.keepAlive - quiet)
	}
}

// API runs an API command ("sofia_contact */1001@pbx.test") and returns its
// output without trailing line breaks. "-ERR ..." becomes a *ReplyError. Commands
// wait for one another; once sent, a timeout or a cancelled ctx closes c.
func (c *Conn) API(ctx context.Context, command string) (string, error) {
	return c.s.api(ctx, command)
}

func (s *session) api(ctx context.Context, command string) (string, error) {
	m, err := lineMessage("api " + command)
	if err != nil {
		return "", err
	}
	if strings.TrimSpace(command) != command || command == "" {
		return "", fmt.Errorf("%w: %s is empty or has blanks around it", ErrInvalidCommand, shorten(command))
	}
	r, err := s.command(ctx, m)
	if err != nil {
		return "", err
	}
	out := strings.TrimRight(r.body, "\r\n")
	if r.body == "" {
		out = r.text() // refusals of the event socket itself have no body
	}
	if err := replyError(command, out); err != nil {
		return "", err
	}
	return out, nil
}

// Subscribe asks for plain events by name and for CUSTOM events by subclass. It
// adds to what was subscribed before.
func (c *Conn) Subscribe(ctx context.Context, events, subclasses []string) error {
	m, err := subscribeMessage(events, subclasses)
	if err != nil {
		return err
	}
	return c.s.simple(ctx, m)
}

// SendEvent fires an event in the switch. Headers go out in the order given;
// Content-Length is set from body.
func (c *Conn) SendEvent(ctx context.Context, name string, headers []Header, body []byte) error {
	if err := checkWord("event name", name, ""); err != nil {
		return err
	}
	m, err := headerMessage("sendevent "+name, headers, body)
	if err != nil {
		return err
	}
	return c.s.simple(ctx, m)
}

// simple sends a command whose answer is only yes or no.
func (s *session) simple(ctx context.Context, m message) error {
	r, err := s.command(ctx, m)
	if err != nil {
		return err
	}
	if text := r.text(); !strings.HasPrefix(text, "+OK") {
		return &ReplyError{Command: firstWords(m), Text: text}
	}
	return nil
}

// Done is closed as soon as the connection is lost or closed.
func (c *Conn) Done() <-chan struct{} { return c.s.closing }

// Err returns nil before Done is closed, then why: ErrClosed (with the cause),
// ErrTimeout, ErrProtocol or ErrACL.
func (c *Conn) Err() error { return c.s.cause() }

// Close ends the connection and waits until nothing of it runs, an OnEvent that
// is under way included (at most 10 s). It may be called often. The error is
// always nil.
func (c *Conn) Close() error {
	c.s.close()
	c.wg.Wait()
	return nil
}
