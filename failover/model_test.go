package failover_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

var update = flag.Bool("update", false, "write the table of docs/failover.md anew")

// model is a mesh of sites: two or three with nodes, and name servers at sites of their own. Its
// observers' words are made by trackers that probe; the verdict is that of a name
// server that hears the votes.
type model struct {
	sites   []string
	nodes   []pbxmesh.Node
	servers []string
	heard   map[string]failover.Vote // what an observer says, by all that it depends on
}

func newModel(sizes []int, servers int) *model {
	m := &model{heard: map[string]failover.Vote{}}
	for s, site := range []string{"x", "y", "z"}[:len(sizes)] {
		m.sites = append(m.sites, site)
		for i := range sizes[s] {
			n := member(pbxmesh.NodeID(fmt.Sprint(site, i+1)), byte(10*s+i+1))
			n.Site = site
			m.nodes = append(m.nodes, n)
		}
	}
	for i := range servers {
		m.servers = append(m.servers, fmt.Sprint("ns", i+1))
	}
	return m
}

// world of a model: what is broken.
type broken struct {
	cut     map[[2]string]bool // links between two sites, both directions
	dead    map[pbxmesh.NodeID]bool
	blocked map[string]bool // sites whose address for phones only neighbours reach
	stalled map[string]bool // observers that say nothing
	lost    map[string]bool // observers that alone get no answer from the nodes of site x
}

func (b *broken) answers(observer, site string, n *pbxmesh.Node) bool {
	switch {
	case b.dead[n.ID], b.lost[observer] && n.Site == "x" && string(n.ID) != observer:
		return false
	case n.Site == site:
		return true
	}
	return !b.blocked[n.Site] && !b.cut[[2]string{site, n.Site}] && !b.cut[[2]string{n.Site, site}]
}

// vote is what an observer says after probes at what is broken.
func (m *model) vote(observer, site string, self pbxmesh.NodeID, b *broken) failover.Vote {
	key := observer + ":"
	for i := range m.nodes {
		key += map[bool]string{true: "+", false: "-"}[b.answers(observer, site, &m.nodes[i])]
	}
	if v, ok := m.heard[key]; ok {
		return v
	}
	tr, err := failover.New(failover.Options{Observer: observer, Self: self, Site: site})
	if err != nil {
		panic(err)
	}
	tr.SetMembers(start, m.nodes)
	now := start
	for range failover.DefaultDownAfter + 1 {
		for i := range m.nodes {
			outcome := failover.OutcomeTimeout
			if b.answers(observer, site, &m.nodes[i]) {
				outcome = failover.OutcomeOK
			}
			now = now.Add(time.Millisecond)
			tr.Probe(failover.ProbeResult{Node: m.nodes[i].ID, Outcome: outcome, At: now})
		}
	}
	v := tr.Vote(now)
	m.heard[key] = v
	return v
}

func (m *model) votes(b *broken, at time.Time) (all []failover.SeenVote) {
	say := func(observer, site string, self pbxmesh.NodeID) {
		if !b.stalled[observer] {
			all = append(all, failover.SeenVote{Vote: m.vote(observer, site, self, b), Seen: at})
		}
	}
	for i := range m.nodes {
		say(string(m.nodes[i].ID), m.nodes[i].Site, m.nodes[i].ID)
	}
	for _, s := range m.servers {
		say(s, s, "")
	}
	return all
}

// down returns the nodes that a listening name server takes for down, which heard all well
// before, soon after something broke and when it has lasted.
func (m *model) down(b *broken) (soon, later []string) {
	tr, err := failover.New(failover.Options{Observer: "reader"})
	if err != nil {
		panic(err)
	}
	tr.SetMembers(start, m.nodes)
	tr.Votes(start, m.votes(&broken{}, start), true)
	read := func(at time.Time) (out []string) {
		tr.Votes(at, m.votes(b, at), true)
		for i := range m.nodes {
			if tr.Mesh().State(m.nodes[i].ID).Observed == pbxmesh.ObservedDown {
				out = append(out, string(m.nodes[i].ID))
			}
		}
		return out
	}
	soon = read(start.Add(3 * time.Second))
	tr.Leases(start.Add(3*time.Second+failover.Patience/2), nil) // this observer is not stopped itself
	return soon, read(start.Add(3*time.Second + failover.Patience))
}

// situation is a line of the table: worlds in which the same must happen.
type situation struct {
	name, must string
	worlds     func(m *model) []*broken
	// want returns which nodes must be down soon, and which when it lasts.
	want func(m *model, b *broken) (soon, later []string)
}

