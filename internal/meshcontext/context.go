package meshcontext

import "strings"

// Users are the users that the mesh routes (pbxmesh.NewAOR), and Domains their domains,
// as regular expressions. Nothing else may reach the bridge string: a dialled `,` or `$`
// means something there.
const (
	Users   = `^([A-Za-z0-9._+-]{1,64})$`
	Domains = `^[A-Za-z0-9._-]{1,253}$`
)

// Action is one application with its data. Why is for the reader, "" says enough.
type Action struct{ Name, Data, Why string }

// Callee is whom a call that arrives asks for: "$1" and "${sip_req_host}" in a dialplan
// behind conditions on Users and Domains, or the words themselves.
type Callee struct{ User, Domain string }

// Dialled is the callee as a dialplan's expressions find it.
var Dialled = Callee{User: "$1", Domain: "${sip_req_host}"}

// Bridge returns the dial string for the callee's devices on these profiles of this
// switch. Without presence_id the callee's lamp stays dark, and without
// sip_invite_domain the phone is shown a caller of this switch's address instead of the
// tenant's. They stand in braces: in brackets they would be the first device's alone.
func (c Callee) Bridge(profiles ...string) string {
	aor := c.User + "@" + c.Domain
	legs := make([]string, len(profiles))
	for i, profile := range profiles {
		legs[i] = "${sofia_contact(" + profile + "/" + aor + ")}"
	}
	return "{presence_id=" + aor + ",sip_invite_domain=" + c.Domain + "}" + strings.Join(legs, ",")
}

// Actions ring the callee's devices on this switch by the given dial string.
//
// A callee may transfer the call. Then it is a call of this switch: it goes on in the
// callee's own context, finds the users of other nodes again, and has a record of its
// own. execute_on_blind_transfer runs at that moment, whoever asks for the transfer.
// Until then the record of the caller's node is the only one.
//
// The hash is asked by ${...} and not as an application: a switch without mod_hash would
// hang up an application that it does not know.
//
// more are actions of a flavour, put in before the bridge.
func (c Callee) Actions(bridge string, more ...Action) []Action {
	aor := c.User + "@" + c.Domain
	out := []Action{
		{"set", "hangup_after_bridge=true", ""},
		{"set", "domain_name=" + c.Domain, ""},
		{"set", "force_transfer_context=" + userData(aor, "user_context"), "where a call goes on that the callee transfers: to whom the callee may dial"},
		{"set", "process_cdr=false", "one call, one record: the caller's node writes it"},
		{"set", ExcludeVariable + "=" + Mark, "never a user of another node, whatever profile is stopped or misspelt: sofia_contact would ask all of them"},
		{"set", "execute_on_blind_transfer_pbxmesh=multiset ^^:process_cdr=:" + ExcludeVariable + "=:pbxmesh_transferred=true", "what the callee transfers is a call of this switch, with a record of its own"},
		{"export", "nolocal:alert_info=${alert_info}", "ring tone, intercom and privacy as the caller's node asked for them"},
		{"export", "nolocal:sip_auto_answer=${sip_auto_answer_detected}", ""},
		{"export", "nolocal:sip_h_Privacy=${sip_Privacy}", ""},
		{"set", "pbxmesh_hash=${hash(insert/" + c.Domain + "-call_return/" + c.User + "/${caller_id_number})}", "*69 and pickup find the call, as they find one of this switch"},
		{"set", "pbxmesh_hash=${hash(insert/" + c.Domain + "-last_dial_ext/" + c.User + "/${uuid})}", ""},
	}
	out = append(out, more...)
	return append(out,
		Action{"bridge", bridge, ""},
		Action{"hangup", "${originate_disposition}", "without it a callee who does not answer would be told to the caller's node as NORMAL_CLEARING"})
}

// FusionPBX are the further actions of a FusionPBX node. Its scripts for ring groups,
// follow-me and speed dial need to know the tenant, and dialplans to the outside ask
// what the one who transfers may dial.
func (c Callee) FusionPBX() []Action {
	aor := c.User + "@" + c.Domain
	var out []Action
	for _, name := range []string{"domain_uuid", "accountcode", "toll_allow"} {
		out = append(out, Action{"set", name + "=" + userData(aor, name), ""})
	}
	out[0].Why = "a call that the callee transfers to a ring group, follow-me or the outside is this tenant's, with the callee's rights"
	return out
}

func userData(aor, name string) string { return "${user_data(" + aor + " var " + name + ")}" }
