package router

// Channel variables that tell a call which has just come over the mesh from one that a
// callee on this switch transferred. The name of the profile survives a transfer.
const (
	varProfile = "sofia_profile_name"

	// VarDisposition is FreeSWITCH's word for how the last ringing ended: SUCCESS
	// once somebody on this switch answered.
	VarDisposition = "originate_disposition"

	// VarTransferred is set by the mesh context that pbxmesh fsconf writes when the
	// call is transferred, also before anybody answers (a phone that redirects).
	VarTransferred = "pbxmesh_transferred"
)

// Arrived reports whether a channel has just come over the mesh: only local devices may
// ring then, or a call could loop. get returns a channel variable, "" without it.
//
// It says no once the call has reached somebody here: who transfers it, to a user of
// whatever node, makes a call of this switch of it, and no node sends that back. The
// dialplan context would say less: a mesh profile whose context is misspelt begins in
// the context of the phones.
func (o BridgeOptions) Arrived(get func(name string) string) bool {
	profile := o.MeshProfile
	if profile == "" {
		profile = DefaultMeshProfile
	}
	return get(varProfile) == profile && get(VarDisposition) != "SUCCESS" && get(VarTransferred) != "true"
}
