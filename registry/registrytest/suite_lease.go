package registrytest

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
)

func testFenced(t *testing.T, b *backend) {
	old := b.publish(buffalo, "e", rec("a", "1"))
	b.mustAppend(batch(old, 2, 1, 2, rec("b", "2")))
	b.fails("append of what was overtaken", b.Append(ctx(t), batch(old, 1, 0, 1, rec("x", "x"))), registry.ErrFenced)
	now := b.publish(buffalo, "e", rec("c", "3"))
	b.fails("append of an older term", b.Append(ctx(t), batch(old, 3, 2, 3, rec("x", "x"))), registry.ErrFenced)
	b.fails("renewal of an older term", b.Renew(ctx(t), b.lease("host", "1", old, 2, 2)), registry.ErrFenced)
	b.holds(buffalo, map[string]string{"registration c": "1 3"})
	if got := b.changes(registry.Cursor{Node: buffalo, Term: now, Seq: 1}); len(got) != 0 {
		t.Errorf("a fenced batch is followed: %+v", got)
	}
	if leases, _, err := b.Leases(ctx(t), []pbxmesh.NodeID{buffalo}); err != nil || len(leases) != 0 {
		t.Errorf("a fenced renewal left the lease %+v, err %v", leases, err)
	}
}

func (b *backend) held() (registry.Lease, bool) {
	b.t.Helper()
	leases, bad, err := b.Leases(ctx(b.t), []pbxmesh.NodeID{london, buffalo})
	if err != nil || bad != 0 {
		b.t.Fatalf("leases: bad %d, err %v", bad, err)
	}
	l, ok := leases[buffalo]
	return l, ok
}

func testLeaseEnds(t *testing.T, b *backend) {
	l := b.lease("host", "1", 0, 0, 0)
	l.TTL = 200 * time.Millisecond
	if err := b.Renew(ctx(t), l); err != nil {
		t.Fatal(err)
	}
	got, ok := b.held()
	if !ok || !reflect.DeepEqual(got, l) {
		t.Fatalf("lease %+v, want %+v", got, l)
	}
	WaitFor(t, "the lease to end", func() bool { _, ok := b.held(); return !ok })
}

func testLeave(t *testing.T, b *backend) {
	term := b.publish(buffalo, "e", rec("a", "1"))
	l := b.lease("host", "1", term, 1, 1)
	if err := b.Renew(ctx(t), l); err != nil {
		t.Fatal(err)
	}
	other := l
	other.Instance = "2"
	if err := b.Leave(ctx(t), other); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.held(); !ok {
		t.Fatal("somebody else ended the lease")
	}
	if err := b.Leave(ctx(t), l); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.held(); ok {
		t.Fatal("the lease is still there")
	}
	b.holds(buffalo, map[string]string{"registration a": "1 1"})
}

func testOwner(t *testing.T, b *backend) {
	term := b.publish(buffalo, "e", rec("a", "1"))
	mine := b.lease("host", "1", term, 1, 1)
	if err := b.Renew(ctx(t), mine); err != nil {
		t.Fatal(err)
	}
	stranger := b.lease("elsewhere", "9", 0, 0, 0)
	b.fails("renewal of a stranger", b.Renew(ctx(t), stranger), registry.ErrFenced)
	p := registry.Publication{Node: buffalo, Epoch: "e", Owner: "elsewhere", Instance: "9", Digests: digests(0), Term: 1}
	_, err := b.Publish(ctx(t), p)
	b.fails("publication of a stranger", err, registry.ErrFenced)
	if l, ok := b.held(); !ok || l.Instance != "1" {
		t.Fatalf("lease %+v", l)
	}
	b.holds(buffalo, map[string]string{"registration a": "1 1"})

	var held *registry.HeldError
	if !errors.As(err, &held) || held.Node != buffalo || held.Owner != "host" || held.Instance != "1" || held.Beat != mine.Beat {
		t.Fatalf("err %v names %+v, want the lease's owner, instance and beat", err, held)
	}

	// The same owner is another instance too, unless it says that it knows the
	// former one to be silent.
	p.Owner, p.Instance, p.Over = "host", "2", "8"
	_, err = b.Publish(ctx(t), p)
	b.fails("publication over an instance that does not hold the lease", err, registry.ErrFenced)
	p.Over = "1"
	if _, err := b.Publish(ctx(t), p); err != nil {
		t.Fatalf("publication of the owner's next instance: %v", err)
	}
	next := b.lease("host", "2", 0, 0, 0)
	b.fails("renewal of the next instance", b.Renew(ctx(t), next), registry.ErrFenced)
	next.Over = "1"
	if err := b.Renew(ctx(t), next); err != nil {
		t.Fatalf("renewal of the next instance over the former one: %v", err)
	}
	next.Over = ""
	if l, ok := b.held(); !ok || !reflect.DeepEqual(l, next) {
		t.Fatalf("lease %+v, want %+v", l, next)
	}
	mine = next
	if err := b.Leave(ctx(t), mine); err != nil {
		t.Fatal(err)
	}
	if err := b.Renew(ctx(t), stranger); err != nil {
		t.Fatalf("renewal of a stranger once the lease ended: %v", err)
	}
}

