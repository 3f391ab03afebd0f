package probe

import (
	"context"
	"testing"

	"pbxmesh/failover"
)

// BenchmarkProbe is one OPTIONS and its answer over loopback.
func BenchmarkProbe(b *testing.B) {
	r := newResponder(b, "127.0.0.1", "200 OK")
	p, err := New(Options{OnResult: func(failover.ProbeResult) {}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	w := watch{p: p, target: target{"london", failover.PathPhones, r.addr()}}
	w.newRow()
	b.ReportAllocs()
	for b.Loop() {
		if got := w.probe(ctx); got.Outcome != failover.OutcomeOK {
			b.Fatal(got)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
