package e2e_test

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestScenarioGiveBackAtOnce gives many calls back before the switch has parked
// them. A real switch leaves such a channel parked for ever unless it was told to
// resume, so every one of them must reach the next dialplan action.
func TestScenarioGiveBackAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "")
	const rounds, lines = 10, 8
	var worst time.Duration
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range lines {
		p := c.registered(fmt.Sprint(1060+i), fmt.Sprintf("127.0.80.%d", 1+i), "buffalo")
		all.Go(func() {
			for range rounds {
				result, cause, took, err := c.tryDialplan(p, "1099")
				if err != nil {
					t.Error(err)
					return
				}
				if result != "not-registered" || cause != "USER_NOT_REGISTERED" {
					t.Errorf("pbxmesh_result %q, pbxmesh_cause %q", result, cause)
				}
				mu.Lock()
				worst = max(worst, took)
				mu.Unlock()
			}
		})
	}
	all.Wait()
	t.Logf("%d calls came back, the slowest after %s", rounds*lines, worst.Round(time.Millisecond))
}
