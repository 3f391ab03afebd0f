package demo

import (
	"log/slog"
	"testing"

	"pbxmesh/internal/control"
)

// The daemons that stay up answer `pbxmesh version --daemon` with what they were built from.
func TestDaemonsKnowTheirVersion(t *testing.T) {
	t.Parallel()
	s := newStage("memory", slog.New(slog.DiscardHandler))
	s.version = control.VersionReply{Version: "v1.2.3", Commit: "0123456789ab", Go: "go1.26"}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if err := s.build(); err != nil {
		t.Fatal(err)
	}
	for name, a := range s.daemons {
		client, err := control.NewClient(a.APIAddr().String(), "", stepTimeout)
		if err != nil {
			t.Fatal(err)
		}
		got, err := client.Version(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Version != s.version.Version || got.Commit != s.version.Commit || got.Go != s.version.Go || got.Observer != name {
			t.Errorf("%s says %+v", name, got)
		}
	}
}
