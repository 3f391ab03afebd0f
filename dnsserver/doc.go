// Package dnsserver is the authoritative name server that sends phones to nodes.
//
// It owns the zones' contents (Zone) with the records of a zone file and the
// signatures, the reading of EDNS and client subnets, and the UDP and TCP listeners (Server).
// Which node a client gets is decided in dnsserver/selection.
// Each query reads one immutable snapshot of the mesh; a query never waits for
// anything, and no answer needs a second source.
//
// It refuses recursion, zone transfers (they cannot carry answers that depend on
// the client), other classes, and any opinion about whether a node is alive: that
// comes with the snapshot.
package dnsserver
