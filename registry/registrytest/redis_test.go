package registrytest

import (
	"strings"
	"testing"
)

// TestTakenPort: a server that another one beat to its port is not taken for that one, which
// would end with a test of its own.
func TestTakenPort(t *testing.T) {
	t.Parallel()
	first := StartRedis(t)
	second := &Redis{dir: t.TempDir(), addr: first.Addr()}
	err := second.start(t.Context())
	if err == nil {
		t.Fatal("it answers on a port that another one has")
	}
	if said := err.Error(); !strings.Contains(said, "another server has taken") && !strings.Contains(said, "ended at once") {
		t.Error(said)
	}
	if err := first.Pause(); err != nil { // it lives
		t.Error(err)
	}
	if err := first.Resume(); err != nil {
		t.Error(err)
	}
}
