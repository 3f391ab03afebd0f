package app

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover/drain"
	"pbxmesh/internal/config"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// wishStores runs f on the memory store and on Redis.
func wishStores(t *testing.T, f func(t *testing.T, store registry.Backend, lose func())) {
	t.Helper()
	t.Run("memory", func(t *testing.T) {
		t.Parallel()
		store := memory.New(memory.Options{})
		f(t, store, store.Clear)
	})
	t.Run("redis", func(t *testing.T) {
		t.Parallel()
		server := registrytest.StartRedis(t)
		store, err := redisstore.New(redisstore.Options{URL: server.URL()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = store.Close() })
		f(t, store, func() {
			if err := errors.Join(server.Kill(), server.Start()); err != nil { // it keeps nothing
				t.Fatal(err)
			}
		})
	})
}

// joins lets a node with registrations join the mesh, without a daemon of ours beside
// it, and returns how it dies. Its switch lives unless sw says otherwise.
func joins(t *testing.T, store registry.Backend, id pbxmesh.NodeID, capacity, registrations int, sw ...registry.SwitchState) (die func()) {
	t.Helper()
	replica := registry.NewReplica(registry.ReplicaOptions{Local: id})
	w, err := registry.NewWriter(registry.WriterOptions{
		Node:    pbxmesh.Node{ID: id, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.10")}, Capacity: capacity},
		Replica: replica, Backend: store, LeaseTTL: time.Second, RenewEvery: 200 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	var regs []pbxmesh.Registration
	for i := range registrations {
		aor, err := pbxmesh.NewAOR(fmt.Sprint(1000+i), string(id)+".test")
		if err != nil {
			t.Fatal(err)
		}
		regs = append(regs, pbxmesh.Registration{
			AOR: aor, Node: id, CallID: fmt.Sprint("call-", i), Contact: "sip:" + aor.User() + "@192.0.2.7:5060", Profile: "internal",
			Source: netip.MustParseAddrPort("192.0.2.7:5060"), Transport: "udp", Expires: time.Now().Add(time.Hour),
		})
	}
	w.Reset("core-"+string(id), regs)
	w.SetSwitch(append(sw, registry.SwitchState{Alive: true, MaxSessions: 100})[0])
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = w.Run(ctx) })
	die = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	t.Cleanup(die)
	return die
}

// observer is a daemon of a name server, whose clock can be put forward.
type observer struct {
	*App
	t     *testing.T
	ahead atomic.Int64
}

func observe(t *testing.T, store registry.Backend, name, stateFile string) *observer {
	t.Helper()
	cfg := config.Defaults()
	cfg.Name = name
	cfg.API.Listen = netip.AddrPort{}
	cfg.Failover.Probe.SIP = false
	cfg.Registry.LeaseTTL, cfg.Registry.LeaseRenew = time.Second, 200*time.Millisecond
	cfg.Registry.StateFile = config.File(stateFile)
	a, err := New(cfg, Options{Backend: store})
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{App: a, t: t}
	a.now = func() time.Time { return time.Now().Add(time.Duration(o.ahead.Load())) }
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.stop)
	return o
}

func (o *observer) stop() {
	if err := o.Stop(context.Background()); err != nil {
		o.t.Error(err)
	}
}

// knows waits until the registry tells of the nodes with so many registrations in all.
func (o *observer) knows(nodes, registrations int) {
	o.t.Helper()
	registrytest.WaitFor(o.t, "the nodes", func() bool {
		members := o.replica.Members()
		sum := 0
		for _, m := range members {
			if sum += m.Registrations; m.Lease.Instance == "" {
				return false // announced, and its switch not heard of yet
			}
		}
		return len(members) == nodes && sum == registrations
	})
}

func (o *observer) want(state, by string) *control.WantedReply {
	o.t.Helper()
	r, err := o.Want(o.t.Context(), control.WantedRequest{Node: "london", State: state, By: by, Reason: "kernel"})
	if err != nil {
		o.t.Fatal(err)
	}
	return r
}

// hears waits until london is wanted so, by that operator.
func (o *observer) hears(wanted, by string) {
	o.t.Helper()
	registrytest.WaitFor(o.t, o.cfg.Name+" to hear that london is wanted "+wanted, func() bool {
		r, err := o.Drain(o.t.Context(), "london")
		return err == nil && r.Wanted == wanted && r.WantedBy == by && o.Mesh().State("london").Wanted.String() == wanted
	})
}

