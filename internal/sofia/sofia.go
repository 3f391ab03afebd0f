// Package sofia reads mod_sofia's lists of registrations, and says how one registration
// is named in its commands without the risk of meaning others. It refuses what it cannot
// name; it decides nothing.
package sofia

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"pbxmesh"
)

// ErrUnsafe reports a registration that no command can name without the risk of
// meaning others. It is left alone, and ends by itself.
var ErrUnsafe = errors.New("no safe name for an event socket command")

// Verb is a command of `sofia profile P` about one registration.
type Verb string

// The verbs. CheckSync sends the NOTIFY that asks a phone to register anew, Flush takes
// the registration out of the switch's table, which ends no call.
const (
	CheckSync Verb = "check_sync"
	Flush     Verb = "flush_inbound_reg"
)

// API runs one API command of the switch; esl.Conn does.
type API interface {
	API(ctx context.Context, command string) (string, error)
}

// Command returns the API command for reg; domains are those of the switch's users, in
// lower case. ErrUnsafe when there is none.
//
// mod_sofia's commands take one word and match it as a Call-ID, as user@domain, and,
// without an '@', as a domain: a Call-ID that is a tenant's domain would empty the
// tenant, and one that is the word "reboot" would restart every phone. `check_sync`
// and `flush_inbound_reg` without a word mean everybody and are never sent.
func Command(verb Verb, reg *pbxmesh.Registration, domains map[string]struct{}) (string, error) {
	id := reg.CallID
	if !safeWord(id) || strings.EqualFold(id, "reboot") {
		return "", fmt.Errorf("%w: Call-ID %+.60q", ErrUnsafe, id)
	}
	if _, ok := domains[strings.ToLower(id)]; ok {
		return "", fmt.Errorf("%w: the Call-ID %s is a domain", ErrUnsafe, id)
	}
	// A Call-ID may look like another user's address of record; its own is harmless.
	// The switch's users are not held to what we take for a user.
	if _, domain, ok := strings.Cut(strings.ToLower(id), "@"); ok {
		aor, err := pbxmesh.ParseAOR(id)
		if _, ok := domains[domain]; ok && (err != nil || aor != reg.AOR) {
			return "", fmt.Errorf("%w: the Call-ID %s is somebody's address", ErrUnsafe, id)
		}
	}
	return "sofia profile " + reg.Profile + " " + string(verb) + " " + escapes.Replace(id), nil
}

// safeWord allows what is one word to the switch, "@" anywhere: no blank and no control
// character. RFC 3261 (25.1) has no byte above ASCII in a Call-ID; the switch takes them, and
// finds the row by them.
func safeWord(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

// escapes keep a word one word on the switch's command line, which takes quotes and
// escapes away again (switch_separate_string).
var escapes = strings.NewReplacer(`'`, `\'`, `"`, `\"`, `\`, `\\`)

// ErrRefused reports a switch that answers a command with anything but +OK.
var ErrRefused = errors.New("the switch says")

// Do runs Command on the switch. The error is ErrUnsafe, ErrRefused or the connection's.
func Do(ctx context.Context, conn API, verb Verb, reg *pbxmesh.Registration, domains map[string]struct{}) error {
	line, err := Command(verb, reg, domains)
	if err != nil {
		return err
	}
	reply, err := conn.API(ctx, line)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(reply, "+OK") {
		return fmt.Errorf("%w %+.80q to `sofia profile %s`", ErrRefused, reply, reg.Profile)
	}
	return nil
}
