package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pbxmesh"
	"pbxmesh/internal/app"
	"pbxmesh/internal/control"
)

type listing struct {
	query
	control.ListQuery
	node, cursor, store string
	all                 bool
}

func newList() *cobra.Command {
	var l listing
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the registrations of the mesh",
		Long: `List every device of every extension, as the daemon's copy of the registry knows
them, and how old that copy is. --node, --domain and --user select; a user that ends
in * is how the user begins.

A page has --limit extensions in order, and its last line says how to go on. --all
lists everything, as it comes and in no order; nothing on the way holds more than a
small part of it, so a million registrations are no more trouble than ten.

With --output json a page is one object, with "next" as the cursor of the next page,
and --all writes one registration a line (JSON Lines), and the age of the data to
standard error.

With --registry, when no daemon answers, Redis is read directly, as by lookup. It has no
order, so there are no cursors; without --all it ends after --limit devices.`,
		Example: `  pbxmesh list
  pbxmesh list --node london --limit 20
  pbxmesh list --domain pbx.example.com --user '10*'
  pbxmesh list --cursor 1002@pbx.example.com
  pbxmesh list --all --output json | jq -r .aor | sort -u
  pbxmesh list --all --registry redis://127.0.0.1:6379`,
		Args:              exactArgs(),
		ValidArgsFunction: noFiles,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if l.all && (cmd.Flags().Changed("limit") || l.cursor != "") {
				return usagef("--all lists everything: leave out --limit and --cursor")
			}
			return l.run(cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	l.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&l.node, "node", "", "only this node's")
	f.StringVar(&l.Domain, "domain", "", "only this domain's")
	f.StringVar(&l.User, "user", "", "only this user's; 10* is every user that begins with 10")
	f.IntVar(&l.Limit, "limit", control.DefaultList, fmt.Sprintf("extensions of a page, 1 to %d", control.MaxList))
	f.StringVar(&l.cursor, "cursor", "", "begin after this extension, as the page before says")
	f.BoolVar(&l.all, "all", false, "everything, in no order")
	f.StringVar(&l.store, "registry", "", "where to look when no daemon answers: the URL of Redis, or the daemon's configuration file")
	for _, name := range []string{"node", "domain", "user", "limit", "cursor"} {
		completeWith(cmd, name)
	}
	return cmd
}

// errEnough ends a listing that has what it wants.
var errEnough = errors.New("enough")

func (l *listing) run(ctx context.Context, out, errs io.Writer) error {
	l.Node = pbxmesh.NodeID(strings.ToLower(l.node))
	if err := app.CheckListQuery(l.ListQuery); err != nil {
		return usagef("%w", err)
	}
	var err error
	if l.cursor != "" {
		if l.Cursor, err = pbxmesh.ParseAOR(l.cursor); err != nil {
			return usagef("--cursor: %w", err)
		}
	}
	if l.Limit < 1 || l.Limit > control.MaxList {
		return usagef("--limit %d is not allowed: write 1 to %d, or --all", l.Limit, control.MaxList)
	}
	client, err := l.client()
	if err != nil {
		return err
	}
	p := newListPrinter(out, errs, l)
	var end control.ListEnd
	var next pbxmesh.AOR
	way, err := orDirect(ctx, l.store, func() error {
		if l.all {
			e, err := client.ListAll(ctx, l.ListQuery, p.add)
			if err == nil {
				end = *e
			}
			return err
		}
		page, err := client.List(ctx, l.ListQuery)
		if err != nil {
			return err
		}
		end.DataAge, end.Source, next = page.DataAge, page.Source, page.Next
		if l.json() {
			return writeJSON(out, page)
		}
		for i := range page.Registrations {
			if err := p.add(&page.Registrations[i]); err != nil {
				return err
			}
		}
		return nil
	}, func(ctx context.Context, d *app.Direct) error {
		if l.cursor != "" {
			return usagef("a registry that is read directly has no order and takes no --cursor: write --all")
		}
		end.Source = control.SourceRegistry
		return l.readStore(ctx, d, p)
	})
	if err != nil {
		return errors.Join(p.flush(), err)
	}
	switch {
	case l.json() && l.all: // what comes out is registrations alone
		err := p.flush()
		_, failed := fmt.Fprintf(errs, "%s, %s.\n%s", count(p.count, "device"), dataAge(end.DataAge), way)
		return errors.Join(err, failed)
	case l.json() && p.more:
		_, failed := io.WriteString(errs, "There are more: add --all.\n")
		return errors.Join(p.flush(), failed)
	case l.json():
		return p.flush()
	}
	return p.end(end.DataAge, next, way)
}

