package redisstore_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// Everything is given once, also when its node publishes anew meanwhile, and a filter
// is Redis's work.
func TestStream(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]redisstore.Options{
		"single": {URL: registrytest.StartRedis(t).URL()}, "cluster": {Addresses: registrytest.StartCluster(t)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, o)
			all := func(*pbxmesh.Registration, bool) error { return nil }
			if err := s.Stream(t.Context(), registry.Filter{}, all); !errors.Is(err, registry.ErrNoMesh) {
				t.Fatalf("in an empty store: err %v, want %v", err, registry.ErrNoMesh)
			}
			const each = 5000
			publish := func(id pbxmesh.NodeID) {
				t.Helper()
				recs := make([]registry.Record, 0, each+1)
				for n := range each {
					aor, err := pbxmesh.NewAOR(fmt.Sprint(n), fmt.Sprintf("tenant%d.test", n%10))
					if err != nil {
						t.Fatal(err)
					}
					recs = append(recs, stored(id, aor, "a"))
				}
				bad := recs[7]
				bad.Key, bad.Value = bad.Key+"x", `{"v":2}`
				recs = append(recs, bad)
				p := registry.Publication{Node: id, Instance: "i", Term: 1, Records: recs, Digests: registry.Digests{registry.KindRegistration: {Count: len(recs)}}}
				if _, err := s.Publish(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			for _, id := range []pbxmesh.NodeID{"buffalo", "london"} {
				if err := s.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: id}}); err != nil {
					t.Fatal(err)
				}
				publish(id)
			}
			list := func(node, domain, user string, during func(n int)) (int, error) {
				f, err := registry.NewFilter(node, domain, user)
				if err != nil {
					t.Fatal(err)
				}
				seen := map[string]bool{}
				err = s.Stream(t.Context(), f, func(reg *pbxmesh.Registration, alive bool) error {
					key := fmt.Sprint(reg.Node, reg.AOR, reg.CallID)
					if seen[key] || alive || !f.Match(reg) {
						t.Errorf("%s, alive %v, seen before %v", key, alive, seen[key])
					}
					seen[key] = true
					during(len(seen))
					return nil
				})
				return len(seen), err
			}
			for _, test := range []struct {
				node, domain, user string
				want               int
			}{{"", "", "", 2 * each}, {"london", "", "", each}, {"", "tenant3.test", "", each / 5}, {"", "", "42", 2}, {"", "", "49*", 2 * 111}} {
				if n, err := list(test.node, test.domain, test.user, func(int) {}); n != test.want || err != nil {
					t.Errorf("%+v: %d, err %v", test, n, err)
				}
			}
			if _, err := list("paris", "", "", nil); !errors.Is(err, registry.ErrNoNode) || !strings.Contains(err.Error(), "no node is called paris") {
				t.Errorf("of no such node: err %v, want %v", err, registry.ErrNoNode)
			}
			n, err := list("", "", "", func(n int) {
				if n == 1500 || n == each+1500 {
					publish("buffalo")
					publish("london")
				}
			})
			if n != 2*each || err != nil {
				t.Errorf("while they publish anew: %d, err %v", n, err)
			}
			enough := errors.New("enough")
			err = s.Stream(t.Context(), registry.Filter{}, func(*pbxmesh.Registration, bool) error { return enough })
			if !errors.Is(err, enough) {
				t.Errorf("err %v, want that of the caller", err)
			}
		})
	}
}
