// Package registry knows which device is registered on which node.
//
// It owns the replica (a daemon's copy of the whole registry, read by every
// call), the writer (which publishes the local node's registrations), the sync
// (which keeps the replica equal to the store), and the contract that a store
// must keep ([Backend]). The stores themselves stand in registry/memory and
// registry/redisstore.
//
// Three rules carry the protocol:
//
//   - A node's records have one writer: the daemon of that node. Its switch is
//     the source of truth, so a store that lost everything is filled again and
//     nothing has to be merged.
//   - Everything a writer publishes stands under a term, a number that grows
//     with every full publication, and a sequence, which grows with every batch
//     of that term. A reader's place is (term, sequence). A batch names the
//     sequence that it builds on, so a missing one is noticed at once, however
//     it got lost.
//   - Every batch and every lease carries a digest of the node's records: count
//     and an order-independent hash. Whoever ends up with another digest twice
//     reads the records again.
//
// The store moves records of any [Kind] and looks into none; registrations are
// the first kind. A reader skips the kinds it does not know, and digests are
// kept per kind, so that daemons of two versions run side by side.
//
// The package refuses to decide anything: whether an expired registration
// counts is its reader's question (pbxmesh.Registration.Live), whether a node
// without a lease is dead is package failover's.
package registry
