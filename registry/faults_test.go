package registry_test

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

const faultTimeout = 500 * time.Millisecond

// opened is a client of its own, as every daemon has one.
func opened(t testing.TB, o redisstore.Options) registry.Backend {
	t.Helper()
	o.URL = farURL(t, o.URL)
	if o.Timeout = faultTimeout; productive {
		o.Timeout = 2 * time.Second
	}
	store, err := redisstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// mesh is buffalo, london and a name server, each with its own client.
type mesh struct {
	t                    *testing.T
	buffalo, london, dns *daemon
	lookups, missed      int
	stopCalls            func()
}

// startMesh starts one, and a stream of calls to devices that no test touches.
func startMesh(t *testing.T, open func() registry.Backend, london registry.Backend) *mesh {
	t.Helper()
	if london == nil {
		london = open()
	}
	m := &mesh{
		t: t, buffalo: start(t, "buffalo", open(), tuning{}), london: start(t, "london", london, tuning{}),
		dns: start(t, "", open(), tuning{}),
	}
	m.buffalo.boot("core-b1", count(0, 40)...)
	m.london.boot("core-l1", count(30, 60)...)
	converge(t, []*daemon{m.buffalo, m.london}, m.dns)

	callers := []*daemon{m.buffalo, m.london, m.dns} // a test may start others
	ctx, stop := context.WithCancel(t.Context())
	var calls sync.WaitGroup
	calls.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			for _, d := range callers {
				for n := 10; n < 20; n++ {
					m.lookups++
					if len(d.r.Lookup(device("buffalo", n).AOR)) == 0 {
						m.missed++
					}
				}
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	m.stopCalls = sync.OnceFunc(func() { stop(); calls.Wait() })
	t.Cleanup(m.stopCalls)
	return m
}

// change is what goes on at the switches during a fault.
func (m *mesh) change(round int) {
	m.buffalo.register(100+10*round, 101+10*round)
	m.buffalo.unregister(round, 30+round)
	m.london.register(105+10*round, 45)
	m.london.unregister(50 + round)
}

// recovered waits for equality, also in a daemon that starts now, and says how
// long the running ones took.
func (m *mesh) recovered(fault string, ended time.Time, late registry.Backend) {
	m.t.Helper()
	converge(m.t, []*daemon{m.buffalo, m.london}, m.dns)
	m.t.Logf("%s: converged %.2f s after its end", fault, time.Since(ended).Seconds())
	converge(m.t, []*daemon{m.buffalo, m.london}, start(m.t, "", late, tuning{}))
}

// noCallLost ends the calls.
func (m *mesh) noCallLost() {
	m.t.Helper()
	m.stopCalls()
	if m.missed > 0 || m.lookups == 0 {
		m.t.Errorf("%d of %d lookups of registered devices found nothing", m.missed, m.lookups)
	}
	m.t.Logf("calls lost: %d of %d", m.missed, m.lookups)
}

// waitLonger is WaitFor for faults that last long by intention.
func waitLonger(t testing.TB, atMost time.Duration, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(atMost)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s", atMost, what)
		}
		<-tick.C
	}
}

func unavailable(d *daemon) func() bool {
	return func() bool { return errors.Is(d.w.Status().Err, pbxmesh.ErrUnavailable) }
}

// A Redis that is stopped answers nobody and refuses nobody. PBXMESH_LONG_FAULTS=1
// stops it for a minute.
func TestFaultStopped(t *testing.T) {
	t.Parallel()
	span := 3 * time.Second
	if os.Getenv("PBXMESH_LONG_FAULTS") != "" {
		span = time.Minute
	}
	server := registrytest.StartRedis(t)
	open := func() registry.Backend { return opened(t, redisstore.Options{URL: server.URL()}) }
	m := startMesh(t, open, nil)
	if err := server.Pause(); err != nil {
		t.Fatal(err)
	}
	m.change(0)
	m.london.boot("core-l2", 40, 41, 90)
	waitLonger(t, 2*span+10*time.Second, "the view to grow old", func() bool { return m.dns.r.Age(time.Now()) >= span })
	registrytest.WaitFor(t, "the name server to say so", func() bool {
		st := m.dns.s.Status()
		return !st.Connected && errors.Is(st.Err, pbxmesh.ErrUnavailable)
	})
	registrytest.WaitFor(t, "the writer to say so", unavailable(m.buffalo))
	if err := server.Resume(); err != nil {
		t.Fatal(err)
	}
	m.recovered("Redis stopped for "+span.String(), time.Now(), open())
	for _, id := range []pbxmesh.NodeID{"buffalo", "london"} {
		if skew := member(m.dns, id).Skew; skew != 0 {
			t.Errorf("the clock of %s is taken to be %s apart", id, skew)
		}
	}
	registrytest.WaitFor(t, "the view to be fresh", func() bool { return m.dns.r.Age(time.Now()) < time.Second })
	m.noCallLost()
}

