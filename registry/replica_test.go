package registry

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"pbxmesh"
)

// A node's records, delivered in any order and any number of times, end as the
// model says: per key the highest sequence of the highest term.
func TestMergeEqualsModel(t *testing.T) {
	t.Parallel()
	nodes := []pbxmesh.NodeID{"buffalo", "london", "singapore"}
	rapid.Check(t, func(rt *rapid.T) {
		type delivery struct {
			node pbxmesh.NodeID
			term uint64
			recs []Record
		}
		var deliveries []delivery
		model := map[pbxmesh.NodeID]map[int]pbxmesh.Registration{}
		for _, node := range nodes {
			term, seq := uint64(1), uint64(0)
			state := map[int]pbxmesh.Registration{}
			for range rapid.IntRange(0, 25).Draw(rt, "steps") {
				if rapid.IntRange(0, 9).Draw(rt, "op") == 0 { // the switch restarted
					term, seq, state = term+1, 0, map[int]pbxmesh.Registration{}
				}
				seq++
				d := delivery{node: node, term: term}
				for _, n := range rapid.SliceOfNDistinct(rapid.IntRange(0, 5), 0, 4, rapid.ID[int]).Draw(rt, "devices") {
					reg := device(t, node, n, epoch0.Add(time.Duration(rapid.IntRange(1, 3).Draw(rt, "expires"))*time.Minute))
					if rapid.Bool().Draw(rt, "put") {
						state[n] = reg
						d.recs = append(d.recs, record(t, reg, seq))
					} else {
						delete(state, n)
						d.recs = append(d.recs, tombstone(&reg, seq))
					}
				}
				deliveries = append(deliveries, d)
			}
			model[node] = state
		}
		deliveries = rapid.Permutation(append(deliveries, deliveries...)).Draw(rt, "order")

		shown := map[*pbxmesh.Registration]bool{} // what OnChange says is there
		r := NewReplica(ReplicaOptions{OnChange: func(c Change) {
			if c.Old != nil {
				if !shown[c.Old] {
					rt.Errorf("OnChange ended %v, which never began", c.Old)
				}
				delete(shown, c.Old)
			}
			if c.New != nil {
				shown[c.New] = true
			}
		}})
		for _, d := range deliveries {
			ns := r.node(d.node)
			ns.mu.Lock()
			r.merge(ns, d.term, d.recs)
			ns.mu.Unlock()
		}
		checkConsistent(t, r)
		for _, node := range nodes {
			var got, want []string
			r.WalkNode(node, func(reg *pbxmesh.Registration) bool {
				got = append(got, fmt.Sprint(*reg))
				return true
			})
			for _, reg := range model[node] {
				want = append(want, fmt.Sprint(reg))
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				rt.Fatalf("%s holds\n%v\nwant\n%v", node, got, want)
			}
		}
		if int64(len(shown)) != r.Stats().Registrations {
			rt.Fatalf("OnChange shows %d registrations, the replica holds %d", len(shown), r.Stats().Registrations)
		}
	})
}

func TestFollowOutcomes(t *testing.T) {
	t.Parallel()
	reg := device(t, "london", 1, epoch0)
	good := record(t, reg, 6)
	digest := Digests{}
	digest.add(KindRegistration, good.hash())
	for name, test := range map[string]struct {
		batch Batch
		want  outcome
	}{
		"next":            {Batch{Term: 7, Seq: 6, Prev: 5, Records: []Record{good}, Digests: digest}, batchApplied},
		"builds on less":  {Batch{Term: 7, Seq: 6, Prev: 3, Records: []Record{good}, Digests: digest}, batchApplied},
		"known already":   {Batch{Term: 7, Seq: 5, Prev: 4}, batchStale},
		"older term":      {Batch{Term: 6, Seq: 99, Prev: 98}, batchStale},
		"trimmed gap":     {Batch{Term: 7, Seq: 9, Prev: 8}, batchGap},
		"later term":      {Batch{Term: 8, Seq: 2, Prev: 1}, batchGap},
		"new publication": {Batch{Term: 8, Seq: 1, Reset: true}, batchReset},
		"other digest":    {Batch{Term: 7, Seq: 6, Prev: 5, Records: []Record{good}, Digests: Digests{}}, batchDiffers},
		"unknown kind": {Batch{Term: 7, Seq: 6, Prev: 5, Records: []Record{good, {Kind: "queue", Key: "q", Value: "v", Seq: 6}},
			Digests: Digests{KindRegistration: digest[KindRegistration], "queue": {Count: 1, Sum: 5}}}, batchApplied},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := NewReplica(ReplicaOptions{})
			ns := r.node("london")
			r.replace(ns, SnapshotInfo{Cursor: Cursor{Node: "london", Term: 7, Seq: 5}}, nil)
			test.batch.Node = "london"
			if got := r.follow(ns, &test.batch); got != test.want {
				t.Errorf("got %d, want %d", got, test.want)
			}
		})
	}
}