func testRenewLost(t *testing.T, b *backend) {
	b.fails("renewal with nothing published", b.Renew(ctx(t), b.lease("host", "1", 5, 1, 0)), registry.ErrLost)
	if _, ok := b.held(); !ok {
		t.Fatal("a renewal that is told of a loss must count as a sign of life all the same")
	}
	term := b.publish(buffalo, "e", rec("a", "1"))
	if err := b.Renew(ctx(t), b.lease("host", "1", term, 1, 1)); err != nil {
		t.Fatalf("renewal: %v", err)
	}
	b.fails("renewal of a later term", b.Renew(ctx(t), b.lease("host", "1", term+1, 1, 1)), registry.ErrLost)
	b.fails("renewal of a later sequence", b.Renew(ctx(t), b.lease("host", "1", term, 2, 1)), registry.ErrLost)
	b.fails("renewal with another count", b.Renew(ctx(t), b.lease("host", "1", term, 1, 2)), registry.ErrLost)
	// A batch that was just applied is ahead of the lease, which is no loss.
	b.mustAppend(batch(term, 2, 1, 2, rec("b", "2")))
	if err := b.Renew(ctx(t), b.lease("host", "1", term, 1, 1)); err != nil {
		t.Fatalf("renewal behind a batch: %v", err)
	}
}

func testMembers(t *testing.T, b *backend) {
	node := pbxmesh.Node{
		ID: buffalo, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		Ports: pbxmesh.SIPPorts{UDP: 5060, TLS: 5061}, Mesh: netip.MustParseAddrPort("192.0.2.1:5090"), Software: "FreeSWITCH 1.11.1",
	}
	announce := func(a registry.Announcement) {
		t.Helper()
		if err := b.Announce(ctx(t), a); err != nil {
			t.Fatal(err)
		}
		members, bad, err := b.Members(ctx(t))
		if err != nil || bad != 0 || len(members) != 1 || !reflect.DeepEqual(members[0], a) {
			t.Fatalf("members %+v, bad %d, err %v; want %+v", members, bad, err, a)
		}
	}
	announce(registry.Announcement{Node: node})
	announce(registry.Announcement{Node: node, Left: true})
	node.Software = "FreeSWITCH 1.11.2"
	announce(registry.Announcement{Node: node})

	b.publish(buffalo, "e", rec("a", "1"))
	if err := b.Renew(ctx(t), b.lease("host", "1", 0, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := b.Forget(ctx(t), buffalo); err != nil {
		t.Fatal(err)
	}
	members, _, err := b.Members(ctx(t))
	if err != nil || len(members) != 1 || !members[0].Gone || members[0].Node.ID != buffalo {
		t.Fatalf("members %+v, err %v; want the mark that buffalo is gone", members, err)
	}
	if _, ok := b.held(); ok {
		t.Error("the lease of a node that is gone")
	}
	_, err = b.Snapshot(ctx(t), buffalo, func(registry.Record) {})
	b.fails("snapshot of a node that is gone", err, registry.ErrNoNode)
}

func testLimits(t *testing.T, b *backend) {
	long := rec(strings.Repeat("k", registry.MaxKeyLen), strings.Repeat("v", registry.MaxValueLen))
	odd := rec(`a|b"c'{}[]$*?\`, "line\nbreak \x00 \xff and spaces ")
	term := b.publish(buffalo, "e", long, odd)
	want := map[string]string{"registration " + long.Key: "1 " + long.Value, "registration " + odd.Key: "1 " + odd.Value}
	b.holds(buffalo, want)
	b.mustAppend(batch(term, 2, 1, 2, long, odd))
	got := b.changes(registry.Cursor{Node: buffalo, Term: term, Seq: 1})
	if len(got) != 1 || got[0].Bad != 0 || len(got[0].Records) != 2 {
		t.Fatalf("followed %d batches, want one with two records", len(got))
	}
	for _, r := range got[0].Records {
		if want["registration "+r.Key] != "1 "+r.Value {
			t.Errorf("record %q came back as %q", r.Key, r.Value)
		}
	}
}

func testContext(t *testing.T, b *backend) {
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, _, members := b.Members(ended)
	_, _, leases := b.Leases(ended, []pbxmesh.NodeID{buffalo})
	_, snapshot := b.Snapshot(ended, buffalo, func(registry.Record) {})
	_, changes := b.Changes(ended, []registry.Cursor{{Node: buffalo}})
	_, _, _, notes := b.Notes(ended, registry.NoteVotes, 0)
	_, publish := b.Publish(ended, registry.Publication{Node: buffalo, Term: 1, Digests: digests(0)})
	for what, err := range map[string]error{
		"members": members, "leases": leases, "snapshot": snapshot, "changes": changes, "publish": publish,
		"notes": notes, "post": b.Post(ended, registry.Note{Kind: registry.NoteVotes, Key: "k", Value: "v"}),
		"append": b.Append(ended, batch(1, 2, 1, 0)), "renew": b.Renew(ended, b.lease("host", "1", 0, 0, 0)),
		"leave":    b.Leave(ended, b.lease("host", "1", 0, 0, 0)),
		"announce": b.Announce(ended, registry.Announcement{Node: pbxmesh.Node{ID: buffalo}}), "forget": b.Forget(ended, buffalo),
	} {
		if !errors.Is(err, pbxmesh.ErrUnavailable) {
			t.Errorf("%s: got error %v, want %v", what, err, pbxmesh.ErrUnavailable)
		}
	}
}

// WaitFor returns once done does, and fails the test after 20 s. It is for tests
// on real sockets and processes, whose progress nothing else announces.
func WaitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for %s", what)
		}
		<-tick.C
	}
}
