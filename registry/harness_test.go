package registry_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// daemon is what a daemon has of the registry, and the switch beside it.
type daemon struct {
	t     testing.TB
	id    pbxmesh.NodeID
	link  *link
	r     *registry.Replica
	w     *registry.Writer
	s     *registry.Sync
	epoch string
	held  map[int]pbxmesh.Registration // what the switch holds
	stop  func()
	kill  func()
	start func() *daemon // another one for the same node
	off   time.Duration  // how far its clock is ahead
	jump  atomic.Int64   // nanoseconds that it was set ahead since
	older bool           // it cannot read what registerLater publishes
}

type tuning struct {
	owner, stateFile string
	lock             string        // ID of the lock that it holds
	off              time.Duration // how far its clock is ahead
	renew            time.Duration // a lease lasts ten of them
	timeout          time.Duration
	productive       bool          // see the variable
	bugs             int           // seeded; see Mutate
	told             *atomic.Int64 // see link
	log              io.Writer
}

// productive makes tests run with the intervals that daemons have by default; the
// renewals are twice as frequent, so that a lease lasts the usual 5 s.
var productive = os.Getenv("PBXMESH_DEFAULT_INTERVALS") != ""

// start runs a daemon with intervals that suit a test; id "" is a name server.
func start(t testing.TB, id pbxmesh.NodeID, store registry.Backend, tune tuning) *daemon {
	t.Helper()
	if tune.renew == 0 {
		tune.renew = 40 * time.Millisecond
	}
	if tune.timeout == 0 {
		tune.timeout = 500 * time.Millisecond
	}
	poll, backoff, check := 40*time.Millisecond, 100*time.Millisecond, 500*time.Millisecond
	if productive || tune.productive { // what docs/registry.md says of bounds is measured with these
		tune.renew, tune.timeout = 500*time.Millisecond, 2*time.Second
		poll, backoff = time.Second, 2*time.Second
		check = 30 * time.Second // instead of minutes, which no test would wait for
	}
	d := &daemon{t: t, id: id, off: tune.off, older: tune.bugs&registry.Older != 0, link: newLink(store, tune.bugs), epoch: "core-1", held: map[int]pbxmesh.Registration{}}
	d.link.told = tune.told
	d.r = registry.NewReplica(registry.ReplicaOptions{Local: id})
	d.r.Mutate(tune.bugs)
	if tune.stateFile != "" {
		_, _ = d.r.LoadState(tune.stateFile, time.Now())
	}
	var err error
	logger := slog.New(slog.DiscardHandler)
	if tune.log != nil {
		logger = slog.New(slog.NewTextHandler(tune.log, nil))
	}
	d.s, err = registry.NewSync(registry.SyncOptions{
		Logger:  logger,
		Replica: d.r, Backend: d.link, Poll: poll,
		Timeout: tune.timeout, BackoffMax: backoff, StateFile: tune.stateFile, Now: d.now,
	})
	if err != nil {
		t.Fatal(err)
	}
	var tasks sync.WaitGroup
	writerCtx, stopWriter := context.WithCancel(context.Background())
	syncCtx, stopSync := context.WithCancel(context.Background())
	if id != "" {
		d.w, err = registry.NewWriter(registry.WriterOptions{
			Node:    pbxmesh.Node{ID: id, Mesh: netip.MustParseAddrPort("127.0.0.1:5090")},
			Replica: d.r, Backend: d.link, Owner: tune.owner, Lock: tune.lock, LeaseTTL: 10 * tune.renew, RenewEvery: tune.renew,
			CheckEvery: check, Linger: time.Millisecond, BatchSize: 16, Timeout: tune.timeout, BackoffMax: backoff, Now: d.now, Logger: logger,
		})
		if err != nil {
			t.Fatal(err)
		}
		tasks.Go(func() {
			if err := d.w.Run(writerCtx); err != nil {
				t.Errorf("writer: %v", err)
			}
		})
	}
	tasks.Go(func() {
		if err := d.s.Run(syncCtx); err != nil {
			t.Errorf("sync: %v", err)
		}
	})
	d.stop = sync.OnceFunc(func() { stopWriter(); stopSync(); tasks.Wait() })
	d.kill = func() { d.link.cut.Store(true); d.stop() } // nobody is told
	d.start = func() *daemon { return start(t, id, store, tune) }
	t.Cleanup(d.stop)
	return d
}

func device(id pbxmesh.NodeID, n int) pbxmesh.Registration {
	aor, err := pbxmesh.NewAOR(fmt.Sprint(1000+n), "pbx.test")
	if err != nil {
		panic(err)
	}
	return pbxmesh.Registration{
		AOR: aor, Node: id, CallID: fmt.Sprintf("%s-%d", id, n), Contact: fmt.Sprintf("sip:%d@192.0.2.9", n),
		Profile: "internal", Transport: "udp", UserAgent: "phone", Expires: time.Now().Add(time.Hour).Truncate(time.Millisecond).UTC(),
	}
}

func (d *daemon) now() time.Time { return time.Now().Add(d.off + time.Duration(d.jump.Load())) }

// setOff makes d's clock jump.
func (d *daemon) setOff(by time.Duration) { d.jump.Store(int64(by)) }

// device is a registration as this node writes it: it expires by its clock.
func (d *daemon) device(n int) pbxmesh.Registration {
	reg := device(d.id, n)
	reg.Expires = reg.Expires.Add(d.off)
	return reg
}

