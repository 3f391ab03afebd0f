package registry

import (
	"strings"
	"sync"
)

// interner keeps one copy of strings that many records share. It is bounded: who
// sends a new user agent with every REGISTER fills it once, and from then on the
// strings it does not know are kept per record.
type interner struct {
	mu    sync.RWMutex
	known map[string]string
	limit int
}

func newInterner(limit int) *interner {
	return &interner{known: make(map[string]string), limit: limit}
}

// get returns a string equal to s that shares no memory with s.
func (t *interner) get(s string) string {
	if s == "" {
		return ""
	}
	t.mu.RLock()
	v, ok := t.known[s]
	t.mu.RUnlock()
	if ok {
		return v
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if v, ok := t.known[s]; ok {
		return v
	}
	v = strings.Clone(s)
	if len(t.known) < t.limit {
		t.known[v] = v
	}
	return v
}
