package phones_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pbxmesh/fixtures/softphone"
)

// offers are the codec lists of the matrix's phones, the most liked first.
var offers = []struct {
	name   string
	codecs []softphone.Codec
}{
	{"opus+g722+pcmu", []softphone.Codec{softphone.Opus, softphone.G722, softphone.PCMU}},
	{"pcmu", []softphone.Codec{softphone.PCMU}},
	{"pcma", []softphone.Codec{softphone.PCMA}},
	{"g722+pcma", []softphone.Codec{softphone.G722, softphone.PCMA}},
}

// matrixPlan dials a phone as a stock dialplan does, and lets a call that fails end with
// its cause, so that the caller's phone sees what became of it. Nobody rings for long.
const matrixPlan = `<context name="default"><extension name="local"><condition field="destination_number" expression="^(1[0-9]{3})$">
  <action application="set" data="hangup_after_bridge=true"/>
  <action application="set" data="call_timeout=6"/>
  <action application="bridge" data="user/$1@` + zone + `"/>
</condition></extension></context>`

// outcomes of a pair, in the order of the table.
var outcomes = []string{"answer", "digits", "hold by caller", "hold by callee", "busy", "early media", "refuse", "no answer", "cancel"}

// pair is two phones of the matrix: a column of cells.
type pair struct {
	caller, callee softphone.Kind
	from, to       string
	offer, accept  int
}

// alike are pairs that differ in their nodes only.
func (p pair) alike() pair {
	p.from, p.to = "", ""
	return p
}

func (p pair) String() string {
	return fmt.Sprintf("%s at %s (%s) calls %s at %s (%s)", p.caller, p.from, offers[p.offer].name, p.callee, p.to, offers[p.accept].name)
}

// TestScenarioMatrix calls between real phones on three real switches, across nodes and
// on one, with all pairs of offers, through everything that a call can become. What
// becomes of it across nodes must be what becomes of it on one.
func TestScenarioMatrix(t *testing.T) {
	if realBinary() == "" {
		t.Skip("SKIPPED, NOT TESTED: simulated switches pass SDP through and have no codecs")
	}
	m := newMesh(t, options{net: 145, nodes: 3, plan: matrixPlan})
	meter, err := softphone.NewMeter()
	must(t, err)
	t.Cleanup(meter.Close)
	x := &matrix{t: t, m: m, meter: meter, busy: map[*softphone.Phone]bool{}, got: map[pair]map[string]string{}, wire: map[pair]map[string]string{}}
	x.change = sync.NewCond(&x.mu)
	todo := x.pairs()
	for _, p := range todo {
		x.got[p], x.wire[p] = map[string]string{}, map[string]string{}
	}
	began := time.Now()
	x.boot(todo, false)
	x.run(todo, (*talk).play)
	x.boot(todo, true)
	x.run(todo, (*talk).speaking)
	x.judge()
	t.Logf("%d pairs in %s\n%s", len(x.got), time.Since(began).Round(time.Second), x.table())
}

func key(kind softphone.Kind, town string, offer int) string {
	return fmt.Sprint(town, " ", kind, " ", offer)
}

// boot starts the phones of the pairs, instead of those that run, and returns when all
// switches know them. With early media they speak before they are answered.
func (x *matrix) boot(todo []pair, early bool) {
	for _, p := range x.phones {
		must(x.t, p.Close())
	}
	x.phones = map[string]*softphone.Phone{}
	for _, p := range todo {
		x.phone(p.caller, p.from, p.offer, early)
		x.phone(p.callee, p.to, p.accept, early)
	}
	for k, p := range x.phones {
		town, _, _ := strings.Cut(k, " ")
		x.m.isAt(x.t, p, town)
	}
}

// phone starts a phone of the matrix, if it does not run. Its node is told to it: under
// load its look-ups would name another one now and then.
func (x *matrix) phone(kind softphone.Kind, town string, offer int, early bool) {
	k := key(kind, town, offer)
	if x.phones[k] == nil {
		x.phones[k] = x.m.phone(x.t, town, softphone.Config{
			Kind: kind, Registrar: x.m.nodes[town].sw.SIP(), Codecs: offers[offer].codecs, EarlyMedia: early, MaxCalls: 1, Expires: 10 * time.Minute,
		})
	}
}

// matrix is the phones and what became of their calls.
type matrix struct {
	t      *testing.T
	m      *mesh
	meter  *softphone.Meter
	phones map[string]*softphone.Phone

	mu     sync.Mutex
	change *sync.Cond
	busy   map[*softphone.Phone]bool
	got    map[pair]map[string]string
	wire   map[pair]map[string]string // what both phones sent and received meanwhile
}

