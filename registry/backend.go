package registry

import (
	"context"
	"errors"
	"fmt"
	"time"

	"pbxmesh"
)

// Errors of backends, beside pbxmesh.ErrUnavailable (the store could not be asked
// or did not do it; nothing is known about what it holds, and a write may or may
// not have happened). Compare with errors.Is.
var (
	// ErrFenced says that the writer is not, or no longer, the one writer of its
	// node. Nothing was written.
	ErrFenced = errors.New("another daemon publishes for this node")

	// ErrLost says that the store does not hold what the writer published: publish
	// everything again.
	ErrLost = errors.New("the store lost this node's records")

	// ErrNoMesh says that the store answered and holds no node at all: it is empty, or
	// another one than was meant.
	ErrNoMesh = errors.New("the store knows no node at all")

	// ErrNoNode says that the store answered and holds no records of the node,
	// not even the mark of an empty publication.
	ErrNoNode = errors.New("the store knows no records of this node")

	// ErrChanged says that the node published everything anew while a snapshot
	// was read. Read again.
	ErrChanged = errors.New("the records were replaced while they were read")

	// ErrCorrupt says that the store holds something in the node's place that
	// the node's writer never puts there.
	ErrCorrupt = errors.New("the store holds foreign data in this node's place")
)

// HeldError is the ErrFenced of a store in which another daemon holds the node's
// lease. Beat is that of the lease: who sees the same one for several renewals
// knows that nobody renews it.
type HeldError struct {
	Node            pbxmesh.NodeID
	Owner, Instance string
	Beat            uint64
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%v: a daemon of %s (instance %s) holds the lease of %s", ErrFenced, show(e.Owner), show(e.Instance), e.Node)
}

// Unwrap returns ErrFenced.
func (e *HeldError) Unwrap() error { return ErrFenced }

// Publisher is what a writer needs of a store.
//
// All methods are for concurrent use, return within the deadline of ctx (and
// within a bound of the store's own when it has none), and report a store that
// cannot be reached as pbxmesh.ErrUnavailable. A writer calls Publish and Append
// one at a time.
type Publisher interface {
	// Publish replaces everything the store holds of the node, atomically for
	// readers: they see the old records or the new ones. It returns the term it
	// chose, at least p.Term and higher than every term of the node that the
	// store remembers; the sequence is then 1. From that moment on the writers of
	// older terms get ErrFenced.
	//
	// ErrFenced, as a HeldError when the cause is a live lease of an instance that
	// is neither p.Instance nor p.Over; otherwise another writer began a
	// publication later than this call did. On any error readers
	// still see what they saw before, or (with ErrUnavailable) the new records.
	Publish(ctx context.Context, p Publication) (term uint64, err error)

	// Append applies b, all of it or nothing, and tells the subscribers. b.Prev is
	// the highest sequence known to be in the store. Repeating a batch that was
	// applied already does nothing and succeeds.
	//
	// ErrFenced when the store is at a higher term, or beyond b.Seq; ErrLost when
	// it is at a lower term, at none, or before b.Prev. ErrUnavailable leaves open
	// whether b was applied: the next batch must hold its keys again.
	Append(ctx context.Context, b Batch) error

	// Renew writes the lease for l.TTL and puts off the collection of the
	// node's records as garbage.
	//
	// ErrFenced, as a HeldError, when a live lease of an instance exists that is
	// neither l.Instance nor l.Over, and ErrFenced when the store is at a higher
	// term: the lease is then not written. ErrLost when the store does not
	// hold l.Term and l.Seq or another number of records than l.Digests counts:
	// the lease is written all the same. With l.Term 0 only the lease is looked at.
	Renew(ctx context.Context, l Lease) error

	// Leave ends l's lease at once if it is still l.Instance's, and nothing
	// otherwise. The records stay.
	Leave(ctx context.Context, l Lease) error

	// Announce makes the node a member, or changes what is known of it.
	Announce(ctx context.Context, a Announcement) error
}

// Source is what a reader needs of a store. It changes nothing there.
//
// All methods are for concurrent use, return within the deadline of ctx (and
// within a bound of the store's own when it has none), and report a store that
// cannot be reached as pbxmesh.ErrUnavailable: an empty result with a nil error
// always means that the store was asked and has nothing. What they return has
// been validated; what did not pass was skipped and counted.
type Source interface {
	Records

	// Members returns every announced node and how many entries were skipped.
	// With an error the slice is nil.
	Members(ctx context.Context) (members []Announcement, bad int, err error)

	// Leases returns the live leases of nodes; a node without one is missing
	// from the map. With an error the map holds what could be read, and says
	// nothing about the other nodes. bad counts leases that were skipped.
	Leases(ctx context.Context, nodes []pbxmesh.NodeID) (leases map[pbxmesh.NodeID]Lease, bad int, err error)

	// Subscribe calls fn with every batch that any node appends or publishes, as it is
	// applied; first with nil, when it hears: what was before, Changes tells. It returns when
	// ctx ends or nothing more would come; the caller then subscribes again. fn does not block,
	// and asks the store nothing itself. A batch may be lost, and a stranger may put in some:
	// Batch.Prev and the leases say what is missing.
	Subscribe(ctx context.Context, fn func(*Batch)) error

	// Lag is how far what was read last is behind what was written: above 0 only where a
	// replica of the store is read.
	Lag() time.Duration
}

// Records reads what nodes published. Readers read other nodes' by it, and a
// writer looks whether its own stand as it published them. See Source.
type Records interface {
	// Snapshot calls each for every record of node, and returns after what to ask for
	// Changes. Records newer than the returned cursor may be among them, and a
	// record may come twice. each may keep the record.
	//
	// ErrNoNode, ErrChanged, ErrCorrupt as they say. With an error, the records
	// seen so far are incomplete and must be dropped.
	Snapshot(ctx context.Context, node pbxmesh.NodeID, each func(Record)) (at SnapshotInfo, err error)

	// Changes returns the batches after each cursor that the store still has, in order per
	// node; MaxChanges of a node at most: who gets as many asks for more.
	Changes(ctx context.Context, after []Cursor) ([]Batch, error)
}

// MaxChanges is how many batches of a node one call of Changes returns at most.
const MaxChanges = 64

// SnapshotInfo is what a snapshot says beside its records.
type SnapshotInfo struct {
	Cursor
	Epoch string
	Bad   int // records that were skipped
}

// Backend is a store: see Publisher, Source and Board, and package registrytest for
// the contract as tests.
type Backend interface {
	Publisher
	Source
	Board

	// Forget removes a node for good: its lease, its records, and its place among
	// the members, where only the mark stays that it is gone.
	Forget(ctx context.Context, node pbxmesh.NodeID) error

	// Close frees connections. It does not touch what is stored.
	Close() error
}
