package latency

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

// event is what happens in a town in virtual time: a query of a resolver, or a phone's
// registration at a node.
type event struct {
	at       time.Time
	resolver string // "" for a registration
	node     pbxmesh.NodeID
	phone    string
	client   string
}

// town makes the events of some hours.
type town struct {
	rand   *rand.Rand
	until  time.Time
	events []event
}

func newTown(hours float64) *town {
	return &town{rand: rand.New(rand.NewPCG(1, 2)), until: epoch.Add(time.Duration(hours * float64(time.Hour)))}
}

func (w *town) within(d time.Duration) time.Duration {
	return time.Duration(w.rand.Float64() * float64(d))
}

// phones lets three phones in each of so many networks register every ten minutes, as others do.
func (w *town) phones(node pbxmesh.NodeID, first byte, networks int) (all []event) {
	for i := range networks {
		for k := range 3 {
			client := fmt.Sprintf("%d.%d.%d.%d", first, i/256, i%256, k+1)
			for at := epoch.Add(w.within(10 * time.Minute)); at.Before(w.until); at = at.Add(9*time.Minute + w.within(time.Minute)) {
				all = append(all, event{at: at, node: node, phone: client, client: client})
			}
		}
	}
	return all
}

// behind lets phones ask through a resolver whose answers live for 30 s, and register a moment
// later.
func (w *town) behind(resolver string, phones []event) {
	slices.SortFunc(phones, func(a, b event) int { return a.at.Compare(b.at) })
	var until time.Time
	for _, e := range phones {
		if e.at.After(until) {
			w.events = append(w.events, event{at: e.at, resolver: resolver, node: e.node})
			until = e.at.Add(30 * time.Second)
		}
		e.at = e.at.Add(100*time.Millisecond + w.within(700*time.Millisecond))
		w.events = append(w.events, e)
	}
}

// learn plays the events; the nodes' clocks are so far ahead of the name server's.
func (w *town) learn(t *testing.T, f *Followers, ahead time.Duration) {
	t.Helper()
	slices.SortStableFunc(w.events, func(a, b event) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.client, b.client)) })
	arrivals := make(map[pbxmesh.NodeID]*Arrivals)
	next := epoch
	exchange := func() {
		for node, a := range arrivals {
			for _, c := range a.Due(next.Add(ahead)) {
				if err := f.Arrived(Key(node, c.Number), c.Value, next); err != nil {
					t.Fatal(err)
				}
				a.Posted(c)
			}
		}
		f.Join(next)
	}
	for _, e := range w.events {
		for ; next.Before(e.at); next = next.Add(ArrivalsEvery) {
			exchange()
		}
		if e.resolver != "" {
			f.Ask([]Asked{{addr(e.resolver), e.node, e.at}})
			continue
		}
		if arrivals[e.node] == nil {
			arrivals[e.node] = NewArrivals()
		}
		arrivals[e.node].Add(Sample{Client: addr(e.client), Phone: e.phone, At: e.at.Add(ahead), Visit: true})
	}
	for range 5 {
		exchange()
		next = next.Add(ArrivalsEvery)
	}
}

// learnt returns what is shared of a resolver.
func (f *Followers) learnt(t *testing.T, resolver string) []Voice {
	t.Helper()
	notes, err := f.Notes(&View{}, epoch)
	if err != nil {
		t.Fatal(err)
	}
	for _, note := range notes {
		list, err := ParseLearnt(note)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range list {
			if l.Network.Contains(addr(resolver)) {
				return l.Voices
			}
		}
	}
	return nil
}

const (
	resolverA = "203.0.113.53"
	resolverB = "203.0.114.53"
)

// TestFollowersFindWhoAsks: of 158 networks at a node, the eight that ask through a resolver
// are found, and no others, whatever the clocks say; a resolver without phones has none.
func TestFollowersFindWhoAsks(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{0, -1500 * time.Millisecond, 2 * time.Second} {
		w := newTown(3)
		w.behind(resolverA, w.phones("london", 10, 8))
		w.events = append(w.events, w.phones("london", 20, 150)...)
		for at := epoch; at.Before(w.until); at = at.Add(20*time.Second + w.within(30*time.Second)) {
			w.events = append(w.events, event{at: at, resolver: resolverB, node: "london"})
		}
		f := NewFollowers()
		w.learn(t, f, ahead)
		found := 0
		for _, v := range f.learnt(t, resolverA) {
			switch mine := v.Network.Addr().As4()[0] == 10; {
			case mine && v.Likely > 0.5:
				found++
			case !mine && v.Likely > 0.5:
				t.Errorf("clocks %v apart: %v does not ask through the resolver: %+v", ahead, v.Network, v)
			}
		}
		if found != 8 {
			t.Errorf("clocks %v apart: %d of 8 networks found: %+v", ahead, found, f.learnt(t, resolverA))
		}
		if v := f.learnt(t, resolverB); len(v) != 0 {
			t.Errorf("clocks %v apart: a resolver without phones has %+v", ahead, v)
		}
		if s := f.Stats(); s.Queries < 300 || s.Resolvers != 2 || s.Learnt != 1 {
			t.Errorf("%+v", s)
		}
	}
}

