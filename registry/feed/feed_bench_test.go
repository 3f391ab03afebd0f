package feed

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// discard is a Sink that only counts.
type discard struct{ puts, removes int }

func (d *discard) Reset(string, []pbxmesh.Registration) {}
func (d *discard) Put(pbxmesh.Registration)             { d.puts++ }
func (d *discard) Remove(pbxmesh.RegistrationID)        { d.removes++ }

// benchEvents returns register events as recorded (refreshes of users phones, every
// tenth an unregister), numbered from first on.
func benchEvents(b *testing.B, n, users int, first uint64) []string {
	b.Helper()
	raw := recorded(b, "events-register-unregister.txt")
	reg, unreg := raw[2], raw[5]
	out := make([]string, n)
	for i := range out {
		text, seq := reg, "Event-Sequence: 491\n"
		if i%10 == 9 {
			text, seq = unreg, "Event-Sequence: 498\n"
		}
		user := fmt.Sprint(10000 + i%users)
		out[i] = strings.NewReplacer(
			seq, fmt.Sprintf("Event-Sequence: %d\n", first+uint64(i)),
			"from-user: 1001\n", "from-user: "+user+"\n",
			"sip%3A1001", "sip%3A"+user,
			"call-id: ", "call-id: "+user+"-",
		).Replace(text)
	}
	return out
}

// BenchmarkFeedEvents measures events from a socket to the Sink: guard, eslgo,
// decoding and table, with the sending switch in the same process.
func BenchmarkFeedEvents(b *testing.B) {
	s := newScripted(b)
	s.core = recordedCore
	sink := &discard{}
	f, _ := startFeed(b, s, func(o *Options) { o.Sink = sink; o.SnapshotEvery = time.Hour; o.SnapshotGap = time.Hour })
	connected(b, f)
	const block = 10000
	var total uint64
	var cpu time.Duration
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		events := benchEvents(b, block, 5000, 1000+total)
		total += block
		before := cpuTime(b)
		b.StartTimer()
		s.fire(events...)
		for f.events() < total {
			time.Sleep(50 * time.Microsecond)
		}
		cpu += cpuTime(b) - before
	}
	if sink.puts == 0 || f.Status().Refused+f.Status().Ignored != 0 {
		b.Fatalf("%+v", f.Status())
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(total)/cpu.Seconds(), "events/s/core")
}

// cpuTime is what the process has used of all cores, the sending switch included:
// it tells events per core also where several cores share the work.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func (f *Feed) events() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status.Events
}

// BenchmarkFeedApply measures decoding and table alone.
func BenchmarkFeedApply(b *testing.B) {
	f := newScriptedFeed(b)
	f.opts.Sink = &discard{}
	f.table.sink = f.opts.Sink
	f.table.epoch = recordedCore
	texts := benchEvents(b, 10000, 5000, 1)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if i == len(texts) {
			f.table.snapshot(nil, 0, testNow)
			i = 0
		}
		f.onEvent(esl.ParseEvent(texts[i]))
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkFeedSnapshot measures a profile with 10,000 phones that did not change.
func BenchmarkFeedSnapshot(b *testing.B) {
	s := newScripted(b)
	for i := range 10000 {
		u := fmt.Sprint(10000 + i)
		s.rows["internal"] = append(s.rows["internal"], row{user: u + "@pbx.test", contact: "sip:" + u + "@192.0.2.1:5060;fs_nat=yes", call: u + "-3848276298220188511@192.0.2.1", expsecs: 3000})
	}
	s.mu.Lock()
	reply := s.xml("internal", "")
	s.mu.Unlock()
	f := newScriptedFeed(b)
	b.SetBytes(int64(len(reply)))
	b.ReportAllocs()
	for b.Loop() {
		var rows []binding
		if err := parseRows(reply, "internal", func(row fields, host string, cut bool) {
			if b, ok := f.fromRow(row, host, cut, readAt{"internal", testNow}); ok {
				rows = append(rows, b)
			}
		}); err != nil || len(rows) != 10000 {
			b.Fatal(len(rows), err)
		}
		f.table.snapshot(rows, 0, testNow)
	}
}