func (d *daemon) register(devices ...int) {
	for _, n := range devices {
		reg := d.device(n)
		d.held[n] = reg
		d.w.Put(reg)
	}
}

// registerLater registers a device in a form that older readers do not know.
func (d *daemon) registerLater(n int) {
	reg := d.device(n)
	reg.Contact += registry.LaterMark
	d.held[n] = reg
	d.w.Put(reg)
}

// blindTo reports whether d cannot know of what line says.
func (d *daemon) blindTo(line string) bool {
	return d.older && strings.Contains(line, registry.LaterMark) && !strings.HasPrefix(line, string(d.id)+" ")
}

func (d *daemon) unregister(devices ...int) {
	for _, n := range devices {
		reg := device(d.id, n)
		delete(d.held, n)
		d.w.Remove(reg.ID())
	}
}

// boot is the switch as it starts: another epoch, these devices.
func (d *daemon) boot(epoch string, devices ...int) {
	d.epoch = epoch
	clear(d.held)
	for _, n := range devices {
		d.held[n] = d.device(n)
	}
	d.w.Reset(epoch, slices.Collect(maps.Values(d.held)))
}

// view is what a daemon holds: "node 1001@pbx.test call-id contact". The expiry is
// another matter: see early.
func view(r *registry.Replica) map[string]bool {
	v := map[string]bool{}
	r.Walk(func(reg *pbxmesh.Registration) bool {
		v[line(reg)] = true
		return true
	})
	return v
}

func line(reg *pbxmesh.Registration) string {
	return fmt.Sprint(reg.Node, " ", reg.AOR, " ", reg.CallID, " ", reg.Contact)
}

// wrongExpiry names a registration that d holds with an expiry that it must not have:
// later than the switch says, or so early that a third of the lifetime of an hour is
// not left. On its own node it is exact.
func wrongExpiry(d *daemon, holders []*daemon) string {
	for _, holder := range holders {
		apart := time.Millisecond
		if holder.off != d.off {
			apart = registry.MaxSkew
		}
		for _, reg := range holder.held {
			for _, got := range d.r.Lookup(reg.AOR) {
				if got.Node != reg.Node || got.CallID != reg.CallID {
					continue
				}
				left := reg.Expires.Sub(holder.now())
				late := got.Expires.Sub(d.now()) - left
				if late > apart || late < -left*2/3-apart || d == holder && late.Abs() > time.Millisecond {
					return fmt.Sprintf("%q holds %s, which has %s left, with %s more", d.id, line(&reg), left, late)
				}
			}
		}
	}
	return ""
}

// converge waits until every daemon holds what all switches hold.
func converge(t testing.TB, holders []*daemon, readers ...*daemon) {
	t.Helper()
	want := map[string]bool{}
	for _, d := range holders {
		for _, reg := range d.held {
			want[line(&reg)] = true
		}
	}
	for _, d := range append(slices.Clone(holders), readers...) {
		registrytest.WaitFor(t, fmt.Sprintf("%s to hold %d registrations; it holds %d; %+v", d.id, len(want), len(view(d.r)), d.s.Status()),
			func() bool { return maps.Equal(view(d.r), want) && wrongExpiry(d, holders) == "" })
	}
}

func count(from, to int) (n []int) {
	for i := from; i < to; i++ {
		n = append(n, i)
	}
	return n
}

// stores runs test on memory and on a real Redis of its own.
func stores(t *testing.T, test func(t *testing.T, f faults)) {
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		store := memory.New(memory.Options{})
		test(t, faults{
			store: store, flush: store.Clear,
			away: func() { store.SetDown(errors.New("switched off")) },
			back: func() { store.Clear(); store.SetDown(nil) },
			trim: func(id pbxmesh.NodeID) { store.Trim(id, 1) },
		})
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := registrytest.StartRedis(t)
		store, err := redisstore.New(redisstore.Options{URL: farURL(t, server.URL()), Timeout: faultTimeout + far})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		raw := rawClient(t, server.URL())
		must := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		test(t, faults{
			store: store,
			flush: func() { must(raw.FlushAll(context.Background()).Err()) },
			away:  func() { must(server.Kill()) },
			back:  func() { must(server.Start()) },
			trim: func(id pbxmesh.NodeID) {
				must(raw.XTrimMaxLen(context.Background(), "pbxmesh:{"+string(id)+"}:log", 1).Err())
			},
		})
	})
}

// faults are what can happen to a store.
type faults struct {
	store      registry.Backend
	flush      func() // everything is gone
	away, back func() // it stops, and starts empty
	trim       func(pbxmesh.NodeID)
}

// three starts buffalo, london and a name server, with devices on both nodes.
func three(t *testing.T, f faults) (buffalo, london, dns *daemon) {
	t.Helper()
	buffalo, london, dns = start(t, "buffalo", f.store, tuning{}), start(t, "london", f.store, tuning{}), start(t, "", f.store, tuning{})
	buffalo.boot("core-b1", count(0, 40)...)
	london.boot("core-l1", count(30, 60)...) // some users have devices on both
	converge(t, []*daemon{buffalo, london}, dns)
	return buffalo, london, dns
}

func member(d *daemon, id pbxmesh.NodeID) registry.Member {
	for _, m := range d.r.Members() {
		if m.Node.ID == id {
			return m
		}
	}
	return registry.Member{}
}
