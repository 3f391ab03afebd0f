package latency

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// visits lets an account register from an address.
func visit(a *Arrivals, phone, client string, at time.Time) {
	a.Add(Sample{Client: addr(client), Phone: phone, At: at, Visit: true})
}

func TestArrivalsAreTold(t *testing.T) {
	t.Parallel()
	a := NewArrivals()
	visit(a, "1001@x", "192.0.2.7", epoch.Add(1300*time.Millisecond))
	visit(a, "1002@x", "2001:db8:1:2::3", epoch.Add(29990*time.Millisecond))
	a.Add(Sample{Client: addr("192.0.2.9"), RTT: time.Second, At: epoch}) // a keep-alive is none
	if due := a.Due(epoch.Add(ArrivalsEvery - 1)); len(due) != 0 {
		t.Fatalf("a block that is not over is told: %v", due)
	}
	due := a.Due(epoch.Add(ArrivalsEvery))
	if len(due) != 1 {
		t.Fatalf("%d blocks", len(due))
	}
	b, err := decodeArrivals(due[0].Value)
	want := []arrival{{netip.MustParsePrefix("192.0.2.0/24"), epoch.UnixMilli() + 1250}, {netip.MustParsePrefix("2001:db8:1::/48"), epoch.UnixMilli() + 29875}}
	if err != nil || b.start != epoch.Unix() || b.weight != 1 || !slices.Equal(b.list, want) {
		t.Errorf("%+v %v, want %v", b, err, want)
	}
	// What was posted is over; that nobody came is told for a while.
	a.Posted(due[0])
	if due = a.Due(epoch.Add(2 * ArrivalsEvery)); len(due) != 1 || due[0].Number == 0 && epoch.Unix()/30%ArrivalsKept == 0 {
		t.Fatalf("an empty block: %v", due)
	}
	if b, err = decodeArrivals(due[0].Value); err != nil || len(b.list) != 0 || b.start != epoch.Unix()+30 {
		t.Errorf("%+v %v", b, err)
	}
	// What cannot be posted is bounded.
	if due = a.Due(epoch.Add(quiet)); len(due) != ArrivalsKept {
		t.Errorf("%d blocks wait", len(due))
	}
	for _, c := range due {
		a.Posted(c)
	}
	if due = a.Due(epoch.Add(3 * quiet)); len(due) != 0 {
		t.Errorf("a quiet node tells %d blocks", len(due))
	}
}

// TestAccountArrivesOnce: whatever it does, an account counts no more often than every
// accountEvery, and one that registers seldom counts each time.
func TestAccountArrivesOnce(t *testing.T) {
	t.Parallel()
	a := NewArrivals()
	busy, seldom, total := 0, 0, 0
	for s := range 3600 {
		now := epoch.Add(time.Duration(s) * time.Second)
		visit(a, "busy@x", fmt.Sprintf("203.0.%d.%d", s%200, s%7+1), now)
		if s%400 == 10 {
			visit(a, "seldom@x", "192.0.2.1", now)
			total++
		}
		for _, c := range a.Due(now) {
			b, err := decodeArrivals(c.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range b.list {
				if x.network == netip.MustParsePrefix("192.0.2.0/24") {
					seldom++
				} else {
					busy++
				}
			}
			a.Posted(c)
		}
	}
	if busy > int(time.Hour/accountEvery) || busy < int(time.Hour/(2*accountEvery)) {
		t.Errorf("an account that registers each second counts %d times in an hour", busy)
	}
	if seldom != total {
		t.Errorf("one that registers every 400 s counts %d of %d times", seldom, total)
	}
}

func TestArrivalsAreSampled(t *testing.T) {
	t.Parallel()
	a := NewArrivals()
	const all = 10 * maxArrivals
	for i := range all {
		visit(a, fmt.Sprint(i), fmt.Sprintf("10.%d.%d.1", i/256, i%256), epoch.Add(time.Duration(i)*time.Millisecond))
	}
	due := a.Due(epoch.Add(ArrivalsEvery))
	if len(due) != 1 || len(due[0].Value) > MaxChunkLen {
		t.Fatalf("%d blocks", len(due))
	}
	b, err := decodeArrivals(due[0].Value)
	if err != nil || len(b.list) != maxArrivals || b.weight != all/maxArrivals {
		t.Fatalf("%d arrivals of weight %v, %v", len(b.list), b.weight, err)
	}
	// Early and late ones have the same chance: of 512, 256 are of the first half, with a deviation of 11.
	early := 0
	for _, x := range b.list {
		if x.at < epoch.UnixMilli()+all/2 {
			early++
		}
	}
	if early < maxArrivals/2-80 || early > maxArrivals/2+80 {
		t.Errorf("%d of %d are of the first half", early, maxArrivals)
	}
}

func TestBadArrivals(t *testing.T) {
	t.Parallel()
	good := encodeArrivals(epoch, []arrival{{netip.MustParsePrefix("192.0.2.0/24"), epoch.UnixMilli()}}, 3)
	if _, err := decodeArrivals(good); err != nil {
		t.Fatal(err)
	}
	change := func(i int, to byte) string { return good[:i] + string([]byte{to}) + good[i+1:] }
	for name, s := range map[string]string{
		"nothing": "", "version": change(0, 9), "start within a block": change(4, good[4]+1), "fewer than told": change(8, 0),
		"cut": good[:len(good)-1], "too long": good + "x", "after its block": change(14, 240), "many": change(9, 255),
	} {
		if _, err := decodeArrivals(s); !errors.Is(err, ErrChunk) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f := NewFollowers()
	for _, key := range []string{"", "london", "london/999"} {
		if err := f.Arrived(key, good, epoch); !errors.Is(err, ErrChunk) {
			t.Errorf("key %q: %v", key, err)
		}
	}
}
