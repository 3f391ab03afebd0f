package feed

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"pbxmesh"
)

// ErrProfile reports a profile that the switch does not run.
var ErrProfile = errors.New("the switch has no such sofia profile: correct the configured profile names, or load the profile " +
	"(`fs_cli -x \"sofia status\"` lists them)")

// errSnapshot reports an answer that is no registration list.
var errSnapshot = errors.New("the answer to `sofia xmlstatus` is no complete registration list")

// xmlRow is one <registration> of `sofia xmlstatus profile P reg`.
type xmlRow struct {
	callID, user, contact, agent, status, host, ip, port string
}

// parseRows calls each with every registration of a reply. It reads row by row and
// not as one XML document: a phone whose user agent breaks the markup may then cost
// its own row, never the list. The declared encoding is ISO-8859-1, what comes is
// whatever the phones sent; values are bytes to us.
//
// A reply that does not end is an error, because what is missing from it would be
// removed.
func parseRows(reply, profile string, each func(xmlRow)) error {
	if strings.HasPrefix(strings.TrimSpace(reply), "Invalid Profile") {
		return fmt.Errorf("profile %q: %w", profile, ErrProfile)
	}
	_, rest, ok := strings.Cut(reply, "<registrations>")
	if !ok {
		if strings.Contains(reply, "<registrations/>") {
			return nil
		}
		return fmt.Errorf("profile %q: %w: %.60q", profile, errSnapshot, reply)
	}
	end := strings.LastIndex(rest, "</registrations>")
	if end < 0 {
		return fmt.Errorf("profile %q: %w: it is cut off", profile, errSnapshot)
	}
	rest = rest[:end]
	for {
		_, after, ok := strings.Cut(rest, "<registration>")
		if !ok {
			return nil
		}
		body, next, ok := strings.Cut(after, "</registration>")
		if !ok {
			return fmt.Errorf("profile %q: %w: a row does not end", profile, errSnapshot)
		}
		rest = next
		each(xmlRow{
			callID: element(body, "call-id"), user: element(body, "user"), contact: element(body, "contact"),
			agent: element(body, "agent"), status: element(body, "status"), host: element(body, "host"),
			ip: element(body, "network-ip"), port: element(body, "network-port"),
		})
	}
}

// element returns the text of the first <name> in body, "" without one.
func element(body, name string) string {
	for {
		i := strings.Index(body, name)
		if i < 0 {
			return ""
		}
		if i == 0 || body[i-1] != '<' || !strings.HasPrefix(body[i+len(name):], ">") {
			body = body[i+len(name):]
			continue
		}
		body = body[i+len(name)+1:]
		if i = strings.IndexByte(body, '<'); i < 0 || !strings.HasPrefix(body[i:], "</"+name+">") {
			return ""
		}
		return unescape(body[:i])
	}
}

var entities = map[string]string{"lt": "<", "gt": ">", "amp": "&", "quot": `"`, "apos": "'"}

// unescape replaces the five named entities and numeric ones, once each; what is no
// entity stays.
func unescape(s string) string {
	if strings.IndexByte(s, '&') < 0 {
		return s
	}
	var b strings.Builder
	for {
		before, after, ok := strings.Cut(s, "&")
		b.WriteString(before)
		if !ok {
			return b.String()
		}
		name, rest, ok := strings.Cut(after, ";")
		if text := entity(name); ok && text != "" {
			b.WriteString(text)
			s = rest
			continue
		}
		b.WriteByte('&')
		s = after
	}
}

func entity(name string) string {
	digits, ok := strings.CutPrefix(name, "#")
	if !ok {
		return entities[name]
	}
	base := 10
	if strings.HasPrefix(digits, "x") {
		digits, base = digits[1:], 16
	}
	n, err := strconv.ParseUint(digits, base, 21)
	if err != nil || n == 0 {
		return ""
	}
	return string(rune(n))
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
func (f *Feed) fromRow(row xmlRow, profile string, now time.Time) (reg pbxmesh.Registration, ok bool) {
	if row.agent == meshAgent || row.host != "" && len(f.hosts) > 0 && !f.hosts[strings.ToLower(row.host)] {
		return reg, false
	}
	left, ok := expsecs(row.status)
	if !ok || left <= 0 {
		return reg, false
	}
	user, host, _ := strings.Cut(row.user, "@")
	aor, ok := f.aor(user, host)
	if !ok {
		return reg, false
	}
	return f.admit(pbxmesh.Registration{
		AOR:       aor,
		Node:      f.opts.Node,
		CallID:    row.callID,
		Contact:   contactURI(row.contact),
		Profile:   profile,
		Source:    source(row.ip, row.port),
		Transport: transport(row.status),
		UserAgent: userAgent(row.agent),
		Expires:   now.Add(left),
	})
}
