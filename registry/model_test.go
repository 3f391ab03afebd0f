package registry_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// What phones and switches do comes more often than faults.
var work = []string{"register", "register", "register", "register", "unregister", "unregister", "reread", "reboot"}

var whats = slices.Concat(work, []string{
	"down", "up", "clear", "trim", "tamper", "erase", "cut", "heal", "cut site", "heal site", "deafen", "hear", "restart", "forget",
	"lose", "lose told", "swap told", "tell again", "later", "halt", "go on", "avoid", "near",
})

// schedules are up to most of the things named.
func schedules(most int, whats ...string) *rapid.Generator[[]op] {
	one := rapid.Custom(func(t *rapid.T) op {
		return op{
			What:   rapid.SampledFrom(whats).Draw(t, "what"),
			Daemon: rapid.IntRange(0, len(cast)-1).Draw(t, "daemon"),
			N:      rapid.IntRange(0, 25).Draw(t, "device"),
			Span:   time.Duration(rapid.SampledFrom([]int{0, 0, 1, 7, 300, 2500, 9000}).Draw(t, "ms")) * time.Millisecond,
		}
	})
	return rapid.SliceOfN(one, 5, most)
}

// TestModel lets phones, switches, daemons, links and the store do whatever comes, under
// a virtual clock and with the intervals of production. All the time no daemon loses a
// phone that stays registered, and none takes its view for younger than it is. When the
// faults end, every replica must equal the switches, and stay so.
func TestModel(t *testing.T) {
	t.Parallel()
	var longest time.Duration
	ran := 0
	rapid.Check(t, func(rt *rapid.T) {
		ops := schedules(60, whats...).Draw(rt, "schedule")
		around := world{
			skew:   time.Duration(rapid.SampledFrom([]int{0, 0, -5, 5}).Draw(rt, "minutes apart")) * time.Minute,
			behind: time.Duration(rapid.SampledFrom([]int{0, 1, 80, 700, 3000}).Draw(rt, "ms behind")) * time.Millisecond,
		}
		took, err := play(t, ops, around)
		if err != nil {
			rt.Fatal(err)
		}
		longest = max(longest, took)
		ran++
	})
	t.Logf("%d schedules, the longest recovery took %.1f s", ran, longest.Seconds())
}

// The same test finds bugs of the protocol: there is a schedule that does harm with the
// bug and none without it. A bug that another mechanism repairs is no fault: a reader
// that overlooks gaps is corrected by its digests.
func TestModelFindsSeededBugs(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		bugs  int
		only  []string // beside what phones and switches do; nil for everything
		spare string   // does not happen, because it finds more than this bug
	}{
		"digests are not compared":      {bugs: registry.BlindToDigests},
		"neither are gaps noticed":      {bugs: registry.BlindToDigests | registry.BlindToGaps, spare: "lose"},
		"a new epoch leaves the old in": {bugs: registry.BlindToEpochs},

		"what is unread is not counted":      {bugs: registry.BlindToUnread, only: []string{"later"}},
		"what is unread leaves the rest":     {bugs: registry.KeepsFormer, only: []string{"later"}},
		"a told batch is lost":               {bugs: registry.BlindToDigests | registry.BlindToGaps, only: []string{"lose told"}},
		"a batch is told out of order":       {bugs: registry.BlindToDigests | registry.BlindToGaps, only: []string{"swap told"}},
		"a batch is told again":              {bugs: registry.BlindToDigests | registry.BlindToOrder, only: []string{"tell again"}},
		"a site that is cut off is dead":     {bugs: registry.BuriesSilent, only: []string{"cut site", "heal site"}},
		"a site that comes back is not told": {bugs: HearsOnce, only: []string{"cut site", "heal site"}},
		"only three readers are told":        {bugs: DeafReaders, only: []string{}},
		"a stale replica is taken for now":   {bugs: BlindToLag, only: []string{"halt", "go on"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const limit = 300
			kinds := whats
			if test.only != nil {
				kinds = slices.Concat(work, test.only, test.only)
			}
			for seed := range limit {
				ops := slices.DeleteFunc(schedules(60, kinds...).Example(seed), func(o op) bool { return o.What == test.spare })
				_, found := play(t, ops, world{bugs: test.bugs})
				if found == nil {
					continue
				}
				if _, err := play(t, ops, world{}); err != nil {
					t.Fatalf("schedule %d fails without the bug too: %v", seed, err)
				}
				t.Logf("found by schedule %d: %v", seed, found)
				return
			}
			t.Errorf("not found by %d schedules", limit)
		})
	}
}

// A daemon that stepped back ends at once when it is told to.
func TestSteppedBackDaemonStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{})
		first := start(t, "buffalo", store, tuning{productive: true, owner: "one"})
		first.boot("core-1", 1)
		time.Sleep(time.Second)
		second := start(t, "buffalo", store, tuning{productive: true, owner: "two"})
		second.boot("core-2", 2)
		time.Sleep(10 * time.Second)
		if err := second.w.Status().Err; !errors.Is(err, registry.ErrFenced) {
			t.Fatalf("the second says %v, want %v", err, registry.ErrFenced)
		}
		began := time.Now()
		if err := second.w.Close(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("it took %s to stop", took)
		}
		if len(first.r.Lookup(device("buffalo", 1).AOR)) != 1 || first.w.Status().Err != nil {
			t.Errorf("the first was disturbed: %+v", first.w.Status())
		}
		first.stop()
		second.stop()
	})
}