// pairs are all of them: each node to each, also to itself, each kind to the other one.
// PBXMESH_MATRIX names a part of a pair's name to run only those, and their references.
func (x *matrix) pairs() []pair {
	var out []pair
	part := os.Getenv("PBXMESH_MATRIX")
	for offer := range offers {
		for accept := range offers {
			for i, from := range towns {
				for j, to := range towns {
					for _, k := range pairs {
						p := pair{k.caller, k.callee, from, to, offer, accept}
						// One node is enough for what happens on one.
						same := i == j
						if same && i > 0 || part != "" && !strings.Contains(p.String(), part) && !same {
							continue
						}
						out = append(out, p)
					}
				}
			}
		}
	}
	if part == "" {
		return out
	}
	// Only the references of what is run.
	return slices.DeleteFunc(out, func(p pair) bool {
		return p.from == p.to && !slices.ContainsFunc(out, func(q pair) bool { return q.from != q.to && q.alike() == p.alike() })
	})
}

// run plays pairs, as many at once as there are phones for.
func (x *matrix) run(todo []pair, play func(*talk)) {
	todo = slices.Clone(todo)
	var wg sync.WaitGroup
	defer wg.Wait()
	x.mu.Lock()
	defer x.mu.Unlock()
	for len(todo) > 0 {
		i := slices.IndexFunc(todo, func(p pair) bool {
			return !x.busy[x.phones[key(p.caller, p.from, p.offer)]] && !x.busy[x.phones[key(p.callee, p.to, p.accept)]]
		})
		if i < 0 {
			x.change.Wait()
			continue
		}
		p := todo[i]
		todo = slices.Delete(todo, i, i+1)
		caller, callee := x.phones[key(p.caller, p.from, p.offer)], x.phones[key(p.callee, p.to, p.accept)]
		x.busy[caller], x.busy[callee] = true, true
		wg.Go(func() {
			common := slices.ContainsFunc(offers[p.offer].codecs, func(c softphone.Codec) bool { return slices.Contains(offers[p.accept].codecs, c) })
			k := &talk{x: x, caller: caller, callee: callee, common: common, got: map[string]string{}, wire: map[string]string{}}
			play(k)
			x.mu.Lock()
			defer x.mu.Unlock()
			maps.Copy(x.got[p], k.got)
			maps.Copy(x.wire[p], k.wire)
			delete(x.busy, caller)
			delete(x.busy, callee)
			x.change.Broadcast()
		})
	}
}

// reference is what became of the same calls on one node.
func (x *matrix) reference(p pair) map[string]string {
	p.from, p.to = towns[0], towns[0]
	return x.got[p]
}