// One node's link is slow, loses its connections, drops every packet, is cut. The
// others work on, and keep what they know of it.
func TestFaultBadLink(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	proxy := registrytest.StartProxy(t, server.Addr())
	open := func() registry.Backend { return opened(t, redisstore.Options{URL: server.URL()}) }
	m := startMesh(t, open, opened(t, redisstore.Options{URL: proxy.URL()}))

	published := m.london.w.Status().Publications
	proxy.SetDelay(100 * time.Millisecond)
	began := time.Now()
	m.change(0)
	converge(t, []*daemon{m.buffalo, m.london}, m.dns)
	t.Logf("slow by 200 ms per round trip: converged %.2f s after the change", time.Since(began).Seconds())
	if n := m.london.w.Status().Publications; n != published {
		t.Errorf("a slow link cost %d full publications", n-published)
	}
	for round := range 5 {
		proxy.Drop()
		m.change(1 + round)
	}
	proxy.Heal()
	m.recovered("five times all connections lost on a slow link", time.Now(), open())

	for fault, begin := range map[string]func(){"packets dropped": func() { proxy.Stall(true) }, "cut": proxy.Cut} {
		begin()
		registrytest.WaitFor(t, "london to notice", func() bool { return !m.london.s.Status().Connected && unavailable(m.london)() })
		before := maps.Clone(m.london.held)
		m.london.register(200)
		m.london.unregister(55)
		m.buffalo.register(201)
		registrytest.WaitFor(t, "the lease to end", func() bool { return !member(m.dns, "london").LeaseHeld })
		want := map[string]bool{}
		for _, held := range []map[int]pbxmesh.Registration{m.buffalo.held, before} {
			for _, reg := range held {
				want[line(&reg)] = true
			}
		}
		registrytest.WaitFor(t, "the others to go on", func() bool { return maps.Equal(view(m.dns.r), want) && maps.Equal(view(m.buffalo.r), want) })
		proxy.Heal()
		m.recovered("one node's link: "+fault, time.Now(), open())
		m.london.unregister(200)
		m.london.register(55)
		m.buffalo.unregister(201)
		converge(t, []*daemon{m.buffalo, m.london}, m.dns)
	}
	m.noCallLost()
}

// A Redis that answers and refuses writes.
func TestFaultRefusesWrites(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]struct{ begin, end func(*redis.Client) error }{
		"out of memory": {
			func(c *redis.Client) error { return c.ConfigSet(context.Background(), "maxmemory", "1").Err() },
			func(c *redis.Client) error { return c.ConfigSet(context.Background(), "maxmemory", "0").Err() },
		},
		"read only": {
			func(c *redis.Client) error { return c.ReplicaOf(context.Background(), "127.0.0.1", "1").Err() },
			func(c *redis.Client) error { return c.ReplicaOf(context.Background(), "NO", "ONE").Err() },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := registrytest.StartRedis(t)
			open := func() registry.Backend { return opened(t, redisstore.Options{URL: server.URL()}) }
			m := startMesh(t, open, nil)
			raw := rawClient(t, server.URL())
			if err := fault.begin(raw); err != nil {
				t.Fatal(err)
			}
			m.change(0)
			m.london.boot("core-l2", 40, 41, 90)
			registrytest.WaitFor(t, "the writers to say so", func() bool { return unavailable(m.buffalo)() && unavailable(m.london)() })
			registrytest.WaitFor(t, "the leases to end", func() bool { return !member(m.dns, "london").LeaseHeld })
			if st := m.dns.s.Status(); !st.Connected {
				t.Errorf("reading works, but %+v", st)
			}
			if err := fault.end(raw); err != nil {
				t.Fatal(err)
			}
			m.recovered(name, time.Now(), open())
			m.noCallLost()
		})
	}
}

