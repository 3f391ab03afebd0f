package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"pbxmesh"
	"pbxmesh/internal/control"
)

// printAlarms says what must not be overlooked below a list of nodes.
func printAlarms(w io.Writer, r *control.NodesReply) error {
	if r.AllDown {
		if _, err := fmt.Fprintln(w, "EVERY NODE IS DOWN: no phone can register. Name servers answer with all nodes."); err != nil {
			return err
		}
	}
	if r.PanicRule && !r.AllDown {
		if _, err := fmt.Fprintln(w, "PANIC RULE: fewer than half of the nodes take phones. Name servers answer with the others, too."); err != nil {
			return err
		}
	}
	if r.CutOff {
		if _, err := fmt.Fprintf(w, "No node answers %s itself: it is cut off, and goes by what others see.\n", printable(r.Observer)); err != nil {
			return err
		}
	}
	return nil
}

// percent shows a share in per mille; "" for none.
func percent(perMille int) string {
	if perMille == 0 {
		return ""
	}
	return fmt.Sprintf("%d %%", (perMille+5)/10)
}

// answers is "3 of 4": how many of the sites that can tell get an answer.
func answers(v *control.Votes) string {
	if v.Counted == 0 {
		return ""
	}
	return fmt.Sprintf("%d of %d", v.Counted-v.Silent, v.Counted)
}

// only leaves one node in r.
func only(r *control.NodesReply, id string) error {
	at := slices.IndexFunc(r.Nodes, func(n control.Node) bool { return n.ID == pbxmesh.NodeID(strings.ToLower(id)) })
	if at < 0 {
		return fmt.Errorf("no node is called %s; `pbxmesh nodes` lists them", printable(id))
	}
	r.Nodes = r.Nodes[at : at+1]
	return nil
}

// printVotes shows one node and what each observer says of it.
func printVotes(w io.Writer, r *control.NodesReply, now time.Time) error {
	n := &r.Nodes[0]
	since := ""
	if !n.Since.IsZero() {
		since = " since " + span(now.Sub(n.Since))
	}
	if _, err := fmt.Fprintf(w, "%s: %s, observed %s%s, wanted %s\n  %s\n", n.ID, n.Effective, n.Observed, since, n.Wanted, orDash(n.Reason)); err != nil {
		return err
	}
	phones := "  Name servers send phones here.\n\n"
	switch {
	case n.Wanted == pbxmesh.WantedDraining.String() || n.Wanted == pbxmesh.WantedOut.String():
		phones = fmt.Sprintf("  Name servers send no phones here while they can: an operator wants it %s.\n\n", printable(n.Wanted))
	case n.Shed > 0:
		phones = fmt.Sprintf("  Name servers send %s of the phones elsewhere while they can: %s.\n\n", percent(n.Shed), printable(n.ShedReason))
	}
	if _, err := io.WriteString(w, phones); err != nil {
		return err
	}
	rows := [][]string{{"OBSERVER", "SITE", "SAYS", "FOR", "MESH ADDRESS", "SWITCH", "HEARD"}}
	for _, v := range n.Votes.Observers {
		name := v.Observer
		if v.Beside == n.ID {
			name += " (its daemon)"
		}
		says := v.Phones
		if v.CutOff {
			says += " (cut off)"
		}
		rows = append(rows, []string{name, v.Site, says, span(v.For.Duration()), v.Mesh, v.Switch, span(v.Age.Duration()) + " ago"})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	enough := ""
	if n.Votes.Counted < n.Votes.Needed {
		enough = fmt.Sprintf(" The state stays: %d are needed to change it.", n.Votes.Needed)
	}
	if _, err := fmt.Fprintf(w, "\n%s can tell; it answers %d of them.%s\n", count(n.Votes.Counted, "site"), n.Votes.Counted-n.Votes.Silent, enough); err != nil {
		return err
	}
	return printAlarms(w, r)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}
