package socket

import (
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkHook starts 200 calls a second, whatever becomes of the ones before, and
// measures each from the switch's TCP connect to the arrival of the complete
// bridge command: what a caller waits for. Run it with -benchtime 2000x.
func BenchmarkHook(b *testing.B) {
	const perSecond = 200
	_, addr := start(b)
	took := make([]time.Duration, b.N)
	// What the switch says is made once: its cost is none of the hook's.
	who := dialling("1003")
	who.uuid = testUUID
	data := edit(recording(b, "connect-reply"), who.identity(who.header))
	var wg sync.WaitGroup
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	b.ResetTimer()
	for i := range b.N {
		<-tick.C
		wg.Go(func() {
			call := dialling("1003")
			call.answer = func(command string) (string, bool) {
				if command == "connect\n" {
					return data, true
				}
				return "", true
			}
			begin := time.Now()
			call.dial(b, addr)
			<-call.bridged
			took[i] = time.Since(begin)
			call.event(b, "execute-complete-failed")
			call.wait()
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	for _, q := range []struct {
		unit string
		at   int
	}{{"p50-us", 50}, {"p99-us", 99}} {
		b.ReportMetric(float64(took[min(len(took)-1, len(took)*q.at/100)].Nanoseconds())/1e3, q.unit)
	}
}
