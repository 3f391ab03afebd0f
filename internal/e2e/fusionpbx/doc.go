// Package fusionpbx plays the stories of FusionPBX on two nodes that share one
// PostgreSQL, set up as docs/fusionpbx.md says. It holds tests only.
//
// Everything in it is real: FreeSWITCH, FusionPBX's own schema, default data and Lua
// scripts out of a checkout, PostgreSQL, Redis, and the daemons as programs. The tests
// skip unless PBXMESH_FUSIONPBX names a checkout of FusionPBX and PBXMESH_FREESWITCH a
// freeswitch binary; `make test-fusionpbx` runs them in a network namespace of their own.
//
// Nothing of FusionPBX is kept here: what a test needs of it, such as an extension or a
// ring group, is rows that an operator's clicks would have made.
package fusionpbx
