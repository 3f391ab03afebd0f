package latency

import (
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"
)

func only(t *testing.T, e *Estimates, at time.Time) entry {
	t.Helper()
	all := e.entries(at)
	if len(all) != 1 {
		t.Fatalf("%d networks, want 1", len(all))
	}
	return all[0]
}

func TestEstimateIsALowQuantileThatForgets(t *testing.T) {
	t.Parallel()
	type step struct {
		rtt   float64
		after time.Duration
	}
	for _, tt := range []struct {
		name  string
		steps []step
		want  float64
	}{
		{"one sample", []step{{40, 0}}, 40},
		{"noise only adds", []step{{40, 0}, {55, 0}, {41, 0}, {240, 0}}, 40.5},
		{"one lucky sample of eight is no quantile", []step{{40, 0}, {41, 0}, {42, 0}, {43, 0}, {44, 0}, {45, 0}, {46, 0}, {47, 0}}, 41.5},
		{"three slower ones may be noise", []step{{40, 0}, {41, 0}, {40, 0}, {90, 0}, {95, 0}, {92, 0}}, 40.25},
		{"four slower ones are another route", []step{{40, 0}, {41, 0}, {40, 0}, {90, 0}, {95, 0}, {92, 0}, {93, 0}}, 91},
		{"four that are a little slower are not", []step{{40, 0}, {41, 0}, {40, 0}, {48, 0}, {48, 0}, {48, 0}, {48, 0}}, 40.25},
		{"one faster sample after a pause is another route", []step{{120, 0}, {121, 0}, {122, 0}, {121, 0}, {70, 40 * time.Minute}}, 70},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			e, now := NewEstimates(Options{}), epoch
			for _, s := range tt.steps {
				now = now.Add(s.after)
				e.Add(Sample{Client: addr("198.51.100.7"), RTT: ms(s.rtt), At: now})
			}
			if got := only(t, e, now).estimate.ms(); got != tt.want {
				t.Errorf("%v ms, want %v", got, tt.want)
			}
		})
	}
}

// A challenge is a multiple of the tick; the mean around the low quantile is not.
func TestTheTickIsTakenOut(t *testing.T) {
	t.Parallel()
	e := NewEstimates(Options{})
	add := func(rtt float64, challenge bool) {
		e.Add(Sample{Client: addr("198.51.100.7"), RTT: ms(rtt), At: epoch, Visit: challenge})
	}
	for _, rtt := range []float64{20, 40, 40, 20, 140} { // 30 ms, as a real switch shows it
		add(rtt, true)
	}
	if got := only(t, e, epoch).estimate.ms(); got != 30 {
		t.Errorf("%v ms, want 30", got)
	}
	// What the switch timed itself counts ten times as much.
	add(33, false)
	add(33.5, false)
	if got := only(t, e, epoch).estimate.ms(); got < 32.5 || got > 34 {
		t.Errorf("%v ms, want what the switch timed", got)
	}
}

func TestSamplesByNetwork(t *testing.T) {
	t.Parallel()
	e := NewEstimates(Options{})
	for client, network := range map[string]string{
		"198.51.100.7": "198.51.100.0/24", "198.51.100.200": "198.51.100.0/24", "::ffff:198.51.100.9": "198.51.100.0/24",
		"2001:db8:1:2::3": "2001:db8:1::/48", "2001:db8:1:ffff::1": "2001:db8:1::/48", "fe80::1%eth0": "fe80::/48",
	} {
		e.Add(Sample{Client: addr(client), RTT: ms(20), At: epoch})
		if got, ok := networkOf(addr(client)); !ok || got.String() != network {
			t.Errorf("%s: %v, want %s", client, got, network)
		}
	}
	if s := e.Stats(); s.Networks != 3 || s.Samples != 6 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
	for _, s := range []Sample{
		{Client: addr("198.51.100.7"), RTT: maxRTT + 1, At: epoch}, {Client: addr("198.51.100.7"), RTT: -1, At: epoch},
		{RTT: ms(1), At: epoch}, {Client: addr("0.0.0.0"), RTT: ms(1), At: epoch}, {Client: addr("ff02::1"), RTT: ms(1), At: epoch},
		{Client: addr("203.0.113.1"), At: epoch},
	} {
		e.Add(s)
	}
	if s := e.Stats(); s.Networks != 3 || s.Refused != 6 {
		t.Errorf("after what is no sample: %+v", s)
	}
	// A visit alone counts where something was measured, and makes no network.
	e.Add(Sample{Client: addr("203.0.113.1"), Visit: true, At: epoch})
	if s := e.Stats(); s.Networks != 3 {
		t.Errorf("a visit made a network: %+v", s)
	}
}

