package socket

import (
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

// setCommand returns the API command that sets our two variables, and those of
// bridgeDefaults that the dialplan has not set itself. Every part of it comes from
// a fixed vocabulary but the UUID and the cause, which are checked here.
func setCommand(uuid string, o Outcome, cause string, defaults []string) string {
	if !validCause(cause) {
		cause = causeUnspecified
	}
	cmd := "uuid_setvar_multi " + uuid + " pbxmesh_result=" + string(o) + ";pbxmesh_cause=" + cause
	for _, name := range defaults {
		cmd += ";" + name + "=true"
	}
	return cmd
}

// bridgeDefaults are read from the calling channel, a bridge string cannot set
// them. Without continue_on_fail a busy callee ends the call where voicemail should
// take it; without hangup_after_bridge a caller whose callee hung up would go on
// to voicemail. A dialplan that set them, to whatever value, keeps its choice.
var bridgeDefaults = [...]string{"hangup_after_bridge", "continue_on_fail"}

// validUUID allows the form of FreeSWITCH's channel UUIDs, 8-4-4-4-12 hex digits.
func validUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
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
