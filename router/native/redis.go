package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
)

const (
	// redisGarbage is how long the states of a node that fell silent stay stored.
	// Followers judge lifetimes themselves; this only keeps Redis clean.
	redisGarbage = 10 * time.Minute

	// redisPing is how often an idle subscription is tried.
	redisPing = 10 * time.Second

	// maxStateSize bounds one state in bytes, as a stranger may have written it.
	maxStateSize = 32 << 10
)

// RedisOptions say where states are kept.
type RedisOptions struct {
	Client redis.UniversalClient

	// Prefix begins every key and channel: "pbxmesh:".
	Prefix string

	// Nodes returns the nodes whose stored states a new follower reads.
	Nodes func() []pbxmesh.NodeID
}

// Redis is an Exchange over Redis: for each node and kind a hash of what holds,
// under one hash tag, and one channel for each kind.
type Redis struct{ opts RedisOptions }

var _ Exchange = (*Redis)(nil)

// NewRedis returns an exchange that opens nothing by itself.
func NewRedis(opts RedisOptions) *Redis { return &Redis{opts: opts} }

func (r *Redis) hash(kind string, node pbxmesh.NodeID) string {
	return r.opts.Prefix + "{" + string(node) + "}:state:" + kind
}

func (r *Redis) channel(kind string) string { return r.opts.Prefix + "state:" + kind }

// Publish implements Exchange. The hash comes first: a follower that subscribes,
// then reads the hash, misses nothing.
func (r *Redis) Publish(ctx context.Context, st State) error {
	text, err := json.Marshal(st)
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if len(text) > maxStateSize {
		return fmt.Errorf("%w: state of %d bytes, at most %d are allowed", pbxmesh.ErrInvalidRecord, len(text), maxStateSize)
	}
	key := r.hash(st.Kind, st.Node)
	pipe := r.opts.Client.Pipeline()
	if st.Ended {
		pipe.HDel(ctx, key, st.Key)
	} else {
		pipe.HSet(ctx, key, st.Key, text)
		pipe.PExpire(ctx, key, max(redisGarbage, 2*st.TTL))
	}
	pipe.Publish(ctx, r.channel(st.Kind), text)
	if _, err := pipe.Exec(ctx); err != nil {
		return fmt.Errorf("publish state: %w", err)
	}
	return nil
}

// Forget removes what is stored of a node that was removed for good.
func (r *Redis) Forget(ctx context.Context, node pbxmesh.NodeID) error {
	var keys []string
	for _, kind := range []string{KindCall, KindStatus, KindMailbox, KindCache} {
		keys = append(keys, r.hash(kind, node))
	}
	if err := r.opts.Client.Unlink(ctx, keys...).Err(); err != nil {
		return fmt.Errorf("forget states: %w", err)
	}
	return nil
}

// Follow implements Exchange.
func (r *Redis) Follow(ctx context.Context, kind string, fn func(State)) error {
	sub := r.opts.Client.Subscribe(ctx, r.channel(kind))
	defer sub.Close()
	// A receive does not end with its context, only with its connection.
	defer context.AfterFunc(ctx, func() { _ = sub.Close() })()
	if _, err := sub.ReceiveTimeout(ctx, redisPing); err != nil { // the confirmation
		return fmt.Errorf("subscribe to states: %w", err)
	}
	for _, node := range r.opts.Nodes() {
		stored, err := r.opts.Client.HGetAll(ctx, r.hash(kind, node)).Result()
		if err != nil {
			return fmt.Errorf("read stored states: %w", err)
		}
		for _, text := range stored {
			if st, ok := decodeState(text, kind); ok && st.Node == node {
				fn(st)
			}
		}
	}
	for idle := false; ; {
		msg, err := sub.ReceiveTimeout(ctx, redisPing)
		var timeout interface{ Timeout() bool }
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !idle && errors.As(err, &timeout) && timeout.Timeout():
			// Silence may be a dead connection: one answer is owed now.
			if err := sub.Ping(ctx); err != nil {
				return fmt.Errorf("follow states: %w", err)
			}
			idle = true
			continue
		case err != nil:
			return fmt.Errorf("follow states: %w", err)
		}
		idle = false
		if m, ok := msg.(*redis.Message); ok {
			if st, ok := decodeState(m.Payload, kind); ok {
				fn(st)
			}
		}
	}
}

// decodeState refuses what another version or a stranger wrote.
func decodeState(text, kind string) (st State, ok bool) {
	if len(text) > maxStateSize || json.Unmarshal([]byte(text), &st) != nil {
		return State{}, false
	}
	id, err := pbxmesh.ParseNodeID(string(st.Node))
	return st, err == nil && id == st.Node && st.Kind == kind && st.Key != "" && (!st.AOR.IsZero() || st.From != "")
}