func TestMemoryIsBoundedAndTheLeastUsefulGoes(t *testing.T) {
	t.Parallel()
	e := NewEstimates(Options{MaxNetworks: 64})
	busy := addr("198.51.100.1")
	for i := range 1000 {
		now := epoch.Add(time.Duration(i) * time.Second)
		e.Add(Sample{Client: netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 1}), RTT: ms(10), At: now, Visit: true})
		if i%10 == 0 {
			e.Add(Sample{Client: busy, RTT: ms(10), At: now, Visit: true})
		}
	}
	s := e.Stats()
	if s.Networks > 64 || s.Evicted < 900 {
		t.Errorf("%+v, want at most 64 networks", s)
	}
	found := false
	for _, entry := range e.entries(epoch.Add(1000 * time.Second)) {
		found = found || entry.network.Contains(busy)
	}
	if !found {
		t.Error("the busiest network had to go")
	}
}

func TestOldNetworksGo(t *testing.T) {
	t.Parallel()
	e := NewEstimates(Options{})
	e.Add(Sample{Client: addr("198.51.100.7"), RTT: ms(20), At: epoch, Visit: true})
	if got := only(t, e, epoch.Add(visitHalfLife)); math.Abs(got.visits.visits()-0.5) > 0.05 || got.age != 5 {
		t.Errorf("after a half-life: %+v", got)
	}
	if got := e.entries(epoch.Add(keep + 2*time.Second)); len(got) != 0 {
		t.Errorf("%v is remembered", got)
	}
}

func TestChunksCarryEntries(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.shows("london", "198.51.100.7", 20, 3)
	m.shows("london", "2001:db8:5::1", 31.3, 2)
	m.now = m.now.Add(3 * time.Minute)
	want := m.estimates["london"].entries(m.now)
	asOf, got, err := decodeChunk(encodeChunk(m.now, want))
	if err != nil || !asOf.Equal(m.now.Truncate(time.Second)) || fmt.Sprint(got) != fmt.Sprint(want) || len(got) != 2 {
		t.Errorf("%v %v %v, want %v", asOf, got, err, want)
	}
	if got[1].estimate.ms() != 31.25 || got[0].age != 3 || got[0].samples != 3 || got[0].phones != 1 || math.Abs(got[0].seen.visits()-1) > 0.1 {
		t.Errorf("%+v", got)
	}
}

func TestPublisherPostsWhatChanged(t *testing.T) {
	t.Parallel()
	e := NewEstimates(Options{MaxNetworks: MaxNetworks})
	p := NewPublisher(e)
	now := epoch
	post := func(limit int) []Chunk {
		due := p.Due(now, limit)
		for _, c := range due {
			if len(c.Value) > MaxChunkLen {
				t.Fatalf("chunk of %d bytes", len(c.Value))
			}
			p.Posted(c)
		}
		return due
	}
	if due := post(9); len(due) != 0 {
		t.Fatalf("%d chunks of nothing", len(due))
	}
	e.Add(Sample{Client: addr("198.51.100.7"), RTT: ms(20), At: now, Visit: true})
	due := p.Due(now, 9)
	if len(due) != 1 || due[0].Number != 0 {
		t.Fatalf("%v, want chunk 0", due)
	}
	if again := p.Due(now, 9); len(again) != 1 {
		t.Fatalf("what was not posted is not due again: %v", again)
	}
	p.Posted(due[0])
	if due := post(9); len(due) != 0 {
		t.Fatalf("nothing changed, yet %d chunks", len(due))
	}
	now = now.Add(RefreshAfter)
	if due := post(9); len(due) != 1 {
		t.Fatalf("not refreshed: %d chunks", len(due))
	}
	// More networks than a chunk holds are spread, in rounds of the pace.
	for i := range 20_000 {
		e.Add(Sample{Client: netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}), RTT: ms(float64(1 + i%300)), At: now, Visit: true})
	}
	seen := make(map[int]bool)
	rounds := 0
	for due := post(4); len(due) > 0; due = post(4) {
		if rounds++; len(due) > 4 || rounds > 20 {
			t.Fatalf("round %d: %d chunks", rounds, len(due))
		}
		for _, c := range due {
			seen[c.Number] = true
		}
	}
	if len(seen) != 32 {
		t.Errorf("%d chunks, want 32", len(seen))
	}
	// Fewer networks take the chunks back that are not needed any more.
	now = now.Add(keep + time.Hour)
	e.Add(Sample{Client: addr("198.51.100.7"), RTT: ms(20), At: now, Visit: true})
	back := 0
	for due := post(8); len(due) > 0; due = post(8) {
		for _, c := range due {
			if c.Value == "" {
				back++
			}
		}
	}
	if back != 31 {
		t.Errorf("%d chunks were taken back, want 31", back)
	}
}
