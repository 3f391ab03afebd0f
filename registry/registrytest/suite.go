package registrytest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
)

// Open returns an empty store that nobody else uses, and closes it with t.
type Open func(t testing.TB) registry.Backend

// TestBackend checks the contract of registry.Backend. open is called once per
// case; cases run in parallel.
func TestBackend(t *testing.T, open Open) {
	for name, test := range map[string]func(*testing.T, *backend){
		"an empty store has nothing and says so":     testEmpty,
		"a publication is read back":                 testPublish,
		"a publication replaces the one before":      testReplace,
		"terms only grow":                            testTerms,
		"a large publication arrives whole":          testLarge,
		"changes are told in order":                  testChanges,
		"subscribers are told of every batch":        testSubscribe,
		"one call asks for changes of several nodes": testChangesOfMany,
		"a repeated batch does nothing":              testRepeat,
		"a batch that builds on too much is lost":    testLost,
		"a writer of an older term is fenced":        testFenced,
		"a lease ends by itself":                     testLeaseEnds,
		"a lease is ended by its holder only":        testLeave,
		"a live lease keeps other owners out":        testOwner,
		"a renewal notices what the store lost":      testRenewLost,
		"members are announced, leave and are gone":  testMembers,
		"values at their limits survive":             testLimits,
		"an ended context is unavailable, not empty": testContext,
		"notes are posted, replaced and taken back":  testNotes,
		"who asks for newer notes gets those only":   testNotesAfter,
		"a note ends by itself":                      testNoteEnds,
		"a note that is held goes on":                testNoteHeld,
		"beats are seen":                             testBeats,
		"notes at their limits survive":              testNoteLimits,
		"who watches notes is told":                  testWatch,
		"a thousand large notes are read whole":      testNoteBulk,
		"the board has room for so many notes":       testBoardFull,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, &backend{Backend: open(t), t: t})
		})
	}
}

// backend shortens what the cases repeat; unexpected errors end the test.
type backend struct {
	registry.Backend
	t *testing.T
}

const (
	buffalo = pbxmesh.NodeID("buffalo")
	london  = pbxmesh.NodeID("london")
	ttl     = 5 * time.Second
)

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func rec(key, value string) registry.Record {
	return registry.Record{Kind: registry.KindRegistration, Key: key, Value: value}
}

func digests(n int) registry.Digests {
	return registry.Digests{registry.KindRegistration: {Count: n, Sum: uint64(n) << 60}}
}

func (b *backend) publish(node pbxmesh.NodeID, epoch string, records ...registry.Record) uint64 {
	b.t.Helper()
	for i := range records {
		records[i].Seq = 1
	}
	term, err := b.Publish(ctx(b.t), registry.Publication{
		Node: node, Epoch: epoch, Owner: "host", Instance: "1", Records: records,
		Digests: digests(len(records)), Term: 1,
	})
	if err != nil {
		b.t.Fatalf("publish: %v", err)
	}
	return term
}

func batch(term, seq, prev uint64, total int, records ...registry.Record) registry.Batch {
	for i := range records {
		records[i].Seq = seq
	}
	return registry.Batch{Node: buffalo, Term: term, Seq: seq, Prev: prev, Epoch: "e", Records: records, Digests: digests(total)}
}

func (b *backend) mustAppend(x registry.Batch) {
	b.t.Helper()
	if err := b.Append(ctx(b.t), x); err != nil {
		b.t.Fatalf("append %d-%d: %v", x.Term, x.Seq, err)
	}
}

func (b *backend) lease(owner, instance string, term, seq uint64, count int) registry.Lease {
	return registry.Lease{
		Node: buffalo, Owner: owner, Instance: instance, Beat: 1, Epoch: "e", Term: term, Seq: seq, Digests: digests(count),
		Switch: registry.SwitchState{Alive: true, Sessions: 3, MaxSessions: 1000, IdleCPU: 97.5}, TTL: ttl,
	}
}

