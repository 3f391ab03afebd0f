package latency

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
)

// A chunk is what one note carries: the entries of some of a node's networks. Its form,
// numbers in network byte order:
//
//	version     1 byte, chunkVersion
//	as of       4 bytes, Unix seconds: ages count back from here
//	IPv4        2 bytes, number of entries
//	            3 bytes of address, 2 estimate (quarters of a millisecond), 1 samples,
//	            1 phones, 1 addresses of these, 1 visits, 1 registrations since the
//	            network is known or its route changed (both 8 log2(1+n)), 1 age
//	            (minutes, 255 is more): a quarter of the phones were heard since
//	IPv6        2 bytes, number of entries; 6 bytes of address, the rest as above
//
// Networks ascend, so that none comes twice. A chunk of another version is skipped and
// counted by whoever reads it.
const (
	chunkVersion = 2
	chunkHead    = 9
	entryTail    = 8

	// MaxChunkLen bounds a chunk in bytes; MaxChunks the chunks of a node.
	MaxChunkLen = 16 << 10
	MaxChunks   = 128

	// fullChunk is how many entries a chunk holds before they are spread over more:
	// hashes do not fill chunks evenly.
	fullChunk = 1000
)

// entry is one network of one node.
type entry struct {
	network  netip.Prefix
	estimate quarters
	samples  uint8     // 1 to ringSize
	phones   uint8     // that showed it, 1 to maxPhones
	hosts    uint8     // addresses that they have, 1 to phones
	visits   visitCode // phones that are there now
	seen     visitCode // registrations since the network is known or its route changed
	age      uint8     // minutes
}

// visitCode is a number of visits on a logarithmic scale.
type visitCode uint8

func visitCodeOf(visits float64) visitCode {
	return visitCode(min(math.Round(8*math.Log2(1+max(0, visits))), math.MaxUint8))
}

func (v visitCode) visits() float64 { return math.Exp2(float64(v)/8) - 1 }

// ErrChunk reports a chunk that is not valid.
var ErrChunk = errors.New("latency: not a chunk of estimates")

// encodeChunk writes entries, which are sorted and few enough.
func encodeChunk(asOf time.Time, entries []entry) string {
	b := make([]byte, 0, chunkHead+len(entries)*(6+entryTail))
	b = append(b, chunkVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(asOf.Unix())) //nolint:gosec // until 2106
	six := slices.IndexFunc(entries, func(e entry) bool { return e.network.Addr().Is6() })
	if six < 0 {
		six = len(entries)
	}
	for _, family := range [][]entry{entries[:six], entries[six:]} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(family))) //nolint:gosec // bounded by MaxChunkLen
		for i := range family {
			e := &family[i]
			b = append(b, e.network.Addr().AsSlice()[:e.network.Bits()/8]...)
			b = binary.BigEndian.AppendUint16(b, uint16(e.estimate))
			b = append(b, e.samples, e.phones, e.hosts, byte(e.visits), byte(e.seen), e.age)
		}
	}
	return string(b)
}

// decodeChunk reads what encodeChunk wrote, or says what is wrong with it (ErrChunk).
func decodeChunk(s string) (asOf time.Time, entries []entry, err error) {
	if len(s) > MaxChunkLen {
		return asOf, nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrChunk, len(s), MaxChunkLen)
	}
	if len(s) < chunkHead {
		return asOf, nil, fmt.Errorf("%w: %d bytes are too short", ErrChunk, len(s))
	}
	if s[0] != chunkVersion {
		return asOf, nil, fmt.Errorf("%w: version %d, this release reads %d", ErrChunk, s[0], chunkVersion)
	}
	b := []byte(s)
	asOf = time.Unix(int64(binary.BigEndian.Uint32(b[1:])), 0)
	b = b[5:]
	for _, width := range []int{bits4 / 8, bits6 / 8} {
		if len(b) < 2 {
			return asOf, nil, fmt.Errorf("%w: cut off", ErrChunk)
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; len(b) < n*(width+entryTail) {
			return asOf, nil, fmt.Errorf("%w: cut off", ErrChunk)
		}
		for range n {
			e, err := decodeEntry(b[:width+entryTail], width)
			if err != nil {
				return asOf, nil, err
			}
			if len(entries) > 0 && compareNetworks(entries[len(entries)-1].network, e.network) >= 0 {
				return asOf, nil, fmt.Errorf("%w: networks do not ascend", ErrChunk)
			}
			entries = append(entries, e)
			b = b[width+entryTail:]
		}
	}
	if len(b) > 0 {
		return asOf, nil, fmt.Errorf("%w: %d bytes too many", ErrChunk, len(b))
	}
	return asOf, entries, nil
}

// readNetwork reads the width bytes of a network's address: a /24 or a /48.
func readNetwork(b []byte, width int) netip.Prefix {
	if width == bits4/8 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{b[0], b[1], b[2]}), bits4)
	}
	a := [16]byte{}
	copy(a[:], b[:width])
	return netip.PrefixFrom(netip.AddrFrom16(a), bits6)
}

func decodeEntry(b []byte, width int) (entry, error) {
	network := readNetwork(b, width)
	tail := b[width:]
	e := entry{
		network: network, estimate: quarters(binary.BigEndian.Uint16(tail)),
		samples: tail[2], phones: tail[3], hosts: tail[4],
		visits: visitCode(tail[5]), seen: visitCode(tail[6]), age: tail[7],
	}
	if e.estimate == 0 || e.estimate > quartersOf(maxRTT) || e.samples == 0 || e.samples > ringSize || e.phones == 0 || e.phones > maxPhones || e.hosts == 0 || e.hosts > e.phones {
		return e, fmt.Errorf("%w: estimate %v of %d samples, %d phones, %d addresses for %v", ErrChunk, e.estimate.ms(), e.samples, e.phones, e.hosts, network)
	}
	if _, ok := networkOf(network.Addr()); !ok && network.Addr() != netip.IPv4Unspecified() && network.Addr() != netip.IPv6Unspecified() {
		return e, fmt.Errorf("%w: %v is no client network", ErrChunk, network)
	}
	return e, nil
}

// Key returns the key of a node's chunk: "london/3".
func Key(node pbxmesh.NodeID, chunk int) string { return string(node) + "/" + strconv.Itoa(chunk) }

// ParseKey undoes Key. Other keys are ErrChunk.
func ParseKey(key string) (node pbxmesh.NodeID, chunk int, err error) {
	name, number, ok := strings.Cut(key, "/")
	node, err = pbxmesh.ParseNodeID(name)
	chunk, err2 := strconv.Atoi(number)
	if !ok || err != nil || err2 != nil || chunk < 0 || chunk >= MaxChunks || Key(node, chunk) != key {
		return "", 0, fmt.Errorf("%w: key %.80q", ErrChunk, key)
	}
	return node, chunk, nil
}

// chunkOf spreads networks over n chunks.
func chunkOf(network netip.Prefix, n int) int {
	return int(mix(networkNumber(network)) % uint64(n)) //nolint:gosec // n is small
}

// networkNumber is a number for each network of networkOf.
func networkNumber(network netip.Prefix) uint64 {
	if network.Addr().Is4() {
		b := network.Addr().As4()
		return 1<<63 | uint64(binary.BigEndian.Uint32(b[:]))
	}
	b := network.Addr().As16()
	return binary.BigEndian.Uint64(b[:8]) >> 2
}

// mix scatters x: the finalizer of MurmurHash3.
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
