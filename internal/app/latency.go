package app

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
	"pbxmesh/failover/latency"
	"pbxmesh/internal/esl"
	"pbxmesh/registry"
)

// Pace of the exchange of estimates. A view is made anew with every slot, and when notes
// changed; never for more than a tenth of the time.
const (
	latencyEvery    = 5 * time.Second
	latencyChunks   = 4 // of a node, in each round
	latencyFullRead = 10 * time.Minute
	geoReloadEvery  = time.Minute
)

// ranker learns how far clients are and ranks the nodes for them. Its chooser is there
// also when latency is not looked at.
type ranker struct {
	a       *App
	chooser *selection.Chooser
	atlas   *latency.Atlas

	estimates *latency.Estimates // nil without a node
	watch     *latency.Watch     // nil without a node
	arrivals  *latency.Arrivals  // nil without a node
	resolvers *resolvers         // nil when latency is not looked at

	view  atomic.Pointer[latency.View] // nil when latency is not looked at
	stats rankerStats

	// What follows belongs to the goroutine that reads.
	book     *latency.Book
	after    uint64
	fullRead time.Time
	ends     map[string]time.Time // of the notes in the book, by our clock
	nodes    []pbxmesh.Node       // the members of the present view
	rest     time.Time            // no view before then
}

type rankerStats struct {
	mu              sync.Mutex
	bad             uint64
	reported        bool
	posts, failures uint64
	networks        int
	took            time.Duration
}

func (a *App) buildLatency() error {
	preferences, err := a.preferences()
	if err != nil {
		return err
	}
	r := &ranker{a: a, chooser: selection.NewChooser(preferences), book: latency.NewBook(), ends: make(map[string]time.Time)}
	a.ranker = r
	l := &a.cfg.Failover.Latency
	if !l.Enabled {
		return nil
	}
	placed := make([]latency.Placed, 0, len(l.Networks))
	for _, n := range l.Networks {
		placed = append(placed, latency.Placed{Network: n.Network, Location: n.Location.Place()})
	}
	if r.atlas, err = latency.NewAtlas(placed, string(l.GeoFile)); err != nil {
		return fmt.Errorf("failover.latency: %w", err)
	}
	r.resolvers = newResolvers(a)
	if a.cfg.Node == nil {
		return nil
	}
	sw := &a.cfg.FreeSWITCH
	password, err := sw.EventSocket.PasswordFile.Read()
	if err != nil {
		return fmt.Errorf("freeswitch.event_socket.password_file: %w", err)
	}
	r.estimates = latency.NewEstimates(latency.Options{MaxNetworks: l.MaxNetworks})
	r.arrivals = latency.NewArrivals()
	r.watch = latency.NewWatch(latency.WatchOptions{
		ESL:      esl.Config{Address: string(sw.EventSocket.Address), Password: password},
		Profiles: sw.Profiles, Sink: r.sample, KeepAliveEvery: l.KeepAliveInterval, Logger: a.log,
	})
	return nil
}

func (r *ranker) sample(s latency.Sample) {
	r.estimates.Add(s)
	r.arrivals.Add(s)
}

func (a *App) startLatency() {
	r := a.ranker
	if r.atlas == nil {
		return
	}
	if r.watch != nil {
		a.task("samples of latency", r.watch.Run)
		a.task("estimates of latency", r.publish)
	}
	a.task("ranking by latency", r.follow)
	a.task("database of places", func(ctx context.Context) error {
		return every(ctx, geoReloadEvery, func() {
			switch changed, err := r.atlas.Reload(); {
			case err != nil:
				a.log.Warn("the database of places cannot be read again; the old one stays", "error", err)
			case changed:
				a.log.Info("database of places read", "places", r.atlas.Describe())
			}
		})
	})
}

// publish posts this node's estimates, until ctx ends.
func (r *ranker) publish(ctx context.Context) error {
	p := latency.NewPublisher(r.estimates)
	return every(ctx, latencyEvery, func() {
		if r.a.publisher.cut.Load() {
			return // killed: nothing is said any more
		}
		r.postArrivals(ctx)
		for _, c := range p.Due(r.a.now(), latencyChunks) {
			callCtx, cancel := context.WithTimeout(ctx, latencyEvery)
			err := r.a.backend.Post(callCtx, registry.Note{
				Kind: registry.NoteLatency, Key: latency.Key(r.a.nodeID(), c.Number), Value: c.Value, TTL: latency.NoteTTL,
			})
			cancel()
			r.stats.mu.Lock()
			r.stats.posts++
			if err != nil {
				r.stats.failures++
			}
			r.stats.mu.Unlock()
			if err != nil {
				r.a.log.LogAttrs(ctx, slog.LevelDebug, "estimates of latency not posted, tried again", slog.Any("error", err))
				return
			}
			p.Posted(c)
		}
	})
}

