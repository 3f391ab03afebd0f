package registry

import (
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"

	"pbxmesh"
)

// Bounds of what travels through a store, in bytes unless said otherwise. They
// hold on both sides: a writer refuses to publish what a reader would skip.
const (
	MaxKindLen  = 16
	MaxKeyLen   = 512  // an AOR of 318 bytes, separators and a digest
	MaxValueLen = 4096 // a registration at its limits needs about 2300
	MaxKinds    = 16   // kinds that one digest map may name
	MaxBatch    = 1024 // records in one batch

	// MaxNumber bounds terms and sequences: Lua and JSON numbers are exact up
	// to here.
	MaxNumber = 1<<53 - 1
)

// Kind says what a record is about.
type Kind string

// KindRegistration is a registration; its key is RegistrationKey's.
const KindRegistration Kind = "registration"

// Valid reports whether k is 1 to MaxKindLen bytes of [a-z].
func (k Kind) Valid() bool {
	if k == "" || len(k) > MaxKindLen {
		return false
	}
	for i := range len(k) {
		if k[i] < 'a' || k[i] > 'z' {
			return false
		}
	}
	return true
}

// Record is one fact that a node publishes. Value is opaque to stores; "" is a
// tombstone: the fact with this key ended.
type Record struct {
	Kind  Kind
	Key   string // printable ASCII without spaces, at most MaxKeyLen bytes
	Value string // at most MaxValueLen bytes

	// Seq is the sequence of the batch that wrote the record. Of two records of
	// one term with the same kind and key the higher one wins.
	Seq uint64
}

// Tombstone reports whether the record ends its fact.
func (r *Record) Tombstone() bool { return r.Value == "" }

// Validate returns pbxmesh.ErrInvalidRecord when the frame of the record is out
// of bounds. It does not look into the value.
func (r *Record) Validate() error {
	switch {
	case !r.Kind.Valid():
		return fmt.Errorf("%w: kind %s", pbxmesh.ErrInvalidRecord, show(string(r.Kind)))
	case r.Key == "" || len(r.Key) > MaxKeyLen:
		return fmt.Errorf("%w: key of %d bytes, 1 to %d are allowed", pbxmesh.ErrInvalidRecord, len(r.Key), MaxKeyLen)
	case len(r.Value) > MaxValueLen:
		return fmt.Errorf("%w: value of %d bytes, at most %d are allowed", pbxmesh.ErrInvalidRecord, len(r.Value), MaxValueLen)
	case r.Seq > MaxNumber:
		return fmt.Errorf("%w: sequence %d is out of range", pbxmesh.ErrInvalidRecord, r.Seq)
	}
	for i := range len(r.Key) {
		if c := r.Key[i]; c <= ' ' || c >= 0x7f {
			return fmt.Errorf("%w: key %s", pbxmesh.ErrInvalidRecord, show(r.Key))
		}
	}
	return nil
}

// hash is the record's share of a digest. It covers the sequence, so that a
// reader that holds an outdated value of a record is found out even when the
// value came back to what it was.
func (r *Record) hash() uint64 {
	var d xxhash.Digest
	d.Reset()
	// Kind and key cannot hold a NUL, so no two records share one encoding.
	_, _ = d.WriteString(string(r.Kind))
	_, _ = d.WriteString("\x00")
	_, _ = d.WriteString(r.Key)
	_, _ = d.WriteString("\x00")
	_, _ = d.WriteString(r.Value)
	return mix(d.Sum64() ^ r.Seq*0x9e3779b97f4a7c15)
}

// mix is the finalizer of MurmurHash3: without it, sums of hashes of records with
// neighbouring sequences would cancel out more often than chance.
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// Digest sums up a node's records of one kind. Equal digests mean equal records
// but for a chance of about 2^-64; a digest finds faults, not forgers.
type Digest struct {
	Count int    // records that are no tombstones
	Sum   uint64 // sum of their hashes modulo 2^64, so order does not matter
}

// String is the form on the wire: "count:hex".
func (d Digest) String() string { return strconv.Itoa(d.Count) + ":" + strconv.FormatUint(d.Sum, 16) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the form of String.
func (d *Digest) UnmarshalText(text []byte) error {
	count, sum, ok := strings.Cut(string(text), ":")
	n, err1 := strconv.ParseUint(count, 10, 31)
	h, err2 := strconv.ParseUint(sum, 16, 64)
	if !ok || err1 != nil || err2 != nil {
		return fmt.Errorf("%w: digest %s", pbxmesh.ErrInvalidRecord, show(string(text)))
	}
	*d = Digest{Count: int(n), Sum: h}
	return nil
}

func (d *Digest) add(hash uint64)    { d.Count++; d.Sum += hash }
func (d *Digest) remove(hash uint64) { d.Count--; d.Sum -= hash }

// Digests are a node's digests by kind. A kind without records may be missing.
type Digests map[Kind]Digest

func (d Digests) add(k Kind, hash uint64)    { v := d[k]; v.add(hash); d[k] = v }
func (d Digests) remove(k Kind, hash uint64) { v := d[k]; v.remove(hash); d[k] = v }
func (d Digests) clone() Digests             { return maps.Clone(d) }

// Count is the number of records of all kinds.
func (d Digests) Count() int {
	n := 0
	for _, v := range d {
		n += v.Count
	}
	return n
}

func (d Digests) validate() error {
	if len(d) > MaxKinds {
		return fmt.Errorf("%w: digests of %d kinds, at most %d are allowed", pbxmesh.ErrInvalidRecord, len(d), MaxKinds)
	}
	for k := range d {
		if !k.Valid() {
			return fmt.Errorf("%w: digest of kind %s", pbxmesh.ErrInvalidRecord, show(string(k)))
		}
	}
	return nil
}

// Cursor is a reader's place in a node's changes, and a writer's.
type Cursor struct {
	Node pbxmesh.NodeID
	Term uint64
	Seq  uint64
}

// Batch is a set of changes that a node made at once: a store applies all of it
// or nothing.
type Batch struct {
	Node  pbxmesh.NodeID
	Term  uint64
	Seq   uint64 // grows by at least one from batch to batch of a term
	Prev  uint64 // when read: the sequence that the store held before
	Epoch string // the life of the switch that it is about; for people

	// Records hold each kind and key at most once. Their Seq is the batch's.
	Records []Record

	// Digests are what the node's records add up to once the batch is applied.
	Digests Digests

	// Reset says that the node published all of its records anew under this
	// term. The batch itself has none: read a snapshot.
	Reset bool

	// Bad counts the records of the batch that the store had to skip. Broken
	// says that not even its frame could be read, and that Seq means nothing.
	Bad    int
	Broken bool
}

// Publication is all of a node's records at once.
type Publication struct {
	Node     pbxmesh.NodeID
	Epoch    string
	Owner    string
	Instance string
	Over     string   // see Lease.Over
	Records  []Record // each with Seq 1; no tombstones
	Digests  Digests

	// Term is the lowest term that the writer can accept: higher than every one
	// it ever used.
	Term uint64
}

// show quotes hostile input for an error: ASCII only, at most 40 bytes of it.
func show(s string) string {
	const limit = 40
	if len(s) > limit {
		return fmt.Sprintf("%+q...", s[:limit])
	}
	return fmt.Sprintf("%+q", s)
}