func situations() []situation {
	links := func(m *model) (out [][2]string) {
		for i, s := range m.sites {
			for _, o := range append(slices.Clone(m.sites[i+1:]), m.servers...) {
				out = append(out, [2]string{s, o})
			}
		}
		return out
	}
	ofSite := func(m *model, site string) (out []string) {
		for i := range m.nodes {
			if m.nodes[i].Site == site {
				out = append(out, string(m.nodes[i].ID))
			}
		}
		return out
	}
	cutOff := func(m *model, site string) *broken {
		b := &broken{cut: map[[2]string]bool{}}
		for _, o := range append(slices.Clone(m.sites), m.servers...) {
			if o != site {
				b.cut[[2]string{site, o}] = true
			}
		}
		return b
	}
	observers := func(m *model) (out []string) {
		for i := range m.nodes {
			out = append(out, string(m.nodes[i].ID))
		}
		return append(out, m.servers...)
	}
	nobody := func(*model, *broken) (soon, later []string) { return nil, nil }
	theDead := func(_ *model, b *broken) (soon, later []string) {
		for id := range b.dead {
			soon = append(soon, string(id))
		}
		return soon, soon
	}
	firsts := func(m *model) (out []pbxmesh.NodeID) {
		for _, s := range m.sites {
			out = append(out, pbxmesh.NodeID(s+"1"))
		}
		return out
	}
	return []situation{
		{"nothing is broken", "no node is down", func(*model) []*broken { return []*broken{{}} }, nobody},
		{"one link between two sites is cut", "no node is down", func(m *model) (out []*broken) {
			for _, l := range links(m) {
				out = append(out, &broken{cut: map[[2]string]bool{l: true}})
			}
			return out
		}, nobody},
		{"a name server is cut off", "no node is down", func(m *model) (out []*broken) {
			for _, s := range m.servers {
				out = append(out, cutOff(m, s))
			}
			return out
		}, nobody},
		{"a site is cut off", "its nodes are down, no other", func(m *model) (out []*broken) {
			for _, s := range m.sites {
				out = append(out, cutOff(m, s))
			}
			return out
		}, func(m *model, b *broken) (soon, later []string) {
			for l := range b.cut {
				soon = ofSite(m, l[0])
			}
			return soon, soon
		}},
		{"the address for phones of a site answers neighbours only", "its nodes are down, no other", func(m *model) (out []*broken) {
			for _, s := range m.sites {
				out = append(out, &broken{blocked: map[string]bool{s: true}})
			}
			return out
		}, func(m *model, b *broken) (soon, later []string) {
			for s := range b.blocked {
				soon = ofSite(m, s)
			}
			return soon, soon
		}},
		{"a switch is dead", "it is down, no other", func(m *model) (out []*broken) {
			for _, id := range firsts(m) {
				out = append(out, &broken{dead: map[pbxmesh.NodeID]bool{id: true}})
			}
			return out
		}, theDead},
		{"a switch is dead, and one link is cut", "it is down, no other", func(m *model) (out []*broken) {
			for _, id := range firsts(m) {
				for _, l := range links(m) {
					out = append(out, &broken{dead: map[pbxmesh.NodeID]bool{id: true}, cut: map[[2]string]bool{l: true}})
				}
			}
			return out
		}, theDead},
		{"a switch is dead, and one machine is stalled", "it is down, no other", func(m *model) (out []*broken) {
			for _, id := range firsts(m) {
				for _, o := range append([]string{"x1", "y1", "z1", "x2"}, m.servers...) { // the others are alike
					out = append(out, &broken{dead: map[pbxmesh.NodeID]bool{id: true}, stalled: map[string]bool{o: true}})
				}
			}
			return out
		}, theDead},
		{"all observers but one are stalled, and this one alone loses a site", "no node is down within 10 s; then this one is believed", func(m *model) (out []*broken) {
			for _, o := range observers(m) {
				b := &broken{stalled: map[string]bool{}, lost: map[string]bool{o: true}}
				for _, s := range observers(m) {
					b.stalled[s] = s != o
				}
				out = append(out, b)
			}
			return out
		}, func(m *model, b *broken) (soon, later []string) {
			// When it lasts, the last observer is believed.
			for o := range b.lost {
				later = slices.DeleteFunc(ofSite(m, "x"), func(id string) bool { return id == o })
			}
			return nil, later
		}},
		{"all are stalled", "no node is down", func(m *model) []*broken {
			b := &broken{stalled: map[string]bool{}}
			for _, s := range observers(m) {
				b.stalled[s] = true
			}
			return []*broken{b}
		}, nobody},
		{"every switch is dead or stalled", "no node is down within 10 s, then all", func(m *model) []*broken {
			b := &broken{dead: map[pbxmesh.NodeID]bool{}}
			for i := range m.nodes {
				b.dead[m.nodes[i].ID] = true
			}
			return []*broken{b}
		}, func(m *model, b *broken) (soon, later []string) {
			_, later = theDead(m, b)
			return nil, later
		}},
		{"a switch is dead, and all name servers are stalled", "it is down; with four name servers when that has lasted for 10 s; no other", func(m *model) (out []*broken) {
			for _, id := range firsts(m) {
				b := &broken{dead: map[pbxmesh.NodeID]bool{id: true}, stalled: map[string]bool{}}
				for _, s := range m.servers {
					b.stalled[s] = true
				}
				out = append(out, b)
			}
			return out
		}, func(m *model, b *broken) (soon, later []string) {
			if soon, later = theDead(m, b); len(m.servers) == 4 {
				soon = nil
			}
			return soon, later
		}},
	}
}

