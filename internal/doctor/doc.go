// Package doctor looks at one node from end to end and says, for each thing that has to
// be right, whether it is, what was seen, and what to do: the event socket, the sofia
// profiles, the list of nodes, the other nodes' ports, the registry, the clock, the name
// servers, the daemon.
//
// The package owns the checks and their words. It asks the switch, the registry and the
// daemon by itself, because what one of them says about the others may be what is wrong.
// It refuses to repair anything, and leaves nothing behind: the registry is written to
// with one key that removes itself, and only the call that was asked for rings a phone.
package doctor