// TestFewFollowersMoveNothing: somebody who asks in a resolver's name and registers a moment
// later with many accounts is as many networks as he has, and below three of them move nothing.
func TestFewFollowersMoveNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		networks int
		moves    bool
	}{{2, false}, {5, true}} {
		w := newTown(2)
		w.events = append(w.events, w.phones("london", 20, 100)...)
		for at := epoch; at.Before(w.until); at = at.Add(12 * time.Second) {
			w.events = append(w.events, event{at: at, resolver: resolverA, node: "london"})
			for i := range tt.networks {
				for k := range 5 {
					w.events = append(w.events, event{
						at: at.Add(200 * time.Millisecond), node: "london", client: fmt.Sprintf("10.0.%d.%d", i, k+1), phone: fmt.Sprintf("%d-%d@x", i, k),
					})
				}
			}
		}
		f := NewFollowers()
		w.learn(t, f, 0)
		m := newMesh(t)
		m.in.Places = fixed{Where{Location: london.Location}}
		for i := range tt.networks {
			m.show("london", fmt.Sprintf("10.0.%d.1", i), 3, 200)
			m.show("buffalo", fmt.Sprintf("10.0.%d.1", i), 3, 20)
		}
		notes, err := f.Notes(&View{}, epoch)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range notes {
			list, err := ParseLearnt(n)
			if err != nil {
				t.Fatal(err)
			}
			m.in.Learnt = append(m.in.Learnt, list...)
		}
		if d := m.view().decide(netip.MustParsePrefix("203.0.113.0/24"), m.now); (d.First == "buffalo") != tt.moves {
			t.Errorf("%d networks: %+v, learnt %+v", tt.networks, d, m.in.Learnt)
		}
		// It is shared with what was learnt.
		if notes, err = f.Notes(m.view(), m.now); err != nil {
			t.Fatal(err)
		}
		if told := strings.Contains(strings.Join(notes, ""), `"f":"buffalo"`); told != tt.moves {
			t.Errorf("%d networks: %s", tt.networks, notes)
		}
	}
}

// TestFollowersNeedTold: a node that tells nothing, or whose phones all come at once, teaches
// nothing.
func TestFollowersNeedTold(t *testing.T) {
	t.Parallel()
	w := newTown(1)
	for at := epoch; at.Before(w.until); at = at.Add(time.Minute) {
		w.events = append(w.events, event{at: at, resolver: resolverA, node: "singapore"})
	}
	w.behind(resolverB, w.phones("london", 10, 5))
	for i := range 300 { // all of london at once, and again every ten minutes
		for at := epoch.Add(time.Minute); at.Before(w.until); at = at.Add(10 * time.Minute) {
			w.events = append(w.events, event{at: at.Add(w.within(20 * time.Second)), node: "london", client: fmt.Sprintf("20.0.%d.1", i%250), phone: fmt.Sprint(i)})
		}
		if i == 0 {
			for at := epoch.Add(time.Minute); at.Before(w.until); at = at.Add(10 * time.Minute) {
				w.events = append(w.events, event{at: at, resolver: "203.0.115.53", node: "london"})
			}
		}
	}
	f := NewFollowers()
	w.learn(t, f, 0)
	if s := f.Stats(); s.Unpaired < 60 {
		t.Errorf("%+v", s)
	}
	for _, r := range []string{resolverA, "203.0.115.53"} {
		if v := f.learnt(t, r); len(v) != 0 {
			t.Errorf("%s: %+v", r, v)
		}
	}
}

