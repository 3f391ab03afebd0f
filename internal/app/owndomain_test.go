package app

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"pbxmesh"
	"pbxmesh/internal/config"
)

// TestOwnDomain: a phone of this node that has an address for a domain is told of once.
func TestOwnDomain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		node  pbxmesh.NodeID
		users []string
		want  int
	}{
		"a domain":               {"buffalo", []string{"1001@pbx.test"}, 0},
		"the switch's address":   {"buffalo", []string{"1001@192.0.2.10", "1002@192.0.2.10"}, 1},
		"another node's problem": {"london", []string{"1001@198.51.100.20"}, 0},
	} {
		var out bytes.Buffer
		a := &App{cfg: &config.Config{Node: &config.Node{ID: "buffalo"}}, log: slog.New(slog.NewTextHandler(&out, nil))}
		for _, user := range c.users {
			aor, err := pbxmesh.ParseAOR(user)
			if err != nil {
				t.Fatal(err)
			}
			a.ownDomain.note(a, &pbxmesh.Registration{AOR: aor, Node: c.node})
		}
		a.ownDomain.note(a, nil) // one that ended
		if got := strings.Count(out.String(), "fsconf --domain"); got != c.want {
			t.Errorf("%s: told %d times, want %d: %s", name, got, c.want, out.String())
		}
	}
}