// snapshot returns the records of node as "key" -> "seq value".
func (b *backend) snapshot(node pbxmesh.NodeID) (map[string]string, registry.SnapshotInfo) {
	b.t.Helper()
	got := map[string]string{}
	info, err := b.Snapshot(ctx(b.t), node, func(r registry.Record) {
		got[string(r.Kind)+" "+r.Key] = fmt.Sprintf("%d %s", r.Seq, r.Value)
	})
	if err != nil {
		b.t.Fatalf("snapshot of %s: %v", node, err)
	}
	if info.Bad != 0 {
		b.t.Fatalf("snapshot of %s skipped %d records", node, info.Bad)
	}
	return got, info
}

func (b *backend) holds(node pbxmesh.NodeID, want map[string]string) registry.SnapshotInfo {
	b.t.Helper()
	got, info := b.snapshot(node)
	if !maps.Equal(got, want) {
		b.t.Fatalf("%s holds %v, want %v", node, got, want)
	}
	return info
}

func (b *backend) changes(after ...registry.Cursor) []registry.Batch {
	b.t.Helper()
	batches, err := b.Changes(ctx(b.t), after)
	if err != nil {
		b.t.Fatalf("changes: %v", err)
	}
	return batches
}

func (b *backend) fails(what string, err, want error) {
	b.t.Helper()
	if !errors.Is(err, want) {
		b.t.Fatalf("%s: got error %v, want %v", what, err, want)
	}
}

func testEmpty(t *testing.T, b *backend) {
	_, err := b.Snapshot(ctx(t), buffalo, func(registry.Record) { t.Error("a record") })
	b.fails("snapshot", err, registry.ErrNoNode)
	if errors.Is(err, pbxmesh.ErrUnavailable) {
		t.Error("a node without records looks like a store that is away")
	}
	members, bad, err := b.Members(ctx(t))
	if err != nil || len(members) != 0 || bad != 0 {
		t.Errorf("members %v, bad %d, err %v", members, bad, err)
	}
	leases, bad, err := b.Leases(ctx(t), []pbxmesh.NodeID{buffalo, london})
	if err != nil || len(leases) != 0 || bad != 0 {
		t.Errorf("leases %v, bad %d, err %v", leases, bad, err)
	}
	if got := b.changes(registry.Cursor{Node: buffalo}); len(got) != 0 {
		t.Errorf("followed %v", got)
	}
}

func testPublish(t *testing.T, b *backend) {
	other := registry.Record{Kind: "conference", Key: "3000@pbx.test", Value: "x"}
	term := b.publish(buffalo, "core-1", rec("a", "1"), rec("b", "2"), other)
	info := b.holds(buffalo, map[string]string{"registration a": "1 1", "registration b": "1 2", "conference 3000@pbx.test": "1 x"})
	if info.Term != term || info.Seq != 1 || info.Epoch != "core-1" || info.Node != buffalo {
		t.Errorf("snapshot at %+v, want term %d, sequence 1, epoch core-1", info, term)
	}
	got := b.changes(registry.Cursor{Node: buffalo})
	if len(got) != 1 || !got[0].Reset || got[0].Term != term || got[0].Seq != 1 || len(got[0].Records) != 0 || got[0].Epoch != "core-1" {
		t.Errorf("a new follower sees %+v, want a reset", got)
	}
	if got := b.changes(info.Cursor); len(got) != 0 {
		t.Errorf("behind the snapshot there is %+v", got)
	}
	b.publish(london, "core-2")
	b.holds(london, map[string]string{})
}

func testReplace(t *testing.T, b *backend) {
	first := b.publish(buffalo, "core-1", rec("a", "1"), rec("b", "2"))
	b.mustAppend(batch(first, 2, 1, 3, rec("c", "3")))
	second := b.publish(buffalo, "core-2", rec("b", "9"))
	if second <= first {
		t.Errorf("term %d after %d", second, first)
	}
	if info := b.holds(buffalo, map[string]string{"registration b": "1 9"}); info.Epoch != "core-2" {
		t.Errorf("epoch %s", info.Epoch)
	}
	got := b.changes(registry.Cursor{Node: buffalo, Term: first, Seq: 2})
	if len(got) == 0 || !got[len(got)-1].Reset || got[len(got)-1].Term != second {
		t.Errorf("a follower of the first term sees %+v, want the reset of %d", got, second)
	}
}

