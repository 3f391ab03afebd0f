// Package esl speaks FreeSWITCH's event socket: as a client (Dial, Conn) and as
// the server that the dialplan's `socket` application calls (Server, Call). It is
// the only package that imports github.com/percipia/eslgo.
//
// # The guard
//
// eslgo matches replies with commands and hands out events, but it trusts its
// peer: it waits for a greeting for ever, believes any Content-Length, stops
// silently at an unknown content type or a header name that MIME does not allow,
// gives a late reply to the next caller, starts one goroutine for every event and
// tells nobody when reading fails. So eslgo never sees the network. We connect,
// check the greeting and authenticate ourselves; then an eslgo connection is
// attached over a private unix socket pair, and a guard stands between:
//
//	switch ──TCP── guard ──unix── eslgo ── session ── Conn or Call
//
// Towards eslgo the guard forwards only frames that it has read completely and
// checked, each wrapped so that eslgo's own header parser sees nothing but what
// the guard wrote. Events that wait together travel as one batch with a number,
// by which the session restores their order. At most windowBatches are on their
// way; with a slower reader the guard stops reading and TCP holds the switch
// back. Towards the switch the guard passes on exactly one command at a time, and
// when the connection ends it answers the command in flight itself: eslgo never
// has a reply too many or too few.
//
// # What it owns and refuses
//
// The package owns the connections, their goroutines, deadlines and bounds. It
// refuses control characters in commands and headers, XML and JSON events, and
// any opinion about what an event means.
package esl
