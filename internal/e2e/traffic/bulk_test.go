package traffic_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
)

const (
	published = 200_000 // registrations of one node
	readNodes = 50
	readEach  = 20_000 // of each of these
)

// bulk publishes 200,000 registrations of one node over the long way, and reads a million: over
// it, and from the replica.
func bulk(t *testing.T, rtt time.Duration) {
	t.Helper()
	s := startStores(t, rtt)
	far := open(t, redisstore.Options{URL: s.far.URL()})
	took := publish(t, far, "far", published)
	t.Logf("%d registrations of one node are published to the primary in %.1f s", published, took.Seconds())
	near := open(t, redisstore.Options{URL: s.primary.URL()})
	if err := near.Forget(t.Context(), "far"); err != nil {
		t.Fatal(err)
	}
	for i := range readNodes {
		publish(t, near, pbxmesh.NodeID(fmt.Sprintf("node%02d", i+1)), readEach)
	}
	took = read(t, far, readNodes*readEach)
	t.Logf("%d registrations are read from the primary in %.1f s", readNodes*readEach, took.Seconds())
	took = read(t, open(t, redisstore.Options{URL: s.far.URL(), Read: s.replica.URL()}), readNodes*readEach)
	t.Logf("%d registrations are read from the replica in %.1f s", readNodes*readEach, took.Seconds())
}

func open(t *testing.T, o redisstore.Options) *redisstore.Store {
	t.Helper()
	store, err := redisstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	return store
}

// publish publishes n usual registrations of a node as its daemon does, and returns how long that
// took. The daemon then leaves.
func publish(t *testing.T, store registry.Backend, id pbxmesh.NodeID, n int) time.Duration {
	t.Helper()
	w, err := registry.NewWriter(registry.WriterOptions{
		Node: pbxmesh.Node{ID: id}, Replica: registry.NewReplica(registry.ReplicaOptions{Local: id}), Backend: store,
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = w.Run(context.Background()); close(done) }()
	regs := make([]pbxmesh.Registration, n)
	for i := range regs {
		addr := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
		regs[i] = pbxmesh.Registration{
			AOR: address(fmt.Sprint(1000+i), domainOf(string(id))), Node: id,
			CallID: fmt.Sprintf("%08x-%04x-4c1b-a1d2@198.51.100.7", i, i&0xffff), Contact: fmt.Sprintf("sip:%d@%s:5060;transport=udp", 1000+i, addr),
			Profile: "internal", Source: netip.AddrPortFrom(addr, 5060), Transport: "udp",
			UserAgent: fmt.Sprintf("Yealink SIP-T46S 66.85.0.%d", i%20), Expires: time.Now().Add(time.Hour),
		}
	}
	began := time.Now()
	w.Reset("core-"+string(id), regs)
	for deadline := began.Add(5 * time.Minute); w.Status().Publications == 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d registrations of %s were not published: %v", n, id, w.Status().Err)
		}
	}
	took := time.Since(began)
	_ = w.Close()
	<-done
	return took
}

// read reads n registrations into an empty replica, and returns how long that took.
func read(t *testing.T, store registry.Backend, n int64) time.Duration {
	t.Helper()
	reader := registry.NewReplica(registry.ReplicaOptions{})
	s, err := registry.NewSync(registry.SyncOptions{Replica: reader, Backend: store})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	began := time.Now()
	go func() { _ = s.Run(ctx); close(done) }()
	for deadline := began.Add(5 * time.Minute); reader.Stats().Registrations != n; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d registrations were read", reader.Stats().Registrations, n)
		}
	}
	took := time.Since(began)
	stop()
	<-done
	return took
}
