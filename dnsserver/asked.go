package dnsserver

import (
	"math/rand/v2"
	"net/netip"
	"time"

	"pbxmesh"
	"pbxmesh/dnsserver/selection"
)

// Asked is a query that came without client subnet, and so says where its resolver is and not
// where the phone.
type Asked struct {
	Resolver netip.Addr
	Node     pbxmesh.NodeID // that it was told first
	At       time.Time
}

// Of the queries of one network (/24, IPv6 /48) one in askedEvery is told, on each reader of the
// socket, and of a batch of packets as many as it has: a table that is in nobody's way finds
// those that were told.
const (
	askedEvery = 10 * time.Second
	askedBits  = 10
	askedSlots = 1 << askedBits
)

// askedLog is what one worker tells of who asked.
type askedLog struct {
	tell  func([]Asked)
	odd   uint64 // by chance: nobody chooses whose slot a network shares
	slots [askedSlots]askedSlot
	list  []Asked
}

type askedSlot struct {
	network uint64
	at      int64 // Unix nanoseconds
}

func newAskedLog(tell func([]Asked)) *askedLog {
	return &askedLog{tell: tell, odd: rand.Uint64() | 1}
}

// note takes a query without client subnet, and what it is answered with.
func (l *askedLog) note(resolver netip.Addr, d *selection.Decision, now time.Time) {
	resolver = resolver.Unmap()
	network := selection.UnitOf(resolver)
	s, at := &l.slots[network*l.odd>>(64-askedBits)], now.UnixNano()
	if s.network == network && at-s.at < int64(askedEvery) || len(d.Nodes) == 0 {
		return
	}
	*s = askedSlot{network, at}
	l.list = append(l.list, Asked{resolver, d.Nodes[0], now})
}

// flush ends a batch.
func (l *askedLog) flush() {
	if len(l.list) > 0 {
		l.tell(l.list)
		l.list = l.list[:0]
	}
}
