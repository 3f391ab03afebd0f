package main

import (
	"bytes"
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"pbxmesh"
	"pbxmesh/internal/control"
)

// TestWaitInterrupted: Ctrl-C ends the waiting only, says so and how to take the drain
// back, and is no success.
func TestWaitInterrupted(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		json   bool
		stdout string // its first line
	}{
		{"for people", false, "london  412 phones (3 in a call), 31 calls left, 580 moved, at most 20/s\n"},
		{"as JSON", true, `{"node":"london","wanted":"draining","effective":"draining","registrations":412,`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ctx, interrupt := context.WithCancel(t.Context())
			wanted := false
			asked := 0
			daemon := httptest.NewServer(control.NewHandler(control.Backend{
				Want: func(context.Context, control.WantedRequest) (*control.WantedReply, error) {
					wanted = true
					return nil, control.ErrRefused
				},
				Drain: func(_ context.Context, node pbxmesh.NodeID) (*control.DrainReply, error) {
					if asked++; asked > 1 {
						interrupt()
					}
					return &control.DrainReply{Node: node, Wanted: "draining", Effective: "draining", Registrations: 412, Drain: &control.Drain{
						Method: "check-sync", Registrations: 412, InCall: 3, Calls: 31, Total: 1000, Moved: 580, Pace: 20,
					}}, nil
				},
			}, ""))
			t.Cleanup(daemon.Close)
			client, err := control.NewClient(daemon.Listener.Addr().String(), "", 20*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			cmd := &cobra.Command{}
			cmd.SetContext(ctx)
			var out bytes.Buffer
			cmd.SetOut(&out)
			err = waitEmpty(cmd, &waiting{client: client, node: "london", json: tc.json})
			var code *codeError
			if !errors.As(err, &code) || code.code != exitNo {
				t.Fatalf("ended with %v", err)
			}
			const says = "interrupted: 412 phones (3 in a call), 31 calls left\nThe drain of london goes on; `pbxmesh undrain london` takes it back"
			if err.Error() != says {
				t.Errorf("says %q, want %q", err, says)
			}
			if !strings.HasPrefix(out.String(), tc.stdout) || strings.Contains(out.String(), "goes on") {
				t.Errorf("wrote %q", out.String())
			}
			if wanted {
				t.Error("the drain was taken back")
			}
		})
	}
}

// The bar of a terminal fills as phones leave, and never overflows.
func TestBar(t *testing.T) {
	t.Parallel()
	d := &display{terminal: true}
	line := func(left, total int) string {
		return d.line(&control.DrainReply{Node: "london", Registrations: left, Drain: &control.Drain{Registrations: left, Total: total, Calls: -1}})
	}
	for _, tc := range []struct {
		left, total int
		bar         string
	}{
		{100, 100, strings.Repeat(".", 24)},
		{50, 100, strings.Repeat("#", 12) + strings.Repeat(".", 12)},
		{120, 100, strings.Repeat(".", 24)}, // more came than were there
		{0, 120, strings.Repeat("#", 24)},
	} {
		if got := line(tc.left, tc.total); !strings.HasPrefix(got, "london  ["+tc.bar+"]  ") {
			t.Errorf("%d of %d: %q", tc.left, tc.total, got)
		}
	}
	if got := d.line(&control.DrainReply{Node: "london", Notice: "a\x1b[2Jb"}); strings.Contains(got, "\x1b") {
		t.Errorf("an escape reaches the terminal: %q", got)
	}
}
