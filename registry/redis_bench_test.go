package registry_test

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

func redisStore(b *testing.B) registry.Backend {
	b.Helper()
	server := registrytest.StartRedis(b)
	store, err := redisstore.New(redisstore.Options{URL: server.URL()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = store.Close() })
	return store
}

// BenchmarkVisible measures from Put on one node to Lookup's truth on another,
// through a real Redis, at 2,000 changes a second.
func BenchmarkVisible(b *testing.B) {
	store := redisStore(b)
	began := make(map[string]time.Time, b.N)
	seen := make(chan *pbxmesh.Registration, b.N+1)
	reader := registry.NewReplica(registry.ReplicaOptions{OnChange: func(c registry.Change) {
		if c.New != nil {
			seen <- c.New
		}
	}})
	local := registry.NewReplica(registry.ReplicaOptions{Local: "buffalo"})
	w, err := registry.NewWriter(registry.WriterOptions{Node: pbxmesh.Node{ID: "buffalo"}, Replica: local, Backend: store})
	if err != nil {
		b.Fatal(err)
	}
	s, err := registry.NewSync(registry.SyncOptions{Replica: reader, Backend: store})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() { _ = w.Run(ctx); done <- struct{}{} }()
	go func() { _ = s.Run(ctx); done <- struct{}{} }()
	w.Reset("core", []pbxmesh.Registration{device("buffalo", -1)})
	<-seen
	// The reader has read everything; from here on it follows.
	registrytest.WaitFor(b, "the reader to follow", func() bool { return s.Status().Following == 1 })
	took := make([]time.Duration, 0, b.N)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	<-tick.C
	tick.Reset(5 * time.Millisecond)
	b.ResetTimer()
	// By the clock: a busy machine drops ticks, and the rate must not fall.
	for n, first := 0, time.Now(); n < b.N; {
		<-tick.C
		for range min(int(time.Since(first).Seconds()*2000)-n, b.N-n) {
			reg := device("buffalo", n)
			began[reg.CallID] = time.Now()
			w.Put(reg)
			n++
		}
		for len(seen) > 0 {
			took = append(took, time.Since(began[(<-seen).CallID]))
		}
	}
	for len(took) < b.N {
		took = append(took, time.Since(began[(<-seen).CallID]))
	}
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "changes/s")
	stop()
	<-done
	<-done
}

// BenchmarkColdSync reads all registrations from a real Redis into an empty
// replica. It also reports what one costs there.
func BenchmarkColdSync(b *testing.B) {
	for _, size := range []struct{ nodes, each int }{{10, 10_000}, {50, 20_000}} {
		total := size.nodes * size.each
		b.Run(fmt.Sprint(total), func(b *testing.B) {
			if testing.Short() && total > 100_000 {
				b.Skip("fills a Redis with a million registrations")
			}
			server := registrytest.StartRedis(b)
			store, err := redisstore.New(redisstore.Options{URL: server.URL()})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { _ = store.Close() })
			raw := rawClient(b, server.URL())
			empty := usedMemory(b, raw)
			for node := range size.nodes {
				publishNode(b, store, pbxmesh.NodeID(fmt.Sprintf("node%d", node)), node*size.each, size.each)
			}
			perReg := float64(usedMemory(b, raw)-empty) / float64(total)
			for b.Loop() {
				readAll(b, store, 3*time.Minute, int64(total))
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/sync")
			b.ReportMetric(perReg, "redis-bytes/registration")
		})
	}
}

func usedMemory(b *testing.B, raw *redis.Client) int64 {
	b.Helper()
	info, err := raw.InfoMap(context.Background(), "memory").Result()
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(info["Memory"]["used_memory"], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// publishNode fills the store as a daemon of id does, and leaves.
func publishNode(b *testing.B, store registry.Backend, id pbxmesh.NodeID, first, n int) {
	b.Helper()
	local := registry.NewReplica(registry.ReplicaOptions{Local: id})
	w, err := registry.NewWriter(registry.WriterOptions{Node: pbxmesh.Node{ID: id}, Replica: local, Backend: store})
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = w.Run(context.Background()); close(done) }()
	regs := make([]pbxmesh.Registration, n)
	for i := range regs {
		regs[i] = benchDevice(id, first+i)
	}
	w.Reset("core-"+string(id), regs)
	waitLonger(b, time.Minute, "the publication", func() bool { return w.Status().Publications == 1 })
	_ = w.Close()
	<-done
}

// benchDevice is a typical registration, so that its size is.
func benchDevice(id pbxmesh.NodeID, n int) pbxmesh.Registration {
	reg := device(id, n)
	reg.CallID = fmt.Sprintf("%08x-%04x-4c1b-a1d2@198.51.100.7", n, n&0xffff)
	reg.Contact = fmt.Sprintf("sip:%d@198.51.%d.%d:5060;transport=udp", 1000+n, n>>8&255, n&255)
	reg.Source = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(n >> 8), byte(n)}), 5060)
	reg.UserAgent = fmt.Sprintf("Yealink SIP-T46S 66.85.0.%d", n%20)
	return reg
}

