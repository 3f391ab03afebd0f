package doctor

import (
	"strings"
	"testing"
)

func TestJudgeKeepAlives(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		set    map[string][]string
		phones int
		status Status
		says   string
	}{
		{"all", map[string][]string{"all-reg-options-ping": {"true"}}, 300, OK, "every 30 s, 10.0 a second for the 300"},
		{"the last one counts", map[string][]string{"all-reg-options-ping": {"true", "false"}}, 0, Warn, "for the 0"},
		{"seldom", map[string][]string{"all-reg-options-ping": {"yes"}, "ping-mean-interval": {"120"}}, -1, OK, "every 120 s, 8.3 a second for 1000"},
		{"an interval that is none", map[string][]string{"ping-mean-interval": {"0"}}, 60, Warn, "every 30 s, 2.0 a second for the 60"},
		{"NAT", map[string][]string{"nat-options-ping": {"true"}}, 1, OK, "behind NAT only"},
		{"NAT on UDP", map[string][]string{"nat-options-ping": {"udp-only"}}, 1, OK, "behind NAT on UDP only"},
	} {
		r := judgeKeepAlives("internal", tc.set, tc.phones)
		if r.Status != tc.status || !strings.Contains(r.Seen+r.Do, tc.says) {
			t.Errorf("%s: %+v", tc.name, r)
		}
	}
}

func TestKeepAlivesNotWanted(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.cfg.Failover.Latency.KeepAliveInterval = 0
	for _, c := range m.examine(t).Checks {
		if strings.HasPrefix(c.Check, "keep-alives") {
			t.Errorf("%+v", c)
		}
	}
}
