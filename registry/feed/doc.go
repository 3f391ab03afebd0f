// Package feed keeps a registry's picture of one switch's registrations true: it
// turns what FreeSWITCH says over its event socket into Put, Remove and Reset on a
// Sink.
//
// # How it stays right
//
// The feed subscribes first, then reads a snapshot (`sofia xmlstatus profile P
// reg`, the table from which sofia_contact answers), then applies events. It reads
// the snapshot again after every reconnect, when a profile starts, and now and then,
// and repairs what differs.
//
// Events and rows are brought into one form and read by the same functions (form.go):
// what the one says of a phone, the other says too, and a snapshot repairs nothing
// that was right.
//
// Events may come in any order: the switch hands them out from several threads. So
// nothing is decided by arrival. Per address of record the table remembers which
// registration is the newest for every contact and for every Call-ID, by
// Event-Sequence; a registration lives as long as it is the newest of both of its own.
// It is put before what it replaces is removed.
//
// An end takes away by itself only what it names by contact and by Call-ID. Every
// other end is a doubt: the switch is asked about that user first (`sofia xmlstatus
// profile P user U@D`, question.go), and again after short pauses while it may be
// about to delete a row whose end it has told. So is a second device of a user, since
// a switch without multiple registrations takes the first away without a word.
//
// What an answer was asked after is final: an event whose sequence is not above
// the highest one seen before the question cannot change it, and an event above it
// wins over the answer for the contact and the Call-ID it names.
//
// Sequences count within one run of the switch, named by Core-UUID. Another
// Core-UUID is a new epoch: the table starts afresh and the Sink is Reset.
//
// # What it refuses
//
// The feed never removes registrations because the connection is lost: the switch
// may be fine. Rows of other hosts, of profiles that were not named, and rows that
// the mesh injected itself (agent "pbxmesh") are not this switch's registrations.
// What is no valid address of record never reaches the Sink; it is counted.
package feed
