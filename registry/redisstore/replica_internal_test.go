package redisstore

import (
	"context"
	"sync"
	"testing"
	"time"

	"pbxmesh/registry"
	"pbxmesh/registry/registrytest"
)

// A beat that goes back is a replica that has not come so far, and no 63 renewals.
func TestBeatOfLateReplica(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := &seenLease{lease: registry.Lease{Beat: 10}, mark: "abcd", looks: leaseLooks, at: now}
	if l.goOn("abcd"+beatDigit(9), now.Add(time.Second)) || l.lease.Beat != 10 {
		t.Errorf("a lower one: beat %d", l.lease.Beat)
	}
	if !l.goOn("abcd"+beatDigit(12), now.Add(2*time.Second)) || l.lease.Beat != 12 {
		t.Errorf("a higher one: beat %d", l.lease.Beat)
	}
}

// How far a replica is behind is the time since the first number that it lacks, however many
// there are; one that goes back, is from elsewhere or missing is not believed.
func TestSaw(t *testing.T) {
	t.Parallel()
	now := time.Now()
	r := newReplica(nil, "pbxmesh", time.Second)
	defer r.end()
	at := func(n int) time.Time { return now.Add(time.Duration(n) * time.Second) }
	for n := 1; n <= 3*maxProbes; n++ {
		if got := r.next(at(n)); got != uint64(n) {
			t.Fatalf("number %d, want %d", got, n)
		}
	}
	for _, tc := range []struct {
		text        string
		fits, known bool
		behind      time.Duration
	}{
		{"", false, false, time.Duration(3*maxProbes-1) * time.Second},
		{"x", false, false, time.Duration(3*maxProbes-1) * time.Second},
		{"1", false, true, time.Duration(3*maxProbes-1) * time.Second}, // the second is forgotten
		{"192", false, true, 0}, // once
		{"192", false, true, 0},
		{"191", false, false, 0}, // back
		{"192", false, true, 0},
		{"192", false, true, 0},
		{"192", true, true, 0}, // the third time in turn
		{"193", false, false, 0},
	} {
		r.good = min(r.good, replicaReturns)
		if tc.text == "1" {
			r.good = 0
		}
		fits, known := r.saw(tc.text, at(3*maxProbes))
		if fits != tc.fits || known != tc.known || r.behind != tc.behind {
			t.Errorf("%q: %v, %v, behind %s; want %+v", tc.text, fits, known, r.behind, tc)
		}
	}
}

// Who listens by a connection that has ended may still stand there when somebody else listens by
// the next one: the channel is subscribed to again.
func TestListenBesideAFormerListener(t *testing.T) {
	t.Parallel()
	s, err := New(Options{URL: registrytest.StartRedis(t).URL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	s.told.by["pbxmesh:a"] = map[*listener]bool{{fn: func(string, bool) {}, ended: make(chan error, 1)}: true}
	ctx, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer cancel()
	for _, channel := range []string{"pbxmesh:b", "pbxmesh:a"} {
		begun := make(chan struct{}, 8)
		tasks.Go(func() {
			_ = s.Listen(ctx, channel, func(_ string, begins bool) {
				if begins {
					begun <- struct{}{}
				}
			})
		})
		select {
		case <-begun:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s is never heard", channel)
		}
	}
}
