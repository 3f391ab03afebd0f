// Package native teaches the local switch what the mesh knows, in the switch's
// own tables: where remote users are (Rows), what their lamps show (Lamps) and
// whether messages wait for them (Mailboxes). Every application of that switch
// then reaches every user of the mesh, with no dialplan change and nothing of
// ours in the call path.
//
// mod_sofia listens for the CUSTOM event multicast::event, which an event socket
// client may send, and applies what it carries to its own database. That is the
// whole mechanism: a daemon that is killed leaves rows that age out, and a running
// call never notices.
//
// Caches beside them has FusionPBX forget what another node of it changed.
//
// The package owns its event socket connections, one for each of the four, so
// that a slow switch slows only itself and never the registration feed. It
// refuses to read a registry, to judge nodes or to know about Redis clusters:
// callers tell it what changed and answer its look-ups through small interfaces.
// It never touches a registration that it did not write.
package native
