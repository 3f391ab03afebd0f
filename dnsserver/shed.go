package dnsserver

import (
	"encoding/binary"
	"net/netip"

	"pbxmesh"
)

// The unit of shedding: a node takes or refuses such a network as a whole, so that the
// phones of one office stay together and a resolver's cache serves them all.
const (
	unitBits4 = 24
	unitBits6 = 48
)

// unitOf returns the number of client's unit, 0 for a client that is not known.
func unitOf(client netip.Addr) uint64 {
	switch {
	case client.Is4():
		b := client.As4()
		return 1<<63 | uint64(binary.BigEndian.Uint32(b[:])>>(32-unitBits4))
	case client.IsValid():
		b := client.As16()
		return binary.BigEndian.Uint64(b[:8])>>(64-unitBits6) | 1<<62
	}
	return 0
}

func unitBits(client netip.Addr) int {
	if client.Is4() {
		return unitBits4
	}
	return unitBits6
}

// nodeHash is FNV-1a: short, and the same on every machine and in every release.
func nodeHash(id pbxmesh.NodeID) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(id) {
		h = (h ^ uint64(id[i])) * 1099511628211
	}
	return h
}

// refuses reports whether a node that sheds so many per mille sends unit elsewhere. What
// it refuses at one value it refuses at every higher one, so growing moves nobody who
// is away already, and two name servers agree.
func refuses(node, unit uint64, shed uint16) bool {
	if shed == 0 {
		return false
	}
	return scatter(node^unit*0x9e3779b97f4a7c15)%pbxmesh.ShedAll < uint64(shed)
}

// scatter is the finalizer of MurmurHash3: units are consecutive numbers.
func scatter(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
