package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/registry"
	"pbxmesh/registry/redisstore"
	"pbxmesh/registry/registrytest"
)

// Find needs no daemon, sends one extension's records only, and trusts nothing.
func TestFind(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]redisstore.Options{
		"single": {URL: registrytest.StartRedis(t).URL()}, "cluster": {Addresses: registrytest.StartCluster(t)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t, o)
			aor := func(s string) pbxmesh.AOR {
				a, err := pbxmesh.ParseAOR(s)
				if err != nil {
					t.Fatal(err)
				}
				return a
			}
			if _, _, err := s.Find(t.Context(), aor("1@pbx.test")); !errors.Is(err, registry.ErrNoMesh) {
				t.Fatalf("in an empty store: err %v, want %v", err, registry.ErrNoMesh)
			}
			for _, id := range []pbxmesh.NodeID{"buffalo", "london"} {
				if err := s.Announce(t.Context(), registry.Announcement{Node: pbxmesh.Node{ID: id}}); err != nil {
					t.Fatal(err)
				}
				recs := make([]registry.Record, 0, 20_001)
				for n := range 20_000 {
					recs = append(recs, stored(id, aor(fmt.Sprintf("%d@pbx.test", n)), "a"))
				}
				recs = append(recs, stored(id, aor("7@pbx.test"), "b"))
				bad := stored(id, aor("7@pbx.test"), "c")
				bad.Value = `{"v":2}`
				recs = append(recs, bad)
				p := registry.Publication{Node: id, Instance: "i", Term: 1, Records: recs, Digests: registry.Digests{registry.KindRegistration: {Count: len(recs)}}}
				if _, err := s.Publish(t.Context(), p); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Renew(t.Context(), registry.Lease{Node: "london", Owner: "o", Instance: "i", TTL: time.Minute}); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			found, alive, err := s.Find(t.Context(), aor("7@pbx.test"))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("found among 40,000 in %s", time.Since(began))
			got := ""
			for _, reg := range found {
				got += fmt.Sprint(reg.Node, " ", reg.AOR, " ", reg.CallID, "; ")
			}
			if want := "buffalo 7@pbx.test a; buffalo 7@pbx.test b; london 7@pbx.test a; london 7@pbx.test b; "; got != want {
				t.Errorf("found %s want %s", got, want)
			}
			if alive["buffalo"] || !alive["london"] {
				t.Errorf("alive: %v, want london only", alive)
			}
			if found, _, err := s.Find(t.Context(), aor("nobody@pbx.test")); err != nil || len(found) != 0 {
				t.Errorf("found %v, err %v", found, err)
			}
			ended, cancel := context.WithCancel(t.Context())
			cancel()
			if _, _, err := s.Find(ended, aor("7@pbx.test")); !errors.Is(err, pbxmesh.ErrUnavailable) {
				t.Errorf("err %v, want %v", err, pbxmesh.ErrUnavailable)
			}
		})
	}
}

func stored(node pbxmesh.NodeID, aor pbxmesh.AOR, callID string) registry.Record {
	id := pbxmesh.Registration{AOR: aor, Node: node, CallID: callID}
	return registry.Record{
		Kind: registry.KindRegistration, Key: registry.RegistrationKey(id.ID()), Seq: 1,
		Value: fmt.Sprintf(`{"v":1,"i":%q,"c":"sip:x@192.0.2.1","p":"internal","x":4102444800000}`, callID),
	}
}
