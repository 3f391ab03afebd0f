package registry_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"pbxmesh/registry/memory"
)

// phone registers for lifetime, and again when a part of it is over.
type phone struct {
	Lifetime time.Duration
	Part     float64 // of the lifetime, until it registers again
	next     time.Time
}

// However often phones refresh, in step or not, and while the store is away for less
// than a third of a lifetime: no other node ever takes a registration for expired that
// its switch holds, nor for longer than its switch does.
func TestRefreshedIsNeverExpiredElsewhere(t *testing.T) {
	t.Parallel()
	phones := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) phone {
		return phone{
			Lifetime: time.Duration(rapid.SampledFrom([]int{15, 30, 60, 61, 120, 600, 3600}).Draw(t, "lifetime")) * time.Second,
			Part:     rapid.Float64Range(0.02, 0.66).Draw(t, "part"),
		}
	}), 1, 20)
	ran, refreshes, changes := 0, 0, int64(0)
	rapid.Check(t, func(rt *rapid.T) {
		list := phones.Draw(rt, "phones")
		storm := rapid.IntRange(0, 100).Draw(rt, "storm every so many steps")
		outage := rapid.Bool().Draw(rt, "with outages")
		var err error
		synctest.Test(t, func(t *testing.T) {
			n, c, e := refresh(t, list, storm, outage)
			ran, refreshes, changes, err = ran+1, refreshes+n, changes+c, e
		})
		if err != nil {
			rt.Fatal(err)
		}
	})
	t.Logf("%d runs: %d refreshes, %d changes downstream", ran, refreshes, changes)
}

func refresh(t *testing.T, list []phone, storm int, outage bool) (refreshes int, changes int64, err error) {
	store := memory.New(memory.Options{})
	buffalo, dns := start(t, "buffalo", store, tuning{productive: true}), start(t, "", store, tuning{productive: true})
	defer dns.stop()
	defer buffalo.stop()
	shortest := time.Hour
	put := func(n int) {
		reg := device("buffalo", n)
		reg.Expires = time.Now().Add(list[n].Lifetime)
		list[n].next = time.Now().Add(time.Duration(list[n].Part * float64(list[n].Lifetime)))
		buffalo.held[n] = reg
		buffalo.w.Put(reg)
	}
	buffalo.boot("core")
	for n := range list {
		put(n)
		shortest = min(shortest, list[n].Lifetime)
	}
	time.Sleep(5 * time.Second)
	away := shortest/3 - 4*time.Second // the writer backs off for up to 2 s, and what is due waits for a second
	for step := range 240 {
		for n := range list {
			if !time.Now().Before(list[n].next) || storm > 0 && step%(storm+1) == storm {
				put(n)
				refreshes++
			}
		}
		if outage && away > 0 && step%80 == 40 {
			store.SetDown(errors.New("down"))
			time.AfterFunc(away, func() { store.SetDown(nil) })
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for n, held := range buffalo.held {
			got := dns.r.Lookup(held.AOR)
			if len(got) != 1 || held.Live(time.Now()) && !got[0].Live(time.Now()) || got[0].Expires.After(held.Expires) {
				return refreshes, 0, fmt.Errorf("step %d: phone %d %+v is live until %s, the reader holds %+v", step, n, list[n], held.Expires, got)
			}
		}
	}
	return refreshes, buffalo.w.Status().Changes, nil
}
