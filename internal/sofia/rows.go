package sofia

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"pbxmesh"
)

// ErrProfile reports a profile that the switch does not run.
var ErrProfile = errors.New("the switch has no such sofia profile: correct the configured profile names, or load the profile " +
	"(`fs_cli -x \"sofia status\"` lists them)")

// ErrList reports an answer that is no registration list.
var ErrList = errors.New("the answer to `sofia xmlstatus` is no complete registration list")

// Row is one registration of a profile's list, byte for byte as the switch's table has it.
// An event shows some of it differently: see Shown.
type Row struct {
	CallID  string
	User    string // user@domain
	Contact string // `"name" <uri>`
	Agent   string
	Status  string
	IP      string // of the REGISTER's source
	Port    string
	Host    string // the name of the switch

	// PingStatus is "Reachable" unless the phone left the switch's OPTIONS without answer;
	// PingTime is how long the last answer took, in milliseconds, "0.00" for never.
	PingStatus, PingTime string

	AuthUser, AuthRealm string
	Mailbox             string // user@domain

	// Cut says that the end of Contact may be missing.
	Cut bool
}

// Rows calls each with every registration of a reply to `sofia xmlstatus profile`.
//
// The switch writes one element a line and escapes contact and agent only: a
// Call-ID may hold markup, "</call-id>" too, but no line break. So lines are read and
// not XML: an element goes from the tag that begins its line to the one that ends
// it. The declared encoding is ISO-8859-1, what comes is whatever the phones sent;
// values are bytes to us.
//
// A reply that does not end is an error, because what is missing from it would be
// taken for gone.
func Rows(reply, profile string, each func(Row)) error {
	if strings.HasPrefix(strings.TrimSpace(reply), "Invalid Profile") {
		return fmt.Errorf("profile %q: %w", profile, ErrProfile)
	}
	var begun, ended, within bool
	var row Row
	var left string
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
				within, row, left = true, Row{}, ""
			}
			continue
		case line == "</registration>":
			each(row)
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
			row.CallID = value
		case "user":
			row.User = value
		case "contact":
			row.Contact, row.Cut = unescape(value), len(value) > maxEscaped
		case "agent":
			row.Agent = unescape(value)
		case "status":
			row.Status = value
		case "ping-status":
			row.PingStatus = value
		case "ping-time":
			row.PingTime = value
		case "network-ip":
			row.IP = value
		case "network-port":
			row.Port = value
		case "host":
			row.Host = value
		case "sip-auth-user":
			row.AuthUser = value
		case "sip-auth-realm":
			row.AuthRealm = value
		case "mwi-account":
			row.Mailbox = value
		}
	}
	switch {
	case !begun:
		return fmt.Errorf("profile %q: %w: %.60q", profile, ErrList, reply)
	case within:
		return fmt.Errorf("profile %q: %w: a row does not end", profile, ErrList)
	case !ended:
		return fmt.Errorf("profile %q: %w: it is cut off", profile, ErrList)
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

// Shown returns a value of the switch's table as an event shows it once decoded: each
// "%" with two upper-case hexadecimal digits behind it is one byte. Others stay.
func Shown(s string) string {
	i := strings.IndexByte(s, '%')
	if i < 0 {
		return s
	}
	b := append(make([]byte, 0, len(s)), s[:i]...)
	for ; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			high, ok := upperHex(s[i+1])
			low, ok2 := upperHex(s[i+2])
			if ok && ok2 {
				b = append(b, high<<4|low)
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

func upperHex(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// ErrNoRow reports a registration that the switch does not have any more.
var ErrNoRow = errors.New("the switch has no such registration")

// Find returns the row of a published registration; ErrNoRow when there is none. The switch
// filters by a piece of the contact, where there is one that its command line can hold: a
// profile may have very many rows.
//
// What was published of a row is what an event shows of it (Shown). Rows may share a
// Call-ID: the one with the published contact goes first.
func Find(ctx context.Context, conn API, reg *pbxmesh.Registration) (found Row, err error) {
	command := "sofia xmlstatus profile " + reg.Profile + " reg"
	if piece := hostPiece(reg.Contact); piece != "" {
		command += " " + piece
	}
	reply, err := conn.API(ctx, command)
	if err != nil {
		return Row{}, err
	}
	err = Rows(reply, reg.Profile, func(r Row) {
		if Shown(r.CallID) != reg.CallID || r.Contact == "" || r.Cut || found.Contact != "" && !strings.Contains(Shown(r.Contact), "<"+reg.Contact+">") {
			return
		}
		user, host, _ := strings.Cut(r.User, "@")
		if aor, err := pbxmesh.NewAOR(user, host); err != nil || aor != reg.AOR {
			return
		}
		found = r
	})
	switch {
	case err != nil:
		return Row{}, fmt.Errorf("%w: %w", ErrNoRow, err)
	case found.Contact == "":
		return Row{}, ErrNoRow
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

// ContactPiece returns user@host:port of a contact URI, "" when that has characters which
// the switch may write in two ways.
func ContactPiece(uri string) string {
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
