package e2e_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/registry/registrytest"
)

// towns in the order in which a phone moves.
var towns = []string{"buffalo", "london", "singapore"}

// rounds is how a moving phone is called: it moves so many times, so far apart; grace is
// how long after its new REGISTER was answered a call may find nobody, or it twice.
type rounds struct {
	moves              int
	apart, call, grace time.Duration
}

func movingRounds() rounds {
	if realBinary() != "" {
		return rounds{moves: 50, apart: 1500 * time.Millisecond, call: time.Second, grace: 100 * time.Millisecond}
	}
	return rounds{moves: 6, apart: 1700 * time.Millisecond, call: 400 * time.Millisecond, grace: time.Second}
}

// TestScenarioMoved plays phones that are on several nodes, over dialplans that know
// nothing of the mesh and over the socket hook.
func TestScenarioMoved(t *testing.T) {
	t.Parallel()
	c := newCluster(t, registrytest.StartRedis(t).URL(), stockRoutes...)
	from := c.desks("127.0.121.1")
	c.sub(t, "moves with its Call-ID", func(*testing.T) { c.moves(from, "1081", "u", phone.KeepCallID) })
	c.sub(t, "moves with another Call-ID each time", func(*testing.T) { c.moves(from, "1082", "c", phone.NewCallID) })
	c.sub(t, "two registrations, one node killed", func(*testing.T) { c.twoRegistrations(from, "1083", "u") })
}

func TestScenarioMovedHook(t *testing.T) {
	t.Parallel()
	c := newCluster(t, registrytest.StartRedis(t).URL())
	from := c.desks("127.0.122.1")
	c.sub(t, "moves", func(*testing.T) { c.moves(from, "1084", "", phone.NewCallID) })
	c.sub(t, "two registrations, one node killed", func(*testing.T) { c.twoRegistrations(from, "1085", "") })
}

// desks registers a phone on every node, which calls the one that moves.
func (c *cluster) desks(local string) map[string]*phone.Phone {
	from := map[string]*phone.Phone{}
	for i, at := range towns {
		from[at] = c.registered(fmt.Sprint(1090+i), fmt.Sprintf("%s%d", local, i), at)
	}
	return from
}

// sub runs one story on the mesh.
func (c *cluster) sub(t *testing.T, name string, run func(*testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		outer := c.t
		c.t = t
		defer func() { c.t = outer }()
		run(t)
	})
}

// placed is one call, and how often it rang. Nothing in it knows what phone it is.
type placed struct {
	id   string
	from string // the node
	at   time.Time
	rang int
}

// move is when a phone asked another node to register it, and was answered.
type move struct {
	to              string
	began, answered time.Time
}

// judge compares what rang with what should have: once for every call. Those placed from
// just before a REGISTER until grace after its answer are told apart: what was on its way
// when the phone moved met one node before and another one after.
func judge(calls []placed, moves []move, grace time.Duration) (wrong, between []string) {
	const way = 150 * time.Millisecond
	for _, call := range calls {
		if call.rang == 1 {
			continue
		}
		text, moving := fmt.Sprintf("a call from %s rang %d times", call.from, call.rang), false
		for _, m := range moves {
			if call.at.After(m.began.Add(-way)) && call.at.Before(m.answered.Add(3*time.Second)) {
				text += fmt.Sprintf(", %s after it moved to %s", call.at.Sub(m.answered).Round(time.Millisecond), m.to)
				moving = moving || call.at.Before(m.answered.Add(grace))
			}
		}
		if moving {
			between = append(between, text)
		} else {
			wrong = append(wrong, text)
		}
	}
	return wrong, between
}

// callers calls number from every node that lives, again and again, until ctx ends. Each
// call is taken back after a while; none is answered.
type callers struct {
	c     *cluster
	calls sync.Map // id to placed
	wg    sync.WaitGroup
}

