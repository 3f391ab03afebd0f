package redisstore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
)

// A replica of the server near this daemon is read instead of it as long as it proves, look by
// look, that it follows: a number that this daemon writes to the primary under a random key must
// be there a moment later. Nothing else is believed, neither a role nor a state of a link: a
// replica that was promoted, cut off, emptied, or follows another mesh's primary shows an old
// number or none, and the primary is read.
//
// What is read beside a look is believed when the number is still there afterwards.
//
// All reads go to one server, so that leases, changes and records fit together. When the
// primary does not answer, a replica that has followed once is read however old it is. What it
// shows of leases and beats then counts for nothing: they end there because nobody writes.
const (
	replicaAvoided = 3 * time.Second // a replica is not asked after it failed
	replicaTimeout = time.Second     // of one command there: it is near
	replicaReturns = 3               // looks in turn at which it is not behind, until it is read again
	replicaProof   = 300 * time.Millisecond
	probeLasts     = time.Hour
	maxProbes      = 64
)

// Bounds of Options.Behind.
const maxBehind = time.Second

// replica is a server near this daemon that follows the primary.
type replica struct {
	client redis.UniversalClient
	key    string        // of the number
	within time.Duration // it is read when it is not further behind

	begin sync.Once
	tasks sync.WaitGroup
	ctx   context.Context // of the tasks
	end   context.CancelFunc

	mu     sync.Mutex
	probes []probe // the first one is what was seen last; then what was written since, oldest first
	last   uint64  // number written
	avoid  time.Time
	mode   replicaMode
	good   int // looks in turn at which it was not behind
	behind time.Duration
	at     time.Time // of the look that said so
	err    error     // why it is not read
}

type probe struct {
	n  uint64
	at time.Time
}

// replicaMode says who is read.
type replicaMode int

const (
	readPrimary replicaMode = iota
	readReplica
	readOld // the replica, because the primary does not answer
)

func newReplica(client redis.UniversalClient, base string, within time.Duration) *replica {
	r := &replica{client: client, key: base + ":near:" + rand.Text(), within: within, probes: []probe{{}}, good: replicaReturns}
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

func (r *replica) close() error {
	r.end()
	r.begin.Do(func() {}) // nothing begins any more
	r.tasks.Wait()
	return r.client.Close()
}

// next takes note that a number is about to be written, and returns it.
func (r *replica) next(now time.Time) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	if r.probes = append(r.probes, probe{r.last, now}); len(r.probes) > maxProbes {
		r.probes = append(r.probes[:2], r.probes[3:]...) // the first that is missing says how far behind
	}
	return r.last
}

// ours reports whether n is a number that the replica can show. The caller holds r.mu.
func (r *replica) ours(n uint64) bool { return n > 0 && n >= r.probes[0].n && n <= r.last }

// saw takes in what number the replica showed at now: whether it follows and is not behind, and
// whether it is this mesh's, as far as it has come.
func (r *replica) saw(text string, now time.Time) (fits, known bool) {
	n, _ := strconv.ParseUint(text, 10, 64)
	r.mu.Lock()
	defer r.mu.Unlock()
	known = r.ours(n)
	for known && len(r.probes) > 1 && r.probes[1].n <= n {
		r.probes = r.probes[1:]
	}
	r.behind, r.at = 0, now
	switch {
	case len(r.probes) == 1:
	case r.probes[1].n == max(n, r.probes[0].n)+1:
		r.behind = now.Sub(r.probes[1].at)
	default: // the first that is missing is not remembered, but an older one
		r.behind = now.Sub(r.probes[0].at)
	}
	if fits = known && r.behind <= r.within; fits {
		r.good++
	} else {
		r.good = 0
	}
	switch {
	case fits:
		r.err = nil
	case known:
		r.err = errBehind
	default:
		r.err = errForeign
	}
	return fits && (r.good >= replicaReturns || r.mode == readReplica), known
}

var (
	errBehind  = errors.New("it is behind the primary")
	errForeign = errors.New("it does not show what was written to the primary")
)

// failed takes note that it could not be read.
func (r *replica) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mode, r.good, r.err, r.avoid = readPrimary, 0, err, time.Now().Add(replicaAvoided)
}

func (r *replica) avoided() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Now().Before(r.avoid)
}

func (r *replica) now() replicaMode {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mode
}

// readsOld reports whether a replica is read because the primary does not answer.
func (s *Store) readsOld() bool { return s.near != nil && s.near.now() == readOld }

// reader is where things are read.
func (s *Store) reader() redis.UniversalClient {
	if s.near == nil || s.near.now() == readPrimary {
		return s.client
	}
	return s.near.client
}

// source is where records of nodes are read. Whoever publishes a node asks what the primary has.
func (s *Store) source(nodes ...pbxmesh.NodeID) redis.UniversalClient {
	s.wrote.Lock()
	defer s.wrote.Unlock()
	for _, id := range nodes {
		if s.wrote.nodes[id] {
			return s.client
		}
	}
	return s.reader()
}

// read runs f at c, and at the primary when c is the replica and does not answer. Each is bounded.
func (s *Store) read(ctx context.Context, c redis.UniversalClient, f func(context.Context, redis.UniversalClient) error) error {
	err := s.readAt(ctx, c, f)
	if err == nil || c == s.client || !errors.Is(err, pbxmesh.ErrUnavailable) || ctx.Err() != nil {
		return err
	}
	return s.readAt(ctx, s.client, f)
}

