// Package bindings keeps one phone from ringing twice where it ends: in the local switch's
// own table of registrations.
//
// When a phone that is registered here has registered on another node since
// (pbxmesh.Superseded), its row here is taken out of the switch and put aside. When the
// registration that stands in for it ends, or its node takes no calls any more, the row is
// written back with the stamp that it had: a phone that keeps two registrations on
// purpose rings by one of them, and by the other as soon as the first one's node is gone.
//
// The package owns one event socket connection, and the memory of what it took out, which
// a restart of the daemon loses: those phones are known again with their next REGISTER. It
// refuses to publish (the feed and the writer do) and to decide which registration counts
// (package pbxmesh does). It touches no row of the mesh profile, and no call.
package bindings