func (c *cluster) callers(ctx context.Context, number string, every time.Duration, from map[string]*phone.Phone) *callers {
	k := &callers{c: c}
	for node, p := range from {
		k.wg.Go(func() {
			tick := time.NewTicker(every)
			defer tick.Stop()
			for n := 0; ctx.Err() == nil; n++ {
				k.one(p, node, number, fmt.Sprintf("%s-%d", node, n), every/2)
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	return k
}

// one places a call and takes it back after a while.
func (k *callers) one(p *phone.Phone, node, number, id string, after time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	k.calls.Store(id, placed{id: id, from: node, at: time.Now()})
	call, err := p.Call(ctx, number, sipwire.Header{Name: "X-Story", Value: id})
	if err != nil {
		k.c.t.Errorf("%s: %v", id, err)
		return
	}
	heard, stop := context.WithTimeout(ctx, 5*time.Second)
	_, _ = call.Wait(heard, func(i phone.CallInfo) bool { return i.State != phone.Calling })
	stop()
	back := time.NewTimer(after) // a second INVITE would come meanwhile
	defer back.Stop()
	<-back.C
	if call.Info().State == phone.Ended || call.Info().State == phone.Answered {
		_ = call.Hangup(ctx) // the dialplan answered: nobody was found
	} else {
		_ = call.Cancel(ctx)
	}
	_, _ = call.WaitEnded(ctx)
}

// rang is count after all calls have ended.
func (k *callers) rang(phones ...*phone.Phone) []placed {
	k.wg.Wait()
	return k.count(phones...)
}

// count counts the INVITEs at the phones by the call that they belong to.
func (k *callers) count(phones ...*phone.Phone) []placed {
	counts := map[string]int{}
	for _, p := range phones {
		for _, in := range p.Incoming() {
			for _, h := range in.Custom() {
				if strings.EqualFold(h.Name, "X-Story") {
					counts[h.Value]++
				}
			}
		}
	}
	var out []placed
	k.calls.Range(func(_, v any) bool {
		call := v.(placed)
		call.rang = counts[call.id]
		out = append(out, call)
		return true
	})
	slices.SortFunc(out, func(a, b placed) int { return a.at.Compare(b.at) })
	return out
}

// moves lets a phone go from node to node, while all of them call it.
func (c *cluster) moves(from map[string]*phone.Phone, user, prefix string, choice phone.CallIDChoice) {
	t, r := c.t, movingRounds()
	p := c.registered(user, "127.0.123."+user[2:], towns[0])
	p.SetBehaviour(phone.RingForever())
	for _, n := range c.nodes {
		c.eventually(n.name+"'s switch finds "+user, func() bool { return c.found(n, user) == 1 })
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	k := c.callers(ctx, prefix+user, r.call, from)
	tick := time.NewTicker(r.apart)
	defer tick.Stop()
	var moves []move
	var known []time.Duration
	for i := 1; i <= r.moves; i++ {
		<-tick.C
		m := move{to: towns[i%len(towns)], began: time.Now()}
		if err := p.MoveTo(c.ctx(), c.nodes[m.to].sw.SIP(), choice); err != nil {
			t.Fatalf("move %d to %s: %v", i, m.to, err)
		}
		m.answered = time.Now()
		moves = append(moves, m)
		known = append(known, c.settled(user, m.to))
	}
	<-tick.C
	cancel()
	calls := k.rang(p)
	if len(calls) < r.moves {
		t.Errorf("only %d calls were placed", len(calls))
	}
	wrong, between := judge(calls, moves, r.grace)
	for _, w := range wrong {
		t.Error(w)
	}
	slices.Sort(known)
	t.Logf("%d moves, %d calls; every switch knew the new place after %s (median), %s at most; placed while it moved: %q",
		len(moves), len(calls), known[len(known)/2].Round(time.Millisecond), known[len(known)-1].Round(time.Millisecond), between)
}

// once holds that every call rang once.
func (c *cluster) once(calls []placed) {
	c.t.Helper()
	wrong, _ := judge(calls, nil, 0)
	for _, w := range wrong {
		c.t.Error(w)
	}
}

// found returns how many contacts the switch of n has for user.
func (c *cluster) found(n *node, user string) int {
	return strings.Count(c.api(n, "sofia_contact */"+user+"@"+domain), "sofia/")
}

// settled waits until every switch finds user exactly once, at the node at.
func (c *cluster) settled(user, at string) time.Duration {
	c.t.Helper()
	var worst time.Duration
	for _, n := range c.nodes {
		if n.killed {
			continue
		}
		want := "sofia/mesh/sip:" + user + "@" + domain + ";fs_path=sip"
		if n.name == at {
			want = "sofia/internal/"
		}
		worst = max(worst, c.eventually(n.name+"'s switch finds "+user+" once, at "+at, func() bool {
			got := c.api(n, "sofia_contact */"+user+"@"+domain)
			return strings.Count(got, "sofia/") == 1 && strings.Contains(got, want) &&
				(n.name == at || strings.Contains(got, c.nodes[at].sw.Mesh().Addr().String()))
		}))
	}
	return worst
}

// twoRegistrations kills the node of the newer of a phone's two registrations.
func (c *cluster) twoRegistrations(from map[string]*phone.Phone, user, prefix string) {
	t := c.t
	p := c.registered(user, "127.0.123."+user[2:], "london")
	p.SetBehaviour(phone.RingForever())
	from = maps.Clone(from)
	delete(from, "buffalo") // it will be killed
	if err := p.MoveTo(c.ctx(), c.nodes["buffalo"].sw.SIP(), phone.NewCallID); err != nil {
		t.Fatal(err)
	}
	c.settled(user, "buffalo")
	round := func(name string) (calls []placed) {
		k := &callers{c: c}
		for at, q := range from {
			k.wg.Go(func() { k.one(q, at, prefix+user, name+at, 500*time.Millisecond) })
		}
		return k.rang(p)
	}
	c.once(round("before-"))
	began := time.Now()
	c.kill("buffalo")
	took, k := map[string]time.Duration{}, &callers{c: c}
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for n := 0; len(took) < len(from) && time.Since(began) < soon; n++ {
		for at, q := range from {
			// A call to the dead node takes seconds: the next one does not wait for it.
			k.wg.Go(func() { k.one(q, at, prefix+user, fmt.Sprintf("after-%d-%s", n, at), 500*time.Millisecond) })
		}
		<-tick.C
		for _, call := range k.count(p) {
			if d, ok := took[call.from]; call.rang > 0 && (!ok || call.at.Sub(began) < d) {
				took[call.from] = call.at.Sub(began)
			}
		}
	}
	for _, call := range k.rang(p) {
		if call.rang > 1 {
			t.Errorf("%s, %s after the kill, rang %d times", call.id, call.at.Sub(began), call.rang)
		}
	}
	t.Logf("it rang by london for calls placed so long after buffalo was killed: %v", took)
	if len(took) < len(from) {
		t.Fatalf("it rings for %v only", slices.Collect(maps.Keys(took)))
	}
	for at, d := range took {
		c.atMost("a call from "+at+" rings by the other registration", d, 5*time.Second)
	}
	c.settled(user, "london")
	c.once(round("later-"))
	all := p.Incoming()
	if got := all[len(all)-1].Source(); got != c.nodes["london"].sw.SIP() {
		t.Errorf("the last INVITE came from %s, not from london", got)
	}
	// The phone goes on at london; buffalo's switch comes back with its old row of it.
	if err := p.MoveTo(c.ctx(), c.nodes["london"].sw.SIP(), phone.KeepCallID); err != nil {
		t.Fatal(err)
	}
	c.comesBack("buffalo")
	c.settled(user, "london")
	c.once(round("back-"))
}

// comesBack starts a killed node again, with the table that its switch kept.
func (c *cluster) comesBack(name string) {
	c.t.Helper()
	n := c.nodes[name]
	if err := n.sw.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.startDaemon(n)
	n.killed = false
	for _, o := range c.nodes {
		c.eventually(o.name+" sees "+name+" up again", func() bool {
			return o.app.Mesh().State(pbxmesh.NodeID(name)).Effective() == pbxmesh.EffectiveUp
		})
	}
}
