package latency

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// What a node tells of the registrations that it took.
const (
	// ArrivalsEvery is the length of a block of arrivals.
	ArrivalsEvery = 30 * time.Second

	// ArrivalsKept is how many blocks of a node stand on the board at once: who reads once in
	// a block may miss two rounds.
	ArrivalsKept = 4

	// ArrivalsTTL is how long a block stands there when its node says nothing more.
	ArrivalsTTL = 2 * ArrivalsKept * ArrivalsEvery

	// maxArrivals bounds a block. Of more arrivals than that a uniform sample is told.
	maxArrivals = 512

	// accountEvery: an account counts no more often, and after twice the time for certain.
	accountEvery = 150 * time.Second
	maxAccounts  = 1 << 16 // that are remembered for one or two times accountEvery

	// quiet is how long empty blocks are told after the last arrival.
	quiet = 10 * time.Minute
)

// arrival is a registration that a node took.
type arrival struct {
	network netip.Prefix
	at      int64 // Unix milliseconds
}

// Arrivals collect when phones of which networks registered with this node. They are for
// concurrent use.
type Arrivals struct {
	seed maphash.Seed

	mu             sync.Mutex
	block          int64 // its number: Unix time by ArrivalsEvery
	list           []arrival
	total          int       // arrivals in the block, of which list is a sample
	latest         time.Time // arrival
	done           []Chunk   // blocks that are over
	recent, before map[uint64]struct{}
	turned         time.Time // when recent was begun
}

// NewArrivals returns Arrivals of nobody.
func NewArrivals() *Arrivals {
	return &Arrivals{seed: maphash.MakeSeed(), recent: make(map[uint64]struct{})}
}

// Add takes a sample; only registrations count.
func (a *Arrivals) Add(s Sample) {
	network, ok := networkOf(s.Client)
	if !ok || !s.Visit {
		return
	}
	phone := s.Phone
	if phone == "" {
		phone = addressOf(s.Client).String()
	}
	id := maphash.String(a.seed, phone)
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.At.Sub(a.turned) >= accountEvery {
		a.before, a.recent, a.turned = a.recent, make(map[uint64]struct{}), s.At
	}
	_, now := a.recent[id]
	_, was := a.before[id]
	if now || was || len(a.recent) >= maxAccounts {
		return
	}
	a.recent[id] = struct{}{}
	a.close(s.At)
	a.latest = s.At
	a.total++
	if fresh := (arrival{network, s.At.UnixMilli()}); len(a.list) < maxArrivals {
		a.list = append(a.list, fresh)
	} else if i := rand.IntN(a.total); i < maxArrivals {
		a.list[i] = fresh
	}
}

// Due returns the blocks that are over and were not posted; those that nobody fetched are
// bounded by ArrivalsKept. What was posted is told to Posted.
func (a *Arrivals) Due(now time.Time) []Chunk {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.close(now)
	return slices.Clone(a.done)
}

// Posted says that a block stands on the board.
func (a *Arrivals) Posted(c Chunk) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.done = slices.DeleteFunc(a.done, func(d Chunk) bool { return d.at.Equal(c.at) })
}

// close ends the block when it is over. Empty ones are told as well while phones register:
// that nobody came is news. a.mu is held.
func (a *Arrivals) close(now time.Time) {
	number := now.Unix() / int64(ArrivalsEvery/time.Second)
	if number <= a.block {
		return
	}
	for first := max(a.block, number-ArrivalsKept); first < number; first++ {
		start := time.Unix(first*int64(ArrivalsEvery/time.Second), 0)
		if start.Sub(a.latest) > quiet {
			continue
		}
		var list []arrival
		total := 0
		if first == a.block {
			list, total = a.list, a.total
		}
		a.done = append(a.done, Chunk{Number: int(first % ArrivalsKept), Value: encodeArrivals(start, list, total), at: start})
	}
	a.done = a.done[max(0, len(a.done)-ArrivalsKept):]
	a.block, a.list, a.total = number, a.list[:0], 0
}

// The form of a block, numbers in network byte order:
//
//	version     1 byte, arrivalsVersion
//	start       4 bytes, Unix seconds
//	total       4 bytes, arrivals in the block; those that follow are a uniform sample
//	IPv4        2 bytes, number of arrivals; 3 bytes of address, 1 byte of time since start
//	IPv6        2 bytes, number of arrivals; 6 bytes of address, 1 byte of time
//
// Time is told in steps of arrivalStep.
const (
	arrivalsVersion = 1
	arrivalsHead    = 9
	arrivalStep     = 125 // milliseconds
)

func encodeArrivals(start time.Time, list []arrival, total int) string {
	b := append(make([]byte, 0, arrivalsHead+4+7*len(list)), arrivalsVersion)
	b = binary.BigEndian.AppendUint32(b, seconds(start.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(total)) //nolint:gosec // of half a minute
	for _, four := range []bool{true, false} {
		n := 0
		for i := range list {
			if list[i].network.Addr().Is4() == four {
				n++
			}
		}
		b = binary.BigEndian.AppendUint16(b, uint16(n)) //nolint:gosec // at most maxArrivals
		for i := range list {
			if p := list[i].network; p.Addr().Is4() == four {
				b = append(b, p.Addr().AsSlice()[:p.Bits()/8]...)
				b = append(b, byte((list[i].at-start.UnixMilli())/arrivalStep)) //nolint:gosec // below 240
			}
		}
	}
	return string(b)
}

// block is what decodeArrivals reads. Each of its arrivals stands for weight of them.
type block struct {
	start  int64 // Unix seconds
	weight float64
	list   []arrival
}

// decodeArrivals reads what encodeArrivals wrote, or says what is wrong with it (ErrChunk).
func decodeArrivals(s string) (out block, err error) {
	if len(s) < arrivalsHead || s[0] != arrivalsVersion {
		return out, fmt.Errorf("%w: no block of arrivals of version %d", ErrChunk, arrivalsVersion)
	}
	b := []byte(s)
	out.start = int64(binary.BigEndian.Uint32(b[1:]))
	total := int(binary.BigEndian.Uint32(b[5:]))
	b = b[arrivalsHead:]
	for _, width := range []int{bits4 / 8, bits6 / 8} {
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b))*(width+1) {
			return out, fmt.Errorf("%w: a block of arrivals is cut off", ErrChunk)
		}
		n := int(binary.BigEndian.Uint16(b))
		b = b[2:]
		if len(out.list)+n > maxArrivals {
			return out, fmt.Errorf("%w: %d arrivals, at most %d are told", ErrChunk, len(out.list)+n, maxArrivals)
		}
		for ; n > 0; n-- {
			at := out.start*1000 + int64(b[width])*arrivalStep
			if at >= out.start*1000+ArrivalsEvery.Milliseconds() {
				return out, fmt.Errorf("%w: an arrival after its block", ErrChunk)
			}
			out.list = append(out.list, arrival{readNetwork(b, width), at})
			b = b[width+1:]
		}
	}
	if len(b) > 0 || out.start%int64(ArrivalsEvery/time.Second) != 0 || total < len(out.list) || total > 0 && len(out.list) == 0 {
		return out, fmt.Errorf("%w: a block of %d arrivals at %d that tells %d, and %d bytes more", ErrChunk, total, out.start, len(out.list), len(b))
	}
	out.weight = float64(total) / float64(max(1, len(out.list)))
	return out, nil
}
