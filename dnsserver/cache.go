package dnsserver

import (
	"bytes"
	"hash/maphash"
	"math/rand/v2"

	"pbxmesh/dnsserver/selection"
)

// Bounds of one reader's cache. The bytes count names and packed answers.
const (
	cacheNames    = 1 << 16
	cacheWays     = 4
	cacheBytes    = 32 << 20
	cacheVariants = 64 // decisions with an answer of their own, for one name
	cacheOverhead = 200
)

// cacheSeconds is how long a packed answer is used on an unchanged snapshot: what it
// holds may depend on the clock, as signatures do.
const cacheSeconds = 60

// answerCache keeps packed answers by question. Each reader has its own, so that it
// needs no lock.
//
// Names are taken in when they are asked a second time within a short time, and one
// that is asked no more makes room first: names that somebody makes up, one query
// each, neither get in nor push others out. With all places for a name taken by names
// in use, a random one of them loses its place.
//
// A name keeps its place when the snapshot changes, only its answers are void.
type answerCache struct {
	seed  maphash.Seed
	sets  [][cacheWays]*cachedName
	seen  []uint32 // part of the hash of names asked once
	bytes int
	limit int
}

// cachedName is a question with its answers in one generation: one for everybody, or
// one for each decision.
type cachedName struct {
	key  []byte
	hash uint64
	used bool

	generation uint64
	made       int64 // Unix seconds
	anew       bool  // cannot be kept: goes the slow path each time
	plain      *packed
	variants   []variant
}

type variant struct {
	decision *selection.Decision
	packed   *packed
}

// packed is a whole reply without the options of its OPT record, with the question in
// lower case. It is never written to.
type packed struct {
	wire   []byte
	rcode  int
	scoped bool // what ECS scopes are about
}

func newAnswerCache(names, limit int) *answerCache {
	return &answerCache{
		seed:  maphash.MakeSeed(),
		sets:  make([][cacheWays]*cachedName, max(1, names/cacheWays)),
		seen:  make([]uint32, 2*max(1, names)),
		limit: limit,
	}
}

func (c *answerCache) hash(key []byte) uint64 { return maphash.Bytes(c.seed, key) }

// find returns the place of a question; nil when it has none.
func (c *answerCache) find(hash uint64, key []byte) *cachedName {
	for _, n := range &c.sets[hash%uint64(len(c.sets))] {
		if n != nil && n.hash == hash && bytes.Equal(n.key, key) {
			n.used = true
			return n
		}
	}
	return nil
}

// admit gives a question a place, or nil: it was not seen before.
func (c *answerCache) admit(hash uint64, key []byte) *cachedName {
	tag := uint32(hash>>32) | 1
	pair := c.seen[(hash>>8)%uint64(len(c.seen)/2)*2:][:2]
	if pair[0] != tag && pair[1] != tag {
		pair[rand.IntN(2)] = tag // by chance, or names that alternate could keep each other out
		return nil
	}
	set := &c.sets[hash%uint64(len(c.sets))]
	victim := rand.IntN(cacheWays)
	for range cacheWays {
		if set[victim] == nil {
			break
		}
		if !set[victim].used {
			break
		}
		set[victim].used = false
		victim = (victim + 1) % cacheWays
	}
	c.remove(&set[victim])
	n := &cachedName{key: bytes.Clone(key), hash: hash, used: true}
	set[victim] = n
	c.bytes += n.size()
	c.shrink(n)
	return n
}

func (c *answerCache) remove(place **cachedName) {
	if *place != nil {
		c.bytes -= (*place).size()
		*place = nil
	}
}

// clear drops the answers of n.
func (c *answerCache) clear(n *cachedName) {
	c.bytes -= n.size()
	clear(n.variants)
	n.plain, n.variants, n.anew = nil, n.variants[:0], false
	c.bytes += n.size()
}

// fresh makes n one of this generation, and reports whether it was.
func (c *answerCache) fresh(n *cachedName, generation uint64, now int64) bool {
	if n.generation == generation && now-n.made < cacheSeconds && now >= n.made {
		return true
	}
	c.clear(n)
	n.generation, n.made = generation, now
	return false
}

// keep adds an answer to n; decision is nil for one that is everybody's.
func (c *answerCache) keep(n *cachedName, decision *selection.Decision, p *packed) {
	c.bytes += len(p.wire)
	if decision == nil {
		n.plain = p
	} else {
		c.bytes += cacheOverhead
		if len(n.variants) < cacheVariants {
			n.variants = append(n.variants, variant{decision, p})
		} else {
			v := &n.variants[rand.IntN(cacheVariants)]
			c.bytes -= len(v.packed.wire) + cacheOverhead
			*v = variant{decision, p}
		}
	}
	c.shrink(n)
}

// shrink makes room by random names other than n.
func (c *answerCache) shrink(n *cachedName) {
	for c.bytes > c.limit && c.bytes > n.size() {
		set := &c.sets[rand.IntN(len(c.sets))]
		for i := range set {
			if set[i] != nil && set[i] != n {
				c.remove(&set[i])
				break
			}
		}
	}
}

// size is what n counts for.
func (n *cachedName) size() int {
	size := len(n.key) + cacheOverhead
	if n.plain != nil {
		size += len(n.plain.wire)
	}
	for i := range n.variants {
		size += len(n.variants[i].packed.wire) + cacheOverhead
	}
	return size
}

// lookup returns the answer for a decision; nil when there is none yet.
func (n *cachedName) lookup(d *selection.Decision) *packed {
	for i := range n.variants {
		if n.variants[i].decision == d {
			return n.variants[i].packed
		}
	}
	return nil
}
