package native

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
)

// TestRowsOfPhonesThatMove: a phone has a row on its newest node alone, which is written
// before the one to its former node is taken away, and not before the switch is about to
// lose its own row of that phone.
func TestRowsOfPhonesThatMove(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, w := newFakeSwitch(), newWorld()
		taken := false
		r := newRows(t, s, w, func(o *RowsOptions) { o.Taken = func(*pbxmesh.Registration) bool { return taken } })
		r.Resync()
		settle()
		anna := mustAOR(t, "anna@a.test")
		stamp := pbxmesh.StampFound
		moves := func(node pbxmesh.NodeID) {
			stamp++
			w.register(anna, node, time.Hour)
			w.mu.Lock()
			moved := *w.regs[anna][len(w.regs[anna])-1]
			moved.Since = stamp
			w.regs[anna] = append(slices.Clone(w.regs[anna][:len(w.regs[anna])-1]), &moved)
			w.mu.Unlock()
			r.Changed(anna)
			settle()
		}
		check := func(when string, want ...string) {
			t.Helper()
			got := s.contacts()
			if len(got) != len(want) || len(want) > 0 && !strings.HasSuffix(got[0], want[0]) {
				t.Errorf("%s: the switch has %q, want %q", when, got, want)
			}
		}
		moves("london")
		check("on london", "fs_path=sip%3A192.0.2.2%3A5090%3Bpbxmesh-row>")
		s.events()
		moves("singapore")
		check("on singapore", "fs_path=sip%3A192.0.2.3%3A5090%3Bpbxmesh-row>")
		if got := s.events(); len(got) != 2 || !strings.Contains(got[0].String(), "sofia::register") || !strings.Contains(got[1].String(), "sofia::unregister") {
			t.Errorf("put before remove: %v", got)
		}
		w.setNode("singapore", addr(3), pbxmesh.ObservedDown, pbxmesh.WantedInService)
		r.NodesChanged()
		settle()
		check("singapore died", "fs_path=sip%3A192.0.2.2%3A5090%3Bpbxmesh-row>")
		w.setNode("singapore", addr(3), pbxmesh.ObservedUp, pbxmesh.WantedInService)
		r.NodesChanged()
		settle()
		check("and is back", "fs_path=sip%3A192.0.2.3%3A5090%3Bpbxmesh-row>")
		if len(s.flushed) > 0 {
			t.Errorf("taken out at once without need: %q", s.flushed)
		}
		moves("buffalo")
		check("here")
		if len(s.flushed) != 1 || !strings.Contains(s.flushed[0], "/singapore/anna@a.test") {
			t.Errorf("taken out at once: %q", s.flushed)
		}
		moves("london")
		check("left, and the own row is still there")
		taken = true
		r.Changed(anna)
		settle()
		check("the own row leaves", "fs_path=sip%3A192.0.2.2%3A5090%3Bpbxmesh-row>")
	})
}
