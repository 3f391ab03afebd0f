// Package probe asks every node, once a second, with a SIP OPTIONS request
// (RFC 3261 section 11), whether its switch is alive.
//
// It owns one UDP socket, one goroutine per probed address, and the reading of
// ICMP errors. It refuses to judge: every probe ends in one failover.ProbeResult,
// and what follows from a row of them is the Tracker's business.
//
// Nothing from the network ends it: an error of the socket is the result of the probe
// that met it, and only Close ends the reading.
package probe
