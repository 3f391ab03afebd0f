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

	// maxTold bounds the states that were told and not taken in yet.
	maxTold = 4096

	// maxStateSize bounds one state in bytes, as a stranger may have written it.
	maxStateSize = 32 << 10
)

// RedisOptions say where states are kept.
type RedisOptions struct {
	Client redis.UniversalClient

	// Reader returns where states are read that were stored before they were told; nil for Client.
	Reader func() redis.UniversalClient

	// Prefix begins every key and channel: "pbxmesh:".
	Prefix string

	// Listen calls fn once when it begins to hear a channel, and for each message from then
	// on, until ctx ends or nothing more would come. fn does not block.
	Listen func(ctx context.Context, channel string, fn func(payload string, begins bool)) error

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

// spoken is a state as it was told, or that telling began.
type spoken struct {
	payload string
	begins  bool
}

// errFlood says that more was told than can be taken in: what holds is then read again.
var errFlood = errors.New("too many states at once")

// Follow implements Exchange.
func (r *Redis) Follow(ctx context.Context, kind string, fn func(State)) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	waiting := make(chan spoken, maxTold)
	listening := make(chan struct{})
	go func() {
		defer close(listening)
		end(r.opts.Listen(ctx, r.channel(kind), func(payload string, begins bool) {
			select {
			case waiting <- spoken{payload, begins}:
			default:
				end(errFlood)
			}
		}))
	}()
	defer func() { end(nil); <-listening }()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("follow states: %w", context.Cause(ctx))
		case t := <-waiting:
			if t.begins {
				if err := r.stored(ctx, kind, fn); err != nil {
					return err
				}
			} else if st, ok := decodeState(t.payload, kind); ok {
				fn(st)
			}
		}
	}
}

// stored hands what is stored of all nodes to fn.
func (r *Redis) stored(ctx context.Context, kind string, fn func(State)) error {
	from := r.opts.Client
	if r.opts.Reader != nil {
		from = r.opts.Reader()
	}
	for _, node := range r.opts.Nodes() {
		stored, err := from.HGetAll(ctx, r.hash(kind, node)).Result()
		if err != nil {
			return fmt.Errorf("read stored states: %w", err)
		}
		for _, text := range stored {
			if st, ok := decodeState(text, kind); ok && st.Node == node {
				fn(st)
			}
		}
	}
	return nil
}

// decodeState refuses what another version or a stranger wrote.
func decodeState(text, kind string) (st State, ok bool) {
	if len(text) > maxStateSize || json.Unmarshal([]byte(text), &st) != nil {
		return State{}, false
	}
	id, err := pbxmesh.ParseNodeID(string(st.Node))
	return st, err == nil && id == st.Node && st.Kind == kind && st.Key != "" && (!st.AOR.IsZero() || st.From != "")
}
