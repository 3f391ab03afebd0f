package router

import (
	"strconv"

	"pbxmesh"
)

// The names that node configurations use unless told otherwise.
const (
	DefaultMeshProfile  = "mesh"
	DefaultLocalProfile = "internal"
)

// BridgeOptions names the sofia profiles of the local switch.
type BridgeOptions struct {
	// MeshProfile sends calls to other nodes; "" is DefaultMeshProfile.
	MeshProfile string

	// LocalProfile stands in for local devices whose profile nobody told us; ""
	// is DefaultLocalProfile. Asking every profile ("*") would find the mesh
	// profile's injected rows and ring remote nodes twice.
	LocalProfile string
}

// BridgeString returns the plan as the argument of FreeSWITCH's bridge
// application, or "" when there is nothing to ring: no target, or a name that
// could be misread. It is put together from a validated AOR, profile names of
// [A-Za-z0-9._-] and IPv4 addresses only, each checked here once more, because a
// Plan's fields are open and a bridge string is what callers pay for.
//
//	{presence_id=1001@pbx.test,sip_invite_domain=pbx.test}${sofia_contact(internal/1001@pbx.test)}
//	sofia/mesh/sip:1001@pbx.test;fs_path=sip%3A192.0.2.2%3A5090|sofia/mesh/...
//
// "," rings the targets of a group together and "|" goes on to the next group when
// a whole group failed.
//
// Local devices stay ${sofia_contact(...)}, expanded by the switch at the moment of
// the call: the switch knows path, transport and NAT of its phones better than any
// copy, and a contact is a phone's own text, which we keep out of bridge strings.
// A device that left meanwhile expands to error/user_not_registered, which fails
// that leg alone.
//
// A remote leg keeps the AOR as request URI, for the far dialplan reads the
// tenant from it, and fs_path carries it to the node's address with no DNS query. It is
// percent-encoded: scripts that take every "sip:" out of a dial string keep it.
//
// sip_invite_domain shows the phone a caller of the tenant's domain, as FreeSWITCH's own
// user/ dial string does; without it, one of the switch's address.
//
// presence_id lights the callee's lamp (BLF). In front of one local leg "[..]" is
// exact. But sofia_contact lists several devices with ",", and "[..]" then covers
// only the first, whose cancellation would put the lamp out while the second one
// talks. So:
//   - only local targets: "{..}" in front, for every leg;
//   - local and remote mixed, one device per profile: "[..]" for each local leg;
//     the remote node lights its own lamp, a second dialog for the same call
//     would only have to be filtered out again;
//   - mixed with several devices on a profile: "{..}" for all. The mesh leg then
//     carries it too, as FreeSWITCH's own user/ dial string does: a lamp that
//     is lit twice is better than one that goes out early.
//
// What is left to the switch and the dialplan, on purpose: call_timeout (how long a
// group rings before voicemail is the tenant's choice, and it is one limit for all
// groups), leg_timeout (a dead peer fails by the mesh profile's T1X64 after
// 4 s, and a shorter limit per leg would also cut off phones that merely ring),
// ignore_early_media (the far node's ringback and announcements are wanted), and
// hangup_after_bridge and continue_on_fail, which are read from the calling
// channel, where variables of a bridge string do not go.
func (p Plan) BridgeString(o BridgeOptions) string {
	if o.MeshProfile == "" {
		o.MeshProfile = DefaultMeshProfile
	}
	if o.LocalProfile == "" {
		o.LocalProfile = DefaultLocalProfile
	}
	if p.Result != ResultRouted || p.AOR.IsZero() || !validProfile(o.MeshProfile) || !validProfile(o.LocalProfile) {
		return ""
	}
	aor := p.AOR.String()
	mode := p.presence(&o)

	legs := 0
	for _, g := range p.Targets {
		legs += len(g)
	}
	b := make([]byte, 0, 48+2*len(aor)+legs*(4*len(aor)+len(o.MeshProfile)+96))
	if mode == presenceAll {
		b = append(p.callee(append(b, '{'), aor), '}')
	}
	empty := len(b)
	for gi, g := range p.Targets {
		sep := byte('|')
		for ti := range g {
			t := &g[ti]
			if !p.usable(t, &o, gi, ti) {
				continue
			}
			if len(b) > empty {
				b = append(b, sep)
			}
			sep = ','
			if !t.Local {
				mesh, _ := meshAddr(t.Mesh)
				b = append(append(b, "sofia/"...), o.MeshProfile...)
				b = append(append(b, "/sip:"...), aor...)
				b = mesh.Addr().AppendTo(append(b, ";fs_path=sip%3A"...))
				b = strconv.AppendUint(append(b, "%3A"...), uint64(mesh.Port()), 10)
				continue
			}
			if mode == presenceLocal {
				b = append(p.callee(append(b, '['), aor), ']')
			}
			b = append(append(b, "${sofia_contact("...), o.profile(t)...)
			b = append(append(append(b, '/'), aor...), ")}"...)
		}
	}
	if len(b) == empty {
		return ""
	}
	return string(b)
}

