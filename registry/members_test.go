package registry

import (
	"testing"
	"time"
)

// A lease that goes back by a beat is what a late replica of the store shows, and no sign of life;
// one of a store that was restored is.
func TestBeatThatGoesBack(t *testing.T) {
	t.Parallel()
	now := time.Now()
	ns := newNodeState("london")
	for i, tc := range []struct {
		instance string
		beat     uint64
		life     bool
	}{{"a", 100, true}, {"a", 99, false}, {"a", 99, false}, {"a", 100, true}, {"a", 1, true}, {"b", 1, true}, {"b", 1, false}} {
		at := now.Add(time.Duration(i) * time.Second)
		ns.seeLease(&Lease{Instance: tc.instance, Beat: tc.beat}, at, false)
		if seen := ns.seen.Equal(at); seen != tc.life {
			t.Errorf("%d: beat %d of %s: life %v", i, tc.beat, tc.instance, seen)
		}
	}
}