func testTerms(t *testing.T, b *backend) {
	p := registry.Publication{Node: buffalo, Epoch: "e", Owner: "host", Instance: "1", Digests: digests(0), Term: 1 << 41}
	first, err := b.Publish(ctx(t), p)
	if err != nil || first < 1<<41 {
		t.Fatalf("term %d, err %v; want at least the term asked for", first, err)
	}
	p.Term = 1
	second, err := b.Publish(ctx(t), p)
	if err != nil || second <= first {
		t.Fatalf("term %d after %d, err %v", second, first, err)
	}
}

func testLarge(t *testing.T, b *backend) {
	const n = 3000
	records, want := make([]registry.Record, n), make(map[string]string, n)
	for i := range records {
		records[i] = rec(fmt.Sprintf("%d@pbx.test", i), strings.Repeat("v", i%300+1))
		want["registration "+records[i].Key] = "1 " + records[i].Value
	}
	b.publish(buffalo, "e", records...)
	b.holds(buffalo, want)
}

func testChanges(t *testing.T, b *backend) {
	term := b.publish(buffalo, "e", rec("a", "1"), rec("b", "2"))
	b.mustAppend(batch(term, 2, 1, 2, rec("a", "changed"), rec("b", ""), rec("c", "3")))
	b.mustAppend(batch(term, 7, 2, 1, rec("c", ""))) // sequences may skip
	got := b.changes(registry.Cursor{Node: buffalo, Term: term, Seq: 1})
	if len(got) != 2 {
		t.Fatalf("changes %+v, want two batches", got)
	}
	if f := got[0]; f.Seq != 2 || f.Prev != 1 || f.Term != term || f.Reset || f.Epoch != "e" || !maps.Equal(f.Digests, digests(2)) {
		t.Errorf("first batch %+v", f)
	}
	seen := map[string]string{}
	for _, r := range got[0].Records {
		seen[r.Key] = fmt.Sprintf("%d %s", r.Seq, r.Value)
	}
	if want := map[string]string{"a": "2 changed", "b": "2 ", "c": "2 3"}; !maps.Equal(seen, want) {
		t.Errorf("first batch holds %v, want %v", seen, want)
	}
	if f := got[1]; f.Seq != 7 || f.Prev != 2 || len(f.Records) != 1 || !f.Records[0].Tombstone() {
		t.Errorf("second batch %+v", f)
	}
	if got := b.changes(registry.Cursor{Node: buffalo, Term: term, Seq: 2}); len(got) != 1 || got[0].Seq != 7 {
		t.Errorf("after 2 comes %+v, want 7", got)
	}
	if info := b.holds(buffalo, map[string]string{"registration a": "2 changed"}); info.Seq != 7 {
		t.Errorf("snapshot at %+v", info)
	}
}

