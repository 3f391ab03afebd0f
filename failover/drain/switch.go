package drain

import (
	"context"
	"errors"

	"pbxmesh/internal/sofia"
)

// ErrUnsafe reports a registration that no command can name without the risk of
// meaning others. It is left alone, and ends by itself.
var ErrUnsafe = sofia.ErrUnsafe

// verb returns the switch's word for k.
func (k Kind) verb() sofia.Verb {
	if k == Flush {
		return sofia.Flush
	}
	return sofia.CheckSync
}

// do executes a on the switch. What is still there after a flush may be known to the
// switch by another Call-ID than the published one, see sofia.Shown.
func do(ctx context.Context, conn sofia.API, a Action, domains map[string]struct{}) error {
	named := *a.Reg
	if a.Again {
		row, err := sofia.Find(ctx, conn, a.Reg)
		switch {
		case err == nil:
			named.CallID = row.CallID
		case !errors.Is(err, sofia.ErrNoRow):
			return err
		}
	}
	return sofia.Do(ctx, conn, a.Kind.verb(), &named, domains)
}

// channels asks who is in a call.
func channels(ctx context.Context, conn sofia.API) (*callList, error) {
	reply, err := conn.API(ctx, "show channels as json")
	if err != nil {
		return nil, err
	}
	return parseChannels(reply)
}
