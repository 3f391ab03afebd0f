// Package redisstore is the registry's store in Redis: one server, Sentinel or
// Cluster, version 6.2 or later.
//
// It owns the layout of the keys and the scripts that write them, and refuses to
// trust what it reads: anything may have been written by anyone who has the
// password.
//
// # Keys
//
// With the prefix "pbxmesh" and the node "london":
//
//	pbxmesh:members               hash    node -> announcement (JSON)
//	pbxmesh:{london}:meta         hash    v, term, next, seq, epoch
//	pbxmesh:{london}:rec:<term>   hash    kind|key -> "<seq> <value>"
//	pbxmesh:{london}:log          stream  id <term>-<seq>, one entry per batch
//	pbxmesh:{london}:lease        string  JSON, expires with the lease
//	pbxmesh:{#board}:heads        hash    what changes, of everything; see below
//
// A daemon that reads a replica writes a number under pbxmesh:near:<random>, for an hour.
//
// In a cluster all keys begin with "{pbxmesh}": the first hash tag counts, so a mesh is in one
// slot. Everybody reads everything, and one script writes what belongs together.
//
// A full publication fills the hash of a new term beside the
// old one and switches over in one script, with which readers see all of it or
// nothing. Ids of the stream are term and sequence, so a reader's place needs no
// number of Redis's own, and survives a stream that was emptied and begun again.
//
// A stream entry has the fields v (version), p (sequence before it), d (digests,
// JSON), e (epoch), k ("reset" for a full publication), and per record
// "+kind|key" with the value, or "-kind|key" for a tombstone.
//
// Everything but the members and the heads expires a day after the node's last renewal.
//
// # What is told
//
// The script that applies a batch publishes it on the channel pbxmesh:changes: the node, the id and
// the fields of its stream entry, as netstrings ("3:abc,"). The stream is for those who did not hear.
// What is posted with Tell is published on pbxmesh:told:votes, an empty message. All channels of a
// store are heard by one connection.
//
// # Heads
//
// Everybody looks every second at the hash of heads, by one script that says the names of its fields
// only when they are others than the caller knows:
//
//	@             revision of the members: grows with every other announcement
//	@london       four characters that stand for london's lease without beat and clock, and its beat
//	votes         highest revision of the notes of the kind
//	votes|london  beat of the note
//
// A beat is one of 64 characters. A reader keeps what it read: the members while their revision is
// the same, and of a lease everything but its beat while its mark is.
//
// # Notes
//
// The notes of registry.Board stand under a hash tag that no node can have:
//
//	pbxmesh:{#board}:votes:notes      hash        key -> value
//	pbxmesh:{#board}:votes:revisions  sorted set  key by revision
//	pbxmesh:{#board}:votes:ends       sorted set  key by its end, ms of the server's clock
//
// A revision is at least the server's clock in microseconds, so that it grows also over
// a server that was emptied. Notes that ended are removed by the next one of their kind.
//
// # Access
//
// Rights and ACL say what an ACL user needs. Without the channels nobody is told, and changes and notes are
// read a moment later.
package redisstore