// onBoard returns what the board has of a kind about london, "" for nothing.
func onBoard(t *testing.T, store registry.Board, kind registry.NoteKind) string {
	t.Helper()
	notes, _, _, err := store.Notes(t.Context(), kind, 0)
	if err != nil && !errors.Is(err, pbxmesh.ErrUnavailable) {
		t.Fatal(err)
	}
	for _, n := range notes {
		if n.Key == "london" {
			return n.Value
		}
	}
	return ""
}

func TestWishIsShared(t *testing.T) {
	t.Parallel()
	wishStores(t, func(t *testing.T, store registry.Backend, lose func()) {
		joins(t, store, "london", 10, 3)
		joins(t, store, "buffalo", 10, 0)
		one, two := observe(t, store, "losangeles", ""), observe(t, store, "jacksonville", "")
		one.knows(2, 3)
		two.knows(2, 3)
		if r := one.want(control.StateDraining, "alice"); !r.Shared || r.Was != "in service" || r.Wanted != "draining" || len(r.Warnings) != 0 {
			t.Errorf("the wish is answered with %+v", r)
		}
		two.hears("draining", "alice")
		// Said again on the other daemon it goes on as it was.
		since := one.wishes.book.Get("london").Since
		if r := two.want(control.StateDraining, "bob"); r.Was != "draining" || !r.Since.Equal(since) || r.By != "bob" {
			t.Errorf("the same again is answered with %+v", r)
		}
		one.hears("draining", "bob")

		lose()
		registrytest.WaitFor(t, "the wish to be on the board again", func() bool { return strings.Contains(onBoard(t, store, registry.NoteWanted), `"wanted":"draining"`) })
		late := observe(t, store, "rome", "")
		late.hears("draining", "bob")

		if r := two.want(control.StateInService, "carol"); r.Was != "draining" {
			t.Errorf("taken back: %+v", r)
		}
		one.hears("in service", "carol")
		late.hears("in service", "carol")
	})
}

// A restart forgets nothing, even when the store is away.
func TestWishSurvivesRestart(t *testing.T) {
	t.Parallel()
	store := memory.New(memory.Options{})
	joins(t, store, "london", 10, 3)
	joins(t, store, "buffalo", 10, 0)
	file := filepath.Join(t.TempDir(), "state")
	one := observe(t, store, "losangeles", file)
	one.knows(2, 3)
	one.want(control.StateOut, "alice")
	one.stop()
	store.SetDown(errors.New("pulled the plug"))
	again := observe(t, store, "losangeles", file)
	again.hears("out", "alice")

	// What is said meanwhile is known here only, and shared later.
	r := again.want(control.StateInService, "bob")
	if r.Shared || len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], "only this daemon knows yet, the others hear of it when the registry is back: ") {
		t.Errorf("said without a store: %+v", r)
	}
	store.SetDown(nil)
	registrytest.WaitFor(t, "the wish to be on the board", func() bool { return strings.Contains(onBoard(t, store, registry.NoteWanted), `"by":"bob"`) })
}

func TestWantRefuses(t *testing.T) {
	t.Parallel()
	store := memory.New(memory.Options{})
	joins(t, store, "london", 100, 10)
	joins(t, store, "paris", 100, 4)
	joins(t, store, "buffalo", 16, 5) // room for 11
	o := observe(t, store, "losangeles", "")
	o.knows(3, 19)
	want := func(node pbxmesh.NodeID, state string, force bool) (*control.WantedReply, error) {
		return o.Want(t.Context(), control.WantedRequest{Node: node, State: state, Force: force})
	}
	for _, tc := range []struct {
		name string
		r    control.WantedRequest
		kind error
		says string
	}{
		{"no such node", control.WantedRequest{Node: "tokyo", State: control.StateDraining}, control.ErrRefused, "no node is called tokyo; `pbxmesh nodes` lists them"},
		{"no such state", control.WantedRequest{Node: "london", State: "asleep"}, control.ErrInvalid, `state "asleep"`},
		{"an escape", control.WantedRequest{Node: "buffalo", State: control.StateDraining, By: "\x1b"}, control.ErrInvalid, "the name of who wants it has characters that cannot be printed"},
		{"a long reason", control.WantedRequest{Node: "buffalo", State: control.StateDraining, Reason: strings.Repeat("x", 257)}, control.ErrInvalid, "the reason has 257 bytes, at most 256 are allowed"},
	} {
		if r, err := o.Want(t.Context(), tc.r); r != nil || !errors.Is(err, tc.kind) || !strings.HasSuffix(err.Error(), tc.says) {
			t.Errorf("%s: %+v, %v", tc.name, r, err)
		}
	}
	if w := o.wishes.book.All(); len(w) != 0 {
		t.Errorf("what was refused stands: %+v", w)
	}
	if _, err := want("paris", control.StateDraining, false); err != nil {
		t.Fatal(err)
	}
	// Paris has no room any more, and its own four are to come.
	_, err := want("london", control.StateDraining, false)
	const full = "london holds 10 registrations and paris, being drained, 4 more, and the others have room for 11 (node.capacity)"
	if !errors.Is(err, control.ErrRefused) || !strings.HasSuffix(err.Error(), full+"; --force does it all the same") {
		t.Errorf("drained beyond the room: %v", err)
	}
	r, err := want("london", control.StateDraining, true)
	if err != nil || !slices.Equal(r.Warnings, []string{full}) {
		t.Errorf("forced: %+v, %v", r, err)
	}
	_, err = want("buffalo", control.StateOut, false)
	if !errors.Is(err, control.ErrRefused) || !strings.HasSuffix(err.Error(), "no other node would take phones; --force does it all the same") {
		t.Errorf("the last one: %v", err)
	}
	// Who takes no phones can be drained again, and taken out altogether.
	if r, err := want("london", control.StateDraining, false); err != nil || r.Was != "draining" {
		t.Errorf("drained again: %+v, %v", r, err)
	}
	if r, err := want("london", control.StateOut, false); err != nil || !slices.Equal(r.Warnings, []string{"london holds 10 registrations: the other nodes do not call them any more"}) {
		t.Errorf("out: %+v, %v", r, err)
	}
	if _, err := o.Drain(t.Context(), "tokyo"); !errors.Is(err, control.ErrRefused) || !strings.HasSuffix(err.Error(), "no node is called tokyo; `pbxmesh nodes` lists them") {
		t.Errorf("the progress of a node that is not known: %v", err)
	}
}

