package latency

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pbxmesh"
)

// maxBookEntries bounds a Book: networks of all nodes together.
const maxBookEntries = 2 << 20

// Book is what all nodes published. It is not safe for concurrent use.
type Book struct {
	nodes   map[pbxmesh.NodeID]map[int]page
	entries int
	changed bool
}

// page is one decoded chunk.
type page struct {
	asOf    time.Time
	entries []entry
	value   string
}

// NewBook returns an empty Book.
func NewBook() *Book { return &Book{nodes: make(map[pbxmesh.NodeID]map[int]page)} }

// Put takes a chunk, in place of what stood under its key. An empty value is a chunk
// that was taken back. ErrChunk when it is not valid: what stood there stays.
func (b *Book) Put(key, value string) error {
	node, number, err := ParseKey(key)
	if err != nil {
		return err
	}
	old := b.nodes[node][number]
	if old.value == value {
		return nil
	}
	if value == "" {
		b.drop(node, number)
		return nil
	}
	asOf, entries, err := decodeChunk(value)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if b.entries-len(old.entries)+len(entries) > maxBookEntries {
		return fmt.Errorf("%w: %s would be too much: %d networks are known already", ErrChunk, key, b.entries)
	}
	if b.nodes[node] == nil {
		b.nodes[node] = make(map[int]page)
	}
	b.entries += len(entries) - len(old.entries)
	b.nodes[node][number] = page{asOf, entries, value}
	b.changed = true
	return nil
}

// Keep drops every chunk whose key is not among those given.
func (b *Book) Keep(keys map[string]bool) {
	for node, pages := range b.nodes {
		for number := range pages {
			if !keys[Key(node, number)] {
				b.drop(node, number)
			}
		}
	}
}

func (b *Book) drop(node pbxmesh.NodeID, number int) {
	pages := b.nodes[node]
	old, ok := pages[number]
	if !ok {
		return
	}
	b.entries -= len(old.entries)
	delete(pages, number)
	if len(pages) == 0 {
		delete(b.nodes, node)
	}
	b.changed = true
}

// Changed reports whether anything changed since it was asked last.
func (b *Book) Changed() bool {
	was := b.changed
	b.changed = false
	return was
}

// Entries returns the number of networks of all nodes together.
func (b *Book) Entries() int { return b.entries }

// newest returns the time of the latest chunk, and no later one than until: a clock that is
// ahead makes nobody old.
func (b *Book) newest(until time.Time) (at time.Time) {
	for _, pages := range b.nodes {
		for _, p := range pages {
			if p.asOf.After(at) {
				at = p.asOf
			}
		}
	}
	if at.After(until) {
		return until
	}
	return at
}

// all calls f with every entry, in the order of nodes, chunks and networks. A network
// comes twice while its node spreads its entries over another number of chunks; the
// later one counts.
func (b *Book) all(f func(node pbxmesh.NodeID, asOf time.Time, e *entry)) {
	for _, node := range slices.Sorted(maps.Keys(b.nodes)) {
		pages := b.nodes[node]
		for _, number := range slices.Sorted(maps.Keys(pages)) {
			for i := range pages[number].entries {
				f(node, pages[number].asOf, &pages[number].entries[i])
			}
		}
	}
}
