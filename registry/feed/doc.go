// Package feed keeps a registry's picture of one switch's registrations true: it
// turns what FreeSWITCH says over its event socket into Put, Remove and Reset on a
// Sink.
//
// # How it stays right
//
// The feed subscribes first, then reads a snapshot (`sofia xmlstatus profile P
// reg`, the table from which sofia_contact answers), then applies events. It reads
// the snapshot again after every reconnect, now and then, and whenever an event
// hints at something that events do not tell, and repairs what differs.
//
// Events may come in any order: the switch hands them out from several threads. So
// nothing is decided by arrival. Per address of record the table remembers which
// fact is the newest for every contact and for every Call-ID, by Event-Sequence; a
// registration lives exactly as long as it is the newest fact for both of its own.
// What a snapshot was asked after is final: an event whose sequence is not above
// the highest one seen before the question cannot change it, and an event above it
// wins over the snapshot for the contact and the Call-ID it names.
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
