package registry

import (
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pbxmesh"
)

const million = 1_000_000

// fill puts n registrations of 50 nodes into a replica.
func fill(b *testing.B, n int) *Replica {
	b.Helper()
	r := NewReplica(ReplicaOptions{})
	const nodes = 50
	for node := range nodes {
		id := pbxmesh.NodeID("node" + string(rune('a'+node/26)) + string(rune('a'+node%26)))
		ns := r.node(id)
		all := make([]staged, 0, n/nodes)
		for i := node; i < n; i += nodes {
			all = append(all, staged{reg: device(b, id, i, epoch0), seq: 1, hash: uint64(i)})
		}
		r.replace(ns, SnapshotInfo{Cursor: Cursor{Node: id, Term: 1, Seq: 1}}, all)
	}
	return r
}

func liveHeap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkReplicaBytes reports the live heap per registration of a replica of
// one million.
func BenchmarkReplicaBytes(b *testing.B) {
	for range b.N {
		before := liveHeap()
		r := fill(b, million)
		b.ReportMetric(float64(liveHeap()-before)/million, "bytes/registration")
		runtime.KeepAlive(r)
	}
}

var (
	lookupOnce    sync.Once
	lookupReplica *Replica // of a million; filling it takes longer than looking it up
)

// BenchmarkLookup looks up one of a million registrations, on all cores, while a
// writer changes them, up to 2,000 a second; changes/s says how many it got to
// when the readers take all processors.
//
// lookups/cpu-s counts processor time, the writer's included: on a machine that
// does other things too, wall time says how busy it is.
func BenchmarkLookup(b *testing.B) {
	lookupOnce.Do(func() { lookupReplica = fill(b, million) })
	r := lookupReplica
	aors := make([]pbxmesh.AOR, 0, 1<<16)
	r.Walk(func(reg *pbxmesh.Registration) bool {
		aors = append(aors, reg.AOR)
		return len(aors) < cap(aors)
	})
	stop, done := make(chan struct{}), make(chan struct{})
	var changes atomic.Int64
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			for range 20 {
				reg := device(b, "nodeaa", n%20_000*50, epoch0.Add(time.Duration(n)*time.Second))
				r.putLocal(&reg)
				n++
				changes.Add(1)
			}
		}
	}()
	b.ReportAllocs()
	before := processTime(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			if len(r.Lookup(aors[i&(len(aors)-1)])) == 0 {
				b.Error("not found")
			}
		}
	})
	b.StopTimer()
	used := processTime(b) - before
	close(stop)
	<-done
	b.ReportMetric(float64(changes.Load())/b.Elapsed().Seconds(), "changes/s")
	b.ReportMetric(float64(b.N)/used.Seconds(), "lookups/cpu-s")
}

func processTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkApply follows batches of 128 refreshes into a replica of 100,000.
func BenchmarkApply(b *testing.B) {
	r := fill(b, 100_000)
	ns := r.node("nodeaa")
	records := make([]Record, 128)
	for i := range records {
		records[i] = record(b, device(b, "nodeaa", i*50, epoch0), 0)
	}
	other := make([]Record, 128)
	for i := range other {
		other[i] = record(b, device(b, "nodeaa", i*50, epoch0.Add(time.Hour)), 0)
	}
	b.ReportAllocs()
	seq := uint64(1)
	for b.Loop() {
		seq++
		batch := Batch{Node: "nodeaa", Term: 1, Seq: seq, Prev: seq - 1, Records: records}
		if seq%2 == 0 {
			batch.Records = other
		}
		for i := range batch.Records {
			batch.Records[i].Seq = seq
		}
		if r.follow(ns, &batch) == batchGap {
			b.Fatal("gap")
		}
	}
	b.ReportMetric(128*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkReplace reads 20,000 registrations of one node again, all changed.
func BenchmarkReplace(b *testing.B) {
	r := fill(b, 100_000)
	ns := r.node("nodeaa")
	var sets [2][]staged
	for i := range 20_000 {
		for k := range sets {
			sets[k] = append(sets[k], staged{reg: device(b, "nodeaa", i*50, epoch0.Add(time.Duration(k)*time.Hour)), seq: 1})
		}
	}
	b.ReportAllocs()
	term := uint64(1)
	for b.Loop() {
		term++
		r.replace(ns, SnapshotInfo{Cursor: Cursor{Node: "nodeaa", Term: term, Seq: 1}}, sets[term%2])
	}
	b.ReportMetric(20_000*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}
