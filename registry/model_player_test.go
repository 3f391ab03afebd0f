package registry_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
)

// op is one thing that happens to a mesh.
type op struct {
	What   string
	Daemon int // a place in cast
	N      int
	Span   time.Duration // until the next one
}

// cast are the daemons of the mesh, in two sites: four nodes and two name servers.
var cast = []struct {
	id    pbxmesh.NodeID
	site  int
	older bool // reads what it can of the others
	near  bool // reads a replica of the store
}{
	{id: "buffalo", site: 0},
	{id: "london", site: 1},
	{id: "paris", site: 1, older: true},
	{id: "boston", site: 0, near: true},
	{id: "", site: 0, older: true},
	{id: "", site: 1, near: true},
}

const castNodes = 4

// stays are devices of every node to which nothing happens.
var stays = []int{30, 31}

// world is what does not change during a schedule.
type world struct {
	skew   time.Duration // of london's clock
	behind time.Duration // of what is read near by
	bugs   int           // seeded
}

// play runs a schedule and returns how long the mesh took to recover.
func play(t *testing.T, ops []op, around world) (took time.Duration, err error) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlayer(t, around)
		for _, o := range ops {
			p.do(o)
			time.Sleep(o.Span)
			if err == nil {
				err = p.wrong()
			}
		}
		p.endFaults()
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
		} else if err == nil {
			err = p.calm()
		}
		for _, d := range p.daemons {
			d.stop()
		}
	})
	return took, err
}

type player struct {
	store   *memory.Store
	around  world
	told    atomic.Int64
	daemons []*daemon
	boots   int

	down    time.Time                 // since when the store is; zero for not
	cut     []time.Time               // the same of each daemon's link
	near    []time.Time               // since when it reads near by
	had     []map[pbxmesh.NodeID]bool // by daemon: of whom it has the devices that stay
	mixed   bool                      // a subscription may be another server's than what is read
	removed map[pbxmesh.NodeID]bool   // nodes that were forgotten at some time
}

func newPlayer(t *testing.T, around world) *player {
	p := &player{store: memory.New(memory.Options{LogLimit: 20}), around: around}
	p.init()
	for i, c := range cast {
		tune := tuning{productive: true, owner: "host-" + string(c.id), bugs: around.bugs, told: &p.told}
		if c.id == "london" {
			tune.off = around.skew
		}
		if c.older {
			tune.bugs |= registry.Older
		}
		var store registry.Backend = p.store
		if c.near {
			near := p.store.Replica()
			near.SetBehind(around.behind)
			store = near
		}
		p.daemons = append(p.daemons, start(t, c.id, store, tune))
		if c.id != "" {
			p.boot(p.daemons[i], fmt.Sprintf("core-%s-%d", c.id, i), count(0, 5))
		}
	}
	return p
}

func (p *player) init() {
	p.near = make([]time.Time, len(cast))
	p.cut, p.had, p.removed = make([]time.Time, len(cast)), make([]map[pbxmesh.NodeID]bool, len(cast)), map[pbxmesh.NodeID]bool{}
	for i := range p.had {
		p.had[i] = map[pbxmesh.NodeID]bool{}
	}
}

// boot starts d's switch with these devices and those that stay.
func (p *player) boot(d *daemon, epoch string, devices []int) {
	d.boot(epoch, slices.Concat(devices, stays)...)
}

func (p *player) do(o op) {
	d := p.daemons[o.Daemon]
	switch o.What {
	case "down":
		if p.down.IsZero() {
			p.down = time.Now()
		}
		p.store.SetDown(errors.New("down"))
	case "up":
		p.down = time.Time{}
		p.store.SetDown(nil)
	case "clear":
		p.store.Clear()
	case "cut", "heal":
		p.setCut(o.Daemon, o.What == "cut")
	case "cut site", "heal site":
		for i, c := range cast {
			if c.site == o.Daemon%2 {
				p.setCut(i, o.What == "cut site")
			}
		}
	case "lose":
		d.link.lose.Store(true)
	case "lose told", "swap told", "tell again":
		d.link.next(o.What)
	case "halt", "go on":
		if d.link.near != nil {
			d.link.near.Halt(o.What == "halt")
		}
	case "avoid", "near":
		if d.link.avoid.Swap(o.What == "avoid") {
			p.near[o.Daemon] = time.Now()
		}
		p.mixed = p.mixed || d.link.near != nil
	default: // happens to nodes
		if d.id == "" {
			o.Daemon = o.N % castNodes
		}
		p.doNode(o, p.daemons[o.Daemon])
	}
}