// testSubscribe: who subscribes is told of each batch of every node, as it is applied.
func testSubscribe(t *testing.T, b *backend) {
	before := b.publish(buffalo, "e")
	ctx, cancel := context.WithCancel(t.Context())
	type subscriber struct {
		told  chan *registry.Batch
		ended chan error
	}
	subscribe := func() subscriber {
		t.Helper()
		s := subscriber{make(chan *registry.Batch, 64), make(chan error, 1)}
		go func() { s.ended <- b.Subscribe(ctx, func(x *registry.Batch) { s.told <- x }) }()
		return s
	}
	next := func(s subscriber) *registry.Batch {
		t.Helper()
		select {
		case x := <-s.told:
			return x
		case err := <-s.ended:
			t.Fatalf("subscribe: %v", err)
		case <-time.After(20 * time.Second):
			t.Fatal("nothing is told")
		}
		return nil
	}
	one, two := subscribe(), subscribe()
	for _, s := range []subscriber{one, two} {
		if x := next(s); x != nil {
			t.Fatalf("told of %+v before anything was applied", x)
		}
	}
	want := batch(before, 5, 1, 2, rec("a", strings.Repeat("1,2:", 100)), rec("b", ""), rec("c", "3"))
	b.mustAppend(want)
	b.mustAppend(want) // which does nothing
	other := b.publish(london, "f", rec("z", "1"))
	for _, s := range []subscriber{one, two} {
		x := next(s)
		if x == nil || x.Node != buffalo || x.Term != before || x.Seq != 5 || x.Prev != 1 || x.Reset || x.Epoch != "e" || !maps.Equal(x.Digests, digests(2)) {
			t.Fatalf("told of %+v", x)
		}
		got := map[string]string{}
		for _, r := range x.Records {
			got[r.Key] = fmt.Sprintf("%d %s", r.Seq, r.Value)
		}
		if !maps.Equal(got, map[string]string{"a": "5 " + strings.Repeat("1,2:", 100), "b": "5 ", "c": "5 3"}) {
			t.Errorf("told of the records %v", got)
		}
		if x := next(s); x == nil || x.Node != london || !x.Reset || x.Term != other || x.Seq != 1 || x.Epoch != "f" {
			t.Errorf("told of %+v, want that london published", x)
		}
	}
	if len(one.told)+len(two.told) != 0 {
		t.Errorf("told %d and %d times too often", len(one.told), len(two.told))
	}
	cancel()
	for _, s := range []subscriber{one, two} {
		if err := <-s.ended; !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	}
}

func testChangesOfMany(t *testing.T, b *backend) {
	one, two := b.publish(buffalo, "e"), b.publish(london, "e")
	b.mustAppend(batch(one, 2, 1, 1, rec("a", "1")))
	x := batch(two, 2, 1, 1, rec("b", "2"))
	x.Node = london
	b.mustAppend(x)
	seen := map[pbxmesh.NodeID]string{}
	for _, f := range b.changes(registry.Cursor{Node: buffalo, Term: one, Seq: 1}, registry.Cursor{Node: london, Term: two, Seq: 1}) {
		seen[f.Node] += f.Records[0].Key
	}
	if want := map[pbxmesh.NodeID]string{buffalo: "a", london: "b"}; !maps.Equal(seen, want) {
		t.Errorf("followed %v, want %v", seen, want)
	}
}

func testRepeat(t *testing.T, b *backend) {
	term := b.publish(buffalo, "e")
	x := batch(term, 2, 1, 1, rec("a", "1"))
	b.mustAppend(x)
	b.mustAppend(x)
	if got := b.changes(registry.Cursor{Node: buffalo, Term: term, Seq: 1}); len(got) != 1 {
		t.Errorf("followed %+v, want the batch once", got)
	}
	// A batch whose fate was unknown, and its successor that builds on less.
	b.mustAppend(batch(term, 3, 2, 2, rec("b", "2")))
	b.mustAppend(batch(term, 4, 2, 2, rec("b", "3")))
	got := b.changes(registry.Cursor{Node: buffalo, Term: term, Seq: 2})
	if len(got) != 2 || got[1].Prev != 3 {
		t.Errorf("followed %+v; the second must say that it follows 3", got)
	}
}

func testLost(t *testing.T, b *backend) {
	b.fails("append to nothing", b.Append(ctx(t), batch(5, 2, 1, 1, rec("a", "1"))), registry.ErrLost)
	term := b.publish(buffalo, "e")
	b.fails("append of a later term", b.Append(ctx(t), batch(term+1, 2, 1, 1, rec("a", "1"))), registry.ErrLost)
	b.fails("append after a gap", b.Append(ctx(t), batch(term, 9, 8, 1, rec("a", "1"))), registry.ErrLost)
	b.holds(buffalo, map[string]string{})
}
