package redisstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
)

const (
	publishChunk = 512              // records per HSET of a publication
	publishAhead = 8                // HSETs that travel together, 1.4 MB of usual records
	unusedTTL    = 10 * time.Minute // of a publication that never came to its end
)

// Store is a registry.Backend in Redis. Every command is bounded by the deadline
// of its context and by Options.Timeout, whichever comes first.
type Store struct {
	o      Options
	base   string // starts every key
	client redis.UniversalClient
	near   *replica // nil: everything is read where it is written
	seen   seen
	told   *subscriptions
	wrote  struct {
		sync.Mutex
		leases map[pbxmesh.NodeID]*renewed
		nodes  map[pbxmesh.NodeID]bool // that this store publishes
	}
}

var _ registry.Backend = (*Store)(nil)

// Client returns the connection pool, for what shares the store but is no part of
// the registry. The Store closes it.
func (s *Store) Client() redis.UniversalClient { return s.client }

// Reader returns the connection pool of the server that is read now, for the same.
func (s *Store) Reader() redis.UniversalClient { return s.reader() }

// KeyPrefix is how all keys and channels of the mesh begin.
func (s *Store) KeyPrefix() string { return s.base + ":" }

// New returns a store that has not dialled yet: a Redis that is away is
// pbxmesh.ErrUnavailable at the first call, not an error here.
func New(o Options) (*Store, error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	client, err := o.client()
	if err != nil {
		return nil, err
	}
	near, err := o.nearClient()
	if err != nil {
		return nil, errors.Join(err, client.Close())
	}
	s := &Store{o: o, base: base(o.Prefix, len(o.Addresses) > 0), client: client, told: newSubscriptions()}
	if near != nil {
		s.near = newReplica(near, s.base, o.Behind)
	}
	s.wrote.leases, s.wrote.nodes = map[pbxmesh.NodeID]*renewed{}, map[pbxmesh.NodeID]bool{}
	s.seen.looking = make(chan struct{}, 1)
	s.seen.news = map[string]bool{}
	s.seen.absent = map[pbxmesh.NodeID]int{}
	s.seen.leases = map[pbxmesh.NodeID]*seenLease{}
	return s, nil
}

// base returns what starts every key. In a cluster it is one hash tag: everybody reads
// everything, and one script writes what belongs together.
func base(prefix string, cluster bool) string {
	if cluster {
		return "{" + prefix + "}"
	}
	return prefix
}

// Close implements registry.Backend.
func (s *Store) Close() error {
	var err error
	if s.near != nil {
		err = s.near.close()
	}
	return errors.Join(err, s.client.Close())
}

// Dissolve removes the list of members and the notes, which is all that stays of a mesh
// whose nodes were forgotten one by one. pbxmesh.ErrUnavailable when Redis does not do it.
func (s *Store) Dissolve(ctx context.Context) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.dissolveBoard(ctx); err != nil {
		return err
	}
	if err := s.client.Del(ctx, s.membersKey()).Err(); err != nil {
		return fmt.Errorf("%w: redis: remove the members: %w", pbxmesh.ErrUnavailable, err)
	}
	return nil
}

func (s *Store) membersKey() string { return s.base + ":members" }

// key returns a key of node. NodeIDs are DNS labels, so no name can end the hash
// tag or reach into another key.
func (s *Store) key(node pbxmesh.NodeID, part string) string {
	return s.base + ":{" + string(node) + "}:" + part
}

func (s *Store) recordsKey(node pbxmesh.NodeID, term uint64) string {
	return s.key(node, "rec:"+strconv.FormatUint(term, 10))
}

func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.o.Timeout)
}

// wrap is the boundary for errors of the driver.
func wrap(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case strings.HasPrefix(err.Error(), "WRONGTYPE"):
		return fmt.Errorf("%w: redis: %s: %w", registry.ErrCorrupt, doing, err)
	default:
		return fmt.Errorf("%w: redis: %s: %w", pbxmesh.ErrUnavailable, doing, err)
	}
}

