package drain

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"pbxmesh"
)

// Bounds of a wish's text, in bytes.
const (
	MaxByLen     = 128
	MaxReasonLen = 256

	// maxWishLen leaves room for what JSON makes of the texts: six bytes of a '<'.
	maxWishLen = 4096
)

// ErrWish reports a wish that is out of bounds.
var ErrWish = errors.New("invalid wish")

// Wish is what an operator wants of a node. A wish is never taken back, only followed
// by another one: a store that lost everything, and a daemon that was away, must not
// look like an operator who changed his mind.
type Wish struct {
	Node   pbxmesh.NodeID
	Wanted pbxmesh.Wanted

	// Rev counts the wishes of the node. Of two with one Rev, said to two daemons that
	// did not hear of one another, the later one counts.
	Rev uint64
	At  time.Time // when it was said, on the clock of the daemon that was told

	// Turn and Since are Rev and At of the first of the wishes in a row that want the
	// same: saying it again does not start a drain anew.
	Turn  uint64
	Since time.Time

	By     string // who: "alice@jumphost", at most MaxByLen bytes
	Reason string // why, at most MaxReasonLen bytes

	// Force says that the drain goes on although the rest lacks capacity.
	Force bool
}

// wishJSON is the form on the board and in the file.
type wishJSON struct {
	Version int            `json:"v"`
	Node    pbxmesh.NodeID `json:"node"`
	Wanted  string         `json:"wanted"`
	Rev     uint64         `json:"rev"`
	At      time.Time      `json:"at"`
	Turn    uint64         `json:"turn"`
	Since   time.Time      `json:"since"`
	By      string         `json:"by,omitempty"`
	Reason  string         `json:"reason,omitempty"`
	Force   bool           `json:"force,omitempty"`
}

// Newer reports whether w counts although o is known. It is a total order, so that
// every daemon comes to the same wish whatever it hears first.
func (w *Wish) Newer(o *Wish) bool {
	if w.Rev != o.Rev {
		return w.Rev > o.Rev
	}
	if !w.At.Equal(o.At) {
		return w.At.After(o.At)
	}
	if w.Wanted != o.Wanted {
		return w.Wanted > o.Wanted
	}
	return w.By+"\x00"+w.Reason > o.By+"\x00"+o.Reason
}

// ParseWanted reads the words of pbxmesh.Wanted.String.
func ParseWanted(s string) (pbxmesh.Wanted, bool) {
	for _, w := range []pbxmesh.Wanted{pbxmesh.WantedInService, pbxmesh.WantedDraining, pbxmesh.WantedOut} {
		if w.String() == s {
			return w, true
		}
	}
	return 0, false
}

// Validate returns ErrWish when a field is out of bounds.
func (w *Wish) Validate() error {
	if id, err := pbxmesh.ParseNodeID(string(w.Node)); err != nil || id != w.Node {
		return fmt.Errorf("%w: node %.70q", ErrWish, string(w.Node))
	}
	if w.Wanted > pbxmesh.WantedOut || w.Rev == 0 || w.Rev > 1<<53 || w.Turn == 0 || w.Turn > w.Rev {
		return fmt.Errorf("%w: %s wants %d, number %d since %d", ErrWish, w.Node, w.Wanted, w.Rev, w.Turn)
	}
	for _, at := range [...]time.Time{w.At, w.Since} {
		if y := at.UTC().Year(); y < 2000 || y > 9999 {
			return fmt.Errorf("%w: said in the year %d", ErrWish, y)
		}
	}
	for _, f := range [...]struct {
		name, value string
		limit       int
	}{{"name of who wants it", w.By, MaxByLen}, {"reason", w.Reason, MaxReasonLen}} {
		if len(f.value) > f.limit {
			return fmt.Errorf("%w: the %s has %d bytes, at most %d are allowed", ErrWish, f.name, len(f.value), f.limit)
		}
		if !printable(f.value) {
			return fmt.Errorf("%w: the %s has characters that cannot be printed", ErrWish, f.name)
		}
	}
	return nil
}

// printable keeps terminal escapes out of listings.
func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return false
		}
	}
	return true
}

// Encode returns the form that is shared and stored.
func (w *Wish) Encode() (string, error) {
	if err := w.Validate(); err != nil {
		return "", err
	}
	text, err := json.Marshal(wishJSON{
		Version: 1, Node: w.Node, Wanted: w.Wanted.String(), Rev: w.Rev, At: w.At.UTC(), Turn: w.Turn, Since: w.Since.UTC(), By: w.By, Reason: w.Reason, Force: w.Force,
	})
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrWish, err)
	}
	return string(text), nil
}

// DecodeWish reads the form of Encode, which anyone may have written. The wish must be
// about node.
func DecodeWish(node, text string) (Wish, error) {
	if len(text) > maxWishLen {
		return Wish{}, fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrWish, len(text), maxWishLen)
	}
	var j wishJSON
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return Wish{}, fmt.Errorf("%w: %w", ErrWish, err)
	}
	wanted, ok := ParseWanted(j.Wanted)
	if !ok || j.Version != 1 || string(j.Node) != node {
		return Wish{}, fmt.Errorf("%w: version %d, node %.70q, wanted %.70q", ErrWish, j.Version, string(j.Node), j.Wanted)
	}
	w := Wish{Node: j.Node, Wanted: wanted, Rev: j.Rev, At: j.At, Turn: j.Turn, Since: j.Since, By: j.By, Reason: j.Reason, Force: j.Force}
	if err := w.Validate(); err != nil {
		return Wish{}, err
	}
	return w, nil
}