// differing are the pairs with a cell that is not as on one node, and references that
// failed.
func (x *matrix) differing() []pair {
	var out []pair
	for p, got := range x.got {
		for _, o := range outcomes {
			if got[o] != x.reference(p)[o] || strings.Contains(got[o], "FAILED") {
				out = append(out, p)
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b pair) int { return strings.Compare(a.String(), b.String()) })
	return out
}

func (x *matrix) judge() {
	// A reference in which nothing works would be equalled easily.
	for p, got := range x.got {
		if p.from != p.to || p.offer != p.accept {
			continue
		}
		for o, want := range map[string]string{
			"answer":      "200, early false, both heard, rang 1",
			"early media": fmt.Sprintf("183, caller heard %v, callee heard true, then 200, both heard", p.callee == softphone.Linphone),
		} {
			if got[o] != want {
				x.t.Errorf("%s: %s: %s, want %s", p, o, got[o], want)
			}
		}
		if offers[p.offer].name == "pcmu" && got["digits"] != `callee hears "12#", caller hears "*90"` {
			x.t.Errorf("%s: digits: %s", p, got["digits"])
		}
	}
	for _, p := range x.differing() {
		for _, o := range outcomes {
			got, want := x.got[p][o], x.reference(p)[o]
			switch {
			case got != want:
				x.t.Errorf("%s: %s: %s, on one node %s\n%s", p, o, got, want, x.wire[p][o])
			case strings.Contains(got, "FAILED"):
				x.t.Errorf("%s: %s: %s, also on one node\n%s", p, o, got, x.wire[p][o])
			}
		}
	}
}

// table shows per offer and outcome what happens on one node, and in how many of the
// pairs across nodes it is the same.
func (x *matrix) table() string {
	var out strings.Builder
	for _, k := range pairs {
		for offer := range offers {
			for accept := range offers {
				fmt.Fprintf(&out, "%s %s -> %s %s\n", k.caller, offers[offer].name, k.callee, offers[accept].name)
				ref := x.reference(pair{caller: k.caller, callee: k.callee, offer: offer, accept: accept})
				for _, o := range outcomes {
					same, all := 0, 0
					for p, got := range x.got {
						if p.alike() == (pair{caller: k.caller, callee: k.callee, offer: offer, accept: accept}) && p.from != p.to {
							all++
							if got[o] == ref[o] {
								same++
							}
						}
					}
					fmt.Fprintf(&out, "   %-15s %d of %d as on one node: %s\n", o, same, all, ref[o])
				}
			}
		}
	}
	return out.String()
}

// talk is the calls of one pair.
type talk struct {
	x              *matrix
	caller, callee *softphone.Phone
	common         bool // they have a codec in common
	got, wire      map[string]string
	rung           int
}

// step bounds one thing that a phone is waited for.
const step = 20 * time.Second

// play plays everything but early media.
func (k *talk) play() {
	k.parts([]part{{k.answered, outcomes[:5]}, {k.refused, outcomes[6:7]}, {k.unanswered, outcomes[7:8]}, {k.cancelled, outcomes[8:9]}})
}

// speaking plays early media.
func (k *talk) speaking() { k.parts([]part{{k.early, outcomes[5:6]}}) }

// part is a call, and the outcomes that it shows.
type part struct {
	run   func(context.Context) error
	names []string
}

func (k *talk) parts(all []part) {
	for _, part := range all {
		ctx, cancel := context.WithTimeout(k.x.t.Context(), 3*step)
		k.caller.Forget()
		k.callee.Forget()
		k.rung = 0
		err := part.run(ctx)
		for _, o := range part.names {
			if err != nil && k.got[o] == "" {
				k.got[o] = "FAILED: " + err.Error()
			}
			k.wire[o] = k.messages()
			if strings.Contains(k.got[o], "INCOMPATIBLE") && k.common {
				k.wire[o] += k.x.m.logs()
			}
		}
		cancel()
		ctx, cancel = context.WithTimeout(k.x.t.Context(), step)
		for _, p := range []*softphone.Phone{k.caller, k.callee} {
			if err := p.HangupAll(ctx); err != nil {
				k.got[part.names[0]] += " FAILED to end: " + err.Error()
			}
		}
		cancel()
	}
}

// messages are what both phones sent and received since the part began.
func (k *talk) messages() string {
	var out strings.Builder
	for _, p := range []*softphone.Phone{k.caller, k.callee} {
		for _, m := range p.Trace() {
			way := "got from"
			if m.Sent {
				way = "sent to"
			}
			fmt.Fprintf(&out, "%s %s %s %s: %s, %s, Call-ID %s\n%s\n", m.At.Format("15:04:05.000"), p, way, m.Remote, m.Start, m.Header("CSeq"), m.Header("Call-ID"), m.Body)
		}
	}
	return out.String()
}

// ring dials and returns when the callee rings, once.
func (k *talk) ring(ctx context.Context) error {
	if err := k.caller.Call(k.callee.User()); err != nil {
		return err
	}
	k.rung++
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	if _, err := k.callee.WaitRinging(ctx, k.rung); err != nil {
		calls := k.caller.Trace().Calls()
		return fmt.Errorf("%w; the caller sees %+v", err, calls[max(0, len(calls)-1):])
	}
	return nil
}

// talking waits until both phones hear the other one.
func (k *talk) talking(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	for _, p := range []*softphone.Phone{k.caller, k.callee} {
		if err := k.x.meter.WaitHeard(ctx, p, 10); err != nil {
			return err
		}
	}
	return nil
}

// answered is a call with digits, hold and a second caller's attempt.
func (k *talk) answered(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	early := len(k.caller.Trace().Calls()) > 0 && k.caller.Trace().Calls()[0].Early
	if err := k.callee.Answer(); err != nil {
		return err
	}
	call, err := k.taken(ctx)
	if err != nil {
		return err
	}
	if call.Ended { // no codec in common: one switch does not transcode either
		for _, o := range outcomes[:5] {
			k.got[o] = ended(call)
		}
		return nil
	}
	if err := k.talking(ctx); err != nil {
		return err
	}
	k.got["answer"] = fmt.Sprintf("%d, early %v, both heard, rang %d", call.Status, early, len(k.callee.Trace().Calls()))
	if err := k.digits(ctx); err != nil {
		k.got["digits"] = "FAILED: " + err.Error()
	}
	for _, h := range []struct {
		name string
		by   *softphone.Phone
	}{{"hold by caller", k.caller}, {"hold by callee", k.callee}} {
		if err := k.held(ctx, h.by, h.name); err != nil {
			k.got[h.name] = "FAILED: " + err.Error()
		}
	}
	return k.second(ctx)
}

// digits tells what arrives. Digits can be lost on one node too: Linphone sends them at
// the rate of opus, which baresip does not hear.
func (k *talk) digits(ctx context.Context) error {
	for _, way := range []struct {
		from, to *softphone.Phone
		digits   string
	}{{k.caller, k.callee, "12#"}, {k.callee, k.caller, "*90"}} {
		if err := way.from.Digits(ctx, way.digits); err != nil {
			return err
		}
		short, cancel := context.WithTimeout(ctx, step/4)
		_ = way.to.WaitDigits(short, way.digits)
		cancel()
	}
	k.got["digits"] = fmt.Sprintf("callee hears %q, caller hears %q", k.callee.Received(), k.caller.Received())
	return nil
}

func (k *talk) held(ctx context.Context, by *softphone.Phone, name string) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	if err := by.Hold(true); err != nil {
		return err
	}
	call, err := by.WaitCall(ctx, "its hold", func(c softphone.Call) bool {
		return c.Mine != "sendrecv" && c.Theirs != "sendrecv" || c.Ended
	})
	if err != nil {
		return err
	}
	if err := by.Hold(false); err != nil {
		return err
	}
	_, err = by.WaitCall(ctx, "the end of its hold", func(c softphone.Call) bool {
		return c.Mine == "sendrecv" && c.Theirs == "sendrecv" || c.Ended
	})
	if err != nil {
		return err
	}
	if err := k.talking(ctx); err != nil {
		return err
	}
	k.got[name] = call.Mine + " answered " + call.Theirs + ", both heard afterwards"
	return nil
}