// The primary dies, and a replica that may lack its last writes takes its place.
func TestFaultSentinelFailover(t *testing.T) {
	t.Parallel()
	primary := registrytest.StartRedis(t, "--repl-diskless-sync-delay", "0")
	host, port, err := net.SplitHostPort(primary.Addr())
	if err != nil {
		t.Fatal(err)
	}
	replica := registrytest.StartRedis(t)
	config := filepath.Join(t.TempDir(), "sentinel.conf")
	monitored, monitoredPort, _ := net.SplitHostPort(farAddr(t, primary.Addr()))
	text := "sentinel monitor mesh " + monitored + " " + monitoredPort + " 1\nsentinel down-after-milliseconds mesh 500\nsentinel failover-timeout mesh 3000\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sentinel := registrytest.StartSentinel(t, config)
	next := farAddr(t, replica.Addr())
	announced, announcedPort, _ := net.SplitHostPort(next)
	ask, second := redis.NewSentinelClient(&redis.Options{Addr: sentinel.Addr()}), rawClient(t, replica.URL())
	t.Cleanup(func() { _ = ask.Close() })
	ctx := context.Background()
	if err := errors.Join(second.ConfigSet(ctx, "replica-announce-ip", announced).Err(), second.ConfigSet(ctx, "replica-announce-port", announcedPort).Err(),
		second.ReplicaOf(ctx, host, port).Err()); err != nil {
		t.Fatal(err)
	}
	waitLonger(t, 40*time.Second, "the sentinel to know a replica in step", func() bool {
		replicas, err := ask.Replicas(ctx, "mesh").Result()
		info, err2 := second.Info(ctx, "replication").Result()
		return err == nil && err2 == nil && len(replicas) == 1 && replicas[0]["master-link-status"] == "ok" && strings.Contains(info, "master_link_status:up")
	})
	open := func() registry.Backend {
		return opened(t, redisstore.Options{SentinelAddresses: []string{farAddr(t, sentinel.Addr())}, SentinelMaster: "mesh"})
	}
	m := startMesh(t, open, nil)
	m.change(0)
	began := time.Now()
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	m.change(1)
	m.london.boot("core-l2", 40, 41, 90)
	waitLonger(t, 40*time.Second, "the failover", func() bool {
		addr, err := ask.GetMasterAddrByName(ctx, "mesh").Result()
		return err == nil && slices.Equal(addr, strings.Split(next, ":"))
	})
	t.Logf("Sentinel named the new primary after %.2f s", time.Since(began).Seconds())
	m.recovered("Sentinel failover", time.Now(), open())
	if n := second.HLen(ctx, "pbxmesh:members").Val(); n != 2 {
		t.Errorf("%d members in the new primary, want 2", n)
	}
	m.noCallLost()
}