// readStore lists from the store itself. The timeout bounds each call of the store, as
// the store has a bound of its own.
func (l *listing) readStore(ctx context.Context, d *app.Direct, p *listPrinter) error {
	asPage := l.json() && !l.all
	page := control.ListReply{Registrations: []control.Listed{}, Source: control.SourceRegistry}
	n := 0
	_, err := d.ListAll(ctx, l.ListQuery, func(reg *control.Listed) error {
		if n++; !l.all && n > l.Limit {
			p.more = true
			return errEnough
		}
		if asPage {
			page.Registrations = append(page.Registrations, *reg)
			return nil
		}
		return p.add(reg)
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if asPage {
		return writeJSON(p.out, page)
	}
	return nil
}

// listPrinter writes registrations as they come, in tables of listRows rows whose columns
// only grow, or as JSON Lines.
type listPrinter struct {
	out      *bufio.Writer
	json     bool
	count    int
	more     bool // there were more, and no cursor leads to them
	rows     [][]string
	widths   []int
	progress io.Writer // nil: none
	told     time.Time
}

const listRows = 500

func newListPrinter(out, errs io.Writer, l *listing) *listPrinter {
	p := &listPrinter{out: bufio.NewWriterSize(out, 64<<10), json: l.json()}
	if l.all && isTerminal(errs) && !isTerminal(out) {
		p.progress = errs
	}
	p.rows = [][]string{{"EXTENSION", "NODE", "STATE", "CONTACT", "FROM", "EXPIRES IN", "USER AGENT"}}
	return p
}

func (p *listPrinter) add(l *control.Listed) error {
	p.count++
	if p.progress != nil && p.count%1000 == 0 && time.Since(p.told) > 200*time.Millisecond {
		p.told = time.Now()
		_, _ = fmt.Fprintf(p.progress, "\r%d devices", p.count)
	}
	if p.json {
		enc := json.NewEncoder(p.out)
		enc.SetEscapeHTML(false)
		return enc.Encode(l)
	}
	p.rows = append(p.rows, []string{
		l.AOR.String(), string(l.Node), l.NodeState, l.Contact, source(l.Registration), span(l.ExpiresIn.Duration()), l.UserAgent,
	})
	if len(p.rows) > listRows {
		return p.table()
	}
	return nil
}

// table writes the rows that wait.
func (p *listPrinter) table() error {
	for _, row := range p.rows {
		for i, cell := range row {
			if row[i] = printable(cell); row[i] == "" {
				row[i] = "-"
			}
			if i == len(p.widths) {
				p.widths = append(p.widths, 0)
			}
			p.widths[i] = max(p.widths[i], len([]rune(row[i])))
		}
	}
	for _, row := range p.rows {
		last := len(row) - 1
		for i, cell := range row {
			if i < last {
				cell += strings.Repeat(" ", p.widths[i]+2-len([]rune(cell)))
			}
			if _, err := p.out.WriteString(cell); err != nil {
				return err
			}
		}
		if err := p.out.WriteByte('\n'); err != nil {
			return err
		}
	}
	p.rows = p.rows[:0]
	return nil
}

// flush writes what waits.
func (p *listPrinter) flush() error {
	if p.progress != nil && !p.told.IsZero() {
		_, _ = io.WriteString(p.progress, "\r\x1b[K")
	}
	if p.count > 0 && !p.json {
		if err := p.table(); err != nil {
			return err
		}
	}
	return p.out.Flush()
}

// end writes what waits, and the last lines.
func (p *listPrinter) end(age control.Seconds, next pbxmesh.AOR, way string) error {
	if err := p.flush(); err != nil {
		return err
	}
	line := fmt.Sprintf("\n%s, %s.\n", count(p.count, "device"), dataAge(age))
	if p.count == 0 {
		line = fmt.Sprintf("No device is registered (%s).\n", dataAge(age))
	}
	switch {
	case !next.IsZero():
		line += fmt.Sprintf("There are more: add --cursor %s, or --all.\n", next)
	case p.more:
		line += "There are more: add --all.\n"
	}
	_, err := p.out.WriteString(line + way)
	return errors.Join(err, p.out.Flush())
}
