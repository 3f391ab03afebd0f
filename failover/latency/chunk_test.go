package latency

import (
	"errors"
	"strings"
	"testing"
)

func TestBadChunksAreRefused(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.shows("london", "198.51.100.7", 20, 3)
	m.shows("london", "203.0.113.7", 20, 3)
	good := encodeChunk(m.now, m.estimates["london"].entries(m.now))
	if err := m.book.Put("london/0", good); err != nil || m.book.Entries() != 2 {
		t.Fatalf("%v, %d entries", err, m.book.Entries())
	}
	change := func(at int, bytes ...byte) string {
		b := []byte(good)
		copy(b[at:], bytes)
		return string(b)
	}
	for name, bad := range map[string]string{
		"too short": good[:5], "cut off": good[:len(good)-1], "too long": good + "x", "huge": strings.Repeat("x", MaxChunkLen+1),
		"another version": change(0, 1), "no phones": change(13, 0), "too many phones": change(13, maxPhones+1), "no address": change(14, 0), "more addresses than phones": change(14, 2), "no samples": change(12, 0), "too many samples": change(12, ringSize+1),
		"no time": change(10, 0, 0), "more than four seconds": change(10, 0xff, 0xff), "multicast": change(18, 224, 0, 0),
		"twice": change(18, []byte(good)[7:10]...), "descending": change(18, 1, 2, 3),
	} {
		if err := m.book.Put("london/0", bad); !errors.Is(err, ErrChunk) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, key := range []string{"", "london", "london/", "london/x", "london/00", "london/-1", "london/128", "LONDON/1", "lon don/1", "london/1/2"} {
		if err := m.book.Put(key, good); !errors.Is(err, ErrChunk) {
			t.Errorf("key %q: %v", key, err)
		}
	}
	if m.book.Entries() != 2 {
		t.Errorf("%d entries, what stood there is gone", m.book.Entries())
	}
	m.book.Keep(map[string]bool{"london/1": true})
	if m.book.Entries() != 0 || !m.book.Changed() || m.book.Changed() {
		t.Errorf("%d entries are kept", m.book.Entries())
	}
}

// FuzzChunk: whatever stands on the board, a chunk is refused, or read within its
// bounds and written again the same.
func FuzzChunk(f *testing.F) {
	m := newMesh(f)
	m.shows("london", "198.51.100.7", 20, 3)
	m.shows("london", "2001:db8:5::1", 31.3, 2)
	f.Add(encodeChunk(m.now, m.estimates["london"].entries(m.now)))
	f.Add(encodeChunk(m.now, nil))
	f.Add("")
	f.Add("\x02\x00\x00\x00\x00\xff\xff")
	f.Fuzz(func(t *testing.T, s string) {
		asOf, entries, err := decodeChunk(s)
		if err != nil {
			if !errors.Is(err, ErrChunk) {
				t.Fatalf("%v", err)
			}
			return
		}
		if again := encodeChunk(asOf, entries); again != s {
			t.Fatalf("%q becomes %q", s, again)
		}
		b := NewBook()
		if err := b.Put("london/0", s); err != nil || b.Entries() != len(entries) {
			t.Fatalf("%v, %d entries", err, b.Entries())
		}
		v := NewView(Input{Book: b, Nodes: m.in.Nodes, At: asOf, MaxCost: m.in.MaxCost})
		for _, e := range entries {
			// Not the first address of the network: 0.0.0.0 is no client.
			if got := v.Explain(e.network.Addr().Next()); len(got.Order) != 3 || got.Figures[0].Score < 0 {
				t.Fatalf("%v: %+v", e, got)
			}
		}
	})
}
