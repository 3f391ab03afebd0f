package feed

import (
	"strconv"
	"strings"
	"time"

	"pbxmesh/internal/sofia"
)

// What is wrong with an answer of the switch.
var (
	ErrProfile  = sofia.ErrProfile
	errSnapshot = sofia.ErrList
)

// parseRows calls each with every registration of a reply, in the form of events, and
// with the name of the host that holds it. cut says that the end of the contact may be
// missing.
func parseRows(reply, profile string, each func(row fields, host string, cut bool)) error {
	return sofia.Rows(reply, profile, func(r sofia.Row) {
		user, host, _ := strings.Cut(sofia.Shown(r.User), "@")
		each(fields{
			user: user, host: host, callID: sofia.Shown(r.CallID), contact: sofia.Shown(r.Contact), agent: sofia.Shown(r.Agent),
			status: r.Status, ip: r.IP, port: r.Port,
		}, r.Host, r.Cut)
	})
}

// expsecs reads the seconds that are left from a status such as
// "Registered(UDP)(unknown) exp(2026-11-22 15:59:07) expsecs(147)". The user agent
// part comes before, so the last one counts.
func expsecs(status string) (time.Duration, bool) {
	i := strings.LastIndex(status, "expsecs(")
	if i < 0 {
		return 0, false
	}
	digits, _, ok := strings.Cut(status[i+len("expsecs("):], ")")
	n, err := strconv.ParseInt(digits, 10, 32)
	if !ok || err != nil {
		return 0, false
	}
	return min(time.Duration(n)*time.Second, maxExpires), true
}

// fromRow returns the registration of a row that is this switch's own. f.mu is held.
//
// A contact that the switch may have cut short is taken for the known one that it
// begins.
func (f *Feed) fromRow(row fields, host string, cut bool, at readAt) (b binding, ok bool) {
	if row.agent == meshAgent || host != "" && len(f.hosts) > 0 && !f.hosts[strings.ToLower(host)] {
		return b, false
	}
	left, ok := expsecs(row.status)
	if !ok || left <= 0 {
		return b, false
	}
	aor, ok := f.aor(row.user, row.host)
	if !ok {
		return b, false
	}
	b, ok = f.read(aor, at.profile, row, at.now.Add(left))
	if cut && ok {
		if old := f.table.known(aor, b.reg.CallID); old != nil && strings.HasPrefix(old.reg.Contact, b.reg.Contact) {
			b.reg.Contact, b.name = old.reg.Contact, old.name
		}
	}
	return b, ok
}

// readAt says where and when a row was read.
type readAt struct {
	profile string
	now     time.Time
}
