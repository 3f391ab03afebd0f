// Package pbxmesh holds the words that every part of the mesh shares: nodes,
// addresses of record, registrations, node states, and the sentinel errors
// that stand between packages.
//
// The package owns types and the rules by which a value of them is valid. It
// refuses to do anything: no network, no clock, no goroutine, no logging.
// Every other package may import it and it imports none of them.
package pbxmesh
