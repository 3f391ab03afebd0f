package main

import (
	"fmt"
	"io"
	"time"

	"pbxmesh/internal/control"
)

// printWanted says of every node that an operator does not want in service who that
// is.
func printWanted(w io.Writer, r *control.NodesReply, now time.Time) error {
	for _, n := range r.Nodes {
		if text := wantedLine(&n, now); text != "" {
			if _, err := fmt.Fprintln(w, text); err != nil {
				return err
			}
		}
	}
	return nil
}

// wantedLine says who wants a node not to be in service, since when and why, and how
// far its drain is.
func wantedLine(n *control.Node, now time.Time) string {
	if n.WantedSince == nil || n.Wanted == "in service" {
		return ""
	}
	text := fmt.Sprintf("%s is wanted %s since %s", n.ID, n.Wanted, span(now.Sub(*n.WantedSince)))
	if n.WantedBy != "" {
		text += " by " + n.WantedBy
	}
	if n.WantedReason != "" {
		text += ": " + n.WantedReason
	}
	if p := n.Drain; p != nil {
		text += fmt.Sprintf("; left: %s", amounts(&control.DrainReply{Registrations: n.Registrations, Drain: p}))
	}
	return printable(text) + "."
}