func (p *player) doNode(o op, d *daemon) {
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
		p.boot(d, fmt.Sprintf("core-%s-%d", d.id, 100+p.boots), count(o.N/2, o.N))
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
		p.daemons[o.Daemon], p.had[o.Daemon] = d, map[pbxmesh.NodeID]bool{}
		p.cut[o.Daemon] = time.Time{}
		d.boot(epoch, held...)
	case "forget":
		p.removed[d.id] = true
		_ = p.store.Forget(d.t.Context(), d.id)
	}
}

// setCut cuts a daemon's link, or ends that.
func (p *player) setCut(i int, cut bool) {
	switch l := p.daemons[i].link; {
	case !cut:
		l.cut.Store(false)
		p.cut[i] = time.Time{}
	case p.cut[i].IsZero():
		p.cut[i] = time.Now()
		l.breakOff()
	}
}

// endFaults leaves nothing but a replica that is behind, as it always is.
func (p *player) endFaults() {
	p.store.SetDown(nil)
	p.down = time.Time{}
	for i, d := range p.daemons {
		p.setCut(i, false)
		d.link.deaf.Store(false)
		d.link.avoid.Store(false)
		d.link.calm()
		if d.link.near != nil {
			d.link.near.Halt(false)
		}
	}
}

// wrong names what must not be even while a fault lasts.
func (p *player) wrong() error { return errors.Join(p.lost(), p.lies()) }

// lost names a daemon that had a phone, and has it no more, though it stays registered.
func (p *player) lost() error {
	for i, d := range p.daemons {
		for _, holder := range p.daemons[:castNodes] {
			has := true
			for _, n := range stays {
				has = has && slices.ContainsFunc(d.r.Lookup(device("", n).AOR), func(r *pbxmesh.Registration) bool { return r.Node == holder.id })
			}
			if p.had[i][holder.id] && !has && !p.removed[holder.id] {
				return fmt.Errorf("%s has lost a phone of %q that stays registered", p.name(i), holder.id)
			}
			p.had[i][holder.id] = p.had[i][holder.id] || has
		}
	}
	return nil
}

// lies names a daemon that takes its view for younger than it is.
func (p *player) lies() error {
	for i, d := range p.daemons {
		// What is read near by says nothing of a store that takes no writes.
		near := d.link.near != nil && !d.link.avoid.Load()
		since := p.cut[i]
		if d.link.near == nil && !p.down.IsZero() && (since.IsZero() || p.down.Before(since)) {
			since = p.down
		}
		least := time.Duration(0)
		if !since.IsZero() {
			least = time.Since(since)
		}
		if near {
			// Until then it was the store itself that was read.
			least = max(least, min(d.link.near.Lag(), time.Since(p.near[i])))
		}
		if age := d.r.Age(d.now()); age < least-100*time.Millisecond {
			return fmt.Errorf("%s says that its view is %s old, it is %s", p.name(i), age, least)
		}
	}
	return nil
}

func (p *player) name(i int) string { return fmt.Sprintf("daemon %d (%q)", i, cast[i].id) }

// calm names what must not be when all is well: a view that is old, and a change that
// waits for a poll, even when the batch before it was lost.
func (p *player) calm() error {
	const soon = 100 * time.Millisecond
	for i, d := range p.daemons {
		if age := d.r.Age(d.now()); age > 3*time.Second+p.around.behind {
			return fmt.Errorf("%s says that its view is %s old", p.name(i), age)
		}
	}
	for n, what := range []string{"", "lose told", ""} {
		for _, d := range p.daemons {
			d.link.next(what)
		}
		for _, d := range p.daemons[:castNodes] {
			d.register(40 + n)
			time.Sleep(soon)
		}
		time.Sleep(p.around.behind)
		if p.mixed { // what was asked for is read where it is not yet: the next lease says so
			time.Sleep(1200 * time.Millisecond)
		}
		synctest.Wait()
		if diff := p.differs(); diff != "" && what == "" {
			return fmt.Errorf("not told at once: %s", diff)
		}
	}
	return nil
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
	for i, d := range p.daemons {
		got := view(d.r)
		for l := range want {
			if !got[l] && !d.blindTo(l) {
				return fmt.Sprintf("%s misses %s", p.name(i), l)
			}
		}
		for l := range got {
			if !want[l] {
				return fmt.Sprintf("%s has the ghost %s", p.name(i), l)
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
