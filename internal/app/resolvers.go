package app

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"pbxmesh/dnsserver"
	"pbxmesh/failover/latency"
	"pbxmesh/registry"
)

// Pace of what is learnt of resolvers that send no client subnet.
const (
	resolversEvery = latency.ArrivalsEvery // between two readings of the board
	learntEvery    = time.Minute           // between two notes of a name server
	maxAskedWait   = 4096                  // queries between two readings
)

// resolvers joins the queries of this name server with the registrations that all nodes tell of,
// and shares what comes out with the other daemons. What is known of a resolver outlives its
// name server by NoteTTL.
type resolvers struct {
	a *App

	mu    sync.Mutex
	asked []latency.Asked
	stats latency.FollowersStats
	lost  uint64 // queries above maxAskedWait

	// What follows belongs to the goroutine that reads.
	followers     *latency.Followers // nil when this daemon is no name server
	next, told    time.Time
	arrivals      uint64 // revision
	after         uint64
	notes         map[string]learntNote // by key
	posted        []string
	restored, new bool
}

type learntNote struct {
	list []latency.Learnt
	end  time.Time
}

func newResolvers(a *App) *resolvers {
	r := &resolvers{a: a, notes: make(map[string]learntNote)}
	if len(a.cfg.DNS.Listen) > 0 {
		r.followers = latency.NewFollowers()
	}
	return r
}

// take takes queries from the name server. It does not block.
func (r *resolvers) take(list []dnsserver.Asked) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, q := range list {
		if len(r.asked) >= maxAskedWait {
			r.lost++
			continue
		}
		r.asked = append(r.asked, latency.Asked{Resolver: q.Resolver, Node: q.Node, At: q.At})
	}
}

// exchange reads what is new on the board, and posts what was learnt. It reports whether
// anything is known that was not before.
func (r *resolvers) exchange(ctx context.Context) (news bool) {
	now := r.a.now()
	if now.Before(r.next) {
		return false
	}
	r.next = now.Add(resolversEvery)
	ctx, cancel := context.WithTimeout(ctx, latencyEvery)
	defer cancel()
	r.new = false
	r.read(ctx, now)
	if r.followers != nil {
		r.follow(ctx, now)
	}
	return r.new
}

// read takes the notes of all name servers. After a start the own ones are where the last run
// ended.
func (r *resolvers) read(ctx context.Context, now time.Time) {
	notes, next, bad, err := r.a.publisher.Notes(ctx, registry.NoteResolvers, r.after)
	if err != nil {
		return
	}
	r.after = next
	for i := range notes {
		n := &notes[i]
		list, err := latency.ParseLearnt(n.Value)
		if err != nil {
			bad++
			r.a.ranker.report(err)
			continue
		}
		r.notes[n.Key] = learntNote{list, now.Add(min(max(n.TTL, 0), latency.NoteTTL))}
		r.new = true
	}
	r.a.ranker.countBad(bad)
	for key, n := range r.notes {
		if now.After(n.end) {
			delete(r.notes, key)
			r.new = true
		}
	}
	if r.followers != nil && !r.restored {
		for i := range latency.MaxLearntNotes {
			r.followers.Restore(r.notes[r.key(i)].list, now)
		}
		r.restored = true
	}
}

func (r *resolvers) key(i int) string {
	return r.a.cfg.Name + "/" + string(rune('0'+i)) // MaxLearntNotes is below ten
}

// learnt returns what all name servers found out.
func (r *resolvers) learnt() (out []latency.Learnt) {
	for _, n := range r.notes {
		out = append(out, n.list...)
	}
	return out
}

// follow joins queries and arrivals, and posts what comes out.
func (r *resolvers) follow(ctx context.Context, now time.Time) {
	r.mu.Lock()
	asked := r.asked
	r.asked = nil
	r.mu.Unlock()
	r.followers.Ask(asked)
	notes, next, bad, err := r.a.publisher.Notes(ctx, registry.NoteArrivals, r.arrivals)
	if err == nil {
		r.arrivals = next
		slices.SortFunc(notes, func(a, b registry.Note) int { return cmp.Compare(a.Revision, b.Revision) })
		for i := range notes {
			if err := r.followers.Arrived(notes[i].Key, notes[i].Value, now); err != nil {
				bad++
				r.a.ranker.report(err)
			}
		}
		r.a.ranker.countBad(bad)
	}
	r.followers.Join(now)
	if now.Sub(r.told) >= learntEvery && r.restored && !r.a.publisher.cut.Load() {
		r.told = now
		r.post(ctx, now)
	}
	r.mu.Lock()
	r.stats = r.followers.Stats()
	r.mu.Unlock()
}

// post shares what was learnt; notes that are not needed any more are taken back.
func (r *resolvers) post(ctx context.Context, now time.Time) {
	v := r.a.ranker.view.Load()
	if v == nil {
		return // in the first seconds
	}
	values, err := r.followers.Notes(v, now)
	if err != nil {
		r.a.log.LogAttrs(ctx, slog.LevelError, "what was learnt of resolvers cannot be told", slog.Any("error", err))
		return
	}
	for i := range max(len(values), len(r.posted)) {
		n := registry.Note{Kind: registry.NoteResolvers, Key: r.key(i), TTL: latency.NoteTTL}
		if i < len(values) {
			n.Value = values[i]
		}
		if err := r.a.publisher.Post(ctx, n); err != nil {
			r.a.log.LogAttrs(ctx, slog.LevelDebug, "what was learnt of resolvers is not posted, tried again", slog.Any("error", err))
			return
		}
	}
	r.posted = values
}

// postArrivals posts the registrations that this node took.
func (r *ranker) postArrivals(ctx context.Context) {
	for _, c := range r.arrivals.Due(r.a.now()) {
		callCtx, cancel := context.WithTimeout(ctx, latencyEvery)
		err := r.a.publisher.Post(callCtx, registry.Note{
			Kind: registry.NoteArrivals, Key: latency.Key(r.a.nodeID(), c.Number), Value: c.Value, TTL: latency.ArrivalsTTL,
		})
		cancel()
		if err != nil {
			r.a.log.LogAttrs(ctx, slog.LevelDebug, "registrations not told to the name servers, tried again", slog.Any("error", err))
			return
		}
		r.arrivals.Posted(c)
	}
}
