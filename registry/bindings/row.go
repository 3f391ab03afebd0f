package bindings

import (
	"context"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/sofia"
)

// row is a registration as the switch keeps it: what the phone sent and what the switch
// made of it, byte for byte, so that the phone's next REGISTER finds its own row.
type row struct {
	sofia.Row
	user, host string // of the address of record, as the phone wrote it
}

// readRow returns the row of reg.
func readRow(ctx context.Context, conn Conn, reg *pbxmesh.Registration) (found row, err error) {
	found.Row, err = sofia.Find(ctx, conn, reg)
	found.user, found.host, _ = strings.Cut(found.User, "@")
	return found, err
}

// oneLine returns s without what no header can hold, all other bytes as they are. A phone
// may have a tab or a folded line in its name, which is only shown.
func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c == 0x7f {
			b[i] = ' '
		}
	}
	return string(b)
}

// headers returns the event that writes r back for what is left of its time: what
// mod_event_multicast would send for a REGISTER that another switch of the cluster took.
func (r *row) headers(reg *pbxmesh.Registration, self identity, now time.Time) []esl.Header {
	left := int(reg.Expires.Sub(now) / time.Second)
	return []esl.Header{
		{Name: "Event-Subclass", Value: "multicast::event"},
		{Name: "Multicast", Value: "yes"},
		{Name: "orig-event-name", Value: "CUSTOM"},
		{Name: "orig-event-subclass", Value: "sofia::register"},
		{Name: "orig-profile-name", Value: reg.Profile},
		{Name: "orig-from-user", Value: r.user},
		{Name: "orig-from-host", Value: r.host},
		{Name: "orig-to-user", Value: r.user},
		{Name: "orig-to-host", Value: r.host},
		{Name: "orig-contact", Value: r.Contact},
		{Name: "orig-expires", Value: strconv.Itoa(max(left, 1))},
		{Name: "orig-rpid", Value: "unknown"},
		{Name: "orig-call-id", Value: r.CallID},
		{Name: "orig-user-agent", Value: oneLine(r.Agent)},
		{Name: "orig-network-ip", Value: r.IP},
		{Name: "orig-network-port", Value: r.Port},
		{Name: "orig-username", Value: r.AuthUser},
		{Name: "orig-realm", Value: r.AuthRealm},
		{Name: "orig-mwi-account", Value: r.Mailbox},
		{Name: "orig-FreeSWITCH-IPv4", Value: self.address},
		{Name: "orig-FreeSWITCH-Hostname", Value: self.hostname},
	}
}