// sizes are the numbers of nodes at three sites, 1 to 5 each, but for their order.
func sizes() (out [][3]int) {
	if raceDetector { // ten times slower
		return [][3]int{{1, 1, 1}, {2, 1, 1}, {5, 2, 1}}
	}
	for x := 1; x <= 5; x++ {
		for y := 1; y <= x; y++ {
			for z := 1; z <= y; z++ {
				out = append(out, [3]int{x, y, z})
			}
		}
	}
	return out
}

// TestSituations plays every situation on every mesh of three sites of one to five nodes
// and two to four name servers, and holds the table in docs/failover.md to the result.
func TestSituations(t *testing.T) {
	t.Parallel()
	tried := make([]atomic.Int64, len(situations()))
	t.Run("meshes", func(t *testing.T) {
		for _, size := range sizes() {
			for servers := 2; servers <= 4; servers++ {
				t.Run(fmt.Sprint(size, servers), func(t *testing.T) {
					t.Parallel()
					m := newModel(size[:], servers)
					for i, s := range situations() {
						for _, b := range s.worlds(m) {
							tried[i].Add(1)
							soon, later := m.down(b)
							wantSoon, wantLater := s.want(m, b)
							slices.Sort(wantSoon)
							slices.Sort(wantLater)
							if !slices.Equal(soon, wantSoon) || !slices.Equal(later, wantLater) {
								t.Fatalf("%s: %+v: down %v, want %v; later %v, want %v", s.name, *b, soon, wantSoon, later, wantLater)
							}
						}
					}
				})
			}
		}
	})
	if raceDetector {
		return // that were not all
	}
	var table strings.Builder
	table.WriteString("| what is broken | what must be | meshes and places tried |\n|---|---|---|\n")
	for i, s := range situations() {
		fmt.Fprintf(&table, "| %s | %s | %d |\n", s.name, s.must, tried[i].Load())
	}
	holdTable(t, "../docs/failover.md", "situations", table.String())
}

