package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
)

// watchPing is how often an idle subscription is tried.
const watchPing = 10 * time.Second

// subscriptions share one connection to the server, however many there are.
type subscriptions struct {
	mu     sync.Mutex
	conn   *redis.PubSub // nil for none
	from   redis.UniversalClient
	by     map[string]map[*listener]bool
	asked  map[string]bool // channels that conn subscribes to
	begun  map[string]bool // channels that the server has confirmed on conn
	dialed chan struct{}   // capacity 1: who holds it may subscribe and unsubscribe
}

type listener struct {
	fn    func(payload string, begins bool)
	ended chan error // capacity 1
}

func newSubscriptions() *subscriptions {
	return &subscriptions{by: map[string]map[*listener]bool{}, asked: map[string]bool{}, begun: map[string]bool{}, dialed: make(chan struct{}, 1)}
}

// Listen calls fn once when it begins to hear a channel, and for each message from then on,
// until ctx ends or the connection does. All calls share one connection, so fn does not block.
// The channel's name begins with KeyPrefix.
func (s *Store) Listen(ctx context.Context, channel string, fn func(payload string, begins bool)) error {
	l := &listener{fn: fn, ended: make(chan error, 1)}
	if err := s.join(ctx, channel, l); err != nil {
		return wrap("subscribe to "+channel, err)
	}
	defer s.quit(channel, l)
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-l.ended:
		return wrap("subscribe to "+channel, err)
	}
}

func (s *Store) join(ctx context.Context, channel string, l *listener) error {
	t := s.told
	select {
	case t.dialed <- struct{}{}:
		defer func() { <-t.dialed }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.near != nil {
		s.near.begin.Do(func() { s.prove(ctx) })
	}
	t.mu.Lock()
	// Those who listened by a former connection may not have left yet.
	conn, first, begun := t.conn, !t.asked[channel], t.begun[channel]
	t.asked[channel] = true
	if t.by[channel] == nil {
		t.by[channel] = map[*listener]bool{}
	}
	t.by[channel][l] = true
	fresh := conn == nil
	if fresh {
		t.from = s.reader()
		conn = t.from.Subscribe(context.WithoutCancel(ctx))
		t.conn = conn
	}
	from := t.from
	t.mu.Unlock()
	if begun {
		l.fn("", true)
	}
	if first || fresh {
		callCtx, cancel := s.bound(ctx)
		defer cancel()
		if err := conn.Subscribe(callCtx, channel); err != nil {
			t.end(conn, err)
			t.drop(channel, l)
			if from != s.client && !errors.Is(err, redis.ErrClosed) && ctx.Err() == nil {
				s.near.failed(wrap("subscribe", err))
			}
			return err
		}
	}
	if fresh {
		go s.receive(conn)
	}
	return nil
}

var errMoved = errors.New("another server is read")

// moveSubscription ends the connection when another server is read than it is to: who listens
// does so again, and reads what it may have missed.
func (s *Store) moveSubscription() {
	s.told.mu.Lock()
	conn, from := s.told.conn, s.told.from
	s.told.mu.Unlock()
	if conn != nil && from != s.reader() {
		s.told.end(conn, errMoved)
	}
}

// quit takes a listener out, and the connection with the last one.
func (s *Store) quit(channel string, l *listener) {
	t := s.told
	t.dialed <- struct{}{}
	defer func() { <-t.dialed }()
	conn, lastOfChannel, last := t.drop(channel, l)
	switch {
	case conn == nil:
	case last:
		t.end(conn, pbxmesh.ErrUnavailable)
	case lastOfChannel:
		ctx, cancel := s.bound(context.Background())
		defer cancel()
		if err := conn.Unsubscribe(ctx, channel); err != nil {
			t.end(conn, err)
		}
	}
}

// drop forgets a listener.
func (t *subscriptions) drop(channel string, l *listener) (conn *redis.PubSub, lastOfChannel, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.by[channel], l)
	if lastOfChannel = len(t.by[channel]) == 0; lastOfChannel {
		delete(t.by, channel)
		delete(t.begun, channel)
		delete(t.asked, channel)
	}
	return t.conn, lastOfChannel, len(t.by) == 0
}

// end closes conn, and tells everybody who listens by it.
func (t *subscriptions) end(conn *redis.PubSub, err error) {
	_ = conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn != conn {
		return
	}
	t.conn = nil
	clear(t.begun)
	clear(t.asked)
	for _, listeners := range t.by {
		for l := range listeners {
			select {
			case l.ended <- err:
			default:
			}
		}
	}
}

