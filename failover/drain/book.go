package drain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"pbxmesh"
)

// maxWishes bounds the nodes that wishes are kept about, maxBook their file.
const (
	maxWishes = 4096
	maxBook   = maxWishes * (maxWishLen + 2)
)

// Book holds the last wish about every node. All methods are for concurrent use.
type Book struct {
	mu     sync.Mutex
	wishes map[pbxmesh.NodeID]Wish
}

// NewBook returns an empty Book.
func NewBook() *Book { return &Book{wishes: map[pbxmesh.NodeID]Wish{}} }

// Get returns the wish about node; the zero Wish, which is "in service", when nobody
// ever had one.
func (b *Book) Get(node pbxmesh.NodeID) Wish {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w, ok := b.wishes[node]; ok {
		return w
	}
	return Wish{Node: node}
}

// All returns every wish by node.
func (b *Book) All() []Wish {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Wish, 0, len(b.wishes))
	for _, id := range slices.Sorted(maps.Keys(b.wishes)) {
		out = append(out, b.wishes[id])
	}
	return out
}

// Merge takes w over when it is newer than what is known, and reports whether it was.
// A wish about one node more than the Book holds is lost.
func (b *Book) Merge(w Wish) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, ok := b.wishes[w.Node]
	if ok && !w.Newer(&old) || !ok && len(b.wishes) >= maxWishes {
		return false
	}
	b.wishes[w.Node] = w
	return true
}

// Say records a wish that was said at now as the newest one about its node, and
// returns it. ErrWish when it is out of bounds.
func (b *Book) Say(now time.Time, w Wish) (Wish, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old, ok := b.wishes[w.Node]
	if !ok && len(b.wishes) >= maxWishes {
		return Wish{}, fmt.Errorf("%w: about more than %d nodes", ErrWish, maxWishes)
	}
	w.Rev, w.At = old.Rev+1, now.Round(0)
	if w.Turn, w.Since = w.Rev, w.At; ok && old.Wanted == w.Wanted {
		w.Turn, w.Since = old.Turn, old.Since
	}
	if err := w.Validate(); err != nil {
		return Wish{}, err
	}
	b.wishes[w.Node] = w
	return w, nil
}

// Save writes the wishes to path, readable by the owner only, at once or not at all.
func (b *Book) Save(path string) error {
	var out bytes.Buffer
	for _, w := range b.All() {
		line, err := w.Encode()
		if err != nil {
			return fmt.Errorf("save what operators want: %w", err)
		}
		out.WriteString(line + "\n")
	}
	if err := renameio.WriteFile(path, out.Bytes(), 0o600); err != nil {
		return fmt.Errorf("save what operators want: %w", err)
	}
	return nil
}

// Load takes over what Save wrote. No file is no error. A line that is not valid is
// left out and named in the error; the others count.
func (b *Book) Load(path string) error {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("load what operators want: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxBook+1))
	if err != nil {
		return fmt.Errorf("load what operators want: %w", err)
	}
	if len(text) > maxBook {
		return fmt.Errorf("load what operators want: %w: %s has more than %d bytes", ErrWish, path, maxBook)
	}
	var bad []error
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSpace(line)
		var head struct {
			Node string `json:"node"`
		}
		if len(line) == 0 {
			continue
		}
		err := json.Unmarshal(line, &head)
		if err == nil {
			var w Wish
			if w, err = DecodeWish(head.Node, string(line)); err == nil {
				b.Merge(w)
				continue
			}
		}
		if len(bad) < 3 {
			bad = append(bad, fmt.Errorf("load what operators want: %s line %d: %w", path, n, err))
		}
	}
	return errors.Join(bad...)
}
