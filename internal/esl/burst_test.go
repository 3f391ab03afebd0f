package esl

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestBurst sends 10,000 events at once, with a switch that hangs up right behind
// them: all arrive, in order, and the goroutines stay bounded although the handler
// is slower than the switch. Not parallel: it counts goroutines.
func TestBurst(t *testing.T) {
	const events = 10000
	sw := newTestSwitch(t, func(w *wire) {
		if !w.greet() {
			return
		}
		var b strings.Builder
		for i := range events {
			b.WriteString(eventFrame(fmt.Sprintf("Event-Name: CUSTOM\nEvent-Sequence: %d\nfiller: %s\n\n", i, strings.Repeat("x", 500))))
		}
		w.say("%s", b.String())
	})
	before := runtime.NumGoroutine()
	var mu sync.Mutex
	var got []uint64
	most := 0
	c := dialTest(t, Config{Address: sw.addr(), OnEvent: func(e *Event) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, e.Sequence())
		if len(got)%100 == 0 {
			most = max(most, runtime.NumGoroutine())
			time.Sleep(100 * time.Microsecond) // slower than the switch
		}
	}})
	eventually(t, "all events", func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= events })
	recv(t, "Done", c.Done())
	c.Close()
	for i, seq := range got {
		if seq != uint64(i) {
			t.Fatalf("event %d has sequence %d: order or an event is lost", i, seq)
		}
	}
	if len(got) != events {
		t.Errorf("%d events of %d", len(got), events)
	}
	// The test switch has two goroutines, the session four, eslgo four.
	if limit := before + windowBatches + 12; most > limit {
		t.Errorf("%d goroutines during the burst, at most %d are allowed", most, limit)
	}
}

// TestBackPressure: a handler that stands still makes the guard stop reading, so
// the switch's socket fills up instead of our memory.
func TestBackPressure(t *testing.T) {
	t.Parallel()
	var sent atomic.Int64
	frame := eventFrame("Event-Name: X\nfiller: " + strings.Repeat("x", 60<<10) + "\n\n")
	sw := newTestSwitch(t, func(w *wire) {
		if !w.greet() {
			return
		}
		for {
			if _, err := w.Write([]byte(frame)); err != nil {
				return
			}
			sent.Add(1)
		}
	})
	block := make(chan struct{})
	c := dialTest(t, Config{Address: sw.addr(), OnEvent: func(*Event) { <-block }})
	last, since := int64(-1), time.Now()
	eventually(t, "the switch is held back", func() bool {
		if n := sent.Load(); n != last {
			last, since = n, time.Now()
		}
		return last > 0 && time.Since(since) > 300*time.Millisecond
	})
	// 32 batches of 64 kB, and what the sockets of this machine hold.
	if last > 1000 {
		t.Errorf("%d events of 60 kB were taken while none was handled", last)
	}
	select {
	case <-c.Done():
		t.Errorf("a slow handler ended the connection: %v", c.Err())
	default:
	}
	close(block)
	c.Close()
}
