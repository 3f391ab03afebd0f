package app_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/router"
)

const million = 1_000_000

// fullReplica returns a replica of a million registrations of london, and the
// addresses of 65,536 calls to random ones of them. An address is fresh from its
// call's channel data, so each is a string of its own.
func fullReplica(b *testing.B, now time.Time) (*registry.Replica, []pbxmesh.AOR) {
	b.Helper()
	replica := registry.NewReplica(registry.ReplicaOptions{Local: "london"})
	store := memory.New(memory.Options{})
	b.Cleanup(func() { _ = store.Close() })
	writer, err := registry.NewWriter(registry.WriterOptions{Node: pbxmesh.Node{ID: "london"}, Replica: replica, Backend: store, MaxRecords: million})
	if err != nil {
		b.Fatal(err)
	}
	address := func(i int) pbxmesh.AOR {
		aor, err := pbxmesh.NewAOR(fmt.Sprint(1000+i%1000), fmt.Sprintf("tenant%d.pbx.test", i/1000))
		if err != nil {
			b.Fatal(err)
		}
		return aor
	}
	regs := make([]pbxmesh.Registration, 0, million)
	for i := range million {
		aor := address(i)
		regs = append(regs, pbxmesh.Registration{
			AOR: aor, Node: "london", CallID: fmt.Sprintf("call-%d", i), Contact: fmt.Sprintf("sip:%s@192.0.2.7:5062", aor.User()),
			Profile: "internal", Transport: "udp", Expires: now.Add(time.Hour),
		})
	}
	writer.Reset("epoch", regs)
	if n := replica.Stats().Registrations; n != million {
		b.Fatalf("the replica holds %d registrations", n)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	calls := make([]pbxmesh.AOR, 1<<16)
	for i := range calls {
		calls[i] = address(rnd.IntN(million))
	}
	return replica, calls
}

// BenchmarkDecision is what a call costs in this process, from the address to the
// plan: a look-up in the replica among 1,000,000 registrations, each call another
// user, and the decision on a mesh of three nodes. The bridge string is not in it.
func BenchmarkDecision(b *testing.B) {
	now := time.Now()
	replica, calls := fullReplica(b, now)
	mesh := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}, At: now}
	for i, id := range []pbxmesh.NodeID{"buffalo", "london", "singapore"} {
		mesh.Nodes[id] = pbxmesh.Node{ID: id, Mesh: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 5090)}
		mesh.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
	}
	runtime.GC() // what filled the replica is no part of a daemon that routes to other nodes
	n := 0
	b.ReportAllocs()
	before := processTime(b)
	for b.Loop() {
		aor := calls[n%len(calls)]
		n++
		plan := router.Decide(router.Input{
			AOR: aor, Local: "buffalo", Registrations: replica.Lookup(aor), Mesh: mesh, Now: now,
		})
		if plan.Result != router.ResultRouted {
			b.Fatalf("%s: %s", aor, plan.Result)
		}
	}
	b.ReportMetric(float64((processTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// processTime is the processor time of this process, the collector's included: on a
// machine that does other things too, wall time says how busy it is.
func processTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
