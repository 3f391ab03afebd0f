package esl

import (
	"context"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

// BenchmarkEvents measures recorded sofia::register events from a socket to the
// handler, which reads what the feed reads.
func BenchmarkEvents(b *testing.B) {
	raw, err := os.ReadFile("testdata/events-register-unregister.txt")
	if err != nil {
		b.Fatal(err)
	}
	event := strings.Split(string(raw), "\n--\n")[2] + "\n"
	chunk := strings.Repeat(eventFrame(event), 100)
	const perChunk = 100
	start := make(chan int)
	sw := newTestSwitch(b, func(w *wire) {
		if !w.greet() {
			return
		}
		for range <-start {
			if _, err := w.Write([]byte(chunk)); err != nil {
				return
			}
		}
		w.hang()
	})
	var n atomic.Int64
	done := make(chan struct{})
	total := int64((b.N + perChunk - 1) / perChunk * perChunk)
	dialTest(b, Config{Address: sw.addr(), OnEvent: func(e *Event) {
		if e.Get("from-user") != "1001" || e.Get("contact") == "" || e.Sequence() != 491 || e.Get("call-id") == "" {
			b.Error("wrong event")
		}
		if n.Add(1) == total {
			close(done)
		}
	}})
	b.SetBytes(int64(len(eventFrame(event))))
	b.ReportAllocs()
	b.ResetTimer()
	start <- int(total / perChunk)
	<-done
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkAPI measures one command and its reply over loopback.
func BenchmarkAPI(b *testing.B) {
	sw := newTestSwitch(b, func(w *wire) {
		if w.greet() {
			w.obey()
		}
	})
	c := dialTest(b, Config{Address: sw.addr()})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.API(context.Background(), "uptime"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCall measures an outbound call from connecting to the handler's first
// command at the switch, and until the socket is closed.
func BenchmarkCall(b *testing.B) {
	connect, _ := recording(b, "outbound-socket-answered.txt")
	_, addr := startServer(b, ServerConfig{Handler: func(ctx context.Context, c *Call) {
		_ = c.Execute(ctx, "bridge", "sofia/mesh/sip:"+c.Get("Caller-Destination-Number")+"@x")
	}})
	b.ReportAllocs()
	for b.Loop() {
		w := channel(b, addr)
		_, _, _ = w.command()
		w.say("%s", connect)
		if lines, _, err := w.command(); err != nil || len(lines) != 4 {
			b.Fatal(lines, err)
		}
		w.ok()
		_, _ = w.r.ReadByte()
		w.Close()
	}
}
