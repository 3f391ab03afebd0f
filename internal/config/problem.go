package config

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	File   string
	Line   int    // counted from 1; 0 when no line is to blame
	Column int    // counted from 1, in characters
	Path   string // "failover.probe.timeout"; "" for the file as a whole
	Text   string // cause and remedy
	Source string // the line itself
}

// Error returns "file:line:column: path: text" and below it the line with a mark.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	if p.Path != "" {
		b.WriteString(p.Path + ": ")
	}
	b.WriteString(p.Text)
	if p.Source != "" {
		// Long lines would push the mark out of sight.
		const widest = 120
		if len(p.Source) <= widest && p.Column <= len(p.Source)+1 {
			fmt.Fprintf(&b, "\n    %s\n    %s^", p.Source, strings.Repeat(" ", max(p.Column-1, 0)))
		}
	}
	return b.String()
}

// Problems is the error of Parse and Load: everything that is wrong, in the order
// of the file.
type Problems []Problem

// Error returns all problems, one below the other.
func (ps Problems) Error() string {
	texts := make([]string, len(ps))
	for i, p := range ps {
		texts[i] = p.Error()
	}
	return strings.Join(texts, "\n")
}

func (ps Problems) sorted() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	return ps
}

// showable returns a line of the file for a message, "" when a secret may stand in
// it: people write passwords where only paths belong, and errors end up in logs.
func showable(line string) string {
	lower := strings.ToLower(line)
	for _, word := range []string{"password", "passwd", "secret", "token"} {
		if strings.Contains(lower, word) {
			return ""
		}
	}
	if _, rest, ok := strings.Cut(lower, "://"); ok && strings.Contains(rest, "@") {
		return ""
	}
	// A tab is one column to the parser and several to a terminal.
	return strings.ReplaceAll(strings.TrimRight(line, "\r"), "\t", " ")
}

// show quotes a value of the file for a message: printable, at most 60 bytes.
func show(s string) string {
	const limit = 60
	if len(s) > limit {
		return fmt.Sprintf("%+q...", s[:limit])
	}
	return fmt.Sprintf("%+q", s)
}
