package traffic_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/cespare/xxhash/v2"

	"pbxmesh"
	"pbxmesh/fixtures/simswitch"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
)

// later is a node's daemon of a later version as the store sees it: its records have a version
// that nobody here reads.
type later struct {
	m     *mesh
	store *redisstore.Store
	lease registry.Lease
	node  pbxmesh.Node
	stop  context.CancelFunc // of its renewals, and waits for their end
}

func (m *mesh) later(name string, sw *simswitch.Switch, records int) *later {
	m.t.Helper()
	store, err := redisstore.New(redisstore.Options{URL: m.s.home.URL()})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = store.Close() })
	l := &later{m: m, store: store, node: pbxmesh.Node{
		ID: pbxmesh.NodeID(name), Addresses: []netip.Addr{sw.SIP().Addr()}, Ports: pbxmesh.SIPPorts{UDP: sw.SIP().Port()}, Mesh: sw.Mesh(),
	}}
	p := registry.Publication{Node: l.node.ID, Epoch: "later", Owner: "later", Instance: "later-" + name}
	var sum registry.Digest
	for i := range records {
		key := registry.RegistrationKey(pbxmesh.RegistrationID{AOR: address(strconv.Itoa(i), domainOf(name)), CallID: strconv.Itoa(i)})
		r := registry.Record{Kind: registry.KindRegistration, Key: key, Value: fmt.Sprintf(`{"v":9,"later":%d}`, i), Seq: 1}
		p.Records = append(p.Records, r)
		sum.Count++
		sum.Sum += share(&r)
	}
	p.Digests = registry.Digests{registry.KindRegistration: sum}
	ctx := m.t.Context()
	if err := store.Announce(ctx, registry.Announcement{Node: l.node}); err != nil {
		m.t.Fatal(err)
	}
	term, err := store.Publish(ctx, p)
	if err != nil {
		m.t.Fatal(err)
	}
	l.lease = registry.Lease{
		Node: l.node.ID, Owner: "later", Instance: p.Instance, Epoch: p.Epoch, Term: term, Seq: 1, Digests: p.Digests, TTL: 5 * time.Second,
		Switch: registry.SwitchState{Known: true, Alive: true, MaxSessions: 1000, IdleCPU: 100},
	}
	l.renew(ctx)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				l.renew(ctx)
			}
		}
	}()
	l.stop = func() { cancel(); <-done }
	m.t.Cleanup(l.stop)
	return l
}

// renew renews the lease. What the store says of the records is not looked at: this daemon
// publishes nothing again.
func (l *later) renew(ctx context.Context) {
	l.lease.Beat++
	l.lease.Clock = time.Now().UnixMilli()
	if err := l.store.Renew(ctx, l.lease); err != nil && !errors.Is(err, registry.ErrLost) && ctx.Err() == nil {
		l.m.t.Logf("  the later daemon of %s cannot renew: %v", l.node.ID, err)
	}
}

// share is a record's share of a digest, see package registry.
func share(r *registry.Record) uint64 {
	h := xxhash.Sum64String(string(r.Kind)+"\x00"+r.Key+"\x00"+r.Value) ^ r.Seq*0x9e3779b97f4a7c15
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// joinsUnreadable lets a node join whose place in the store nobody can read.
func (m *mesh) joinsUnreadable() {
	m.t.Helper()
	ctx, id := context.Background(), pbxmesh.NodeID("unreadable")
	l := m.later(string(id), simulated(m.t, string(id), netip.MustParseAddr("127.0.122.1"), 0), 10)
	if err := m.s.raw[0].Set(ctx, l.store.KeyPrefix()+"{"+string(id)+"}:meta", "no hash", 0).Err(); err != nil {
		m.t.Fatal(err)
	}
	oldest, _ := m.oldest(20 * time.Second)
	m.t.Logf("a node joins that nobody can read: in the 20 s after, no view of the others is older than %.1f s; in the 20 s after that:", oldest.Seconds())
	traffic := m.s.watch()
	time.Sleep(20 * time.Second)
	traffic.print(6)
	l.stop()
	if err := l.store.Forget(ctx, id); err != nil {
		m.t.Errorf("it cannot be forgotten: %v", err)
	}
	m.until("it is forgotten", time.Minute, func(d *daemon) bool {
		_, known := d.Mesh().Nodes[id]
		return !known
	})
}

// upgrade lets a daemon of a later version take the place of every fifth one, whose records the
// others cannot read.
func (m *mesh) upgrade() {
	m.t.Helper()
	traffic := m.s.watch()
	began, count := time.Now(), 0
	for i, d := range m.nodes() {
		if i%5 != 2 {
			continue
		}
		m.remove(d)
		m.later(d.name, d.sw, 1000)
		count++
	}
	oldest, _ := m.oldest(5 * time.Second)
	m.t.Logf("%d nodes are upgraded to a version whose 1,000 records each the others cannot read, in %.0f s: no view of the others is older than %.1f s",
		count, time.Since(began).Seconds()-5, oldest.Seconds())
	traffic.print(0)
	time.Sleep(10 * time.Second)
	traffic = m.s.watch()
	time.Sleep(20 * time.Second)
	m.t.Logf("  and then, side by side, for 20 s:")
	traffic.print(6)
	m.until("the other nodes' phones are known", time.Minute, m.knowsAll)
}
