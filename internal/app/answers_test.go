package app

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"pbxmesh"
	"pbxmesh/internal/control"
	"pbxmesh/registry"
	"pbxmesh/registry/memory"
	"pbxmesh/registry/registrytest"
)

// A name server of a mesh without nodes says why nobody gets an answer.
func TestExplainWithoutNodes(t *testing.T) {
	t.Parallel()
	o := observe(t, memory.New(memory.Options{}), "losangeles", "")
	r, err := o.DNSExplain(t.Context(), "pbx.example.com", netip.MustParseAddr("198.51.100.7"))
	if err != nil || len(r.Nodes) != 0 || !strings.Contains(strings.Join(r.Remarks, "\n"), "no node is known: name servers answer SERVFAIL") {
		t.Errorf("%+v, %v", r, err)
	}
}

// A misspelt node is told from one without devices.
func TestListOfNoSuchNode(t *testing.T) {
	t.Parallel()
	wishStores(t, func(t *testing.T, store registry.Backend, _ func()) {
		joins(t, store, "buffalo", 0, 0)
		joins(t, store, "london", 0, 3)
		o := observe(t, store, "losangeles", "")
		o.knows(2, 3)
		registrytest.WaitFor(t, "an answer", func() bool { _, err := o.List(t.Context(), control.ListQuery{Limit: 1}); return err == nil })
		for node, want := range map[pbxmesh.NodeID]int{"": 3, "buffalo": 0, "london": 3} {
			page, err := o.List(t.Context(), control.ListQuery{Node: node, Limit: 10})
			if err != nil || len(page.Registrations) != want {
				t.Errorf("%q: %+v, %v, want %d devices", node, page, err, want)
			}
			end, err := o.ListAll(t.Context(), control.ListQuery{Node: node}, func(*control.Listed) error { return nil })
			if err != nil || end.Count != want {
				t.Errorf("all of %q: %+v, %v, want %d devices", node, end, err, want)
			}
		}
		_, page := o.List(t.Context(), control.ListQuery{Node: "tokyo", Limit: 10})
		_, all := o.ListAll(t.Context(), control.ListQuery{Node: "tokyo"}, func(*control.Listed) error { return nil })
		for _, err := range []error{page, all} {
			if !errors.Is(err, control.ErrRefused) || !strings.HasSuffix(err.Error(), "no node is called tokyo; `pbxmesh nodes` lists them") {
				t.Errorf("err %v", err)
			}
		}
	})
}
