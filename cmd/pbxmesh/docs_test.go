package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pbxmesh/internal/config"
)

// block is a fenced block of a page.
type block struct {
	page, lang, text string
	line             int
}

func blocks(t *testing.T, pages ...string) []block {
	t.Helper()
	var out []block
	for _, page := range pages {
		src, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		var open *block
		for i, line := range strings.Split(string(src), "\n") {
			fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
			switch {
			case isFence && open == nil:
				open = &block{page: page, lang: fence, line: i + 1}
			case isFence:
				out = append(out, *open)
				open = nil
			case open != nil:
				open.text += line + "\n"
			}
		}
		if open != nil {
			t.Errorf("%s:%d: a block is not closed", page, open.line)
		}
	}
	return out
}

var pages = []string{"README.md", "docs/operations.md", "docs/configuration.md", "docs/architecture.md", "docs/fusionpbx.md", "docs/dnssec.md", "docs/zone-file.md", "docs/powerdns.md"}

// Every pbxmesh command line that the documentation shows must be one that the
// program takes.
func TestDocumentedCommands(t *testing.T) {
	t.Parallel()
	inline := regexp.MustCompile("`(?:bin/)?(pbxmesh [a-z][^`]*)`")
	count := 0
	for _, page := range pages {
		src, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range inline.FindAllStringSubmatch(string(src), -1) {
			if strings.ContainsAny(m[1], "…") {
				continue // a shortened one
			}
			count++
			checkCommand(t, page, m[1])
		}
	}
	for _, b := range blocks(t, pages...) {
		for line := range strings.SplitSeq(b.text, "\n") {
			line = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(line), "$ "), "bin/")
			if strings.HasPrefix(line, "pbxmesh ") {
				count++
				checkCommand(t, fmt.Sprintf("%s:%d", b.page, b.line), line)
			}
		}
	}
	if count < 15 {
		t.Errorf("only %d command lines were found: the search is broken", count)
	}
}

func checkCommand(t *testing.T, where, line string) {
	t.Helper()
	line, _, _ = strings.Cut(line, " #")
	line, _, _ = strings.Cut(line, " >") // the shell's
	words := strings.Fields(line)[1:]
	cmd, args, err := newRoot().Find(words)
	if err == nil {
		err = cmd.ParseFlags(args)
	}
	if err == nil && cmd.Args != nil {
		err = cmd.Args(cmd, cmd.Flags().Args())
	}
	if err == nil && !cmd.HasParent() {
		err = fmt.Errorf("there is no such command")
	}
	if err != nil {
		t.Errorf("%s: %q: %v", where, line, err)
	}
}

func TestCheckCommandFindsMistakes(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"pbxmesh lokup a@b", "pbxmesh lookup", "pbxmesh nodes --colour", "pbxmesh nodes -o xml"} {
		inner := &testing.T{}
		checkCommand(inner, "here", line)
		if !inner.Failed() {
			t.Errorf("%q passes", line)
		}
	}
}

// Every YAML block is a configuration that passes all checks.
func TestDocumentedConfigurations(t *testing.T) {
	t.Parallel()
	count := 0
	for _, b := range blocks(t, pages...) {
		if b.lang != "yaml" {
			continue
		}
		count++
		if _, err := config.Parse(fmt.Sprintf("%s:%d", b.page, b.line), []byte(b.text)); err != nil {
			t.Error(err)
		}
	}
	if count < 3 {
		t.Errorf("only %d configurations were found", count)
	}
}

// The quick start is exactly two commands, and both are targets of the Makefile.
func TestQuickStart(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(src), "## Quick start\n")
	if !ok {
		t.Fatal("the README has no quick start")
	}
	_, rest, _ = strings.Cut(rest, "```sh\n")
	text, _, _ := strings.Cut(rest, "```")
	if got := strings.Fields(strings.ReplaceAll(text, "make ", "")); !slices.Equal(got, []string{"demo", "test"}) || strings.Count(text, "\n") != 2 {
		t.Errorf("the quick start is:\n%s", text)
	}
}

// Every make target that a page names exists.
func TestDocumentedTargets(t *testing.T) {
	t.Parallel()
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("(?m)(?:`|^|&& )make ([a-z][a-z-]*)")
	for _, page := range pages {
		src, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(src), -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).Match(makefile) {
				t.Errorf("%s names make %s, which the Makefile does not have", page, m[1])
			}
		}
	}
}
