package registry_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// op is one thing that happens to a mesh of three nodes and a name server.
type op struct {
	What   string
	Daemon int // 0 to 2 are nodes, 3 is the name server
	N      int
	Span   time.Duration // until the next one
}

var whats = []string{
	// What phones and switches do comes more often than faults.
	"register", "register", "register", "register", "unregister", "unregister", "reread", "reboot",
	"down", "up", "clear", "trim", "tamper", "erase", "cut", "heal", "deafen", "hear", "restart", "forget", "lose", "later",
}

func schedules() *rapid.Generator[[]op] {
	one := rapid.Custom(func(t *rapid.T) op {
		return op{
			What:   rapid.SampledFrom(whats).Draw(t, "what"),
			Daemon: rapid.IntRange(0, 3).Draw(t, "daemon"),
			N:      rapid.IntRange(0, 25).Draw(t, "device"),
			Span:   time.Duration(rapid.SampledFrom([]int{0, 0, 1, 7, 300, 2500, 9000}).Draw(t, "ms")) * time.Millisecond,
		}
	})
	return rapid.SliceOfN(one, 5, 60)
}

// TestModel lets phones, switches, daemons and the store do whatever comes, under
// a virtual clock and with the intervals of production. When the faults end, every
// replica must equal the switches, and stay so.
func TestModel(t *testing.T) {
	t.Parallel()
	var longest time.Duration
	ran := 0
	rapid.Check(t, func(rt *rapid.T) {
		ops := schedules().Draw(rt, "schedule")
		skew := time.Duration(rapid.SampledFrom([]int{0, 0, -5, 5}).Draw(rt, "minutes apart")) * time.Minute
		took, err := play(t, ops, skew, 0)
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
		spare string // does not happen, because it finds more than this bug
	}{
		"digests are not compared":      {bugs: registry.BlindToDigests},
		"neither are gaps noticed":      {bugs: registry.BlindToDigests | registry.BlindToGaps, spare: "lose"},
		"a new epoch leaves the old in": {bugs: registry.BlindToEpochs},
		"what is unread is not counted": {bugs: registry.BlindToUnread},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const limit = 300
			for seed := range limit {
				ops := slices.DeleteFunc(schedules().Example(seed), func(o op) bool { return o.What == test.spare })
				_, found := play(t, ops, 0, test.bugs)
				if found == nil {
					continue
				}
				if _, err := play(t, ops, 0, 0); err != nil {
					t.Fatalf("schedule %d fails without the bug too: %v", seed, err)
				}
				t.Logf("found by schedule %d: %v", seed, found)
				return
			}
			t.Errorf("not found by %d schedules", limit)
		})
	}
}

// play runs a schedule and returns how long the mesh took to recover.
func play(t *testing.T, ops []op, skew time.Duration, bugs int) (took time.Duration, err error) {
	synctest.Test(t, func(t *testing.T) {
		store := memory.New(memory.Options{LogLimit: 20})
		p := &player{store: store}
		for i, id := range []pbxmesh.NodeID{"buffalo", "london", "paris", ""} {
			tune := tuning{productive: true, owner: "host-" + string(id), bugs: bugs}
			switch i {
			case 1:
				tune.off = skew
			case 2: // reads what it can of the other two
				tune.bugs |= registry.Older
			}
			p.daemons = append(p.daemons, start(t, id, store, tune))
			if id != "" {
				p.daemons[i].boot(fmt.Sprintf("core-%s-%d", id, i), count(0, 5)...)
			}
		}
		for _, o := range ops {
			p.do(o)
			time.Sleep(o.Span)
		}
		// The faults end.
		store.SetDown(nil)
		for _, d := range p.daemons {
			d.link.cut.Store(false)
			d.link.deaf.Store(false)
		}
		ended := time.Now()
		const bound = 2 * time.Minute
		for took = 0; took < bound && p.differs() != ""; took = time.Since(ended) {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		if p.differs() == "" { // and it stays so, without another look at all records
			time.Sleep(time.Minute)
			synctest.Wait()
			loads := p.loads()
			time.Sleep(3 * time.Minute)
			synctest.Wait()
			if more := p.loads() - loads; more > 0 {
				err = fmt.Errorf("all records of a node were read %d times more", more)
			}
		}
		if diff := p.differs(); diff != "" {
			err = fmt.Errorf("%s after the faults: %s", time.Since(ended), diff)
		}
		for _, d := range p.daemons {
			d.stop()
		}
	})
	return took, err
}

type player struct {
	store   *memory.Store
	daemons []*daemon
	boots   int
}

func (p *player) do(o op) {
	d := p.daemons[o.Daemon]
	switch o.What {
	case "down":
		p.store.SetDown(errors.New("down"))
		return
	case "up":
		p.store.SetDown(nil)
		return
	case "clear":
		p.store.Clear()
		return
	case "cut", "heal":
		d.link.cut.Store(o.What == "cut")
		return
	case "lose":
		d.link.lose.Store(true)
		return
	}
	if d.id == "" { // the rest happens to nodes
		d = p.daemons[o.N%3]
		o.Daemon = o.N % 3
	}
	switch o.What {
	case "register":
		d.register(o.N, o.N+1)
	case "later":
		d.registerLater(o.N)
	case "unregister":
		d.unregister(o.N)
	case "reread":
		d.boot(d.epoch, slices.Collect(maps.Keys(d.held))...)
	case "reboot":
		p.boots++
		d.boot(fmt.Sprintf("core-%s-%d", d.id, 100+p.boots), count(o.N/2, o.N)...)
	case "trim":
		p.store.Trim(d.id, o.N%3)
	case "tamper", "erase":
		p.tamper(d.id, o.N, o.What == "erase")
	case "deafen", "hear":
		d.link.deaf.Store(o.What == "deafen")
	case "restart": // killed: nobody is told
		epoch, held := d.epoch, slices.Collect(maps.Keys(d.held))
		d.kill()
		d = d.start()
		p.daemons[o.Daemon] = d
		d.boot(epoch, held...)
	case "forget":
		_ = p.store.Forget(d.t.Context(), d.id)
	}
}

// loads is how often all daemons together read all records of a node.
func (p *player) loads() (n int64) {
	for _, d := range p.daemons {
		n += d.r.Stats().Loads
	}
	return n
}

// tamper changes a record behind everybody's back, as a stranger or a bit flip.
func (p *player) tamper(id pbxmesh.NodeID, n int, erase bool) {
	victim := device(id, n)
	p.store.Tamper(id, func(get func(registry.Kind, string) (registry.Record, bool), set func(registry.Record)) {
		rec, ok := get(registry.KindRegistration, registry.RegistrationKey(victim.ID()))
		if !ok {
			return
		}
		rec.Value = strings.Replace(rec.Value, "192.0.2.9", "192.0.2.8", 1)
		if erase {
			rec.Value = ""
		}
		set(rec)
	})
}

// differs names the first replica that does not equal the switches.
func (p *player) differs() string {
	want := map[string]bool{}
	for _, d := range p.daemons {
		for _, reg := range d.held {
			want[line(&reg)] = true
		}
	}
	for _, d := range p.daemons {
		got := view(d.r)
		for l := range want {
			if !got[l] && !d.blindTo(l) {
				return fmt.Sprintf("%q misses %s", d.id, l)
			}
		}
		for l := range got {
			if !want[l] {
				return fmt.Sprintf("%q has the ghost %s", d.id, l)
			}
		}
	}
	for _, d := range p.daemons {
		if wrong := wrongExpiry(d, p.daemons); wrong != "" {
			return wrong
		}
	}
	return ""
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
