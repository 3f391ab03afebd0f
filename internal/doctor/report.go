package doctor

import (
	"fmt"
	"time"

	"pbxmesh"
	"pbxmesh/internal/control"
)

// Status is how a check ended.
type Status string

// The ends of a check. Skip says that it could not be made, because of another check
// that says so or because nothing is configured; it is neither good nor bad.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
	Skip Status = "skip"
)

// Result is one check.
type Result struct {
	Check  string          `json:"check"`
	Status Status          `json:"status"`
	Seen   string          `json:"seen"`
	Do     string          `json:"do,omitempty"` // empty when there is nothing to do
	Took   control.Seconds `json:"took_seconds"`
}

// Report is everything that was found, in a fixed order.
type Report struct {
	Name   string         `json:"name"`           // of the daemon
	Node   pbxmesh.NodeID `json:"node,omitempty"` // "" for a name server without a switch
	Failed bool           `json:"failed"`
	Checks []Result       `json:"checks"`
}

func ok(format string, args ...any) Result {
	return Result{Status: OK, Seen: fmt.Sprintf(format, args...)}
}

func skip(format string, args ...any) Result {
	return Result{Status: Skip, Seen: fmt.Sprintf(format, args...)}
}

func warn(seen, do string) Result { return Result{Status: Warn, Seen: seen, Do: do} }
func fail(seen, do string) Result { return Result{Status: Fail, Seen: seen, Do: do} }

// ms is a time as people read it.
func ms(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
	}
	if d < 10*time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return d.Round(time.Second).String()
}
