// Package failover decides in which state every node of the mesh is, as one
// observer sees it.
//
// It owns the Tracker: a state machine per node that is fed with probe results,
// leases, the votes of other observers and operators' wishes, and publishes one
// immutable picture of all nodes, a pbxmesh.Mesh. Package failover/probe makes the probe
// results. It also owns what a vote is, on the wire and in the count.
//
// It refuses to have a clock, a timer, a socket or a goroutine: time comes in with
// every input, so that each edge of the state chart can be tested as a table row.
// Votes come in and go out as values: who carries them is not its business.
package failover
