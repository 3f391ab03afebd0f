package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"pbxmesh/internal/control"
)

func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false) // a contact is <sip:...> to a reader
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write the answer as JSON: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// table aligns rows of cells; the first row is the header.
func table(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if cell = printable(cell); cell == "" {
				cell = "-"
			}
			row[i] = cell
		}
		if _, err := fmt.Fprintln(tw, strings.Join(row, "\t")); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// printable drops what could steer a terminal. User agents and contacts come from
// phones, and a phone can say anything.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

func printLookup(w io.Writer, r *control.LookupReply) error {
	age := dataAge(r.DataAge)
	if len(r.Registrations) == 0 {
		_, err := fmt.Fprintf(w, "%s is registered nowhere (%s).\n", r.AOR, age)
		return err
	}
	rows := [][]string{{"NODE", "STATE", "PROFILE", "CONTACT", "FROM", "EXPIRES IN", "USER AGENT"}}
	for _, reg := range r.Registrations {
		rows = append(rows, []string{
			string(reg.Node), reg.NodeState, reg.Profile, reg.Contact, source(reg),
			span(reg.ExpiresIn.Duration()), reg.UserAgent,
		})
	}
	if err := table(w, rows); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s: %s, %s.\n", r.AOR, count(len(r.Registrations), "device"), age)
	return err
}

func source(reg control.Registration) string {
	if !reg.Source.IsValid() {
		return reg.Transport
	}
	return strings.TrimPrefix(reg.Transport+"/"+reg.Source.String(), "/")
}

func printNodes(w io.Writer, r *control.NodesReply, now time.Time) error {
	if len(r.Nodes) == 0 {
		_, err := fmt.Fprintf(w, "%s knows no node yet (%s).\n", printable(r.Observer), dataAge(r.DataAge))
		return err
	}
	rows := [][]string{{"NODE", "STATE", "OBSERVED", "WANTED", "SHED", "ANSWERS", "SINCE", "ADDRESSES", "MESH", "CALLS", "DEVICES", "LEASE", "SWITCH", "REASON"}}
	for _, n := range r.Nodes {
		rows = append(rows, nodeRow(&n, now))
	}
	if err := table(w, rows); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "\n%s as %s sees them, %s.\n", count(len(r.Nodes), "node"), printable(r.Observer), dataAge(r.DataAge)); err != nil {
		return err
	}
	if err := printWanted(w, r, now); err != nil {
		return err
	}
	return printAlarms(w, r)
}

func nodeRow(n *control.Node, now time.Time) []string {
	id := string(n.ID)
	if n.Local {
		id += " *"
	}
	var since, mesh, calls, lease, sw string
	if !n.Since.IsZero() {
		since = span(now.Sub(n.Since))
	}
	if n.Mesh.IsValid() {
		mesh = n.Mesh.String()
	}
	if n.Sessions != nil {
		calls = strconv.Itoa(*n.Sessions)
		if n.MaxSessions != nil {
			calls += fmt.Sprintf("/%d", *n.MaxSessions)
		}
	}
	if n.LeaseAge != nil {
		lease = span(n.LeaseAge.Duration()) + " old"
	}
	if n.SwitchConnected != nil {
		sw = "lost"
		if *n.SwitchConnected {
			sw = "connected"
		}
	}
	return []string{
		id, n.Effective, n.Observed, n.Wanted, percent(n.Shed), answers(&n.Votes), since, addresses(n.Addresses), mesh, calls,
		strconv.Itoa(n.Registrations), lease, sw, n.Reason,
	}
}

func addresses(list []netip.Addr) string {
	texts := make([]string, len(list))
	for i, a := range list {
		texts[i] = a.String()
	}
	return strings.Join(texts, ",")
}

func printExplain(w io.Writer, r *control.ExplainReply) error {
	var b strings.Builder
	from := "from a phone of"
	if r.FromMesh {
		from = "from another node at"
	}
	fmt.Fprintf(&b, "A call to %s %s %s: %s\n", r.AOR, from, printable(string(r.Node)), printable(r.Result))
	for i, group := range r.Groups {
		legs := make([]string, len(group))
		for j, t := range group {
			legs[j] = leg(&t)
		}
		verb := "ring"
		if i > 0 {
			verb = "then"
		}
		fmt.Fprintf(&b, "  %s  %s\n", verb, strings.Join(legs, " and "))
	}
	if r.Bridge != "" {
		fmt.Fprintf(&b, "\nBridge:\n  %s\n", printable(r.Bridge))
	}
	if len(r.Reasons) > 0 {
		b.WriteString("\nReasons:\n")
		for i, reason := range r.Reasons {
			text := printable(reason.Text)
			if reason.Node != "" {
				text = printable(string(reason.Node)) + ": " + text
			}
			fmt.Fprintf(&b, "  %d. %s\n", i+1, text)
		}
	}
	fmt.Fprintf(&b, "\nDecided on %s.\n", dataAge(r.DataAge))
	_, err := io.WriteString(w, b.String())
	return err
}

// leg is "london (192.0.2.20:5090, 1 device)" or "buffalo (here, internal, 2 devices)".
func leg(t *control.Target) string {
	var parts []string
	switch {
	case t.Local:
		parts = append(parts, "here")
		if t.Profile != "" {
			parts = append(parts, printable(t.Profile))
		}
	case t.Address.IsValid():
		parts = append(parts, t.Address.String())
	}
	if t.Devices > 0 {
		parts = append(parts, count(t.Devices, "device"))
	}
	if len(parts) == 0 {
		return printable(string(t.Node))
	}
	return printable(string(t.Node)) + " (" + strings.Join(parts, ", ") + ")"
}

func dataAge(s control.Seconds) string { return fmt.Sprintf("data %.1f s old", float64(s)) }

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// span rounds to what a reader can use: tenths below ten seconds, else seconds.
func span(d time.Duration) string {
	if d < 10*time.Second && d > -10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}
