package traffic_test

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"pbxmesh/registry/registrytest"
)

// stores is a primary beside one region, and a replica of it beside the other one.
type stores struct {
	t                 *testing.T
	primary, replica  *registrytest.Redis
	home, far, mirror *registrytest.Proxy // from one region to the primary, from the other, from the replica
	raw               []*redis.Client     // of the primary and the replica
	trip              time.Duration
}

func startStores(t *testing.T, rtt time.Duration) *stores {
	t.Helper()
	s := &stores{t: t, trip: rtt, primary: registrytest.StartRedis(t)}
	s.home = registrytest.StartProxy(t, s.primary.Addr())
	s.far = registrytest.StartProxy(t, s.primary.Addr())
	s.mirror = registrytest.StartProxy(t, s.primary.Addr())
	s.far.SetDelay(rtt / 2)
	s.mirror.SetDelay(rtt / 2)
	s.replica = registrytest.StartReplica(t, s.mirror.Addr())
	for _, server := range []*registrytest.Redis{s.primary, s.replica} {
		client := redis.NewClient(&redis.Options{Addr: server.Addr()})
		t.Cleanup(func() { _ = client.Close() })
		s.raw = append(s.raw, client)
	}
	return s
}

// counters are those of INFO: commands (those within scripts included), bytes, and calls by
// name.
type counters struct {
	commands, in, out float64
	calls             map[string]float64
}

func (s *stores) counters(of *redis.Client) counters {
	s.t.Helper()
	text, err := of.Info(s.t.Context(), "stats", "commandstats").Result()
	if err != nil {
		s.t.Fatal(err)
	}
	c := counters{calls: map[string]float64{}}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		number := func(text string) float64 { f, _ := strconv.ParseFloat(text, 64); return f }
		switch {
		case name == "total_commands_processed":
			c.commands = number(value)
		case name == "total_net_input_bytes":
			c.in += number(value)
		case name == "total_net_output_bytes":
			c.out += number(value)
		case name == "total_net_repl_input_bytes":
			c.in += number(value)
		case name == "total_net_repl_output_bytes":
			c.out += number(value)
		case strings.HasPrefix(name, "cmdstat_"):
			calls, _, _ := strings.Cut(strings.TrimPrefix(value, "calls="), ",")
			c.calls[strings.TrimPrefix(name, "cmdstat_")] = number(calls)
		}
	}
	return c
}

// traffic is what was asked of both servers in some time.
type traffic struct {
	s      *stores
	began  time.Time
	before [2]counters
}

func (s *stores) watch() *traffic {
	return &traffic{s: s, began: time.Now(), before: [2]counters{s.counters(s.raw[0]), s.counters(s.raw[1])}}
}

// print prints what was asked since, by server and in all; with most, the commonest commands.
func (w *traffic) print(most int) {
	w.s.t.Helper()
	took := time.Since(w.began).Seconds()
	var all counters
	for i, server := range []string{"primary", "replica"} {
		now, before := w.s.counters(w.s.raw[i]), w.before[i]
		commands, in, out := (now.commands-before.commands)/took, (now.in-before.in)/took/1000, (now.out-before.out)/took/1000
		all.commands, all.in, all.out = all.commands+commands, all.in+in, all.out+out
		w.s.t.Logf("  %-8s %6.0f commands/s, %6.1f kB/s in, %6.1f kB/s out, replication included", server, commands, in, out)
		var list []string
		for _, name := range slices.SortedFunc(maps.Keys(now.calls), func(a, b string) int {
			return int(now.calls[b] - before.calls[b] - now.calls[a] + before.calls[a])
		}) {
			if rate := (now.calls[name] - before.calls[name]) / took; rate >= 1 && len(list) < most {
				list = append(list, name+" "+strconv.FormatFloat(rate, 'f', 0, 64))
			}
		}
		if len(list) > 0 {
			w.s.t.Logf("           by name: %s", strings.Join(list, ", "))
		}
	}
	w.s.t.Logf("  in all   %6.0f commands/s, %6.1f kB/s", all.commands, all.in+all.out)
}

// settle waits until no more is asked of the primary in five seconds than in those before, four
// minutes at most: nodes that were just started come back step by step, and observers say so.
func (s *stores) settle() time.Duration {
	s.t.Helper()
	const window = 5 * time.Second
	began, last := time.Now(), math.Inf(1)
	for quiet := 0; quiet < 3 && time.Since(began) < 4*time.Minute; {
		before := s.counters(s.raw[0]).commands
		time.Sleep(window)
		now := s.counters(s.raw[0]).commands - before
		if quiet++; now < 0.9*last {
			last, quiet = now, 0
		}
	}
	return time.Since(began)
}
