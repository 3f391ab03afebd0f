// Package control is the daemon's local HTTP API: its JSON types, the handler
// that serves them and the client that the pbxmesh commands use.
//
// The API answers questions and changes nothing: every route is a GET. It owns
// the wire format and the mapping of errors to HTTP codes. It refuses to know
// where answers come from (Backend's functions do) and to open listeners, which
// is the application's part.
package control
