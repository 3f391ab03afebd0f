package bindings

import (
	"context"
	"errors"
	"fmt"
	"html"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

// row is a registration as the switch keeps it: what the phone sent and what the switch
// made of it, byte for byte, so that the phone's next REGISTER finds its own row.
type row struct {
	user, host string // of the address of record, as the phone wrote it
	contact    string // `"Desk" <sip:1001@192.168.1.7:5060;fs_nat=yes;fs_path=...>`
	agent      string
	ip, port   string
	authUser   string
	authRealm  string
	mailbox    string // user@host
}

// errNoRow reports a registration that the switch does not have any more.
var errNoRow = errors.New("the switch has no such registration")

// readRow returns the row of reg. The switch filters by a piece of the contact, where
// there is one that its command line can hold: a profile may have very many rows.
func readRow(ctx context.Context, conn Conn, reg *pbxmesh.Registration) (row, error) {
	command := "sofia xmlstatus profile " + reg.Profile + " reg"
	if piece := contactPiece(reg.Contact); piece != "" {
		command += " " + piece
	}
	reply, err := conn.API(ctx, command)
	if err != nil {
		return row{}, err
	}
	_, rest, ok := strings.Cut(reply, "<registrations>")
	if !ok {
		return row{}, fmt.Errorf("%w: %.60q", errNoRow, reply)
	}
	for {
		_, after, ok := strings.Cut(rest, "<registration>")
		if !ok {
			return row{}, errNoRow
		}
		block, next, ok := strings.Cut(after, "</registration>")
		if !ok {
			return row{}, fmt.Errorf("%w: the list is cut off", errNoRow)
		}
		rest = next
		// The switch escapes a Call-ID not at all; a later one may.
		if id := raw(block, "call-id"); id != reg.CallID && html.UnescapeString(id) != reg.CallID {
			continue
		}
		r := row{
			contact: text(block, "contact"), agent: text(block, "agent"), ip: text(block, "network-ip"), port: text(block, "network-port"),
			authUser: text(block, "sip-auth-user"), authRealm: text(block, "sip-auth-realm"), mailbox: text(block, "mwi-account"),
		}
		r.user, r.host, ok = strings.Cut(text(block, "user"), "@")
		if aor, err := pbxmesh.NewAOR(r.user, r.host); !ok || err != nil || aor != reg.AOR || r.contact == "" {
			continue
		}
		return r, nil
	}
}

// contactPiece returns user@host:port of a contact URI, "" when it would not stay one word
// or mean something else in a pattern.
func contactPiece(uri string) string {
	_, rest, ok := strings.Cut(uri, ":")
	if !ok {
		return ""
	}
	rest, _, _ = strings.Cut(rest, ";")
	for i := range len(rest) {
		c := rest[i]
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && !strings.ContainsRune("@.:-+[]", rune(c)) {
			return ""
		}
	}
	return rest
}

// raw returns what stands in the first element of that name, "" without one.
func raw(block, name string) string {
	_, rest, ok := strings.Cut(block, "<"+name+">")
	if !ok {
		return ""
	}
	value, _, ok := strings.Cut(rest, "</"+name+">")
	if !ok {
		return ""
	}
	return value
}

func text(block, name string) string { return html.UnescapeString(raw(block, name)) }

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
		{Name: "orig-contact", Value: r.contact},
		{Name: "orig-expires", Value: strconv.Itoa(max(left, 1))},
		{Name: "orig-rpid", Value: "unknown"},
		{Name: "orig-call-id", Value: reg.CallID},
		{Name: "orig-user-agent", Value: r.agent},
		{Name: "orig-network-ip", Value: r.ip},
		{Name: "orig-network-port", Value: r.port},
		{Name: "orig-username", Value: r.authUser},
		{Name: "orig-realm", Value: r.authRealm},
		{Name: "orig-mwi-account", Value: r.mailbox},
		{Name: "orig-FreeSWITCH-IPv4", Value: self.address},
		{Name: "orig-FreeSWITCH-Hostname", Value: self.hostname},
	}
}
