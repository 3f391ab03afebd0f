package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pbxmesh"
	"pbxmesh/internal/control"
)

const (
	askEvery  = 500 * time.Millisecond
	lineEvery = 5 * time.Second // where the progress is no bar

	// daemonAway is how long the daemon that is asked may be away: it may be restarted.
	daemonAway = 30 * time.Second
)

// waiting is one `drain --wait`.
type waiting struct {
	client *control.Client
	node   pbxmesh.NodeID
	json   bool
	limit  time.Duration // 0: for ever
}

// waitEmpty shows the progress until the node is empty. An error is an exit code.
func waitEmpty(cmd *cobra.Command, w *waiting) error {
	ctx := cmd.Context()
	stop := context.CancelFunc(func() {})
	if w.limit > 0 {
		ctx, stop = context.WithTimeoutCause(ctx, w.limit, errLimit)
	}
	defer stop()
	show := newDisplay(cmd.OutOrStdout(), w.json)
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	var last *control.DrainReply
	answered := time.Now()
	for {
		reply, err := w.client.Drain(ctx, w.node)
		switch {
		case err == nil:
			last, answered = reply, time.Now()
			if err := show.progress(reply, answered); err != nil {
				return err
			}
			if reply.Empty {
				if reply.Notice != "" {
					return show.end(w.node, fmt.Sprintf("There is nothing to wait for: %s.", printable(reply.Notice)))
				}
				return show.end(w.node, fmt.Sprintf("%s is empty%s.", w.node, because(reply)))
			}
			if reply.Wanted != "draining" {
				return w.notEmpty(show, fmt.Sprintf("somebody else took %s back: it is wanted %q, by %s", w.node, reply.Wanted, firstOf(reply.WantedBy, "somebody unnamed")))
			}
		case ctx.Err() == nil && (!errors.Is(err, control.ErrNoDaemon) || time.Since(answered) > daemonAway):
			return errors.Join(err, show.end(w.node, ""))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			why := "interrupted"
			if errors.Is(context.Cause(ctx), errLimit) {
				why = fmt.Sprintf("not empty within %v", w.limit)
			}
			return w.notEmpty(show, why+left(last)+fmt.Sprintf("\nThe drain of %s goes on; `pbxmesh undrain %s` takes it back", w.node, w.node))
		}
	}
}

var errLimit = errors.New("the time is over")

// notEmpty ends with the code that says no.
func (w *waiting) notEmpty(show *display, text string) error {
	if err := show.end(w.node, ""); err != nil {
		return err
	}
	return &codeError{code: exitNo, err: errors.New(text)}
}

func because(r *control.DrainReply) string {
	if r.Drain == nil {
		return ""
	}
	return fmt.Sprintf(": %s moved, no call left", count(r.Drain.Moved, "phone"))
}

func left(r *control.DrainReply) string {
	if r == nil {
		return ""
	}
	return ": " + amounts(r) + " left"
}

// amounts is "412 phones (3 in a call), 31 calls".
func amounts(r *control.DrainReply) string {
	if r.Drain == nil {
		return count(r.Registrations, "phone")
	}
	text := count(r.Drain.Registrations, "phone")
	if r.Drain.InCall > 0 {
		text += fmt.Sprintf(" (%d in a call)", r.Drain.InCall)
	}
	if r.Drain.Calls >= 0 {
		text += ", " + count(r.Drain.Calls, "call")
	}
	return text
}

// display shows progress: a bar on a terminal, else a line now and then, or JSON.
type display struct {
	out      io.Writer
	json     bool
	terminal bool
	shown    time.Time
	text     string
	most     int
}

func newDisplay(out io.Writer, asJSON bool) *display {
	d := &display{out: out, json: asJSON}
	if f, ok := out.(*os.File); ok && !asJSON && os.Getenv("TERM") != "dumb" {
		info, err := f.Stat()
		d.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return d
}

func (d *display) progress(r *control.DrainReply, now time.Time) error {
	if d.json {
		text, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("write the progress as JSON: %w", err)
		}
		if string(text) == d.text {
			return nil
		}
		d.text = string(text)
		_, err = fmt.Fprintln(d.out, d.text)
		return err
	}
	text := d.line(r)
	if d.terminal {
		_, err := fmt.Fprintf(d.out, "\r\x1b[K%s", text)
		return err
	}
	if text == d.text || now.Sub(d.shown) < lineEvery && !r.Empty {
		return nil
	}
	d.text, d.shown = text, now
	_, err := fmt.Fprintln(d.out, text)
	return err
}

// end leaves the bar behind and says a last word, which JSON says by itself.
func (d *display) end(_ pbxmesh.NodeID, text string) error {
	if d.terminal {
		text = strings.TrimSuffix("\n"+text, "\n")
	}
	if d.json || text == "" && !d.terminal {
		return nil
	}
	_, err := fmt.Fprintln(d.out, text)
	return err
}

// line is "london  [#####.....]  412 of 1000 phones ..., at most 20/s, about 41s left".
func (d *display) line(r *control.DrainReply) string {
	const width = 24
	now := r.Registrations
	d.most = max(d.most, now)
	if r.Drain != nil {
		now = r.Drain.Registrations
		d.most = max(d.most, r.Drain.Total, now)
	}
	var b strings.Builder
	b.WriteString(printable(string(r.Node)))
	if d.terminal {
		gone := width
		if d.most > 0 {
			gone = width * (d.most - min(now, d.most)) / d.most
		}
		fmt.Fprintf(&b, "  [%s%s]", strings.Repeat("#", gone), strings.Repeat(".", width-gone))
	}
	fmt.Fprintf(&b, "  %s left", amounts(r))
	if p := r.Drain; p != nil {
		fmt.Fprintf(&b, ", %d moved", p.Moved)
		if p.Returned > 0 {
			fmt.Fprintf(&b, ", %d came back", p.Returned)
		}
		if p.Pace > 0 {
			fmt.Fprintf(&b, ", at most %d/s", p.Pace)
		}
		switch {
		case now == 0 && p.Calls > 0:
			b.WriteString(", calls end by themselves")
		case p.LeftSeconds != nil && now > 0:
			fmt.Fprintf(&b, ", about %s", time.Duration(*p.LeftSeconds)*time.Second)
		}
	}
	if r.Notice != "" {
		fmt.Fprintf(&b, " (%s)", printable(r.Notice))
	}
	return b.String()
}