// taken waits until the call is answered, or over.
func (k *talk) taken(ctx context.Context) (softphone.Call, error) {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	return k.caller.WaitCall(ctx, "an answer", func(c softphone.Call) bool { return c.Answered || c.Ended })
}

// second calls again, while the callee talks and takes one call only.
func (k *talk) second(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, step)
	defer cancel()
	if k.caller.Kind() == softphone.Linphone {
		k.got["busy"] = "not tried: Linphone's limit of one call holds for calls that it makes too"
		return nil
	}
	if err := k.caller.Call(k.callee.User()); err != nil {
		return err
	}
	err := k.caller.Wait(ctx, "the end of the second call", func(t softphone.Trace) bool {
		calls := t.Calls()
		return len(calls) == 2 && calls[1].Ended
	})
	if err != nil {
		return err
	}
	k.got["busy"] = ended(k.caller.Trace().Calls()[1])
	return nil
}

// ended tells how a call ended that was not answered.
func ended(c softphone.Call) string {
	if c.Answered {
		return "FAILED: it was answered"
	}
	return strings.TrimSpace(fmt.Sprint(c.Status, " ", c.Reason))
}

func (k *talk) early(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, step/4)
	defer cancel()
	call, err := k.caller.WaitCall(short, "early media", func(c softphone.Call) bool { return c.Early || c.Ended })
	switch {
	case err != nil:
		return err
	case call.Ended:
		k.got["early media"] = ended(call)
		return nil
	}
	heard := k.x.meter.WaitHeard(short, k.callee, 10) == nil
	spoke := k.callee.Kind() == softphone.Linphone // baresip 1.0 announces it and says nothing
	if spoke {
		spoke = k.x.meter.WaitHeard(short, k.caller, 10) == nil
	}
	if err := k.callee.Answer(); err != nil {
		return err
	}
	if call, err = k.taken(ctx); err != nil {
		return err
	}
	if err := k.talking(ctx); err != nil {
		return err
	}
	k.got["early media"] = fmt.Sprintf("183, caller heard %v, callee heard %v, then %d, both heard", spoke, heard, call.Status)
	return k.caller.HangupAll(ctx)
}

func (k *talk) refused(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	if err := k.callee.Hangup(); err != nil {
		return err
	}
	call, err := k.caller.WaitEnded(ctx)
	k.set("refuse", call, err)
	return err
}

func (k *talk) unanswered(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	call, err := k.caller.WaitEnded(ctx)
	if err != nil {
		return err
	}
	k.set("no answer", call, err)
	there, err := k.callee.WaitEnded(ctx)
	k.got["no answer"] += fmt.Sprint(", callee ", there.Status)
	return err
}

func (k *talk) cancelled(ctx context.Context) error {
	if err := k.ring(ctx); err != nil {
		return err
	}
	// A phone that says no by itself has nothing to be cancelled.
	if calls := k.callee.Trace().Calls(); calls[len(calls)-1].Status < 300 {
		if err := k.caller.HangupAll(ctx); err != nil {
			return err
		}
	}
	call, err := k.caller.WaitEnded(ctx)
	if err != nil {
		return err
	}
	k.set("cancel", call, err)
	there, err := k.callee.WaitEnded(ctx)
	k.got["cancel"] += fmt.Sprint(", callee ", there.Status)
	return err
}

func (k *talk) set(outcome string, c softphone.Call, err error) {
	if err == nil {
		k.got[outcome] = ended(c)
	}
}
