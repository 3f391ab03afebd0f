package latency

import (
	"slices"
	"time"
)

// Publisher decides which of a node's chunks are posted when. It is not safe for
// concurrent use.
type Publisher struct {
	estimates *Estimates
	chunks    int // a power of two
	posted    map[int]postedChunk
	stale     []int // chunks that stand on the board and hold nothing any more
}

type postedChunk struct {
	significant string
	at          time.Time
}

// Chunk is what is to be posted; an empty Value takes an old one back.
type Chunk struct {
	Number int
	Value  string

	significant string
	at          time.Time
}

// Pace of a Publisher.
const (
	// RefreshAfter is the age at which a chunk is posted again although nothing in it
	// changed: the board may have lost it.
	RefreshAfter = 10 * time.Minute

	// NoteTTL is how long a chunk outlives its node's daemon: on the board, and in a View when
	// it is so much older than the latest chunk of anybody.
	NoteTTL = 3 * RefreshAfter
)

// NewPublisher returns a Publisher that has posted nothing.
func NewPublisher(e *Estimates) *Publisher {
	return &Publisher{estimates: e, chunks: 1, posted: make(map[int]postedChunk)}
}

// Due returns at most limit chunks that should be posted now: those that changed, the
// one that was posted longest ago first. What was posted is told to Posted.
func (p *Publisher) Due(now time.Time, limit int) []Chunk {
	entries := p.estimates.entries(now)
	chunks := p.chunks
	for len(entries) > chunks*fullChunk && chunks < MaxChunks {
		chunks *= 2
	}
	for chunks > 1 && len(entries) < chunks*fullChunk/4 {
		chunks /= 2
	}
	if chunks != p.chunks {
		// Every network may stand elsewhere now: all is posted again.
		for i := chunks; i < p.chunks; i++ {
			p.stale = append(p.stale, i)
		}
		p.chunks = chunks
		clear(p.posted)
	}
	byChunk := make([][]entry, chunks)
	for _, e := range entries {
		i := chunkOf(e.network, chunks)
		byChunk[i] = append(byChunk[i], e)
	}
	p.stale = slices.DeleteFunc(p.stale, func(i int) bool { return i < chunks }) // in use again
	var due []Chunk
	for _, i := range p.stale {
		due = append(due, Chunk{Number: i, at: now})
	}
	var changed []Chunk
	for i, list := range byChunk {
		old, was := p.posted[i]
		if s := significant(list); (len(list) > 0 || was) && (s != old.significant || now.Sub(old.at) >= RefreshAfter) {
			changed = append(changed, Chunk{Number: i, Value: encodeChunk(now, list), significant: s, at: now})
		}
	}
	slices.SortStableFunc(changed, func(a, b Chunk) int { return p.posted[a.Number].at.Compare(p.posted[b.Number].at) })
	due = append(due, changed...)
	return due[:min(len(due), limit)]
}

// Posted says that a chunk of Due stands on the board. One that could not be posted is
// due again.
func (p *Publisher) Posted(c Chunk) {
	if c.Value == "" {
		p.stale = slices.DeleteFunc(p.stale, func(i int) bool { return i == c.Number })
		return
	}
	p.posted[c.Number] = postedChunk{c.significant, c.at}
}

// significant is a chunk without what changes all the time and means nothing: ages, a
// millisecond more or less, a registration more or less among many.
func significant(entries []entry) string {
	b := make([]byte, 0, 8*len(entries))
	for i := range entries {
		e := &entries[i]
		b = append(b, e.network.Addr().AsSlice()[:e.network.Bits()/8]...)
		b = append(b, byte(e.estimate>>10), byte(e.estimate>>2), e.samples, e.phones, e.hosts, byte(e.visits)/4, byte(e.seen)/8)
	}
	return string(b)
}
