package socket

import (
	"strings"

	"pbxmesh/internal/meshcontext"
	"pbxmesh/router"
)

// Outcome is what the dialplan finds in pbxmesh_result. The words are part of
// the contract with dialplans: they never change. See the package's comment.
type Outcome string

// The outcomes. Abandoned never reaches a dialplan: the caller hung up first.
const (
	Routed        Outcome = "routed"
	Answered      Outcome = "answered"
	Failed        Outcome = "failed"
	NotRegistered Outcome = "not-registered"
	Unreachable   Outcome = "unreachable"
	Invalid       Outcome = "invalid"
	Unavailable   Outcome = "unavailable"
	Overloaded    Outcome = "overloaded"
	Abandoned     Outcome = "abandoned"
)

// The causes that we give ourselves, all of them FreeSWITCH hangup causes, so that
// a dialplan needs one list for its conditions.
const (
	causeNone        = "NONE"
	causeSuccess     = "SUCCESS"
	causeNotReg      = "USER_NOT_REGISTERED"
	causeUnreachable = "DESTINATION_OUT_OF_ORDER"
	causeInvalid     = "INVALID_NUMBER_FORMAT"
	causeUnavailable = "NORMAL_TEMPORARY_FAILURE"
	causeOverloaded  = "SWITCH_CONGESTION"
	causeUnspecified = "NORMAL_UNSPECIFIED"
	maxCauseLen      = 48 // the longest that FreeSWITCH has is 35
)

// giveBackFor returns what a plan without targets means for the dialplan.
func giveBackFor(r router.Result) (Outcome, string) {
	switch r {
	case router.ResultNotRegistered:
		return NotRegistered, causeNotReg
	case router.ResultUnreachable, router.ResultRouted:
		// Routed without a bridge string: every target was on the mesh profile.
		return Unreachable, causeUnreachable
	default:
		return Invalid, causeInvalid
	}
}

// variable is one channel variable with its value; "" unsets it.
type variable struct{ name, value string }

// setCommands returns the API commands that set our two variables and more of them, one
// command as a rule. Every part of them comes from a fixed vocabulary but the UUID and the cause, which are checked
// here. nil says that no command can name the channel.
//
// uuid_setvar_multi takes everything up to the first blank for the UUID, whatever it
// is made of. One with a blank needs uuid_setvar, which knows quotes and takes one
// variable at a time.
func setCommands(uuid string, o Outcome, cause string, more []variable) []string {
	if !validCause(cause) {
		cause = causeUnspecified
	}
	set := append([]variable{{"pbxmesh_result", string(o)}, {"pbxmesh_cause", cause}}, more...)
	switch {
	case !validUUID(uuid):
		return nil
	case strings.IndexByte(uuid, ' ') < 0:
		cmd := "uuid_setvar_multi " + uuid
		for i, v := range set {
			sep := byte(';')
			if i == 0 {
				sep = ' '
			}
			cmd += string(sep) + v.name + "=" + v.value
		}
		return []string{cmd}
	case strings.ContainsAny(uuid, `'\`) || strings.TrimSpace(uuid) != uuid:
		return nil
	}
	var cmds []string
	for _, v := range set {
		cmds = append(cmds, "uuid_setvar '"+uuid+"' "+strings.TrimSuffix(v.name+" "+v.value, " "))
	}
	return cmds
}

// guard has ${sofia_contact(...)} of a bridge string name no row of ours: of a profile
// that is stopped or misspelt FreeSWITCH asks all profiles. It holds while the phones
// ring. A transfer that happens meanwhile (a phone that redirects) ends it on the
// switch itself, everything else by unguard.
var guard = []variable{
	{meshcontext.ExcludeVariable, meshcontext.Mark},
	{"execute_on_blind_transfer_pbxmesh", "unset " + meshcontext.ExcludeVariable},
}

// unguard gives the dialplan the users of other nodes back.
var unguard = []variable{{meshcontext.ExcludeVariable, ""}}

// bridgeDefaults are read from the calling channel, a bridge string cannot set
// them. Without continue_on_fail a busy callee ends the call where voicemail should
// take it; without hangup_after_bridge a caller whose callee hung up would go on
// to voicemail. A dialplan that set them, to whatever value, keeps its choice.
var bridgeDefaults = [...]string{"hangup_after_bridge", "continue_on_fail"}

// maxUUIDLen is the longest that FreeSWITCH keeps (SWITCH_UUID_FORMATTED_LENGTH).
const maxUUIDLen = 256

// validUUID allows what a switch may call a channel: by itself 8-4-4-4-12 hex digits,
// else a caller's Call-ID (inbound-use-callid-as-uuid) or what a dial string says
// (origination_uuid), of any alphabet. A control character would end a command.
func validUUID(s string) bool {
	if s == "" || len(s) > maxUUIDLen {
		return false
	}
	for i := range len(s) {
		if s[i] < ' ' || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// validCause allows the alphabet of FreeSWITCH's hangup causes. There is no table:
// a cause that a later version adds is worth more to a dialplan than our guess.
func validCause(s string) bool {
	if s == "" || len(s) > maxCauseLen {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}
