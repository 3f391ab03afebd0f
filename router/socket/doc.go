// Package socket is the hook for dialplans that ask for every call: FreeSWITCH's
// application `socket 127.0.0.1:8084 async full` connects to it, it decides with
// router.Decide and answers with one bridge command.
//
// # One call
//
//	switch                        hook
//	connect reply: channel data -> address, look-up and decision (own deadline)
//	                            <- myevents
//	                            <- api uuid_setvar_multi UUID pbxmesh_result=routed;...
//	                            <- sendmsg: execute bridge {...}...|...
//	CHANNEL_BRIDGE              -> api uuid_setvar_multi UUID pbxmesh_result=answered;...
//	CHANNEL_EXECUTE_COMPLETE    -> api uuid_setvar_multi UUID pbxmesh_result=failed;pbxmesh_cause=...
//	                               and the socket closes: the dialplan goes on
//
// A call that is not bridged gets its variables, then "resume" and the close: the
// switch parks a channel up to a tick after it connected to us, and a socket that
// closes before that would leave it parked. A call in bridge gets no "resume": the
// close would end the bridge.
//
// Variables are set by API commands, which cost no tick of the channel (up to 20 ms
// for every executed application).
//
// # What the dialplan sees
//
// pbxmesh_result and pbxmesh_cause are set before the dialplan goes on, as long as
// the switch answers us. The cause is a word of FreeSWITCH's hangup causes:
//
//	answered        the call was answered; the cause is how it ended
//	failed          nobody took it: USER_BUSY, NO_ANSWER, NO_USER_RESPONSE ...
//	not-registered  the registry was read and nobody is there (USER_NOT_REGISTERED)
//	unreachable     somebody is, on nodes that take no calls (DESTINATION_OUT_OF_ORDER)
//	invalid         the number or the domain is no address (INVALID_NUMBER_FORMAT)
//	unavailable     the registry could not be asked in time (NORMAL_TEMPORARY_FAILURE)
//	overloaded      too many calls at once (SWITCH_CONGESTION)
//	routed          the hook died or was stopped while the phones rang (NONE)
//
// With unavailable and overloaded, and with no variable at all (nobody listened on
// the socket), a dialplan does well to ring its own devices by
// ${sofia_contact(internal/...)} before it goes to voicemail.
//
// # What it owns and refuses
//
// The package owns the connection of each call and all its deadlines: from the
// connection to the bridge command or the give-back at most Options.Budget (1 s)
// passes, whatever the registry does, and closing the socket is always the way
// out. It refuses to send anything that is not from a fixed vocabulary or from a
// validated address, and to keep a call that it cannot route.
package socket
