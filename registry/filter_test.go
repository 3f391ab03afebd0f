package registry

import (
	"errors"
	"testing"
	"time"

	"pbxmesh"
)

func TestFilter(t *testing.T) {
	t.Parallel()
	r := NewReplica(ReplicaOptions{})
	live := time.Now().Add(time.Hour)
	for _, node := range []pbxmesh.NodeID{"buffalo", "london"} {
		for n := range 300 { // users 1000 to 1299, a domain for every one of 200
			if node == "london" && n >= 10 {
				continue
			}
			reg := device(t, node, n, live)
			r.merge(r.node(node), 1, []Record{record(t, reg, 2)})
		}
	}
	for name, test := range map[string]struct {
		node, domain, user string
		want               int
		err                error
	}{
		"all":                {"", "", "", 310, nil},
		"a star":             {"", "", "*", 310, nil},
		"a node":             {"london", "", "", 10, nil},
		"no such node":       {"paris", "", "", 0, nil},
		"a domain":           {"", "TENANT5.pbx.test", "", 3, nil},
		"a user":             {"", "", "1005", 2, nil},
		"how a user begins":  {"", "", "100*", 20, nil},
		"everything at once": {"buffalo", "tenant5.pbx.test", "1*", 2, nil},
		"a bad user":         {"", "", "a b", 0, pbxmesh.ErrInvalidAOR},
		"two stars":          {"", "", "1**", 0, pbxmesh.ErrInvalidAOR},
		"a bad domain":       {"", "..", "", 0, pbxmesh.ErrInvalidAOR},
		"a bad node":         {"-", "", "", 0, pbxmesh.ErrInvalidNodeID},
	} {
		f, err := NewFilter(test.node, test.domain, test.user)
		if !errors.Is(err, test.err) {
			t.Errorf("%s: err %v, want %v", name, err, test.err)
			continue
		}
		if err != nil {
			continue
		}
		got, pages := 0, 0
		for after, more := (pbxmesh.AOR{}), true; more; pages++ {
			regs, next := r.List(f, after, 7)
			for _, reg := range regs {
				if !f.Match(reg) || reg.AOR.String() <= after.String() {
					t.Errorf("%s: listed %+v after %s", name, reg, after)
				}
			}
			got, after, more = got+len(regs), next, !next.IsZero()
		}
		walked := 0
		r.Walk(func(reg *pbxmesh.Registration) bool {
			if f.Match(reg) {
				walked++
			}
			return true
		})
		if got != test.want || walked != test.want {
			t.Errorf("%s: %d in %d pages, %d when walked, want %d", name, got, pages, walked, test.want)
		}
	}
}
