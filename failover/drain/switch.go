package drain

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

// api runs one API command of the switch; esl.Conn does.
type api interface {
	API(ctx context.Context, command string) (string, error)
}

// command returns the API command of a.
//
// mod_sofia's commands take one word and match it as a Call-ID, as user@domain, and,
// without an '@', as a domain: a Call-ID that is a tenant's domain would empty the
// tenant, and one that is the word "reboot" would restart every phone. `check_sync`
// and `flush_inbound_reg` without a word mean everybody and are never sent.
func command(a Action, domains map[string]struct{}) (string, error) {
	id := a.Reg.CallID
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
		if _, ok := domains[domain]; ok && (err != nil || aor != a.Reg.AOR) {
			return "", fmt.Errorf("%w: the Call-ID %s is somebody's address", ErrUnsafe, id)
		}
	}
	verb := "check_sync"
	if a.Kind == Flush {
		verb = "flush_inbound_reg"
	}
	return "sofia profile " + a.Reg.Profile + " " + verb + " " + id, nil
}

// safeWord allows what stays one word on the switch's command line: no blank, no quote,
// no escape.
func safeWord(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || c == '\'' || c == '"' || c == '\\' || c == '`' {
			return false
		}
	}
	return true
}

// do executes a on the switch.
func do(ctx context.Context, conn api, a Action, domains map[string]struct{}) error {
	line, err := command(a, domains)
	if err != nil {
		return err
	}
	reply, err := conn.API(ctx, line)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(reply, "+OK") {
		return fmt.Errorf("the switch says %+.80q to `sofia profile %s`", reply, a.Reg.Profile)
	}
	return nil
}

// channels asks who is in a call.
func channels(ctx context.Context, conn api) (*callList, error) {
	reply, err := conn.API(ctx, "show channels as json")
	if err != nil {
		return nil, err
	}
	return parseChannels(reply)
}
