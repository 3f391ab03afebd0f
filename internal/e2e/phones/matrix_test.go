package phones_test

import (
	"cmp"
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

// offer is a list of codecs, the most liked first.
type offer struct {
	name   string
	codecs []softphone.Codec
}

// offers are those of the matrix's phones.
var offers = []offer{
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
var outcomes = []string{"answer", "digits", "hold by caller", "hold by callee", "busy", "carried", "early media", "refuse", "no answer", "cancel"}

// pair is two phones of the matrix: a column of cells. by and with are their transports, ""
// for UDP.
type pair struct {
	caller, callee softphone.Kind
	from, to       string
	offer, accept  int
	by, with       string
}

// alike are pairs that differ in their nodes only.
func (p pair) alike() pair {
	p.from, p.to = "", ""
	return p
}

func (p pair) String() string {
	return fmt.Sprintf("%s at %s (%s) calls %s at %s (%s)", p.caller, p.from, p.calling().offers(), p.callee, p.to, p.called().offers())
}

// seat is a phone of the matrix: what it is, where, and whether it shares a node with phones
// that call while it is called.
type seat struct {
	kind      softphone.Kind
	town      string
	offer     int
	transport string
	calls     bool // only, and may make a second call; else it does both, one at a time
}

func (s seat) offers() string {
	return strings.TrimSpace(offers[s.offer].name + " " + s.transport)
}

// wire names a transport as Via does.
func wire(transport string) string { return strings.ToUpper(cmp.Or(transport, "udp")) }

// calling and called are the seats of a pair. Phones of one kind that call one another are
// two, also on one node.
func (p pair) calling() seat {
	return seat{kind: p.caller, town: p.from, offer: p.offer, transport: p.by, calls: p.caller == p.callee}
}

func (p pair) called() seat {
	return seat{kind: p.callee, town: p.to, offer: p.accept, transport: p.with}
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
	todo := pairsOfOffers()
	x := newMatrix(m, meter, todo)
	x.all(todo)
}

// all plays everything between the pairs, judges it and logs the table.
func (x *matrix) all(todo []pair) {
	x.t.Helper()
	began := time.Now()
	x.boot(todo, false)
	x.run(todo, (*talk).play)
	x.boot(todo, true)
	x.run(todo, (*talk).speaking)
	x.judge()
	x.t.Logf("%d pairs in %s\n%s", len(x.got), time.Since(began).Round(time.Second), x.table())
}

func newMatrix(m *mesh, meter *softphone.Meter, todo []pair) *matrix {
	x := &matrix{t: m.t, m: m, meter: meter, busy: map[*softphone.Phone]bool{}, got: map[pair]map[string]string{}, wire: map[pair]map[string]string{}}
	x.change = sync.NewCond(&x.mu)
	for _, p := range todo {
		x.got[p], x.wire[p] = map[string]string{}, map[string]string{}
	}
	return x
}

// boot starts the phones of the pairs, instead of those that run, and returns when all
// switches know them. With early media they speak before they are answered.
func (x *matrix) boot(todo []pair, early bool) {
	for _, p := range x.phones {
		must(x.t, p.Close())
	}
	x.phones = map[seat]*softphone.Phone{}
	for _, p := range todo {
		x.phone(p.calling(), early)
		x.phone(p.called(), early)
	}
	for s, p := range x.phones {
		x.m.isAt(x.t, p, s.town)
	}
}

// phone starts a phone of the matrix, if it does not run. Its node is told to it: under
// load its look-ups would name another one now and then.
func (x *matrix) phone(s seat, early bool) {
	if x.phones[s] != nil {
		return
	}
	atOnce := 1
	if s.calls {
		atOnce = 2
	}
	name := ""
	if s.kind == softphone.Linphone {
		name = x.name
	}
	x.phones[s] = x.m.phone(x.t, s.town, softphone.Config{
		Kind: s.kind, Registrar: x.m.nodes[s.town].listens(s.transport), Transport: s.transport, Codecs: offers[s.offer].codecs,
		Name: name, EarlyMedia: early, MaxCalls: atOnce, Expires: 10 * time.Minute,
	})
}

// matrix is the phones and what became of their calls.
type matrix struct {
	t      *testing.T
	m      *mesh
	meter  *softphone.Meter
	name   string // of every Linphone, as phones show it
	phones map[seat]*softphone.Phone

	mu     sync.Mutex
	change *sync.Cond
	busy   map[*softphone.Phone]bool
	got    map[pair]map[string]string
	wire   map[pair]map[string]string // what both phones sent and received meanwhile
}

// pairsOfOffers are all of them: each node to each, also to itself, each kind to the other one.
// PBXMESH_MATRIX names a part of a pair's name to run only those, and their references.
func pairsOfOffers() []pair {
	var out []pair
	part := os.Getenv("PBXMESH_MATRIX")
	for offer := range offers {
		for accept := range offers {
			for i, from := range towns {
				for j, to := range towns {
					for _, k := range pairs {
						p := pair{caller: k.caller, callee: k.callee, from: from, to: to, offer: offer, accept: accept}
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
			return !x.busy[x.phones[p.calling()]] && !x.busy[x.phones[p.called()]]
		})
		if i < 0 {
			x.change.Wait()
			continue
		}
		p := todo[i]
		todo = slices.Delete(todo, i, i+1)
		caller, callee := x.phones[p.calling()], x.phones[p.called()]
		x.busy[caller], x.busy[callee] = true, true
		wg.Go(func() {
			common := slices.ContainsFunc(offers[p.offer].codecs, func(c softphone.Codec) bool { return slices.Contains(offers[p.accept].codecs, c) })
			k := &talk{
				x: x, caller: caller, callee: callee, common: common, twice: p.caller != softphone.Linphone || p.calling().calls,
				got: map[string]string{}, wire: map[string]string{},
			}
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
			"carried":     fmt.Sprintf("from the caller by %s, to the callee by %s", wire(p.by), wire(p.with)),
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

// table shows per reference what happens on one node, and in how many of the pairs across
// nodes it is the same.
func (x *matrix) table() string {
	var out strings.Builder
	references := slices.DeleteFunc(slices.Collect(maps.Keys(x.got)), func(p pair) bool { return p.from != p.to })
	slices.SortFunc(references, func(a, b pair) int { return strings.Compare(a.String(), b.String()) })
	for _, ref := range references {
		fmt.Fprintf(&out, "%s %s -> %s %s\n", ref.caller, ref.calling().offers(), ref.callee, ref.called().offers())
		for _, o := range outcomes {
			same, all := 0, 0
			for p, got := range x.got {
				if p.alike() == ref.alike() && p.from != p.to {
					all++
					if got[o] == x.got[ref][o] {
						same++
					}
				}
			}
			fmt.Fprintf(&out, "   %-15s %d of %d as on one node: %s\n", o, same, all, x.got[ref][o])
		}
	}
	return out.String()
}
