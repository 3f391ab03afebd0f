package bindings

import (
	"context"
	"errors"
	"fmt"
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

// errNoRow reports a registration that the switch does not have any more.
var errNoRow = errors.New("the switch has no such registration")

// readRow returns the row of reg. The switch filters by a piece of the contact, where
// there is one that its command line can hold: a profile may have very many rows.
//
// What was published of a row is what an event shows of it (sofia.Shown). Rows may share a
// Call-ID: the one with the published contact goes first.
func readRow(ctx context.Context, conn Conn, reg *pbxmesh.Registration) (found row, err error) {
	command := "sofia xmlstatus profile " + reg.Profile + " reg"
	if piece := hostPiece(reg.Contact); piece != "" {
		command += " " + piece
	}
	reply, err := conn.API(ctx, command)
	if err != nil {
		return row{}, err
	}
	err = sofia.Rows(reply, reg.Profile, func(r sofia.Row) {
		if sofia.Shown(r.CallID) != reg.CallID || r.Contact == "" || r.Cut || found.Contact != "" && !strings.Contains(sofia.Shown(r.Contact), "<"+reg.Contact+">") {
			return
		}
		user, host, _ := strings.Cut(r.User, "@")
		if aor, err := pbxmesh.NewAOR(user, host); err != nil || aor != reg.AOR {
			return
		}
		found = row{r, user, host}
	})
	switch {
	case err != nil:
		return row{}, fmt.Errorf("%w: %w", errNoRow, err)
	case found.Contact == "":
		return row{}, errNoRow
	}
	return found, nil
}

// hostPiece returns host:port of a contact URI, "" when it would not stay one word or
// mean something else in a pattern. The user part stands in the switch's table as the phone
// wrote it, perhaps percent-encoded, and is no piece to look for.
func hostPiece(uri string) string {
	_, rest, ok := strings.Cut(uri, ":")
	if !ok {
		return ""
	}
	rest, _, _ = strings.Cut(rest, ";fs_") // the switch's own, with a URI in it
	if _, host, ok := strings.Cut(rest, "@"); ok {
		rest = host
	}
	rest, _, _ = strings.Cut(rest, ";")
	return onlyPlain(rest)
}

// contactPiece returns user@host:port of a contact URI, "" when that has characters which
// the switch may write in two ways.
func contactPiece(uri string) string {
	_, rest, ok := strings.Cut(uri, ":")
	if !ok {
		return ""
	}
	rest, _, _ = strings.Cut(rest, ";")
	return onlyPlain(rest)
}

// onlyPlain returns s, "" when it has other characters than those of names and addresses.
func onlyPlain(s string) string {
	for i := range len(s) {
		c := s[i]
		alnum := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !alnum && !strings.ContainsRune("@.:-+[]", rune(c)) {
			return ""
		}
	}
	return s
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