// receive hands out what conn brings, until it ends.
func (s *Store) receive(conn *redis.PubSub) {
	ctx := context.Background()
	for idle := false; ; {
		msg, err := conn.ReceiveTimeout(ctx, watchPing)
		var timeout interface{ Timeout() bool }
		switch {
		case err != nil && !idle && errors.As(err, &timeout) && timeout.Timeout():
			// Silence may be a dead connection: one answer is owed now.
			if err := conn.Ping(ctx); err != nil {
				s.told.end(conn, err)
				return
			}
			idle = true
			continue
		case err != nil:
			s.told.end(conn, err)
			return
		}
		idle = false
		switch msg := msg.(type) {
		case *redis.Subscription:
			if msg.Kind == "subscribe" {
				s.told.hand(conn, msg.Channel, "", true)
			}
		case *redis.Message:
			s.told.hand(conn, msg.Channel, msg.Payload, false)
		}
	}
}

func (t *subscriptions) hand(conn *redis.PubSub, channel, payload string, begins bool) {
	t.mu.Lock()
	var to []*listener
	if t.conn == conn {
		t.begun[channel] = t.begun[channel] || begins && len(t.by[channel]) > 0
		for l := range t.by[channel] {
			to = append(to, l)
		}
	}
	t.mu.Unlock()
	for _, l := range to {
		l.fn(payload, begins)
	}
}

// changesChannel is where every batch is told.
func (s *Store) changesChannel() string { return s.base + ":changes" }

// Subscribe implements registry.Source.
func (s *Store) Subscribe(ctx context.Context, fn func(*registry.Batch)) error {
	return s.Listen(ctx, s.changesChannel(), func(payload string, begins bool) {
		if begins {
			fn(nil)
			return
		}
		if b, err := parseTold(payload); err == nil {
			fn(&b)
		}
	})
}

// boardChannel is where those who watch a kind are told.
func (s *Store) boardChannel(kind registry.NoteKind) string {
	return s.base + ":told:" + string(kind)
}

// Watch implements registry.Board.
func (s *Store) Watch(ctx context.Context, kind registry.NoteKind, fn func()) error {
	if !kind.Valid() {
		return fmt.Errorf("%w: notes of the kind %+.40q", pbxmesh.ErrInvalidRecord, string(kind))
	}
	return s.Listen(ctx, s.boardChannel(kind), func(string, bool) {
		s.news(kind)
		fn()
	})
}

// news takes note that there may be notes that the last look does not know of.
func (s *Store) news(kind registry.NoteKind) {
	s.seen.mu.Lock()
	s.seen.news[string(kind)] = true
	s.seen.mu.Unlock()
}

// packTold writes texts as netstrings: "3:abc,".
const packTold = `
local function pack(list)
  local out = {}
  for i, v in ipairs(list) do out[i] = #v .. ':' .. v .. ',' end
  return table.concat(out)
end
local function tell(channel, node, id, entry)
  redis.pcall('PUBLISH', channel, pack({node, id}) .. pack(entry))
end
`

var errTold = errors.New("what was told of a batch is cut")

// parseTold reads what anyone may have published: a node, an id and the fields of an entry of
// its stream, as netstrings. An error when it is no batch of any node.
func parseTold(payload string) (registry.Batch, error) {
	var texts []string
	for payload != "" {
		digits, rest, ok := strings.Cut(payload, ":")
		n, err := strconv.ParseUint(digits, 10, 31)
		if !ok || err != nil || int(n) >= len(rest) || rest[n] != ',' || len(texts) > 2*(registry.MaxBatch+16) {
			return registry.Batch{}, errTold
		}
		texts, payload = append(texts, rest[:n]), rest[n+1:]
	}
	if len(texts) < 2 || len(texts)%2 != 0 {
		return registry.Batch{}, errTold
	}
	node, err := pbxmesh.ParseNodeID(texts[0])
	if err != nil || string(node) != texts[0] {
		return registry.Batch{}, errTold
	}
	values := make(map[string]any, len(texts)/2)
	for f := texts[2:]; len(f) > 0; f = f[2:] {
		values[f[0]] = f[1]
	}
	return parseEntry(node, texts[1], values), nil
}
