package latency

import (
	"net/netip"
	"testing"
	"time"
)

// BenchmarkJoin is what one query costs at a busy node: full blocks around it, and a resolver with as
// many candidates as it may have.
func BenchmarkJoin(b *testing.B) {
	f := NewFollowers()
	for i := range 6 {
		start := epoch.Add(time.Duration(i) * ArrivalsEvery)
		var list []arrival
		for k := range maxArrivals {
			list = append(list, arrival{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k >> 8), byte(k), 0}), 24), start.UnixMilli() + int64(k)*58})
		}
		if err := f.Arrived("london/0", encodeArrivals(start, list, maxArrivals), epoch); err != nil {
			b.Fatal(err)
		}
	}
	a := Asked{addr(resolverA), "london", epoch.Add(80 * time.Second)}
	f.Ask([]Asked{a})
	f.nodes["london"].lags[16] = 100
	b.ReportAllocs()
	for b.Loop() {
		if !f.join(a) {
			b.Fatal("not joined")
		}
		f.nodes["london"].lags[16] = 1e9 // clearly some follow
	}
}

// BenchmarkBehind is what finding out costs for one such resolver.
func BenchmarkBehind(b *testing.B) {
	r := &resolver{candidates: make(map[netip.Prefix]*candidate), among: 20_000}
	for k := range maxCandidates {
		r.candidates[netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(k >> 8), byte(k), 0}), 24)] = &candidate{float64(k % 7), 0.5}
	}
	for b.Loop() {
		r.behind()
	}
}
