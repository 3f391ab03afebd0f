package doctor

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestEveryCheckIsDocumented: what the code says stands in the report's order, or it
// would be told to nobody, and the page of the operators lists the same in that order.
func TestEveryCheckIsDocumented(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]bool{}
	group := regexp.MustCompile(`\.say\(("[^"]*")?`)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range group.FindAllStringSubmatch(string(text), -1) {
			name := strings.Trim(m[1], `"`)
			if said[name] = true; !slices.Contains(order, name) {
				t.Errorf("the check %q is in no report", name)
			}
		}
	}
	for _, name := range order {
		if !said[name] {
			t.Errorf("no check is called %q", name)
		}
	}

	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(page), "| check | what it looks at | what it complains of |\n|---|---|---|\n")
	if !ok {
		t.Fatal("docs/operations.md has no table of the checks")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var documented []string
	for line := range strings.Lines(table) {
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "| `"), "`")
		documented = append(documented, name)
	}
	if !slices.Equal(documented, order) {
		t.Errorf("docs/operations.md lists %q, doctor checks %q", documented, order)
	}
}
