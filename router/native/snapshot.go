package native

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"pbxmesh/internal/sofia"
)

// Errors of reading the mesh profile's rows.
var (
	// errNoProfile reports that the profile is not running.
	errNoProfile = errors.New("the mesh profile is not running: check that the switch has it (`sofia status`) and start it with `sofia profile <name> start`")

	errSnapshot = errors.New("unreadable list of registrations")
)

// switchRow is one registration as `sofia xmlstatus profile P reg` prints it.
type switchRow struct {
	callID  string
	user    string // user@domain
	contact string
	agent   string
	host    string        // the switchname of the switch that wrote it
	left    time.Duration // until it expires; 0 when unknown
}

// scanSnapshot calls fn for every registration of an xmlstatus reply, in its order. A
// reply that is cut off is an error before fn is called, because what it lacks would look
// lost.
func scanSnapshot(reply string, fn func(switchRow)) error {
	if !strings.HasPrefix(strings.TrimSpace(reply), "Invalid Profile") && !strings.Contains(reply, "</registrations>") {
		return fmt.Errorf("%w: it is cut off", errSnapshot)
	}
	err := sofia.Rows(reply, "", func(r sofia.Row) {
		fn(switchRow{callID: r.CallID, user: r.User, contact: r.Contact, agent: r.Agent, host: r.Host, left: expirySeconds(r.Status)})
	})
	switch {
	case errors.Is(err, sofia.ErrProfile):
		return errNoProfile
	case err != nil:
		return fmt.Errorf("%w: %w", errSnapshot, err)
	}
	return nil
}

// expirySeconds reads "... expsecs(299)"; a missing or negative one is 0.
func expirySeconds(status string) time.Duration {
	_, rest, ok := strings.Cut(status, "expsecs(")
	if !ok {
		return 0
	}
	digits, _, _ := strings.Cut(rest, ")")
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(n) * time.Second
}