func TestFollowersAreBounded(t *testing.T) {
	t.Parallel()
	f := NewFollowers()
	voices := []Voice{{netip.MustParsePrefix("10.0.0.0/24"), 1, 9, 1}, {netip.MustParsePrefix("10.0.1.0/24"), 1, 9, 1}, {netip.MustParsePrefix("10.0.2.0/24"), 1, 9, 1}}
	f.Restore([]Learnt{{netip.MustParsePrefix("203.0.113.0/24"), voices, verdict{}}}, epoch)
	for i := range 3 * maxResolvers {
		from := netip.AddrFrom4([4]byte{30, byte(i >> 8), byte(i), 53})
		f.Ask([]Asked{{from, "london", epoch.Add(time.Duration(i) * time.Millisecond)}, {from, "london", epoch.Add(time.Duration(i) * time.Millisecond)}})
	}
	if len(f.resolvers) > maxResolvers || len(f.asked) > 3*maxResolvers {
		t.Errorf("%d resolvers, %d queries", len(f.resolvers), len(f.asked))
	}
	if v := f.learnt(t, resolverA); len(v) != 3 {
		t.Errorf("strangers drove out what was known: %+v", v)
	}
	for i := range maxAsked {
		f.Ask([]Asked{{netip.AddrFrom4([4]byte{31, byte(i >> 8), byte(i), 53}), "london", epoch.Add(time.Hour)}})
	}
	if len(f.asked) > maxAsked {
		t.Errorf("%d queries wait", len(f.asked))
	}
	f.Join(epoch.Add(keep + 2*time.Hour))
	if len(f.resolvers) != 0 || len(f.asked) != 0 {
		t.Errorf("a day later %d resolvers, %d queries", len(f.resolvers), len(f.asked))
	}
	r := &resolver{candidates: make(map[netip.Prefix]*candidate)}
	n := &arrived{counts: map[netip.Prefix]float64{}, time: 60}
	shape := [lagSteps]float64{0: 1}
	for i := range 2 * maxCandidates {
		network := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		r.learn(n, epoch, shape, map[netip.Prefix]float64{network: 1, voices[0].Network: 1})
	}
	if c := r.candidates[voices[0].Network]; len(r.candidates) != maxCandidates || c == nil || c.hits < maxCandidates {
		t.Errorf("%d candidates, the one that came always is %+v", len(r.candidates), c)
	}
}

// TestResolverIsRanked walks what decides whether a resolver's phones need another node.
func TestResolverIsRanked(t *testing.T) {
	t.Parallel()
	learnt := func(networks int, likely float64) []Learnt {
		l := Learnt{Network: netip.MustParsePrefix("203.0.113.0/24")}
		for i := range networks {
			l.Voices = append(l.Voices, Voice{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i), 0}), 24), likely, 5, 0.5})
		}
		return []Learnt{l}
	}
	for _, tt := range []struct {
		name   string
		learnt []Learnt
		near   int // networks that buffalo is best for; london is for the others
		rtt    float64
		own    bool // phones in the resolver's own network
		moves  bool
	}{
		{"all need another node", learnt(4, 1), 4, 20, false, true},
		{"most do", learnt(6, 1), 5, 20, false, true},
		{"half do", learnt(6, 1), 3, 20, false, false},
		{"two of three do, which may be chance", learnt(3, 1), 2, 20, false, false},
		{"they gain little", learnt(4, 1), 4, 94, false, false},
		{"too few", learnt(2, 1), 2, 20, false, false},
		{"not likely enough", learnt(4, 0.5), 4, 20, false, false},
		{"phones of its own", learnt(4, 1), 4, 20, true, false},
		{"two name servers know half each", append(learnt(2, 1), Learnt{netip.MustParsePrefix("203.0.113.0/24"), learnt(4, 1)[0].Voices[2:], verdict{}}), 4, 20, false, true},
		{"two name servers know the same", slices.Concat(learnt(2, 1), learnt(2, 1)), 2, 20, false, false},
		{"three do, and three that hardly ask through it do not", []Learnt{{netip.MustParsePrefix("203.0.113.0/24"), append(learnt(3, 1)[0].Voices, learnt(6, 0.1)[0].Voices[3:]...), verdict{}}}, 3, 20, false, true},
		{"none", nil, 4, 20, false, false},
	} {
		m := newMesh(t)
		m.in.Places = fixed{Where{Location: london.Location}}
		m.in.Learnt = tt.learnt
		for i := range 6 {
			client := fmt.Sprintf("10.0.%d.1", i)
			there := tt.rtt
			if i >= tt.near {
				there = 300
			}
			m.show("london", client, 3, 100)
			m.show("buffalo", client, 3, there)
		}
		if tt.own {
			m.show("london", "203.0.113.9", 3, 10)
		}
		network := netip.MustParsePrefix("203.0.113.0/24")
		d := m.view().decide(network, m.now)
		if (d.First == "buffalo") != tt.moves || d.First != "" && d.Since != m.now.Unix() {
			t.Errorf("%s: decided %+v", tt.name, d)
		}
		// What is decided is shared, and ranks.
		m.in.Learnt = append(m.in.Learnt, Learnt{network, nil, d})
		v := m.view()
		order, e := v.order(resolverA), v.Explain(addr(resolverA))
		if moved := len(order) > 0 && order[0] == "buffalo"; moved != tt.moves || moved != (e.Behind.Order != nil) {
			t.Errorf("%s: %v, %+v", tt.name, order, e.Behind)
		}
		if tt.moves && (v.Nodes[e.Order[0]].ID != "buffalo" || e.Behind.Networks < 3 || e.Behind.Registrations < 15 || e.Network != netip.MustParsePrefix("203.0.113.0/24")) {
			t.Errorf("%s: explained as %+v", tt.name, e)
		}
	}
}