// BenchmarkRefreshes reports what a storm costs: 100,000 phones that register again
// within a minute, and the same with every refresh published at once. It is the
// processor time of one process, with and without a second daemon in it that follows,
// and the changes that went downstream per refresh. Redis is not counted.
func BenchmarkRefreshes(b *testing.B) {
	const phones, rate = 100_000, 100_000 / 60
	for _, mode := range []struct {
		name             string
		every, following bool
	}{
		{"every-published", true, false}, {"every-published-and-followed", true, true},
		{"held-back", false, false}, {"held-back-and-followed", false, true},
	} {
		b.Run(mode.name, func(b *testing.B) {
			store := redisStore(b)
			local := registry.NewReplica(registry.ReplicaOptions{Local: "buffalo"})
			w, err := registry.NewWriter(registry.WriterOptions{
				Node: pbxmesh.Node{ID: "buffalo"}, Replica: local, Backend: store, EveryRefresh: mode.every,
			})
			if err != nil {
				b.Fatal(err)
			}
			ctx, stop := context.WithCancel(context.Background())
			var tasks sync.WaitGroup
			tasks.Go(func() { _ = w.Run(ctx) })
			replicas := []*registry.Replica{local}
			if mode.following {
				replicas = append(replicas, registry.NewReplica(registry.ReplicaOptions{}))
			}
			for _, r := range replicas {
				s, err := registry.NewSync(registry.SyncOptions{Replica: r, Backend: store})
				if err != nil {
					b.Fatal(err)
				}
				tasks.Go(func() { _ = s.Run(ctx) })
			}
			regs := make([]pbxmesh.Registration, phones)
			for n := range regs {
				regs[n] = benchDevice("buffalo", n)
			}
			w.Reset("core", regs)
			for _, r := range replicas {
				registrytest.WaitFor(b, "the phones", func() bool { return r.Stats().Registrations == phones && w.Status().Publications == 1 })
			}
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			before := cpuTime(b)
			b.ResetTimer()
			for n, first := 0, time.Now(); n < b.N; {
				<-tick.C
				for range min(int(time.Since(first).Seconds()*rate)-n, b.N-n) {
					reg := &regs[n%phones]
					reg.Expires = reg.Expires.Add(time.Minute)
					w.Put(*reg)
					n++
				}
			}
			registrytest.WaitFor(b, "the last one", func() bool { return w.Status().Pending == 0 })
			b.StopTimer()
			used := cpuTime(b) - before
			b.ReportMetric(100*used.Seconds()/b.Elapsed().Seconds(), "cpu-%")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "refreshes/s")
			b.ReportMetric(float64(w.Status().Changes)/float64(b.N), "changes/refresh")
			stop()
			tasks.Wait()
		})
	}
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// readAll lets a reader read so many registrations from nothing; its end is not measured.
func readAll(b *testing.B, backend registry.Backend, most time.Duration, registrations int64) {
	b.Helper()
	reader := registry.NewReplica(registry.ReplicaOptions{})
	s, err := registry.NewSync(registry.SyncOptions{Replica: reader, Backend: backend})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = s.Run(ctx); close(done) }()
	waitLonger(b, most, "the records", func() bool { return reader.Stats().Registrations == registrations })
	b.StopTimer()
	stop()
	<-done
	b.StartTimer()
}

// BenchmarkFar publishes 200,000 registrations of one node to a Redis whose answers come after
// 150 ms, and reads a million from there.
func BenchmarkFar(b *testing.B) {
	server := registrytest.StartRedis(b)
	wire := registrytest.StartProxy(b, server.Addr())
	open := func(url string) registry.Backend {
		store, err := redisstore.New(redisstore.Options{URL: url})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = store.Close() })
		return store
	}
	far, near := open(wire.URL()), open(server.URL())
	wire.SetDelay(75 * time.Millisecond)
	b.Run("publish 200000", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			publishNode(b, far, pbxmesh.NodeID(fmt.Sprintf("far%d", n)), 0, 200_000)
			b.StopTimer()
			if err := near.Forget(b.Context(), pbxmesh.NodeID(fmt.Sprintf("far%d", n))); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/publication")
	})
	b.Run("read 1000000", func(b *testing.B) {
		const nodes, each = 50, 20_000
		for node := range nodes {
			publishNode(b, near, pbxmesh.NodeID(fmt.Sprintf("node%d", node)), node*each, each)
		}
		for b.Loop() {
			readAll(b, far, 5*time.Minute, nodes*each)
		}
		b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/sync")
	})
}
