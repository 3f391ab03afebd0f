// Package resolver puts a real resolver that sends no client subnet between phones and our name
// server: Debian's unbound. It holds tests only.
//
// Its scenario needs a freeswitch binary in PBXMESH_FREESWITCH, and unbound. It takes some ten
// minutes, because what is learnt of a resolver takes its phones' registrations.
package resolver