// A slot of a Redis Cluster moves to another server under a node that writes and
// readers that follow it.
func TestFaultClusterSlotMoves(t *testing.T) {
	t.Parallel()
	servers := registrytest.StartCluster(t)
	farServers := farCluster(t, servers)
	open := func() registry.Backend { return opened(t, redisstore.Options{Addresses: farServers}) }
	m := startMesh(t, open, nil)
	a, b := rawClient(t, "redis://"+servers[0]), rawClient(t, "redis://"+servers[1])
	ctx := context.Background()
	slot, err := a.ClusterKeySlot(ctx, "{pbxmesh}:{buffalo}:meta").Result()
	if err != nil {
		t.Fatal(err)
	}
	from, to, address := a, b, servers[1]
	if slot >= 8192 {
		from, to, address = b, a, servers[0]
	}
	host, port, _ := net.SplitHostPort(address)
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	fromID, err1 := from.Do(ctx, "CLUSTER", "MYID").Text()
	toID, err2 := to.Do(ctx, "CLUSTER", "MYID").Text()
	must("ids", errors.Join(err1, err2))
	must("importing", to.Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", fromID).Err())
	must("migrating", from.Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", toID).Err())
	m.change(0) // every key is still on the old server
	moved := 0
	for round := 1; ; round++ {
		keys, err := from.ClusterGetKeysInSlot(ctx, int(slot), 1).Result()
		must("keys", err)
		if len(keys) == 0 {
			break
		}
		must("migrate "+keys[0], from.Do(ctx, "MIGRATE", host, port, keys[0], 0, 5000).Err())
		moved++
		m.change(min(round, 3)) // some keys are here, some there
	}
	began := time.Now()
	must("the new owner", to.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", toID).Err())
	must("the old owner", from.Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", toID).Err())
	m.change(4)
	if moved < 3 {
		t.Errorf("%d keys moved, want at least meta, records and log", moved)
	}
	m.recovered("Cluster slot move", began, open())
	if n, err := to.ClusterCountKeysInSlot(ctx, int(slot)).Result(); err != nil || n < 3 {
		t.Errorf("%d keys of the node on the new server, err %v", n, err)
	}
	m.noCallLost()
}

// A daemon dies in the middle of the chunks of a full publication: readers go on
// with what was there, and its next life is not disturbed by the rest.
func TestFaultKilledWhilePublishing(t *testing.T) {
	t.Parallel()
	server := registrytest.StartRedis(t)
	proxy := registrytest.StartProxy(t, server.Addr())
	open := func() registry.Backend { return opened(t, redisstore.Options{URL: server.URL()}) }
	m := startMesh(t, open, opened(t, redisstore.Options{URL: proxy.URL()}))
	before := view(m.dns.r)
	proxy.CutAfter(1_000_000) // of about 1,750,000, of which some 700,000 travel at once
	m.london.boot("core-l2", count(1000, 11000)...)
	registrytest.WaitFor(t, "the cut", proxy.IsCut)
	m.london.kill()
	raw := rawClient(t, server.URL())
	hashes, err := raw.Keys(context.Background(), "pbxmesh:{london}:rec:*").Result()
	if err != nil || len(hashes) != 2 {
		t.Errorf("hashes of records %v, err %v; want the old one and a part of the new one", hashes, err)
	}
	registrytest.WaitFor(t, "the lease to end", func() bool { return !member(m.dns, "london").LeaseHeld })
	if !maps.Equal(view(m.dns.r), before) {
		t.Error("half a publication was read")
	}
	began := time.Now()
	m.london = start(t, "london", open(), tuning{})
	m.london.boot("core-l2", count(1000, 11000)...)
	m.recovered("killed while publishing", began, open())
	m.noCallLost()
}

// A node gets another name, and later is removed for good.
func TestFaultRenamedAndRemoved(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		buffalo, london, dns := three(t, f)
		london.stop()
		paris := start(t, "paris", f.store, tuning{})
		began := time.Now()
		paris.boot("core-l1", count(30, 60)...) // the switch went on
		converge(t, []*daemon{buffalo, paris}, dns)
		t.Logf("renamed: converged after %.2f s", time.Since(began).Seconds())
		converge(t, []*daemon{buffalo, paris}, start(t, "", f.store, tuning{}))
		// The old name comes back, with a switch of its own.
		back := start(t, "london", f.store, tuning{})
		back.boot("core-l9", 1, 2, 3)
		converge(t, []*daemon{buffalo, paris, back}, dns)

		back.kill()
		began = time.Now()
		if err := f.store.Forget(context.Background(), "london"); err != nil {
			t.Fatal(err)
		}
		converge(t, []*daemon{buffalo, paris}, dns)
		t.Logf("removed: converged after %.2f s", time.Since(began).Seconds())
	})
}

// Clocks five minutes apart, in both directions: nobody takes a device for
// expired that is not, and the order of changes does not depend on clocks.
func TestFaultClocksApart(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, f faults) {
		const apart = 5 * time.Minute
		slow, fast := start(t, "buffalo", f.store, tuning{off: -apart}), start(t, "london", f.store, tuning{off: apart})
		dns := start(t, "", f.store, tuning{})
		slow.boot("core-b1", count(0, 20)...)
		fast.boot("core-l1", count(10, 30)...)
		converge(t, []*daemon{slow, fast}, dns)

		// Two minutes left, each by its own clock.
		for _, d := range []*daemon{slow, fast} {
			reg := device(d.id, 500)
			reg.Expires = d.now().Add(2 * time.Minute).Truncate(time.Millisecond).UTC()
			d.held[500] = reg
			d.w.Put(reg)
		}
		converge(t, []*daemon{slow, fast}, dns)
		began := time.Now()
		for _, d := range []*daemon{slow, fast, dns} {
			registrytest.WaitFor(t, string(d.id)+" to hold both devices as living two minutes longer", func() bool {
				regs := d.r.Lookup(device("buffalo", 500).AOR)
				for _, reg := range regs {
					if left := reg.Expires.Sub(d.now()); (left - 2*time.Minute).Abs() > registry.MaxSkew {
						return false
					}
				}
				return len(regs) == 2
			})
		}
		t.Logf("expiry corrected after %.2f s", time.Since(began).Seconds())
		if m := member(dns, "london"); (m.Skew + apart).Abs() > registry.MaxSkew {
			t.Errorf("london's clock seems to be %s behind, it is %s ahead", m.Skew, apart)
		}
		slow.register(600)
		slow.unregister(0, 1)
		fast.boot("core-l2", 11, 12)
		converge(t, []*daemon{slow, fast}, dns)
		if st := dns.r.Stats(); st.Drift != 0 {
			t.Errorf("the correction looks like drift: %+v", st)
		}
	})
}
