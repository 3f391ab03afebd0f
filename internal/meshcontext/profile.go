package meshcontext

import (
	"net/netip"
	"strconv"
	"time"
)

// Times that an operator is promised.
const (
	// DeadPeer is how long a call to a dead node is tried (timer T1X64).
	DeadPeer = 4 * time.Second

	// SessionExpires is the interval of RFC 4028 between two signs of life in a call,
	// the least that FreeSWITCH takes. The caller's switch sends them at half of it, and
	// ends the call when nobody answers: 43 to 49 s after the callee's node died. The
	// callee's switch waits for them until the interval is over: 80 s after the caller's
	// node died. So nobody is left in silence for longer than it. Media say less: a held
	// call has none, nor one whose ends are silent.
	SessionExpires = 90 * time.Second
)

// Setting is one parameter of a sofia profile. Why is for the reader, "" says enough.
type Setting struct{ Name, Value, Why string }

// Profile is where a node's mesh profile is.
type Profile struct {
	// Name is that of the profile, of its dialplan context and of its access list.
	Name string

	// Mesh is where the other nodes send their calls.
	Mesh netip.AddrPort

	// Bind is the switch's own address when Mesh belongs to a router in front of it;
	// the zero value means that the switch has Mesh.
	Bind netip.Addr
}

// Settings returns the parameters of the profile in the order of the file.
func (p Profile) Settings() []Setting {
	bind := p.Mesh.Addr()
	if p.Bind.IsValid() {
		bind = p.Bind
	}
	out := []Setting{
		{"sip-ip", bind.String(), ""},
		{"rtp-ip", bind.String(), ""},
		{"sip-port", strconv.Itoa(int(p.Mesh.Port())), ""},
	}
	if bind != p.Mesh.Addr() {
		out = append(out,
			Setting{"ext-sip-ip", p.Mesh.Addr().String(), "node.mesh_address: what the other nodes reach through the router"},
			Setting{"ext-rtp-ip", p.Mesh.Addr().String(), ""})
	}
	seconds := strconv.Itoa(int(SessionExpires / time.Second))
	return append(out,
		Setting{"dialplan", "XML", ""},
		Setting{"context", p.Name, "rings devices of this switch only: a call between nodes cannot loop"},
		Setting{"auth-calls", "true", "whom the list lets in is not asked for a password"},
		Setting{"auth-calls-acl-only", "true", "everybody else is refused, and not asked either: a challenge would let anybody try passwords"},
		Setting{"apply-inbound-acl", p.Name, "the nodes of the mesh, see acl.conf"},
		Setting{"disable-register", "true", ""},
		Setting{"manage-presence", "false", "lamps belong to the phones' profiles"},
		Setting{"multiple-registrations", "true", "one row for each remote node that a user is on"},
		Setting{"timer-T1X64", strconv.FormatInt(DeadPeer.Milliseconds(), 10), "a call to a dead node fails after 4 s instead of 32 s"},
		Setting{"enable-timer", "true", "session timers (RFC 4028): a call whose other node died ends within 90 s, a held one goes on"},
		Setting{"session-timeout", seconds, ""},
		Setting{"minimum-session-expires", seconds, ""},
		Setting{"update-refresher", "true", "by UPDATE, which leaves the media alone"},
		Setting{"inbound-late-negotiation", "true", "the callee's phone chooses among all codecs that the caller's has, as on one switch"},
		Setting{"inbound-codec-prefs", "$${global_codec_prefs}", ""},
		Setting{"outbound-codec-prefs", "$${global_codec_prefs}", ""},
		Setting{"dtmf-type", "info", "digits cross whatever the codec: telephone-event at the rate of opus is not heard by the sending switch"},
		Setting{"rtp-timer-name", "soft", ""},
	)
}
