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
//	pbxmesh:{pbxmesh:members}:revision  string  grows with every other announcement
//	pbxmesh:{london}:meta         hash    v, term, next, seq, epoch
//	pbxmesh:{london}:rec:<term>   hash    kind|key -> "<seq> <value>"
//	pbxmesh:{london}:log          stream  id <term>-<seq>, one entry per batch
//	pbxmesh:{london}:lease        string  JSON, expires with the lease
//
// A daemon that reads a replica writes a number under pbxmesh:near:<random>, for an hour.
//
// All keys of a node carry its name as hash tag, so that one script can write
// them in a cluster. A full publication fills the hash of a new term beside the
// old one and switches over in one script, with which readers see all of it or
// nothing. Ids of the stream are term and sequence, so a reader's place needs no
// number of Redis's own, and survives a stream that was emptied and begun again.
//
// A stream entry has the fields v (version), p (sequence before it), d (digests,
// JSON), e (epoch), k ("reset" for a full publication), and per record
// "+kind|key" with the value, or "-kind|key" for a tombstone.
//
// Everybody asks every second for members and leases. A reader keeps what it read: the members
// while their revision is the same, at most half a minute, and of a lease everything but
// its beat while a mark of its text is. One script makes them for all leases; in a cluster,
// whose nodes are in different slots, all of them are read each time.
//
// Everything but the members expires a day after the node's last renewal.
//
// The notes of registry.Board stand under one hash tag that no node can have:
//
//	pbxmesh:{#board}:votes:notes      hash        key -> value
//	pbxmesh:{#board}:votes:revisions  sorted set  key by revision
//	pbxmesh:{#board}:votes:ends       sorted set  key by its end, ms of the server's clock
//	pbxmesh:{#board}:heads            hash        kind -> highest revision
//
// A revision is at least the server's clock in microseconds, so that it grows also over
// a server that was emptied. Notes that ended are removed by the next one of their kind.
//
// What is posted with Tell is published on the channel pbxmesh:told:votes, an empty message.
//
// # Access
//
// Rights and ACL say what an ACL user needs. Without the channel nobody is told, and notes are
// read a moment later.
package redisstore
