// Package meshcontext says what a switch does with a call that another node sends: the
// settings of its mesh profile, and the steps of the dialplan context behind it. They
// stand here once. pbxmesh fsconf writes them into files and databases, the HTTP hook
// answers with them, and doctor judges a switch by them.
//
// The package is words alone: it reads no configuration, and imports nothing of ours.
package meshcontext

// Mark stands in the contact of every row that pbxmesh writes into a switch's own
// registration table, and in no phone's. Who sets the channel variable
// sip_exclude_contact to it has sofia_contact leave these rows out: mod_sofia looks for
// the text with LIKE, so no '%' and no '_' is in it.
const Mark = "pbxmesh-row"

// ExcludeVariable is that channel variable. It must not outlive the ringing: a callee
// who transfers the call to a user of another node needs the rows.
const ExcludeVariable = "sip_exclude_contact"
