// Package byname plays what happens to phones that know a name and nothing else: real
// phones on three real switches, led by two of our name servers. It holds tests only.
//
// Its scenarios need a freeswitch binary in PBXMESH_FREESWITCH, and root: every phone
// gets the name servers as its machine's own.
package byname