// run runs a script and turns its verdict into an error.
func (s *Store) run(ctx context.Context, node pbxmesh.NodeID, doing string, script *redis.Script, keys []string, args ...any) ([]string, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	answer, err := script.Run(ctx, s.client, keys, args...).StringSlice()
	if err != nil {
		return nil, wrap(doing, err)
	}
	answer = append(answer, "", "", "")
	switch answer[0] {
	case "OK":
		return answer[1:], nil
	case "HELD":
		beat, _ := strconv.ParseUint(answer[3], 10, 53)
		return nil, fmt.Errorf("redis: %s: %w", doing, &registry.HeldError{Node: node, Owner: answer[1], Instance: answer[2], Beat: beat})
	case "FENCED":
		return nil, fmt.Errorf("%w: redis: %s: %s", registry.ErrFenced, doing, answer[1])
	case "LOST":
		return nil, fmt.Errorf("%w: redis: %s: %s", registry.ErrLost, doing, answer[1])
	default:
		return nil, fmt.Errorf("%w: redis: %s: unexpected answer %q", pbxmesh.ErrUnavailable, doing, answer[0])
	}
}

// Publish implements registry.Publisher.
func (s *Store) Publish(ctx context.Context, p registry.Publication) (uint64, error) {
	digests, err := json.Marshal(p.Digests)
	if err != nil {
		return 0, fmt.Errorf("publish: %w", err)
	}
	s.wrote.Lock()
	s.wrote.nodes[p.Node] = true
	s.wrote.Unlock()
	garbage := s.o.GarbageTTL.Milliseconds()
	answer, err := s.run(ctx, p.Node, "begin a publication", begin,
		[]string{s.key(p.Node, "lease"), s.key(p.Node, "meta")}, p.Instance, p.Over, p.Term, garbage)
	if err != nil {
		return 0, err
	}
	term, err1 := strconv.ParseUint(answer[0], 10, 53)
	old, err2 := strconv.ParseUint(answer[1], 10, 53)
	if err := errors.Join(err1, err2); err != nil {
		return 0, wrap("begin a publication", err)
	}
	fill, filled := s.recordsKey(p.Node, term), false
	if err = s.fill(ctx, fill, p.Records); err == nil {
		filled = true
		_, err = s.run(ctx, p.Node, "end a publication", commit,
			[]string{s.key(p.Node, "meta"), fill, s.key(p.Node, "log"), s.recordsKey(p.Node, old)},
			strconv.FormatUint(term, 10), p.Epoch, digests, len(p.Records), garbage, s.changesChannel(), string(p.Node))
	}
	if errors.Is(err, registry.ErrFenced) || errors.Is(err, registry.ErrLost) || err != nil && !filled && ctx.Err() != nil {
		// It will never count. While Redis is away it goes by itself, and so does what may count
		// although its end was not heard of.
		ctx, cancel := s.bound(context.WithoutCancel(ctx))
		defer cancel()
		_ = s.client.Unlink(ctx, fill).Err()
	}
	return term, err
}

// fill writes records into a hash that does not count yet. Many commands travel together, so
// that a server far away costs a round trip now and then.
func (s *Store) fill(ctx context.Context, key string, records []registry.Record) error {
	for first := 0; first == 0 || first < len(records); first += publishChunk * publishAhead {
		if err := s.fillSome(ctx, key, records[first:min(first+publishChunk*publishAhead, len(records))], first == 0); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) fillSome(ctx context.Context, key string, records []registry.Record, first bool) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	pipe := s.client.Pipeline()
	if first {
		pipe.Del(ctx, key)
	}
	for chunk := range slices.Chunk(records, publishChunk) {
		values := make([]string, 0, 2*len(chunk))
		for i := range chunk {
			values = append(values, fieldOf(&chunk[i]), strconv.FormatUint(chunk[i].Seq, 10)+" "+chunk[i].Value)
		}
		pipe.HSet(ctx, key, values)
	}
	if len(records) > 0 {
		pipe.PExpire(ctx, key, unusedTTL)
	}
	if pipe.Len() == 0 {
		return nil
	}
	_, err := pipe.Exec(ctx)
	return wrap("publish records", err)
}

// Append implements registry.Publisher.
func (s *Store) Append(ctx context.Context, b registry.Batch) error {
	digests, err := json.Marshal(b.Digests)
	if err != nil {
		return fmt.Errorf("append: %w", err)
	}
	args := make([]any, 9, 9+2*len(b.Records))
	puts := 0
	for i := range b.Records {
		if rec := &b.Records[i]; !rec.Tombstone() {
			args = append(args, fieldOf(rec), rec.Value)
			puts++
		}
	}
	for i := range b.Records {
		if rec := &b.Records[i]; rec.Tombstone() {
			args = append(args, fieldOf(rec))
		}
	}
	copy(args, []any{
		strconv.FormatUint(b.Term, 10), strconv.FormatUint(b.Seq, 10), b.Prev,
		s.o.StreamLength, digests, b.Epoch, puts, s.changesChannel(), string(b.Node),
	})
	_, err = s.run(ctx, b.Node, "publish changes", appendBatch,
		[]string{s.key(b.Node, "meta"), s.recordsKey(b.Node, b.Term), s.key(b.Node, "log")}, args...)
	return err
}