// A snapshot may hold records that are newer than its place; the batches that
// wrote them come again and must change nothing, and no digest is compared until
// the place has caught up.
func TestSnapshotAheadOfItsPlace(t *testing.T) {
	t.Parallel()
	r := NewReplica(ReplicaOptions{})
	ns := r.node("london")
	old, now := device(t, "london", 1, epoch0), device(t, "london", 1, epoch0.Add(time.Hour))
	newest := record(t, now, 12)
	r.replace(ns, SnapshotInfo{Cursor: Cursor{Node: "london", Term: 7, Seq: 10}}, []staged{
		{reg: now, seq: 12, hash: newest.hash()},
		{reg: now, seq: 12, hash: newest.hash()}, // a scan may return it twice
	})
	if got := r.follow(ns, &Batch{Term: 7, Seq: 11, Prev: 10, Records: []Record{record(t, old, 11)}, Digests: Digests{}}); got != batchApplied {
		t.Errorf("batch 11: outcome %d", got)
	}
	want := Digests{}
	want.add(KindRegistration, newest.hash())
	if got := r.follow(ns, &Batch{Term: 7, Seq: 12, Prev: 11, Records: []Record{newest}, Digests: want}); got != batchApplied {
		t.Errorf("batch 12: outcome %d", got)
	}
	if regs := r.Lookup(now.AOR); len(regs) != 1 || !regs[0].Expires.Equal(now.Expires) {
		t.Errorf("lookup %v", regs)
	}
	checkConsistent(t, r)
}

func TestReplaceTellsDifferencesOnly(t *testing.T) {
	t.Parallel()
	var changes []Change
	r := NewReplica(ReplicaOptions{OnChange: func(c Change) { changes = append(changes, c) }})
	ns := r.node("london")
	at := SnapshotInfo{Cursor: Cursor{Node: "london", Term: 1, Seq: 1}}
	stage := func(ns ...int) (all []staged) {
		for _, n := range ns {
			all = append(all, staged{reg: device(t, "london", n, epoch0), seq: 1, hash: uint64(n)})
		}
		return all
	}
	r.replace(ns, at, stage(1, 2, 3))
	before := r.Lookup(device(t, "london", 2, epoch0).AOR)
	changes = nil
	at.Term = 2
	r.replace(ns, at, stage(2, 3, 4))
	if len(changes) != 2 {
		t.Errorf("%d changes, want one beginning and one end: %v", len(changes), changes)
	}
	if after := r.Lookup(device(t, "london", 2, epoch0).AOR); after[0] != before[0] {
		t.Error("a registration that stayed the same was replaced")
	}
	checkConsistent(t, r)
}

// A reader's slice stays what it was, whatever happens afterwards.
func TestLookupIsImmutable(t *testing.T) {
	t.Parallel()
	r := NewReplica(ReplicaOptions{Local: "buffalo"})
	a := device(t, "buffalo", 1, epoch0)
	b := a
	b.CallID = "second device"
	r.putLocal(&a)
	first := r.Lookup(a.AOR)
	r.putLocal(&b)
	second := r.Lookup(a.AOR)
	r.removeLocal("buffalo", a.ID())
	changed := b
	changed.UserAgent = "other"
	r.putLocal(&changed)
	if len(first) != 1 || first[0].CallID != a.CallID {
		t.Errorf("first slice is now %v", first)
	}
	if len(second) != 2 || second[0].UserAgent != b.UserAgent || second[1].UserAgent != b.UserAgent {
		t.Errorf("second slice is now %v", second)
	}
	if now := r.Lookup(a.AOR); len(now) != 1 || now[0].UserAgent != "other" {
		t.Errorf("now %v", now)
	}
	checkConsistent(t, r)
}

