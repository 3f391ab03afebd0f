package failover_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/failover"
)

// network is a mesh in virtual time: observers that probe, a board that carries votes, and
// links between them that can be cut one by one. It is the partition suite of those who
// cannot make network namespaces; package internal/e2e/health has the other one.
type network struct {
	t        *testing.T
	now      time.Time
	names    []string
	trackers map[string]*failover.Tracker
	cut      map[string]bool // "observer>node": its probes get no answer
	offline  map[string]bool // observers that do not reach the board
	board    map[string]failover.SeenVote
	quick    bool            // who did not answer is probed every 200 ms, as on a short path
	failed   map[string]bool // "observer>node", if quick
	full     bool            // the board takes no votes, and can be read
	each     func()          // after every second
}

var towns = []pbxmesh.NodeID{buffalo, london, singapore}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{
		t: t, now: start, names: []string{"buffalo", "london", "singapore", "losangeles", "jacksonville"},
		trackers: map[string]*failover.Tracker{}, cut: map[string]bool{}, offline: map[string]bool{}, board: map[string]failover.SeenVote{}, failed: map[string]bool{},
	}
	for i, name := range n.names {
		o := failover.Options{Observer: name, Return: failover.ReturnOptions{Hold: 30 * time.Second, Ramp: time.Minute}}
		if i < len(towns) {
			o.Self = towns[i]
		}
		tr, err := failover.New(o)
		if err != nil {
			t.Fatal(err)
		}
		tr.SetMembers(n.now, []pbxmesh.Node{member(buffalo, 1), member(london, 2), member(singapore, 3)})
		n.trackers[name] = tr
	}
	n.run(5 * time.Second)
	return n
}

// run lets d pass in steps of 100 ms. Observer i probes node j in step (i+j) of each
// second, every half second while it fails; votes are posted every step and read every
// fourth, the others' as they were.
func (n *network) run(d time.Duration) {
	for end := n.now.Add(d); n.now.Before(end); {
		n.now = n.now.Add(100 * time.Millisecond)
		step := int(n.now.Sub(start) / (100 * time.Millisecond))
		for i, name := range n.names {
			tr := n.trackers[name]
			for j, id := range towns {
				outcome := failover.OutcomeOK
				if n.cut[name+">"+string(id)] || n.cut["*>"+string(id)] || n.cut[name+">*"] && name != string(id) {
					outcome = failover.OutcomeTimeout
				}
				key := name + ">" + string(id)
				if due := (step + i + 3*j) % 10; due == 0 || n.failed[key] && due%2 == 0 || !n.quick && due == 5 && outcome != failover.OutcomeOK {
					n.failed[key] = n.quick && outcome != failover.OutcomeOK
					tr.Probe(failover.ProbeResult{Node: id, Outcome: outcome, At: n.now})
				}
			}
			if !n.offline[name] && !n.full {
				n.board[name] = failover.SeenVote{Vote: tr.Vote(n.now), Seen: n.now}
			}
			if (step+i)%4 == 0 {
				n.read(name)
			}
		}
		if n.each != nil && step%10 == 0 {
			n.each()
		}
	}
}

func (n *network) read(name string) {
	var heard []failover.SeenVote
	for other, v := range n.board {
		if other != name && n.now.Sub(v.Seen) <= 3*time.Second {
			heard = append(heard, v)
		}
	}
	if n.offline[name] {
		heard = nil // what it heard last has ended; the tests wait longer than that
	}
	n.trackers[name].Votes(n.now, heard, !n.offline[name] && !n.full)
}

// says is what an observer takes the nodes for: "buffalo up, london down, singapore up".
func (n *network) says(name string) string {
	var out []string
	for _, id := range towns {
		out = append(out, fmt.Sprintf("%s %v", id, n.trackers[name].Mesh().State(id).Observed))
	}
	return strings.Join(out, ", ")
}

// TestAllStandStill stops all switches for three seconds. They go on one after the other, and
// the first that answers is no witness against those that are still to be asked.
func TestAllStandStill(t *testing.T) {
	t.Parallel()
	for first := range towns {
		n := newNetwork(t)
		n.quick = true
		n.each = func() {
			for _, name := range n.names {
				for _, id := range towns {
					if s := n.trackers[name].Mesh().State(id); s.Observed == pbxmesh.ObservedDown || s.Shed > 0 {
						t.Errorf("%s takes %s for %v, shed %d: %s", name, id, s.Observed, s.Shed, s.Reason)
					}
				}
			}
		}
		for _, id := range towns {
			n.cut["*>"+string(id)] = true
		}
		n.run(3 * time.Second)
		for i := range towns {
			delete(n.cut, "*>"+string(towns[(first+i)%len(towns)]))
			n.run(200 * time.Millisecond)
			n.each()
		}
		for range 20 {
			n.run(100 * time.Millisecond)
			n.each()
		}
	}
}

