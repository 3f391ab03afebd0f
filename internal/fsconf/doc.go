// Package fsconf writes what a node's FreeSWITCH needs to take part in the mesh:
// the sofia profile of the calls between nodes, its dialplan context, the list of
// nodes that may call it, and the settings of the event socket. For FusionPBX, which
// keeps the first three in its database, it writes SQL with an undo.
//
// The package owns the texts and how they get into existing files: whole files of our
// own, and marked blocks in files that belong to others. All output depends on its
// input alone, so that writing twice changes nothing. It refuses to talk to a switch
// or a database, and to overwrite a file without a copy of what was there.
package fsconf