// callee appends the variables of a local leg.
func (p *Plan) callee(b []byte, aor string) []byte {
	b = append(append(b, "presence_id="...), aor...)
	return append(append(b, ",sip_invite_domain="...), p.AOR.Domain()...)
}

// profile returns the sofia profile of a local target.
func (o *BridgeOptions) profile(t *Target) string {
	if t.Profile == "" {
		return o.LocalProfile
	}
	return t.Profile
}

type presenceMode uint8

const (
	presenceNone presenceMode = iota
	presenceLocal
	presenceAll
)

// presence chooses where presence_id goes; see BridgeString.
func (p *Plan) presence(o *BridgeOptions) presenceMode {
	local, remote, several := false, false, false
	for gi, g := range p.Targets {
		for ti := range g {
			t := &g[ti]
			switch {
			case !t.Local:
				remote = true
			case !p.usable(t, o, gi, ti):
				// A second target of one profile is left out and its devices
				// come with the first: several stand behind that one.
				several = true
			default:
				local, several = true, several || t.Devices > 1
			}
		}
	}
	switch {
	case !local:
		return presenceNone
	case !remote || several:
		return presenceAll
	default:
		return presenceLocal
	}
}

// usable reports whether the target at [gi][ti] gets a leg. The mesh profile never
// rings local devices: what it holds are other nodes' users, and it would be a
// loop. A profile that an earlier target asked already is not asked again: its
// devices would get two INVITEs.
func (p *Plan) usable(t *Target, o *BridgeOptions, gi, ti int) bool {
	if !t.Local {
		_, ok := meshAddr(t.Mesh)
		return ok
	}
	profile := o.profile(t)
	if !validProfile(profile) || profile == o.MeshProfile {
		return false
	}
	for i := 0; i <= gi; i++ {
		for j := range p.Targets[i] {
			if i == gi && j == ti {
				return true
			}
			if e := &p.Targets[i][j]; e.Local && o.profile(e) == profile {
				return false
			}
		}
	}
	return true
}

// Validate returns an error that names the profile which cannot
// stand in a bridge string; configurations are checked with it when they load.
func (o BridgeOptions) Validate() error {
	for _, f := range [...]struct{ key, value string }{
		{"mesh profile", o.MeshProfile}, {"local profile", o.LocalProfile},
	} {
		if f.value != "" && !validProfile(f.value) {
			return &ProfileError{Key: f.key, Value: f.value}
		}
	}
	if o.MeshProfile != "" && o.MeshProfile == o.LocalProfile ||
		o.MeshProfile == "" && o.LocalProfile == DefaultMeshProfile ||
		o.LocalProfile == "" && o.MeshProfile == DefaultLocalProfile {
		return &ProfileError{Key: "local profile", Value: o.LocalProfile, Same: true}
	}
	return nil
}

// ProfileError reports a sofia profile name that a bridge string cannot hold.
type ProfileError struct {
	Key, Value string
	Same       bool // mesh and local profile are one
}

// Error implements error.
func (e *ProfileError) Error() string {
	if e.Same {
		return e.Key + ": it is the mesh profile too, and a call would loop; name the profile that phones register on"
	}
	return e.Key + " " + strconv.QuoteToASCII(e.Value[:min(len(e.Value), 40)]) +
		": 1 to " + strconv.Itoa(pbxmesh.MaxProfileLen) + " of A-Z a-z 0-9 . _ - are allowed"
}

// validProfile allows what Registration.Validate allows, and nothing empty.
func validProfile(s string) bool {
	if s == "" || len(s) > pbxmesh.MaxProfileLen {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return true
}
