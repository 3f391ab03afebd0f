package feed

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ErrProfile reports a profile that the switch does not run.
var ErrProfile = errors.New("the switch has no such sofia profile: correct the configured profile names, or load the profile " +
	"(`fs_cli -x \"sofia status\"` lists them)")

// errSnapshot reports an answer that is no registration list.
var errSnapshot = errors.New("the answer to `sofia xmlstatus` is no complete registration list")

// parseRows calls each with every registration of a reply, and with the name of the
// host that holds it.
//
// The switch writes one element a line and escapes contact and agent only: a
// Call-ID may hold markup, "</call-id>" too, but no line break. So lines are read and
// not XML: an element goes from the tag that begins its line to the one that ends
// it. The declared encoding is ISO-8859-1, what comes is whatever the phones sent;
// values are bytes to us.
//
// A reply that does not end is an error, because what is missing from it would be
// removed.
func parseRows(reply, profile string, each func(row fields, host string, cut bool)) error {
	if strings.HasPrefix(strings.TrimSpace(reply), "Invalid Profile") {
		return fmt.Errorf("profile %q: %w", profile, ErrProfile)
	}
	var begun, ended, within, cut bool
	var row fields
	var host, left string
	for lines := reply; lines != "" && !ended; {
		var line string
		line, lines, _ = strings.Cut(lines, "\n")
		line = strings.TrimLeft(line, " \t")
		switch {
		case !within:
			switch line {
			case "<registrations>":
				begun = true
			case "</registrations>", "<registrations/>":
				begun, ended = true, true
			case "<registration>":
				within, row, host, left, cut = true, fields{}, "", "", false
			}
			continue
		case line == "</registration>":
			row.user, row.host, _ = strings.Cut(row.user, "@")
			each(row, host, cut)
			within = false
			continue
		case left != "": // a value with a line break
			line = left + "\n" + line
		}
		name, value, whole := element(line)
		if left = ""; !whole {
			left = line
			continue
		}
		switch name {
		case "call-id":
			row.callID = shown(value)
		case "user":
			row.user = shown(value)
		case "contact":
			cut = len(value) > maxEscaped
			row.contact = shown(unescape(value))
		case "agent":
			row.agent = shown(unescape(value))
		case "status":
			row.status = value
		case "network-ip":
			row.ip = value
		case "network-port":
			row.port = value
		case "host":
			host = value
		}
	}
	switch {
	case !begun:
		return fmt.Errorf("profile %q: %w: %.60q", profile, errSnapshot, reply)
	case within:
		return fmt.Errorf("profile %q: %w: a row does not end", profile, errSnapshot)
	case !ended:
		return fmt.Errorf("profile %q: %w: it is cut off", profile, errSnapshot)
	}
	return nil
}

// maxEscaped is the length from which on an escaped value may have lost its end: the
// switch escapes into 2,048 bytes, and an entity has up to six.
const maxEscaped = 2048 - 8

// element reads a line such as "<call-id>z97<8df>6d@h</call-id>"; whole is false for
// one that is not ended.
func element(line string) (name, value string, whole bool) {
	if line == "" || line[0] != '<' {
		return "", "", true
	}
	name, value, ok := strings.Cut(line[1:], ">")
	if !ok {
		return "", "", true
	}
	n := len(value) - len(name) - len("</>")
	if n < 0 || value[n:n+2] != "</" || value[n+2:len(value)-1] != name || value[len(value)-1] != '>' {
		return name, "", false
	}
	return name, value[:n], true
}

// unescape replaces the five entities that the switch writes, once each.
func unescape(s string) string {
	if strings.IndexByte(s, '&') < 0 {
		return s
	}
	return entities.Replace(s)
}

var entities = strings.NewReplacer("&lt;", "<", "&gt;", ">", "&amp;", "&", "&quot;", `"`, "&apos;", "'")

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
