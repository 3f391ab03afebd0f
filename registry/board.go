package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pbxmesh"
)

// Bounds of notes, on both sides.
const (
	MaxNoteLen = 64 << 10 // bytes of a value: the votes of one observer on MaxMembers nodes
	MaxNotes   = 4096     // live notes of one kind
	MaxNoteTTL = 366 * 24 * time.Hour
)

// NoteKind says what a note is about, with the syntax of a Kind.
type NoteKind = Kind

// The kinds of notes.
const (
	// NoteVotes is what one observer says of all nodes; the key is the observer's name.
	NoteVotes NoteKind = "votes"

	// NoteWanted is what an operator wants of a node; the key is the node's name.
	NoteWanted NoteKind = "wanted"

	// NoteDrain is how far a node's drain is; the key is the node's name.
	NoteDrain NoteKind = "drain"

	// NoteLatency is what one node's clients showed of their distance; the key is the
	// node's name and a number, because one note would be too long.
	NoteLatency NoteKind = "latency"

	// NoteArrivals is when phones of which networks registered with a node; the key is the
	// node's name and the number of a block of time, of which a few follow one another.
	NoteArrivals NoteKind = "arrivals"

	// NoteResolvers is what a name server learnt of resolvers that send no client subnet; the
	// key is its name and a number.
	NoteResolvers NoteKind = "resolvers"
)

// BeatTurn is modulo what readers see beats.
const BeatTurn = 64

// Note is one fact that daemons and operators share beside the nodes' records. The
// last one that was posted for its kind and key counts.
type Note struct {
	Kind  NoteKind
	Key   string // printable ASCII without spaces, at most MaxKeyLen bytes
	Value string // opaque to stores, at most MaxNoteLen bytes; "" takes the note back

	// TTL is how long the note holds when nobody posts it again, by the store's own
	// clock, in whole milliseconds (a part of one counts as one); 0 holds for ever. Of
	// a note that was read it is what is left. At most MaxNoteTTL.
	TTL time.Duration

	// Age is how long ago a note that was read was posted, by the store's own clock; Post
	// ignores it. A clock of the store that jumps makes it wrong, at most by the jump.
	Age time.Duration

	// Tell has those who Watch the kind read it at once. It is not kept.
	Tell bool

	// Revision is chosen by the store and grows with every Post of the kind, in any
	// order of keys: who sees the same one again has seen the note already. Post
	// ignores it.
	Revision uint64
}

// ErrBoardFull says that MaxNotes other notes of the kind hold: nothing was written. Who
// is on the board stays there; a newcomer waits until a note ends.
var ErrBoardFull = errors.New("the board holds as many notes of this kind as it may")

// Validate returns pbxmesh.ErrInvalidRecord when a field is out of bounds. It does not
// look into the value.
func (n *Note) Validate() error {
	rec := Record{Kind: n.Kind, Key: n.Key}
	if err := rec.Validate(); err != nil {
		return fmt.Errorf("note: %w", err)
	}
	switch {
	case len(n.Value) > MaxNoteLen:
		return fmt.Errorf("%w: note of %d bytes, at most %d are allowed", pbxmesh.ErrInvalidRecord, len(n.Value), MaxNoteLen)
	case n.TTL < 0 || n.TTL > MaxNoteTTL:
		return fmt.Errorf("%w: a note that holds for %s", pbxmesh.ErrInvalidRecord, n.TTL)
	case n.Revision > MaxNumber:
		return fmt.Errorf("%w: revision %d is out of range", pbxmesh.ErrInvalidRecord, n.Revision)
	}
	return nil
}

// Board is a store's place for notes.
//
// All methods are for concurrent use, return within the deadline of ctx (and within a
// bound of the store's own when it has none), and report a store that cannot be reached
// as pbxmesh.ErrUnavailable. What they return has been validated; what did not pass
// was skipped and counted.
type Board interface {
	// Post writes the notes, each on its own: after an error some may be written.
	// ErrInvalidRecord when one is out of bounds; nothing is written then. ErrBoardFull
	// when there is no room for one of them; the others are written.
	Post(ctx context.Context, notes ...Note) error

	// Notes returns all live notes of a kind that are newer than revision after, in
	// no order, and the revision to ask with next time. With after 0 it returns all. A
	// note that ended or was taken back is not returned: who must know asks with 0.
	// Expiry is the reader's to watch as well: a note that was not posted again
	// within its TTL is over.
	//
	// Asking costs one round trip at most when nothing was posted since; a store that was
	// looked at within two seconds may answer by that, unless somebody has told. next is higher than
	// after exactly when something was posted, a note that was taken back included. It
	// is lower when the store lost its notes: what it returns is then all that it has.
	// With an error there are no notes, and next is after.
	Notes(ctx context.Context, kind NoteKind, after uint64) (notes []Note, next uint64, bad int, err error)

	// Hold lets a note that says the same as before go on: it holds for ttl from now (above
	// 0, at most MaxNoteTTL), as if it had been posted again, and nobody reads it again.
	// ErrLost when the board has no note of this revision under the key any more: post it.
	Hold(ctx context.Context, kind NoteKind, key string, revision uint64, ttl time.Duration) error

	// Beat says that whoever posted the note lives and says the same. beat grows by one with
	// every call, so that readers see it without trusting a clock. It does not look whether the
	// board has the note, and ends with it.
	Beat(ctx context.Context, kind NoteKind, key string, beat uint64) error

	// Beats returns the beats of a kind by key, modulo BeatTurn, and the revision that Notes
	// would return: both as of less than a second ago.
	Beats(ctx context.Context, kind NoteKind) (beats map[string]uint64, revision uint64, err error)

	// Watch calls fn once when it watches, and from then on whenever a note of the kind was
	// posted with Tell, by anybody. It returns when ctx ends or nothing more would come; the
	// caller then watches again. fn does not block, and reads nothing itself. A call may be
	// lost, and a stranger may cause some: it is a hint to read Notes.
	Watch(ctx context.Context, kind NoteKind, fn func()) error
}