// fullRenewals is how many renewals of an unchanged lease there are for one that looks at
// everything the store holds of the node.
const fullRenewals = 5

// renewed is the last lease of a node that was written in full.
type renewed struct {
	text string // without beat and clock
	more int    // renewals since
}

// Renew implements registry.Publisher.
func (s *Store) Renew(ctx context.Context, l registry.Lease) error {
	text, err := registry.EncodeLease(&l)
	if err != nil {
		return fmt.Errorf("renew: %w", err)
	}
	// A day's garbage need not be put off every second.
	garbage := s.o.GarbageTTL.Milliseconds()
	if s.o.GarbageTTL >= time.Hour && l.Beat%30 != 1 {
		garbage = 0
	}
	plain := withoutBeat(text)
	field, mark := leaseField(l.Node), markOf(plain)+beatDigit(l.Beat)
	if garbage == 0 && s.goesOn(l.Node, plain) {
		on, err := s.goOn(ctx, &l, field, mark)
		if on || err != nil {
			return err
		}
	}
	_, err = s.run(ctx, l.Node, "renew the lease", renew, []string{
		s.key(l.Node, "lease"), s.key(l.Node, "meta"), s.recordsKey(l.Node, l.Term), s.key(l.Node, "log"), s.headsKey(),
	}, text, l.TTL.Milliseconds(), l.Term, l.Seq, l.Instance, l.Over, l.Digests.Count(), garbage, field, mark)
	s.wrote.Lock()
	defer s.wrote.Unlock()
	delete(s.wrote.leases, l.Node)
	if err == nil && l.Over == "" {
		s.wrote.leases[l.Node] = &renewed{text: plain}
	}
	return err
}

// goesOn reports whether a renewal need only say that the lease goes on.
func (s *Store) goesOn(node pbxmesh.NodeID, plain string) bool {
	s.wrote.Lock()
	defer s.wrote.Unlock()
	r := s.wrote.leases[node]
	if r == nil || r.text != plain || r.more+1 >= fullRenewals {
		return false
	}
	r.more++
	return true
}

// goOn renews a lease that says what it said before; false when the store does not hold it.
func (s *Store) goOn(ctx context.Context, l *registry.Lease, field, mark string) (bool, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	instance, err := json.Marshal(l.Instance)
	if err != nil {
		return false, fmt.Errorf("renew: %w", err)
	}
	answer, err := goOn.Run(ctx, s.client, []string{s.key(l.Node, "lease"), s.headsKey()}, `"instance":`+string(instance),
		`"beat":`+strconv.FormatUint(l.Beat, 10), `"clock":`+strconv.FormatInt(l.Clock, 10), l.TTL.Milliseconds(), field, mark).StringSlice()
	if err != nil {
		return false, wrap("renew the lease", err)
	}
	return len(answer) > 0 && answer[0] == "OK", nil
}

// Leave implements registry.Publisher.
func (s *Store) Leave(ctx context.Context, l registry.Lease) error {
	_, err := s.run(ctx, l.Node, "end the lease", leave, []string{s.key(l.Node, "lease"), s.headsKey()}, l.Instance, leaseField(l.Node))
	return err
}

// Announce implements registry.Publisher.
func (s *Store) Announce(ctx context.Context, a registry.Announcement) error {
	text, err := registry.EncodeAnnouncement(&a)
	if err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	_, err = s.board(ctx, "announce", announce, []string{s.membersKey(), s.headsKey()}, string(a.Node.ID), text, membersField)
	return err
}

// Forget implements registry.Backend.
func (s *Store) Forget(ctx context.Context, node pbxmesh.NodeID) error {
	gone := registry.Announcement{Node: pbxmesh.Node{ID: node}, Gone: true}
	if err := s.Announce(ctx, gone); err != nil {
		return err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	keys := []string{s.key(node, "meta"), s.key(node, "log"), s.key(node, "lease")}
	if term, err := s.client.HGet(ctx, s.key(node, "meta"), "term").Uint64(); err == nil {
		keys = append(keys, s.recordsKey(node, term))
	}
	if err := s.client.HDel(ctx, s.headsKey(), leaseField(node)).Err(); err != nil && !errors.Is(wrap("", err), registry.ErrCorrupt) {
		return wrap("forget a node", err)
	}
	return wrap("forget a node", s.client.Unlink(ctx, keys...).Err())
}
