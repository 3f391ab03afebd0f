package native

import (
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// BenchmarkRealSwitch measures what a real switch makes of many rows: the time
// until the last of them answers, what the switch takes for it, and the time until
// all are gone after their node was lost. Run it with -benchtime 1x.
func BenchmarkRealSwitch(b *testing.B) {
	for _, n := range []int{10_000, 50_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			node := startReal(b, "buffalo", "127.0.84.1")
			for b.Loop() {
				benchRows(b, node, n)
			}
		})
	}
}

func benchRows(b *testing.B, n *realNode, users int) {
	w := newWorld()
	up := netip.MustParseAddrPort(london)
	w.setNode("london", up, pbxmesh.ObservedUp, pbxmesh.WantedInService)
	name := func(i int) string { return fmt.Sprintf("%d@t%d.test", 1000+i, i%50) }
	for i := range users {
		w.register(mustAOR(b, name(i)), "london", time.Hour)
	}
	memory, cpu := usage(b, n.PID())
	rows := NewRows(RowsOptions{ESL: n.esl(), Local: "buffalo", Directory: w, Nodes: w})
	stop := start(b, rows.Run)
	began := time.Now()
	rows.Resync()
	eventually(b, 5*time.Minute, func() string {
		if s := rows.Stats(); s.Injected < uint64(users) {
			return fmt.Sprintf("%+v", s)
		}
		return ""
	})
	acked := time.Since(began)
	count := func() int { return strings.Count(n.api("sofia xmlstatus profile mesh reg"), "<call-id>") }
	// The list itself stalls the writing when it is asked for all the time.
	eventually(b, 5*time.Minute, func() string {
		for i := range 20 {
			if s := name(i * (users - 1) / 19); n.api("sofia_contact */"+s) == nobody {
				return s + " is not there"
			}
		}
		return ""
	})
	// A sample is not all: the switch hands events to several threads. Asked twice a
	// second only, for the same reason as above.
	var asked time.Time
	eventually(b, 2*time.Minute, func() string {
		if time.Since(asked) < 500*time.Millisecond {
			return "not asked yet"
		}
		asked = time.Now()
		if got := count(); got != users {
			return fmt.Sprintf("%d rows, want %d", got, users)
		}
		return ""
	})
	visible := time.Since(began)
	b.ReportMetric(float64(users)/acked.Seconds(), "inject/s")
	b.ReportMetric(visible.Seconds(), "s-usable")
	memory2, cpu2 := usage(b, n.PID())
	b.ReportMetric(float64(memory2-memory)/1024, "MiB-switch")
	b.ReportMetric((cpu2 - cpu).Seconds(), "s-switch-cpu")

	t := time.Now()
	for i := range 200 {
		n.api("sofia_contact */" + name(i*37%users))
	}
	b.ReportMetric(time.Since(t).Seconds()*1e6/200, "µs-contact")
	t = time.Now()
	_ = count()
	b.ReportMetric(time.Since(t).Seconds(), "s-list")

	w.setNode("london", up, pbxmesh.ObservedDown, pbxmesh.WantedInService)
	began = time.Now()
	rows.NodesChanged()
	eventually(b, 5*time.Minute, func() string {
		if s := rows.Stats(); s.Removed < uint64(users) {
			return fmt.Sprintf("%+v", s)
		}
		if got := count(); got != 0 {
			return fmt.Sprintf("%d rows", got)
		}
		return ""
	})
	b.ReportMetric(time.Since(began).Seconds(), "s-gone")
	stop()
}

// usage returns a process's resident memory in KiB and its CPU time.
func usage(b *testing.B, pid int) (kib int, cpu time.Duration) {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Skip("needs /proc")
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, _ = strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	fields := strings.Fields(string(stat)[strings.LastIndexByte(string(stat), ')')+1:])
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return kib, time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}
