package native

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/meshcontext"
)

const (
	// agent is the user agent of our rows: what tells them from a phone's.
	agent = "pbxmesh"

	// multicastClass is the subclass that mod_sofia listens for.
	multicastClass = "multicast::event"

	// maxCallID is the width of sip_registrations.call_id. SQLite ignores it,
	// PostgreSQL refuses a longer value.
	maxCallID = 255
)

// rowKey names a row: one for each address of record and remote node.
type rowKey struct {
	aor  pbxmesh.AOR
	node pbxmesh.NodeID
}

// callID returns the row's Call-ID, which mod_sofia deletes by: it must be unique
// per row, and the same after a restart of the daemon. The local node is part of
// it because switches may share one database. No node name and no address has a
// '/', so two rows cannot get one Call-ID. A long one becomes a hash.
func (k rowKey) callID(local pbxmesh.NodeID) string {
	id := agent + "/" + string(local) + "/" + string(k.node) + "/" + k.aor.String()
	if len(id) <= maxCallID {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return agent + "/" + string(local) + "/" + hex.EncodeToString(sum[:])
}

// contact returns the row's contact: the request goes to the mesh profile of the
// remote node, with the user and the tenant's domain in its URI.
//
// The route is percent-encoded, as the switch itself encodes that of a phone behind a
// NAT: scripts that take every "sip:" out of a dial string (FusionPBX's ring groups)
// would break it else. It bears meshcontext.Mark, so that a dialplan can leave our rows
// out; in the route it does not show in the request URI.
func (k rowKey) contact(mesh netip.AddrPort) string {
	return `"" <sip:` + k.aor.String() + ";fs_path=sip%3A" + mesh.Addr().String() + "%3A" + strconv.Itoa(int(mesh.Port())) + "%3B" + meshcontext.Mark + ">"
}

// meshAddr returns a as IPv4 and whether a row can point to it.
func meshAddr(a netip.AddrPort) (netip.AddrPort, bool) {
	ip := a.Addr().Unmap()
	if !ip.Is4() || ip.IsUnspecified() || a.Port() == 0 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ip, a.Port()), true
}

// injectHeaders returns the event that writes the row. There is no presence-hosts
// in it: mod_sofia looks for the dialled domain in it with LIKE '%domain%', so that
// a.test would match aa.test, and of the usual "n/a" the domains "a" and "_".
func (k rowKey) injectHeaders(local pbxmesh.NodeID, profile string, mesh netip.AddrPort, ttl time.Duration) []esl.Header {
	user, domain, ip := k.aor.User(), k.aor.Domain(), mesh.Addr().String()
	return []esl.Header{
		{Name: "Event-Subclass", Value: multicastClass},
		{Name: "Multicast", Value: "yes"},
		{Name: "orig-event-name", Value: "CUSTOM"},
		{Name: "orig-event-subclass", Value: "sofia::register"},
		{Name: "orig-profile-name", Value: profile},
		{Name: "orig-from-user", Value: user},
		{Name: "orig-from-host", Value: domain},
		{Name: "orig-to-user", Value: user},
		{Name: "orig-to-host", Value: domain},
		{Name: "orig-contact", Value: k.contact(mesh)},
		{Name: "orig-expires", Value: strconv.Itoa(int(ttl / time.Second))},
		{Name: "orig-rpid", Value: "unknown"},
		{Name: "orig-call-id", Value: k.callID(local)},
		{Name: "orig-user-agent", Value: agent},
		{Name: "orig-network-ip", Value: ip},
		{Name: "orig-network-port", Value: strconv.Itoa(int(mesh.Port()))},
		{Name: "orig-username", Value: user},
		{Name: "orig-realm", Value: domain},
		{Name: "orig-FreeSWITCH-IPv4", Value: ip},
		{Name: "orig-FreeSWITCH-Hostname", Value: string(k.node)},
	}
}

// removeHeaders returns the event that deletes the row with this Call-ID.
func removeHeaders(profile, callID, aor string) []esl.Header {
	user, domain, _ := strings.Cut(aor, "@")
	return []esl.Header{
		{Name: "Event-Subclass", Value: multicastClass},
		{Name: "Multicast", Value: "yes"},
		{Name: "orig-event-name", Value: "CUSTOM"},
		{Name: "orig-event-subclass", Value: "sofia::unregister"},
		{Name: "orig-profile-name", Value: profile},
		{Name: "orig-from-user", Value: user},
		{Name: "orig-from-host", Value: domain},
		{Name: "orig-call-id", Value: callID},
	}
}