// holdTable compares what stands between two marks of a document with what it must be.
func holdTable(t *testing.T, file, mark, want string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), "<!-- "+mark+" -->\n")
	got, tail, ok2 := strings.Cut(rest, "<!-- end of "+mark+" -->\n")
	if !ok || !ok2 {
		t.Fatalf("%s has no marks for %s", file, mark)
	}
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("%s is not up to date: run `go test ./failover -run %s -update`; want\n%s", file, t.Name(), want)
	}
	if err := os.WriteFile(file, []byte(head+"<!-- "+mark+" -->\n"+want+"<!-- end of "+mark+" -->\n"+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestAnyCut cuts every set of links between three sites and up to four name servers, and
// compares the verdicts with who reaches whom.
func TestAnyCut(t *testing.T) {
	t.Parallel()
	for _, size := range [][3]int{{1, 1, 1}, {3, 2, 1}, {5, 1, 5}} {
		for servers := 2; servers <= 4 && !(raceDetector && servers == 4); servers++ {
			t.Run(fmt.Sprint(size, servers), func(t *testing.T) {
				t.Parallel()
				anyCut(t, newModel(size[:], servers))
			})
		}
	}
}

func anyCut(t *testing.T, m *model) {
	outsiders := append(slices.Clone(m.sites), m.servers...)
	// A name server's links are one of eight patterns, and name servers are alike.
	patterns := [][]int{{}}
	for range m.servers {
		var longer [][]int
		for _, p := range patterns {
			for next := range 8 {
				if len(p) == 0 || next >= p[len(p)-1] {
					longer = append(longer, append(slices.Clone(p), next))
				}
			}
		}
		patterns = longer
	}
	for between := range 8 {
		for _, p := range patterns {
			b := &broken{cut: map[[2]string]bool{}}
			for i, pair := range [][2]string{{"x", "y"}, {"x", "z"}, {"y", "z"}} {
				b.cut[pair] = between>>i&1 == 1
			}
			for i, s := range m.servers {
				for j, site := range m.sites {
					b.cut[[2]string{site, s}] = p[i]>>j&1 == 1
				}
			}
			reaches := func(from, to string) bool { return !b.cut[[2]string{from, to}] && !b.cut[[2]string{to, from}] }
			soon, later := m.down(b)
			for i := range m.nodes {
				n := &m.nodes[i]
				yes, no, connected := 0, 0, 0
				for _, s := range outsiders {
					if s == n.Site {
						continue
					}
					switch somewhere := slices.ContainsFunc(m.sites, func(o string) bool { return o != s && reaches(s, o) }); {
					case reaches(s, n.Site):
						yes++
						connected++
					case somewhere:
						no++
						connected++
					}
				}
				all := len(outsiders) - 1
				isSoon, isLater := slices.Contains(soon, string(n.ID)), slices.Contains(later, string(n.ID))
				switch {
				case isSoon && (no < 2 || 2*no <= connected || 2*connected <= all):
					t.Fatalf("%+v: %s is down: %d of %d sites that reach anybody say so, of %d in all", *b, n.ID, no, connected, all)
				case !isSoon && no >= 2 && 2*no > connected && 2*connected > all:
					t.Fatalf("%+v: %s is not down, though %d of %d sites that reach anybody do not reach it, of %d in all", *b, n.ID, no, connected, all)
				case isLater && 2*no <= connected:
					t.Fatalf("%+v: %s is down when it lasts: %d of %d sites", *b, n.ID, no, connected)
				}
			}
		}
	}
}

// TestTwoSites: with nodes at two sites only, nobody at one of them has a witness against the
// other, and the name servers decide.
func TestTwoSites(t *testing.T) {
	t.Parallel()
	m := newModel([]int{5, 2}, 2)
	for name, tc := range map[string]struct {
		b           broken
		soon, later string
	}{
		"the link between them breaks":           {broken{cut: map[[2]string]bool{{"x", "y"}: true}}, "[]", "[]"},
		"phones cannot reach one, neighbours do": {broken{blocked: map[string]bool{"x": true}}, "[x1 x2 x3 x4 x5]", "[x1 x2 x3 x4 x5]"},
		"one is cut off":                         {broken{cut: map[[2]string]bool{{"x", "y"}: true, {"y", "ns1"}: true, {"y", "ns2"}: true}}, "[y1 y2]", "[y1 y2]"},
		"a switch is dead":                       {broken{dead: map[pbxmesh.NodeID]bool{"y2": true}}, "[y2]", "[y2]"},
		"all of one are dead":                    {broken{dead: map[pbxmesh.NodeID]bool{"y1": true, "y2": true}}, "[y1 y2]", "[y1 y2]"},
		"a switch is dead, and all who could see it from outside are stalled": {broken{dead: map[pbxmesh.NodeID]bool{"x1": true},
			stalled: map[string]bool{"y1": true, "y2": true, "ns1": true, "ns2": true}}, "[]", "[x1]"},
		"a name server loses one": {broken{cut: map[[2]string]bool{{"y", "ns2"}: true}}, "[]", "[]"},
		"a name server alone is left, and loses one": {broken{lost: map[string]bool{"ns2": true},
			stalled: map[string]bool{"x1": true, "x2": true, "x3": true, "x4": true, "x5": true, "y1": true, "y2": true, "ns1": true}}, "[]", "[x1 x2 x3 x4 x5]"},
	} {
		if soon, later := m.down(&tc.b); fmt.Sprint(soon) != tc.soon || fmt.Sprint(later) != tc.later {
			t.Errorf("%s: down %v, then %v; want %s and %s", name, soon, later, tc.soon, tc.later)
		}
	}
}

// TestSoloObserver: nothing but an own daemon's word or the lapse of time lets one
// observer decide, however many nodes stand beside it.
func TestSoloObserver(t *testing.T) {
	t.Parallel()
	m := newModel([]int{5, 2, 1}, 2)
	b := &broken{lost: map[string]bool{}}
	for i := range m.nodes {
		if m.nodes[i].Site == "y" {
			b.lost[string(m.nodes[i].ID)] = true
		}
	}
	if soon, later := m.down(b); len(soon)+len(later) != 0 {
		t.Errorf("one site of five takes down %v, then %v", soon, later)
	}
	words := slices.Sorted(maps.Keys(m.heard))
	if len(words) == 0 {
		t.Error("nobody said anything")
	}
}