// TestResolverStays: what was decided holds for an hour, and as long as no node is clearly better.
func TestResolverStays(t *testing.T) {
	t.Parallel()
	var nodes []pbxmesh.Node // whose places are not known
	for _, id := range []pbxmesh.NodeID{"london", "buffalo", "singapore"} {
		nodes = append(nodes, pbxmesh.Node{ID: id, Addresses: buffalo.Addresses})
	}
	network := netip.MustParsePrefix("203.0.113.0/24")
	for _, tt := range []struct {
		name                  string
		present               pbxmesh.NodeID
		since                 time.Duration
		london, buffalo, sing float64 // ms
		want                  pbxmesh.NodeID
		changed               bool
	}{
		{"better since long", "buffalo", 2 * time.Hour, 100, 60, 20, "singapore", true},
		{"better, but soon", "buffalo", 59 * time.Minute, 100, 60, 20, "buffalo", false},
		{"a little better", "buffalo", 2 * time.Hour, 100, 26, 20, "buffalo", false},
		{"the usual one is better", "buffalo", 2 * time.Hour, 20, 60, 100, "", true},
		{"the usual one is a little better", "buffalo", 2 * time.Hour, 20, 26, 100, "buffalo", false},
		{"the usual one is the present one", "", 2 * time.Hour, 20, 60, 100, "", false},
		{"back to the usual one a while ago", "", 59 * time.Minute, 100, 20, 100, "", false},
		{"a node that is gone", "jacksonville", 2 * time.Hour, 100, 20, 100, "buffalo", true},
	} {
		m := newMesh(t, nodes...)
		m.in.Order = []pbxmesh.NodeID{"london", "buffalo", "singapore"}
		l := Learnt{Network: network}
		for i := range 4 {
			client := fmt.Sprintf("10.%d.0.1", i)
			m.show("london", client, 3, tt.london)
			m.show("buffalo", client, 3, tt.buffalo)
			m.show("singapore", client, 3, tt.sing)
			l.Voices = append(l.Voices, Voice{netip.PrefixFrom(addr(client), 24).Masked(), 1, 5, 0.5})
		}
		l.verdict = verdict{tt.present, m.now.Add(-tt.since).Unix()}
		m.in.Learnt = []Learnt{l}
		d := m.view().decide(network, m.now)
		m.in.Learnt[0].verdict = verdict{"london", 1} // the usual one
		if b := m.view().behind(network); b.Order != nil || b.Networks != 4 {
			t.Errorf("%s: %+v", tt.name, b)
		}
		if since := l.Since; d.First != tt.want || (d.Since != since) != tt.changed {
			t.Errorf("%s: %+v", tt.name, d)
		}
	}
}

// TestLatestVerdictCounts: of what several name servers decided the latest counts, and none of
// times to come.
func TestLatestVerdictCounts(t *testing.T) {
	t.Parallel()
	network := netip.MustParsePrefix("203.0.113.0/24")
	var list []Learnt
	for first, at := range map[pbxmesh.NodeID]time.Duration{"london": -2 * time.Hour, "buffalo": -time.Hour, "singapore": time.Hour} {
		list = append(list, Learnt{network, nil, verdict{first, epoch.Add(at).Unix()}})
	}
	list = append(list, Learnt{network, nil, verdict{"atlanta", epoch.Add(-time.Hour).Unix()}})
	for range 2 {
		if d := gather(list, epoch)[network].verdict; d.First != "buffalo" {
			t.Errorf("%+v", d)
		}
		slices.Reverse(list)
	}
	// It holds as long as the resolver asks, whatever is known of its phones by then.
	f := NewFollowers()
	f.Ask([]Asked{{addr(resolverA), "london", epoch}, {addr(resolverB), "london", epoch}})
	notes, err := f.Notes(&View{learnt: gather(list, epoch), Nodes: []pbxmesh.Node{london}}, epoch)
	if err != nil || len(notes) != 1 || !strings.Contains(notes[0], `"n":"203.0.113.0/24","b":null,"f":"buffalo"`) || strings.Contains(notes[0], "203.0.114") {
		t.Errorf("%s %v", notes, err)
	}
}