func TestPartitions(t *testing.T) {
	t.Parallel()
	const well = "buffalo up, london up, singapore up"
	const lost = "buffalo up, london down, singapore up"
	servers := []string{"losangeles", "jacksonville"}
	for _, tt := range []struct {
		name    string
		cut     []string
		offline []string
		want    map[string]string // by observer; "" is both name servers
		kept    bool              // for Patience all nodes stay up for those who are offline, or for all: too few can tell
	}{
		{name: "nothing is cut", want: map[string]string{"": well}},
		{name: "one name server alone cannot reach a node", cut: []string{"losangeles>london"}, want: map[string]string{"": well}},
		{name: "A sees B, C does not", cut: []string{"buffalo>london", "losangeles>london"}, want: map[string]string{"": well, "buffalo": well}},
		{name: "most do not reach it", cut: []string{"buffalo>london", "losangeles>london", "singapore>london"}, want: map[string]string{"": lost, "london": lost}},
		{name: "it vanished", cut: []string{"*>london"}, offline: []string{"london"}, want: map[string]string{"": lost, "buffalo": lost}},
		{name: "it is stopped, its daemon lives", cut: []string{"*>london"}, want: map[string]string{"": lost, "london": lost}},
		{name: "a name server gets no answer to any probe", cut: []string{"losangeles>*"}, want: map[string]string{"": well}},
		{name: "and follows the others", cut: []string{"losangeles>*", "*>london"}, want: map[string]string{"": lost}},
		{name: "a name server is cut off from everything", cut: []string{"losangeles>*"}, offline: []string{"losangeles"}, want: map[string]string{"": well}},
		{name: "a name server without the registry goes by its own probes", cut: []string{"*>london"}, offline: []string{"losangeles"}, want: map[string]string{"": lost}, kept: true},
		{name: "and is not told that it is alone in that", cut: []string{"losangeles>london"}, offline: []string{"losangeles"}, want: map[string]string{"losangeles": lost, "jacksonville": well}, kept: true},
		{name: "the registry is away from all", cut: []string{"*>london"}, offline: []string{"buffalo", "london", "singapore", "losangeles", "jacksonville"}, want: map[string]string{"": lost, "buffalo": lost}, kept: true},
		{name: "both name servers are cut off, the daemons are not", cut: []string{"losangeles>*", "jacksonville>*"}, want: map[string]string{"": well}},
		{name: "two nodes lose each other", cut: []string{"buffalo>london", "london>buffalo"}, want: map[string]string{"": well, "buffalo": well, "london": well}},
		{name: "all nodes are gone", cut: []string{"*>buffalo", "*>london", "*>singapore"}, want: map[string]string{"": "buffalo down, london down, singapore down"}, kept: true},
		{name: "nobody reaches anybody, but each its own", cut: []string{"buffalo>*", "london>*", "singapore>*", "losangeles>*", "jacksonville>*"}, want: map[string]string{"": well, "buffalo": well}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			n := newNetwork(t)
			for _, name := range n.names {
				if got := n.says(name); got != well {
					t.Fatalf("before: %s says %s", name, got)
				}
			}
			for _, c := range tt.cut {
				n.cut[c] = true
			}
			for _, o := range tt.offline {
				n.offline[o] = true
			}
			n.run(6 * time.Second)
			if tt.kept {
				for _, name := range n.names {
					if got := n.says(name); got != well && (len(tt.offline) == 0 || n.offline[name]) {
						t.Errorf("after 6 s %s says %s", name, got)
					}
				}
				n.run(failover.Patience)
			}
			want := func() map[string]string {
				all := map[string]string{}
				for name, says := range tt.want {
					for _, s := range servers {
						if name == "" {
							all[s] = says
						}
					}
					if name != "" {
						all[name] = says
					}
				}
				return all
			}()
			for name, says := range want {
				if got := n.says(name); got != says {
					t.Errorf("%s says %s, want %s (london: %s)", name, got, says, n.trackers[name].Mesh().State(london).Reason)
				}
			}
			// The cut ends, and all nodes are up for everybody.
			clear(n.cut)
			clear(n.offline)
			n.run(10 * time.Second)
			for _, name := range n.names {
				if got := n.says(name); got != well {
					t.Errorf("afterwards %s says %s", name, got)
				}
			}
			la, ja := n.trackers["losangeles"].Mesh(), n.trackers["jacksonville"].Mesh()
			if slices.ContainsFunc(towns, func(id pbxmesh.NodeID) bool { return la.State(id).Shed != ja.State(id).Shed }) && len(tt.offline) == 0 {
				t.Errorf("afterwards they shed differently: %+v and %+v", la.States, ja.States)
			}
		})
	}
}