// A drain that is taken back half-way is over for everybody, and the progress of one
// drain is not taken for that of the next.
func TestProgressFollowsItsWish(t *testing.T) {
	t.Parallel()
	store := memory.New(memory.Options{})
	die, empty := joins(t, store, "london", 10, 3), joins(t, store, "buffalo", 10, 0)
	one, two := observe(t, store, "losangeles", ""), observe(t, store, "jacksonville", "")
	one.knows(2, 3)
	two.knows(2, 3)
	says := func(turn uint64, left int) {
		t.Helper()
		p := drain.Progress{Node: "london", Turn: turn, Method: drain.MethodWait, Registrations: left, Total: 3, LeftSeconds: -1, Pause: "no other node takes phones"}
		text, err := p.Encode()
		if err == nil {
			err = store.Post(t.Context(), registry.Note{Kind: registry.NoteDrain, Key: "london", Value: text, TTL: time.Minute})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	answer := func(o *observer) *control.DrainReply {
		t.Helper()
		r, err := o.Drain(t.Context(), "london")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	one.want(control.StateDraining, "alice")
	two.hears("draining", "alice")
	if r := answer(two); r.Drain != nil || r.Empty || r.Registrations != 3 || r.Notice != "the daemon of london has not answered yet" {
		t.Errorf("before its daemon says something: %+v", r)
	}
	says(1, 2)
	registrytest.WaitFor(t, "the progress", func() bool { return answer(two).Drain != nil })
	if r := answer(two); r.Drain.Registrations != 2 || r.Drain.Total != 3 || r.Drain.LeftSeconds != nil || r.Notice != "no other node takes phones" || r.Empty {
		t.Errorf("half-way: %+v, %+v", r, r.Drain)
	}
	one.want(control.StateInService, "bob")
	two.hears("in service", "bob")
	if r := answer(two); r.Drain != nil || r.Empty || r.Notice != "" {
		t.Errorf("taken back: %+v", r)
	}
	one.want(control.StateDraining, "carol")
	two.hears("draining", "carol")
	says(1, 1) // its daemon has not heard yet
	if r := answer(two); r.Drain != nil {
		t.Errorf("the next drain shows the last one's progress: %+v", r.Drain)
	}
	says(3, 0)
	registrytest.WaitFor(t, "the node to be empty", func() bool { return answer(two).Empty })

	// Its daemon dies: what it said last does not count for ever.
	die()
	registrytest.WaitFor(t, "the lease to end", func() bool { m, err := two.member("london"); return err == nil && !m.LeaseHeld })
	two.ahead.Add(int64(progressTTL))
	if r := answer(two); r.Empty || r.Drain != nil || r.Notice != "the daemon of london is silent: its phones leave by themselves, and its calls cannot be counted" {
		t.Errorf("its daemon is silent: %+v", r)
	}
	empty()
	registrytest.WaitFor(t, "the other one's lease to end", func() bool { m, err := two.member("buffalo"); return err == nil && !m.LeaseHeld })
	const count = "the daemon of buffalo is silent: no phone is left there, and its calls cannot be counted; `fs_cli -x 'show calls count'` does there"
	if r, err := two.Drain(t.Context(), "buffalo"); err != nil || r.Empty || r.Notice != count {
		t.Errorf("a silent daemon, and no phone is left: %+v, %v", r, err)
	}
	const silent = "the daemon of london is silent: name servers turn away, but nobody tells its phones, which leave by themselves"
	if r := two.want(control.StateDraining, "dave"); !slices.Equal(r.Warnings, []string{silent}) {
		t.Errorf("drained without a daemon: %+v", r)
	}
}

// A node that was removed leaves no wish behind, whoever posts an old one again; should
// it come back, it is in service.
func TestForgetTakesWishesOffTheBoard(t *testing.T) {
	t.Parallel()
	wishStores(t, func(t *testing.T, store registry.Backend, _ func()) {
		die := joins(t, store, "london", 10, 3)
		joins(t, store, "buffalo", 10, 0)
		file := filepath.Join(t.TempDir(), "state")
		one, two, away := observe(t, store, "losangeles", ""), observe(t, store, "jacksonville", ""), observe(t, store, "rome", file)
		one.knows(2, 3)
		one.want(control.StateDraining, "alice")
		two.hears("draining", "alice")
		away.hears("draining", "alice")
		away.stop()
		wish, progress := onBoard(t, store, registry.NoteWanted), `{"node":"london","turn":1}`
		if err := store.Post(t.Context(), registry.Note{Kind: registry.NoteDrain, Key: "london", Value: progress, TTL: time.Hour}); err != nil || wish == "" {
			t.Fatal(wish, err)
		}
		if err := one.Forget(t.Context(), "london"); !errors.Is(err, control.ErrRefused) || onBoard(t, store, registry.NoteWanted) != wish {
			t.Errorf("forgotten although it lives: %v", err)
		}
		die()
		registrytest.WaitFor(t, "the lease to end", func() bool { m, err := one.member("london"); return err == nil && !m.LeaseHeld })
		if err := one.Forget(t.Context(), "london"); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []registry.NoteKind{registry.NoteWanted, registry.NoteDrain} {
			if note := onBoard(t, store, kind); note != "" {
				t.Errorf("the board still has %s: %s", kind, note)
			}
		}
		one.knows(1, 0) // at once: see Forget
		two.knows(1, 0)

		// A daemon that was away holds the old wish, and may post it before it hears.
		again := observe(t, store, "rome", file)
		if err := store.Post(t.Context(), registry.Note{Kind: registry.NoteWanted, Key: "london", Value: wish}); err != nil {
			t.Fatal(err)
		}
		two.ahead.Add(int64(wishesCompared))
		again.ahead.Add(int64(wishesCompared))
		registrytest.WaitFor(t, "the old wish to be off the board", func() bool { return onBoard(t, store, registry.NoteWanted) == "" })
		for _, o := range []*observer{one, two, again} {
			registrytest.WaitFor(t, o.cfg.Name+" to give up the old wish", func() bool {
				o.ahead.Add(int64(wishesCompared))
				return o.wishes.book.Get("london").Wanted == pbxmesh.WantedInService
			})
		}
		if note := onBoard(t, store, registry.NoteWanted); note != "" {
			t.Errorf("the board has %s", note)
		}

		joins(t, store, "london", 10, 1)
		for _, o := range []*observer{one, two, again} {
			o.knows(2, 1)
			o.hears("in service", "pbxmesh forget")
		}
	})
}

// A node whose switch is dead can be drained: that keeps phones away when it returns.
func TestDrainOfDeadNode(t *testing.T) {
	t.Parallel()
	store := memory.New(memory.Options{})
	joins(t, store, "london", 10, 3, registry.SwitchState{Dead: true})
	joins(t, store, "buffalo", 10, 0)
	o := observe(t, store, "losangeles", "")
	o.knows(2, 3)
	registrytest.WaitFor(t, "london to be down", func() bool { return o.Mesh().State("london").Observed == pbxmesh.ObservedDown })
	const down = "london is down: nobody can tell its phones, which leave by themselves; it takes none when it is up again, until `pbxmesh undrain`"
	if r := o.want(control.StateDraining, "alice"); !slices.Equal(r.Warnings, []string{down}) {
		t.Errorf("drained although it is down: %+v", r)
	}
	r, err := o.Drain(t.Context(), "london")
	if err != nil || !r.Empty || r.Registrations != 3 || !strings.HasPrefix(r.Notice, "london is down: ") || r.Wanted != "draining" || r.Effective != "down" {
		t.Errorf("its drain: %+v, %v", r, err)
	}
}
