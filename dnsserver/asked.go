package dnsserver

import (
	"encoding/binary"
	"hash/maphash"
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
	askedSlots = 1024
)

// askedLog is what one worker tells of who asked.
type askedLog struct {
	tell  func([]Asked) // nil tells nothing
	seed  maphash.Seed
	slots []askedSlot
	list  []Asked
}

type askedSlot struct {
	network [7]byte
	at      int64 // Unix nanoseconds
}

func newAskedLog(tell func([]Asked)) *askedLog {
	return &askedLog{tell: tell, seed: maphash.MakeSeed(), slots: make([]askedSlot, askedSlots)}
}

// note takes a query without client subnet, and what it is answered with.
func (l *askedLog) note(resolver netip.Addr, d *selection.Decision, now time.Time) {
	if len(d.Nodes) == 0 {
		return
	}
	var network [7]byte // of both families
	if a := resolver.Unmap(); a.Is4() {
		b := a.As4()
		copy(network[:], b[:3])
		network[6] = 4
	} else {
		b := a.As16()
		copy(network[:], b[:6])
	}
	var key [8]byte
	copy(key[:], network[:])
	s := &l.slots[maphash.Comparable(l.seed, binary.LittleEndian.Uint64(key[:]))%askedSlots]
	if s.network == network && now.UnixNano()-s.at < int64(askedEvery) {
		return
	}
	*s = askedSlot{network, now.UnixNano()}
	l.list = append(l.list, Asked{resolver, d.Nodes[0], now})
}

// flush ends a batch.
func (l *askedLog) flush() {
	if len(l.list) > 0 {
		l.tell(l.list)
		l.list = l.list[:0]
	}
}