func TestLookupDoesNotAllocate(t *testing.T) { // not parallel: it counts the process's allocations
	r := NewReplica(ReplicaOptions{Local: "buffalo"})
	a := device(t, "buffalo", 1, epoch0)
	r.putLocal(&a)
	if allocs := testing.AllocsPerRun(100, func() { _ = r.Lookup(a.AOR) }); allocs != 0 {
		t.Errorf("a lookup allocates %v times", allocs)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	r := NewReplica(ReplicaOptions{Local: "buffalo"})
	want := map[pbxmesh.AOR]bool{}
	for n := range 250 {
		reg := device(t, "buffalo", n, epoch0)
		r.putLocal(&reg)
		want[reg.AOR] = true
	}
	var got []string
	var after pbxmesh.AOR
	for {
		page, next := r.List(Filter{}, after, 60)
		for _, reg := range page {
			got = append(got, reg.AOR.String())
		}
		if next.IsZero() {
			break
		}
		after = next
	}
	if !slices.IsSorted(got) || len(slices.Compact(got)) != len(want) {
		t.Errorf("%d AORs, sorted %t; want %d", len(got), slices.IsSorted(got), len(want))
	}
	if page, next := r.List(Filter{}, pbxmesh.AOR{}, 250); len(page) != 250 || !next.IsZero() {
		t.Errorf("one page for all: %d registrations, next %s", len(page), next)
	}
}

func TestBoundsOfAReplica(t *testing.T) {
	t.Parallel()
	r := NewReplica(ReplicaOptions{MaxPerNode: 3})
	ns := r.node("london")
	ns.mu.Lock()
	for n := range 10 {
		r.merge(ns, 1, []Record{record(t, device(t, "london", n, epoch0), 1)})
	}
	for n := range 3 * maxTombstones {
		reg := device(t, "london", 100+n, epoch0)
		r.merge(ns, 1, []Record{tombstone(&reg, 2)})
	}
	if len(ns.index) != 3 || len(ns.tombs) > maxTombstones {
		t.Errorf("%d entries and %d tombstones", len(ns.index), len(ns.tombs))
	}
	ns.mu.Unlock()
	if s := r.Stats(); s.Refused != 7 {
		t.Errorf("%d refused, want 7", s.Refused)
	}
	in := newInterner(2)
	for n := range 5 {
		if s := fmt.Sprint("ua", n); in.get(s) != s {
			t.Errorf("interned %q as %q", s, in.get(s))
		}
	}
	if len(in.known) != 2 {
		t.Errorf("%d strings kept, want 2", len(in.known))
	}
}

func TestForgottenNodeStaysEmpty(t *testing.T) {
	t.Parallel()
	r := NewReplica(ReplicaOptions{})
	r.announce(&Announcement{Node: pbxmesh.Node{ID: "london"}})
	ns := r.node("london")
	reg := device(t, "london", 1, epoch0)
	at := SnapshotInfo{Cursor: Cursor{Node: "london", Term: 1, Seq: 1}}
	r.replace(ns, at, []staged{{reg: reg, seq: 1}})
	r.announce(&Announcement{Node: pbxmesh.Node{ID: "london"}, Gone: true})
	r.replace(ns, at, []staged{{reg: reg, seq: 1}}) // a read that was under way
	if len(r.Members()) != 0 || r.Lookup(reg.AOR) != nil {
		t.Errorf("members %v, lookup %v", r.Members(), r.Lookup(reg.AOR))
	}
	checkConsistent(t, r)
}

func TestSweep(t *testing.T) {
	t.Parallel()
	r := NewReplica(ReplicaOptions{})
	ns := r.node("london")
	at := SnapshotInfo{Cursor: Cursor{Node: "london", Term: 1, Seq: 1}}
	var all []staged
	for n := range 10 {
		all = append(all, staged{reg: device(t, "london", n, epoch0.Add(time.Duration(n)*time.Second)), seq: 1})
	}
	r.replace(ns, at, all)
	if n := r.sweep(ns, epoch0.Add(4*time.Second)); n != 5 { // 0 to 4: at its expiry a registration is over
		t.Errorf("swept %d, want 5", n)
	}
	if !r.matches(ns, 1, 1, Digests{KindRegistration: {Count: 10}}) {
		t.Error("a digest was compared after a sweep")
	}
	checkConsistent(t, r)
}

// TestStranded: a phone that came to a node which takes calls is stranded no more.
func TestStranded(t *testing.T) {
	t.Parallel()
	now := epoch0
	r := NewReplica(ReplicaOptions{})
	mesh := &pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
	joins := func(node pbxmesh.NodeID, observed pbxmesh.Observed, since time.Duration, phones ...int) {
		var records []staged
		for _, n := range phones {
			reg := device(t, node, n, now.Add(time.Hour))
			reg.Since = pbxmesh.StampOf(now.Add(since))
			records = append(records, staged{reg: reg, seq: 1})
		}
		mesh.Nodes[node] = pbxmesh.Node{ID: node, Mesh: mustAddrPort("192.0.2.1:5090")}
		mesh.States[node] = pbxmesh.NodeState{Observed: observed}
		r.replace(r.node(node), SnapshotInfo{Cursor: Cursor{Node: node, Term: 1, Seq: 1}}, records)
	}
	joins("london", pbxmesh.ObservedDown, -time.Hour, 1, 2, 3, 4)
	joins("buffalo", pbxmesh.ObservedUp, -time.Minute, 2, 3, 9)
	joins("paris", pbxmesh.ObservedDown, -time.Second, 4)
	for node, want := range map[pbxmesh.NodeID]int{"london": 1, "buffalo": 3, "paris": 1, "tokyo": 0} {
		if got := r.Stranded(node, mesh, now); got != want {
			t.Errorf("%s: %d, want %d", node, got, want)
		}
	}
	if got := r.Stranded("london", mesh, now.Add(2*time.Hour)); got != 0 {
		t.Errorf("all have expired, and %d are stranded", got)
	}
}