// TestBlocksAreTakenOnce: a block that comes again counts once, and of what lies around a query
// nothing may be missing.
func TestBlocksAreTakenOnce(t *testing.T) {
	t.Parallel()
	f := NewFollowers()
	network := netip.MustParsePrefix("10.0.0.0/24")
	for _, i := range []int{4, 0, 1, 1, 0, 2, 5, 6} { // one is missing
		start := epoch.Add(time.Duration(i) * ArrivalsEvery)
		if err := f.Arrived("london/0", encodeArrivals(start, []arrival{{network, start.UnixMilli()}}, 1), epoch.Add(4*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	for _, wrong := range []time.Duration{-time.Hour, time.Hour} { // a clock that is put right
		start := epoch.Add(wrong)
		if err := f.Arrived("london/0", encodeArrivals(start, []arrival{{network, start.UnixMilli()}}, 1), epoch.Add(4*time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	n := f.nodes["london"]
	if n.time > 6*ArrivalsEvery.Seconds() || n.counts[network] > 6 || n.counts[network] < 5.5 {
		t.Errorf("%v arrivals in %v s", n.counts, n.time)
	}
	for _, at := range []time.Duration{45 * time.Second, 80 * time.Second, 160 * time.Second} { // the second one has the gap around it
		f.Ask([]Asked{{addr(resolverA), "london", epoch.Add(at)}})
	}
	f.Join(epoch.Add(5 * time.Minute))
	if s := f.Stats(); s.Queries != 2 || s.Unpaired != 1 {
		t.Errorf("%+v", s)
	}
}

func TestBadLearnt(t *testing.T) {
	t.Parallel()
	good := `{"v":1,"resolvers":[{"n":"203.0.113.0/24","b":[{"n":"10.0.0.0/24","p":1,"h":2,"a":0.1}]}]}`
	if l, err := ParseLearnt(good); err != nil || len(l) != 1 || len(l[0].Voices) != 1 {
		t.Fatal(l, err)
	}
	for old, fresh := range map[string]string{
		`"v":1`: `"v":2`, "203.0.113.0/24": "203.0.113.1/32", "10.0.0.0/24": "10.0.0.0/8", `"p":1`: `"p":1.5`, `"h":2`: `"h":-2`, `"a":0.1`: `"a":1e300`, "}]}]}": "",
		`"b"`: `"s":-1,"b"`, `,"b"`: `,"f":"no node","b"`,
		`"b":[`: `"b":[` + strings.Repeat(`{"n":"10.0.0.0/24","p":1,"h":2,"a":0.1},`, maxVoices),
		`{"v"`:  strings.Repeat(" ", MaxLearntLen) + `{"v"`,
	} {
		if _, err := ParseLearnt(strings.Replace(good, old, fresh, 1)); !errors.Is(err, ErrChunk) {
			t.Errorf("%s for %s: %v", fresh[:min(len(fresh), 40)], old, err)
		}
	}
}

// TestLearntIsBounded: what is told has a place on the board, however much is known.
func TestLearntIsBounded(t *testing.T) {
	t.Parallel()
	f := NewFollowers()
	var list []Learnt
	for i := range 2000 {
		l := Learnt{Network: netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::/48", i))}
		for k := range maxVoices {
			l.Voices = append(l.Voices, Voice{netip.MustParsePrefix(fmt.Sprintf("2001:dc0:%x::/48", k)), 1, 12345.67, 123.45})
		}
		list = append(list, l)
	}
	f.Restore(list, epoch)
	notes, err := f.Notes(&View{}, epoch)
	if err != nil || len(notes) != MaxLearntNotes {
		t.Fatalf("%d notes, %v", len(notes), err)
	}
	for _, n := range notes {
		if _, err := ParseLearnt(n); err != nil || len(n) > MaxLearntLen {
			t.Errorf("%d bytes: %v", len(n), err)
		}
	}
}