// readAt runs f at c, bounded, and takes note when c is the replica and does not answer.
func (s *Store) readAt(ctx context.Context, c redis.UniversalClient, f func(context.Context, redis.UniversalClient) error) error {
	callCtx, cancel := s.bound(ctx)
	defer cancel()
	err := f(callCtx, c)
	if err == nil && c != s.client {
		err = s.stillOurs(callCtx)
	}
	if errors.Is(err, pbxmesh.ErrUnavailable) && c != s.client && ctx.Err() == nil {
		s.near.failed(err)
		s.moveSubscription()
	}
	return err
}

// stillOurs looks whether the replica still shows a number, after it was read: another primary's
// data may have come in the place of ours since the last look.
func (s *Store) stillOurs(ctx context.Context) error {
	r := s.near
	text, err := r.client.Get(ctx, r.key).Result()
	if err != nil && !errors.Is(err, redis.Nil) {
		return wrap("ask the replica", err)
	}
	n, _ := strconv.ParseUint(text, 10, 64)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ours(n) {
		return fmt.Errorf("%w: redis: the replica: %w", pbxmesh.ErrUnavailable, errForeign)
	}
	return nil
}

// askHeads runs lookHeads where things are read, and decides where that is.
func (s *Store) askHeads(ctx context.Context, sum string) (answer []string, from redis.UniversalClient, old bool, err error) {
	r := s.near
	if r == nil {
		answer, err = s.headsAt(ctx, s.client, sum)
		return answer, s.client, false, err
	}
	r.begin.Do(func() { s.prove(ctx) })
	var fits, known bool
	var near []string
	if !r.avoided() {
		near, fits, known = s.headsNear(ctx, sum)
	}
	if fits {
		s.readFrom(readReplica)
		return near, r.client, false, nil
	}
	answer, err = s.headsAt(ctx, s.client, sum)
	if errors.Is(err, pbxmesh.ErrUnavailable) && known && ctx.Err() == nil {
		s.readFrom(readOld)
		return near, r.client, true, nil
	}
	s.readFrom(readPrimary)
	return answer, s.client, false, err
}

func (s *Store) headsNear(ctx context.Context, sum string) (answer []string, fits, known bool) {
	began := time.Now()
	answer, err := s.headsAt(ctx, s.near.client, sum)
	if err == nil && len(answer) < 5 {
		err = errForeign
	}
	if err != nil {
		if ctx.Err() == nil {
			s.near.failed(err)
		}
		return nil, false, false
	}
	fits, known = s.near.saw(answer[4], began)
	return answer[:4], fits, known
}

func (s *Store) headsAt(ctx context.Context, c redis.UniversalClient, sum string) ([]string, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	keys := []string{s.headsKey()}
	if c != s.client {
		keys = append(keys, s.near.key)
	}
	answer, err := lookHeads.Run(ctx, c, keys, sum, maxFields, maxFieldLen).StringSlice()
	return answer, wrap("look for changes", err)
}

// readFrom has everything read from one server from now on.
func (s *Store) readFrom(mode replicaMode) {
	s.near.mu.Lock()
	s.near.mode = mode
	s.near.mu.Unlock()
	s.moveSubscription()
}

// prove gives the replica the time of one write to show that it follows, before anything is
// read far away; and goes on writing numbers until the store is closed.
func (s *Store) prove(ctx context.Context) {
	r := s.near
	began := time.Now()
	if err := s.writeProbe(ctx); err == nil {
		ctx, cancel := context.WithTimeout(ctx, time.Since(began)+replicaProof)
		for known := false; !known && ctx.Err() == nil; {
			r.mu.Lock()
			r.good = replicaReturns // waiting for it is no reason to doubt it
			r.mu.Unlock()
			if _, _, known = s.headsNear(ctx, ""); r.avoided() {
				break
			}
			pause(ctx, 10*time.Millisecond)
		}
		cancel()
	}
	r.mu.Lock()
	if r.err == nil && r.probes[0].n > 0 {
		r.mode = readReplica
	}
	r.mu.Unlock()
	r.tasks.Go(func() {
		for pause(r.ctx, r.within) {
			_ = s.writeProbe(r.ctx) // what is not written is not seen
		}
	})
}

func (s *Store) writeProbe(ctx context.Context) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.client.Set(ctx, s.near.key, s.near.next(time.Now()), probeLasts).Err()
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// Lag implements registry.Source: how far what was read last is behind, as the last look showed;
// up to Options.Behind less than it is. 0 while the primary is read.
func (s *Store) Lag() time.Duration {
	if s.near == nil {
		return 0
	}
	s.near.mu.Lock()
	defer s.near.mu.Unlock()
	if s.near.mode == readPrimary {
		return 0
	}
	return s.near.behind
}

// ReplicaStatus is how Options.Read does.
type ReplicaStatus struct {
	Used   bool          // it is read
	Behind time.Duration // as the last look at it showed, up to Options.Behind less than it is
	Err    error         // why it is not read, or is behind
}

// Replica returns how Options.Read does; false when there is none.
func (s *Store) Replica() (ReplicaStatus, bool) {
	if s.near == nil {
		return ReplicaStatus{}, false
	}
	s.near.mu.Lock()
	defer s.near.mu.Unlock()
	return ReplicaStatus{Used: s.near.mode != readPrimary, Behind: s.near.behind, Err: s.near.err}, true
}
