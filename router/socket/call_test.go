package socket

import (
	"strings"
	"testing"
)

// TestCalls compares every byte of a call with what it must be, up to the close.
func TestCalls(t *testing.T) {
	t.Parallel()
	const (
		local1001  = "{presence_id=1001@pbx.test,sip_invite_domain=pbx.test}${sofia_contact(internal/1001@pbx.test)}"
		london1002 = "sofia/mesh/sip:1002@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"
		both1003   = "[presence_id=1003@pbx.test,sip_invite_domain=pbx.test]${sofia_contact(internal/1003@pbx.test)},sofia/mesh/sip:1003@pbx.test;fs_path=sip%3A192.0.2.2%3A5090"
	)
	routed := wireSet("routed", "NONE", "continue_on_fail=true") // the recorded dialplan set hangup_after_bridge
	const (
		guardVars  = "sip_exclude_contact=pbxmesh-row;execute_on_blind_transfer_pbxmesh=unset sip_exclude_contact"
		unguardVar = "sip_exclude_contact="
	)
	guarded := wireSet("routed", "NONE", "continue_on_fail=true", guardVars)
	failed := events("channel-execute-bridge", "execute-complete-failed")
	tests := []struct {
		name  string
		call  *fakeCall
		want  string // after connect
		stats func(Stats) bool
	}{
		{
			"a failed bridge goes back with its cause", dialling("1002", failed),
			wireEvents + routed + wireBridge(london1002) + wireSet("failed", "NO_USER_RESPONSE"),
			func(s Stats) bool { return s.Routed == 1 && s.Failed == 1 },
		},
		{
			"a busy callee", dialling("1002", failed, changed("variable_originate_disposition", "USER_BUSY")),
			wireEvents + routed + wireBridge(london1002) + wireSet("failed", "USER_BUSY"),
			func(s Stats) bool { return s.Failed == 1 },
		},
		{
			"an attempt that never started names the next best cause",
			dialling("1002", failed, changed("variable_originate_disposition", "failure"), changed("variable_originate_failed_cause", "GATEWAY_DOWN")),
			wireEvents + routed + wireBridge(london1002) + wireSet("failed", "GATEWAY_DOWN"),
			func(s Stats) bool { return s.Failed == 1 },
		},
		{
			"a cause that is none is not passed on",
			dialling("1002", failed, changed("variable_originate_disposition", "X;a=b"), changed("variable_originate_failed_cause", "${x}"),
				changed("variable_last_bridge_hangup_cause", "a b")),
			wireEvents + routed + wireBridge(london1002) + wireSet("failed", "NORMAL_UNSPECIFIED"),
			func(s Stats) bool { return s.Failed == 1 },
		},
		{
			"answered, then the caller's channel ends", dialling("1001", events("channel-execute-bridge", "channel-bridge", "channel-hangup")),
			wireEvents + guarded + wireBridge(local1001) + wireSet("answered", "SUCCESS", unguardVar),
			func(s Stats) bool { return s.Answered == 1 && s.Failed+s.Abandoned == 0 },
		},
		{
			"answered, and the end of the bridge is seen first", dialling("1001", events("channel-bridge", "execute-complete-answered")),
			wireEvents + guarded + wireBridge(local1001) + wireSet("answered", "SUCCESS", unguardVar),
			func(s Stats) bool { return s.Answered == 1 },
		},
		{
			"answered, and the dialplan goes on after the bridge",
			dialling("1001", events("channel-bridge", "execute-complete-answered"), changed("Answer-State", "answered")),
			wireEvents + guarded + wireBridge(local1001) + wireSet("answered", "SUCCESS", unguardVar) + wireSet("answered", "NORMAL_CLEARING", unguardVar),
			func(s Stats) bool { return s.Answered == 1 },
		},
		{
			"the caller gives up while it rings",
			dialling("1001", events("channel-hangup"), changed("variable_originate_disposition", "ORIGINATOR_CANCEL")),
			wireEvents + guarded + wireBridge(local1001),
			func(s Stats) bool { return s.Abandoned == 1 && s.Answered == 0 },
		},
		{
			"here and there", dialling("1003", failed), wireEvents + guarded + wireBridge(both1003) + wireSet("failed", "NO_USER_RESPONSE", unguardVar),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"a call from the mesh rings here only",
			dialling("1003", failed, with("variable_sofia_profile_name", "mesh"), with("variable_domain_name", "")),
			wireEvents + guarded + wireBridge("{presence_id=1003@pbx.test,sip_invite_domain=pbx.test}${sofia_contact(internal/1003@pbx.test)}") + wireSet("failed", "NO_USER_RESPONSE", unguardVar),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"a call from the mesh takes the tenant from the request, not from here",
			dialling("1001", failed, with("variable_sofia_profile_name", "mesh"), with("variable_sip_req_host", "other.test")),
			wireEvents + guarded + wireBridge("{presence_id=1001@other.test,sip_invite_domain=other.test}${sofia_contact(internal/1001@other.test)}") + wireSet("failed", "NO_USER_RESPONSE", unguardVar),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"a phone cannot choose another tenant by its request",
			dialling("1001", failed, with("variable_sip_req_host", "other.test"), with("variable_sip_to_host", "other.test")),
			wireEvents + guarded + wireBridge(local1001) + wireSet("failed", "NO_USER_RESPONSE", unguardVar),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"a call from the mesh does not go back into it", dialling("1002", with("variable_sofia_profile_name", "mesh")),
			wireBack("not-registered", "USER_NOT_REGISTERED"),
			func(s Stats) bool { return s.NotRegistered == 1 && s.Routed == 0 },
		},
		{
			"a call from the mesh that somebody here answered and transferred is one of this switch",
			dialling("1002", failed, with("variable_sofia_profile_name", "mesh"), with("variable_originate_disposition", "SUCCESS")),
			wireEvents + routed + wireBridge(london1002) + wireSet("failed", "NO_USER_RESPONSE"),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"a call from the mesh that a ringing phone redirected is one of this switch",
			dialling("1002", failed, with("variable_sofia_profile_name", "mesh"), with("variable_pbxmesh_transferred", "true")),
			wireEvents + routed + wireBridge(london1002) + wireSet("failed", "NO_USER_RESPONSE"),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"a call from the mesh that nobody here answered goes not on to another node",
			dialling("1002", with("variable_sofia_profile_name", "mesh"), with("variable_originate_disposition", "NO_ANSWER")),
			wireBack("not-registered", "USER_NOT_REGISTERED"),
			func(s Stats) bool { return s.NotRegistered == 1 && s.Routed == 0 },
		},
		{
			"a dialplan that leaves out contacts of its choice keeps it",
			dialling("1001", failed, with("variable_sip_exclude_contact", "192.0.2.77")),
			wireEvents + routed + wireBridge(local1001) + wireSet("failed", "NO_USER_RESPONSE"),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"the dialplan's own choice stands",
			dialling("1001", failed, with("variable_hangup_after_bridge", "false"), with("variable_continue_on_fail", "USER_BUSY")),
			wireEvents + wireSet("routed", "NONE", guardVars) + wireBridge(local1001) + wireSet("failed", "NO_USER_RESPONSE", unguardVar),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"a dialplan that sets nothing", dialling("1001", failed, with("variable_hangup_after_bridge", "")),
			wireEvents + wireSet("routed", "NONE", "hangup_after_bridge=true", "continue_on_fail=true", guardVars) + wireBridge(local1001) + wireSet("failed", "NO_USER_RESPONSE", unguardVar),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"not registered", dialling("1009"), wireBack("not-registered", "USER_NOT_REGISTERED"),
			func(s Stats) bool { return s.NotRegistered == 1 },
		},
		{
			"all holders down", dialling("1004"), wireBack("unreachable", "DESTINATION_OUT_OF_ORDER"),
			func(s Stats) bool { return s.Unreachable == 1 },
		},
		{
			"no domain at all", dialling("1001", with("variable_domain_name", ""), with("variable_sip_req_host", ""), with("variable_sip_to_host", "")),
			wireBack("invalid", "INVALID_NUMBER_FORMAT"), func(s Stats) bool { return s.Invalid == 1 },
		},
		{
			"a hostile domain is not passed over for the next variable", dialling("1001", with("variable_domain_name", "pbx.test,x")),
			wireBack("invalid", "INVALID_NUMBER_FORMAT"), func(s Stats) bool { return s.Invalid == 1 },
		},
		{
			"no number", dialling(""), wireBack("invalid", "INVALID_NUMBER_FORMAT"), func(s Stats) bool { return s.Invalid == 1 },
		},
		{
			"upper case is one user", dialling("1001", failed, with("variable_domain_name", "PBX.Test")),
			wireEvents + guarded + wireBridge(local1001) + wireSet("failed", "NO_USER_RESPONSE", unguardVar),
			func(s Stats) bool { return s.Routed == 1 },
		},
		{
			"a channel without a UUID that a command may name", dialling("1001", with("Unique-ID", "1\n\napi system id")), "resume\n\n",
			func(s Stats) bool { return s.Unnamed == 1 && s.Routed == 0 },
		},
		{
			"a caller's Call-ID as UUID",
			dialling("1002", failed, with("Unique-ID", "5ea7<1d>&d%e=7@192.0.2.10"), changed("Unique-ID", "5ea7<1d>&d%e=7@192.0.2.10")),
			strings.ReplaceAll(wireEvents+routed+wireBridge(london1002)+wireSet("failed", "NO_USER_RESPONSE"), testUUID, "5ea7<1d>&d%e=7@192.0.2.10"),
			func(s Stats) bool { return s.Routed == 1 && s.Failed == 1 },
		},
		{
			"a UUID with a blank", dialling("1009", with("Unique-ID", "1 pbxmesh_result=x")),
			"api uuid_setvar '1 pbxmesh_result=x' pbxmesh_result not-registered\n\napi uuid_setvar '1 pbxmesh_result=x' pbxmesh_cause USER_NOT_REGISTERED\n\nresume\n\n",
			func(s Stats) bool { return s.NotRegistered == 1 && s.Unset == 0 },
		},
		{
			"a UUID that no command carries is bridged, without variables",
			dialling("1002", failed, with("Unique-ID", "it's 1"), changed("Unique-ID", "it's 1")),
			wireEvents + wireBridge(london1002), func(s Stats) bool { return s.Routed == 1 && s.Failed == 1 && s.Unset == 2 },
		},
		{
			"the end of another application does not count",
			dialling("1001", events("execute-complete-failed", "channel-hangup"), changed("Application", "playback")),
			wireEvents + guarded + wireBridge(local1001) + "", // channel-hangup says SUCCESS: answered
			func(s Stats) bool { return s.Failed == 0 && s.Answered == 1 },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, addr := start(t)
			got := tt.call.dial(t, addr).wait()
			if want := wireConnect + tt.want; got != want {
				t.Errorf("the hook sent\n%q\nwant\n%q", got, want)
			}
			if got != wireAway && !wireGrammar.MatchString(got) {
				t.Errorf("%q is outside of the grammar", got)
			}
			idle(t, h)
			if s := h.Stats(); !tt.stats(s) || s.Calls != 1 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}
