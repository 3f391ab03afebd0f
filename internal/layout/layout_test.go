package layout

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "pbxmesh"

// rules say what the non-test files of a package tree must not import, and why.
// They are those of .golangci.yml; a test that imports more is fine.
var rules = []struct {
	of     string // package tree, "" the root package alone
	banned []string
	why    string
}{
	{"", []string{"cmd", "registry", "router", "failover", "dnsserver", "fixtures", "internal"}, "the words of the mesh depend on nothing"},
	{"registry", []string{"router", "failover", "dnsserver", "fixtures", "cmd", "internal/app", "internal/config", "internal/control", "internal/demo"}, "internal/app joins the parts"},
	{"router", []string{"registry", "failover", "dnsserver", "fixtures", "cmd", "internal/app", "internal/config", "internal/control", "internal/demo"}, "a decision is a pure function of what it is given"},
	{"failover", []string{"registry", "router", "dnsserver", "fixtures", "cmd", "internal/app", "internal/config", "internal/control", "internal/demo"}, "internal/app joins the parts"},
	{"dnsserver/selection", []string{"internal"}, "the choice of a node is a pure function of the mesh and of settings"},
	{"dnsserver", []string{"registry", "router", "failover", "fixtures", "cmd", "internal/app", "internal/config", "internal/control", "internal/demo", "internal/doctor", "internal/esl", "internal/fsconf"}, "the name server reads one Mesh and can stand alone; internal/udpbatch knows no protocol"},
	{"fixtures", []string{"registry", "router", "failover", "dnsserver", "cmd", "internal"}, "fixtures stand for the outside world, with wire code of their own"},
	{"internal/udpbatch", []string{"registry", "router", "failover", "dnsserver", "fixtures", "cmd", "internal"}, "packets in batches are below every protocol"},
	{"internal/reload", []string{"registry", "router", "failover", "dnsserver", "fixtures", "cmd", "internal"}, "files that are read again are below everything that uses them"},
	{"internal/esl", []string{"registry", "router", "failover", "dnsserver", "fixtures", "cmd", "internal/app", "internal/config", "internal/control", "internal/demo"}, "the event socket is below everything"},
	{"internal/config", []string{"registry", "router", "failover", "dnsserver", "fixtures", "cmd", "internal/app", "internal/control", "internal/demo", "internal/esl"}, "configuration knows package pbxmesh only"},
	{"internal/control", []string{"registry", "router", "failover", "dnsserver", "fixtures", "cmd", "internal/app", "internal/config", "internal/demo", "internal/esl"}, "control types know package pbxmesh only"},
	{"internal/meshcontext", []string{"registry", "router", "failover", "dnsserver", "fixtures", "cmd", "internal"}, "what a switch does with a call of the mesh is words that all parts share"},
	{"internal/fsconf", []string{"registry", "router", "failover", "dnsserver", "fixtures", "cmd", "internal/app", "internal/config", "internal/control", "internal/demo", "internal/doctor", "internal/esl"}, "what a switch must be told is a pure function of settings"},
	{"internal/doctor", []string{"router", "dnsserver", "fixtures", "internal/demo", "internal/fsconf", "cmd"}, "doctor asks from outside: it sees answers, not the parts that give them"},
	{"internal/app", []string{"fixtures", "internal/demo", "internal/doctor", "cmd"}, "what runs in production carries no test double"},
	{"cmd", []string{"registry", "router", "failover", "dnsserver", "fixtures", "internal/esl"}, "commands go through internal/app, internal/control, internal/demo, internal/doctor or internal/fsconf"},
}

// owners are the package trees that alone may import a library.
var owners = map[string][]string{
	"github.com/percipia/eslgo":   {"internal/esl"},
	"github.com/goccy/go-yaml":    {"internal/config"},
	"github.com/spf13/cobra":      {"cmd"},
	"github.com/redis/go-redis":   {"registry", "router/native"},
	"github.com/prometheus":       {"internal"},
	"github.com/stretchr/testify": {},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func TestImportRules(t *testing.T) {
	t.Parallel()
	packages := list(t)
	if len(packages) < 3 {
		t.Fatalf("go list finds %d packages: the rules would hold of nothing", len(packages))
	}
	for _, p := range packages {
		for _, broken := range violations(p) {
			t.Error(broken)
		}
	}
}

// The check must be able to fail.
func TestViolationsAreFound(t *testing.T) {
	t.Parallel()
	for _, p := range []listed{
		{"pbxmesh", []string{"pbxmesh/registry"}},
		{"pbxmesh/router/socket", []string{"pbxmesh/registry/memory"}},
		{"pbxmesh/dnsserver", []string{"pbxmesh/internal/esl", "pbxmesh/internal/udpbatch"}},
		{"pbxmesh/fixtures/phone", []string{"pbxmesh/internal/esl"}},
		{"pbxmesh/cmd/pbxmesh", []string{"pbxmesh/registry"}},
		{"pbxmesh/registry/feed", []string{"github.com/percipia/eslgo/v2"}},
	} {
		if len(violations(p)) != 1 {
			t.Errorf("%+v gives %q", p, violations(p))
		}
	}
	for _, p := range []listed{
		{"pbxmesh", []string{"net/netip"}},
		{"pbxmesh/registry/feed", []string{"pbxmesh", "pbxmesh/registry", "pbxmesh/internal/esl"}},
		{"pbxmesh/cmd/pbxmesh", []string{"pbxmesh/internal/app", "github.com/spf13/cobra"}},
	} {
		if len(violations(p)) != 0 {
			t.Errorf("%+v gives %q", p, violations(p))
		}
	}
}

func violations(p listed) []string {
	var out []string
	own := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
	for _, rule := range rules {
		if own != rule.of && (rule.of == "" || !within(own, rule.of)) {
			continue
		}
		for _, imported := range p.Imports {
			rel, ours := strings.CutPrefix(imported, module+"/")
			if ours && slices.ContainsFunc(rule.banned, func(b string) bool { return within(rel, b) }) {
				out = append(out, fmt.Sprintf("%s imports %s: %s", p.ImportPath, imported, rule.why))
			}
		}
	}
	for library, allowed := range owners {
		for _, imported := range p.Imports {
			if within(imported, library) && !slices.ContainsFunc(allowed, func(a string) bool { return within(own, a) }) {
				out = append(out, fmt.Sprintf("%s imports %s: only %v may", p.ImportPath, imported, allowed))
			}
		}
	}
	return out
}

func within(path, tree string) bool { return path == tree || strings.HasPrefix(path, tree+"/") }

func list(t *testing.T) []listed {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports", module+"/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}