// follow reads the estimates of all nodes and ranks, until ctx ends.
func (r *ranker) follow(ctx context.Context) error {
	return every(ctx, latencyEvery, func() {
		r.read(ctx)
		r.rank(r.resolvers.exchange(ctx))
	})
}

func (r *ranker) read(ctx context.Context) {
	now := r.a.now()
	after, full := r.after, now.Sub(r.fullRead) >= latencyFullRead
	if full {
		after = 0
	}
	ctx, cancel := context.WithTimeout(ctx, latencyEvery)
	defer cancel()
	notes, next, bad, err := r.a.backend.Notes(ctx, registry.NoteLatency, after)
	if err != nil {
		return // what is known stays: distances do not change because a store is away
	}
	if next < r.after {
		full = true // the store lost its notes; the nodes post theirs again
	}
	r.after = next
	keys := make(map[string]bool, len(notes))
	for i := range notes {
		n := &notes[i]
		keys[n.Key] = true
		if err := r.book.Put(n.Key, n.Value); err != nil {
			bad++
			r.report(err)
			continue
		}
		r.ends[n.Key] = now.Add(min(max(n.TTL, 0), latency.NoteTTL))
	}
	if full && after == 0 {
		r.fullRead = now
	}
	live := make(map[string]bool, len(r.ends))
	for key, end := range r.ends {
		if now.After(end) || full && after == 0 && !keys[key] {
			delete(r.ends, key)
			continue
		}
		live[key] = true
	}
	r.book.Keep(live)
	r.countBad(bad)
}

func (r *ranker) countBad(bad int) {
	r.stats.mu.Lock()
	defer r.stats.mu.Unlock()
	r.stats.bad += uint64(max(0, bad)) //nolint:gosec // not negative
}

// report logs the first bad note.
func (r *ranker) report(err error) {
	r.stats.mu.Lock()
	first := !r.stats.reported
	r.stats.reported = true
	r.stats.mu.Unlock()
	if first {
		r.a.log.Warn("a note with estimates of latency cannot be read; it is left out, and further ones are only counted", "error", err)
	}
}

// rank makes a view when there is anything new in it, which news says of resolvers.
func (r *ranker) rank(news bool) {
	now := r.a.now()
	mesh := r.a.tracker.Mesh()
	nodes := make([]pbxmesh.Node, 0, len(mesh.Nodes))
	for id := range mesh.Nodes {
		nodes = append(nodes, mesh.Nodes[id])
	}
	old := r.view.Load()
	slot := uint64(max(0, now.Unix())) / uint64(latency.Slot/time.Second) //nolint:gosec // not negative
	if old != nil && !now.After(r.rest) || old != nil && old.Slot == slot && !r.book.Changed() && !news && len(nodes) == len(r.nodes) {
		return
	}
	r.book.Changed()
	r.nodes = nodes
	began := time.Now()
	v := latency.NewView(latency.Input{
		Book: r.book, Nodes: nodes, Order: r.a.cfg.DNS.DefaultOrder, Places: r.places(), At: now,
		MaxCost: r.a.cfg.Failover.Latency.ExploreCost, Learnt: r.resolvers.learnt(), Previous: old,
	})
	networks := make([]selection.Network, 0, len(v.Networks()))
	for _, n := range v.Networks() {
		networks = append(networks, selection.Network{Prefix: n.Network, Nodes: n.Nodes})
	}
	var locator selection.Locator
	if len(v.Orders()) > 0 {
		locator = v
	}
	ranking, err := selection.NewRanking(networks, locator)
	if err != nil {
		r.a.log.Error("ranking by latency", "error", err)
		return
	}
	r.chooser.SetRanking(ranking)
	r.view.Store(v)
	took := time.Since(began)
	r.rest = now.Add(10 * took)
	r.stats.mu.Lock()
	r.stats.networks, r.stats.took = len(networks), took
	r.stats.mu.Unlock()
}

// places returns nil when nobody can be placed: a nil *Atlas in an interface is not nil.
func (r *ranker) places() latency.Places {
	if r.atlas == nil || r.atlas.Empty() {
		return nil
	}
	return r.atlas
}
