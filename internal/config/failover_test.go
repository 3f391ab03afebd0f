package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestFailoverMistakes makes every kind of mistake with the keys of failover. '^' stands
// before the place where the problem must be told, and is not part of the file.
func TestFailoverMistakes(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name, src string
		want      []string // parts of the message
	}{
		{"unknown section", "failover:\n  ^prob: {interval: 1s}\n", []string{`failover: unknown key "prob"`, "did you mean probe?", "probe, return, load, drain, restart_grace, latency"}},
		{"section is a list", "failover: ^[probe]\n", []string{"a list is found where a section"}},
		{"unknown key of probe", "failover:\n  probe:\n    ^intervall: 1s\n", []string{"did you mean interval?", "interval, timeout, suspect_after, down_after, up_after, sip, mesh"}},
		{"unknown key of return", "failover: {return: {^holt: 1s}}\n", []string{"did you mean hold?", "hold, ramp, max_hold"}},
		{"unknown key of load", "failover: {load: {^idle_high: 3}}\n", []string{`"idle_high"`, "sessions_low, sessions_high, idle_low, idle_full"}},
		{"unknown key of latency", "failover: {latency: {^on: true}}\n", []string{`"on"`, "enabled, keepalive_interval"}},
		{"key twice", "failover:\n  return:\n    hold: 1s\n    ^hold: 2s\n", []string{"hold"}},

		{"interval without unit", "failover: {probe: {interval: ^1}}\n", []string{"no unit", "write 1s"}},
		{"interval too short", "failover: {probe: {interval: ^99ms, timeout: 50ms}}\n", []string{"failover.probe.interval: 99ms is out of range: 100ms to 1m0s are allowed"}},
		{"interval too long", "failover: {probe: {interval: ^61s}}\n", []string{"1m1s is out of range"}},
		{"timeout is a list", "failover: {probe: {timeout: ^[1s]}}\n", []string{"a list is found where a duration"}},
		{"timeout too short", "failover: {probe: {timeout: ^9ms}}\n", []string{"10ms to 1m0s are allowed"}},
		{"timeout above interval", "failover: {probe: {interval: 2s, timeout: ^1900ms}}\n", []string{"must be below failover.probe.interval, which is 2s: at most 1.8s"}},
		{"suspect_after is text", "failover: {probe: {suspect_after: ^often}}\n", []string{"whole number"}},
		{"suspect_after 0", "failover: {probe: {suspect_after: ^0}}\n", []string{"0 is out of range: 1 to 100 are allowed"}},
		{"suspect_after above down_after", "failover: {probe: {suspect_after: ^5, down_after: 4}}\n", []string{"5 must be below failover.probe.down_after, which is 4"}},
		{"down_after 1", "failover: {probe: {down_after: ^1}}\n", []string{"2 to 100 are allowed"}},
		{"down_after has a fraction", "failover: {probe: {down_after: ^2.5}}\n", []string{"whole number"}},
		{"up_after 101", "failover: {probe: {up_after: ^101}}\n", []string{"1 to 100 are allowed"}},
		{"up_after negative", "failover: {probe: {up_after: ^-1}}\n", []string{"1 to 100 are allowed"}},
		{"sip is a number", "failover: {probe: {sip: ^1}}\n", []string{"true or false"}},
		{"mesh is a word", "failover: {probe: {mesh: ^on}}\n", []string{"true or false"}},

		{"hold negative", "failover: {return: {hold: ^-1s}}\n", []string{"0s to 1h0m0s are allowed"}},
		{"hold too long", "failover: {return: {hold: ^61m, max_hold: 60m}}\n", []string{"1h1m0s is out of range"}},
		{"hold is nothing", "failover: {return: {^hold: }}\n", []string{"failover.return.hold: nothing is found where a duration"}},
		{"ramp is a word", "failover: {return: {ramp: ^slowly}}\n", []string{`"slowly" is no duration`}},
		{"ramp too long", "failover: {return: {ramp: ^2h}}\n", []string{"0s to 1h0m0s are allowed"}},
		{"max_hold too long", "failover: {return: {max_hold: ^2h}}\n", []string{"0s to 1h0m0s are allowed"}},
		{"max_hold below hold", "failover: {return: {hold: 5m, max_hold: ^1m}}\n", []string{"1m0s must not be below failover.return.hold, which is 5m0s"}},
		{"max_hold below the default hold", "failover: {return: {max_hold: ^10s}}\n", []string{"must not be below failover.return.hold, which is 30s"}},

		{"sessions_low above 100", "failover: {load: {sessions_low: ^101}}\n", []string{"0 to 100 are allowed"}},
		{"sessions_low with a sign", "failover: {load: {sessions_low: ^80%}}\n", []string{"whole number"}},
		{"sessions_high not above low", "failover: {load: {sessions_low: 90, sessions_high: ^90}}\n", []string{"90 must be above failover.load.sessions_low, which is 90; both 0 is off"}},
		{"only sessions_high off", "failover: {load: {sessions_high: ^0}}\n", []string{"0 must be above failover.load.sessions_low, which is 80"}},
		{"sessions_high negative", "failover: {load: {sessions_low: 0, sessions_high: ^-5}}\n", []string{"0 to 100 are allowed"}},
		{"idle_low negative", "failover: {load: {idle_low: ^-1}}\n", []string{"0 to 100 are allowed"}},
		{"idle_full not below low", "failover: {load: {idle_low: 5, idle_full: ^5}}\n", []string{"5 must be below failover.load.idle_low, which is 5; both 0 is off"}},
		{"idle_full is true", "failover: {load: {idle_full: ^true}}\n", []string{"whole number"}},

		{"restart_grace without unit", "failover: {restart_grace: ^10}\n", []string{"no unit", "write 10s"}},
		{"restart_grace negative", "failover: {restart_grace: ^-1s}\n", []string{"0s to 1h0m0s are allowed"}},
		{"restart_grace too long", "failover: {restart_grace: ^61m}\n", []string{"0s to 1h0m0s are allowed"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			before, after, ok := strings.Cut(tc.src, "^")
			if !ok {
				t.Fatal("no place is marked")
			}
			line := 1 + strings.Count(before, "\n")
			column := len(before) - strings.LastIndex(before, "\n")
			cfg, err := Parse("p.yaml", []byte(before+after))
			var problems Problems
			if cfg != nil || !errors.As(err, &problems) {
				t.Fatalf("accepted: %v", err)
			}
			if len(problems) != 1 {
				t.Errorf("%d problems, one mistake is one message:\n%v", len(problems), err)
			}
			if at := fmt.Sprintf("p.yaml:%d:%d: ", line, column); !strings.HasPrefix(problems[0].Error(), at) || !containsAll(problems[0].Error(), tc.want) {
				t.Errorf("want at %s the words %q:\n%v", at, tc.want, err)
			}
		})
	}
}

// TestFailoverBounds takes the values at the very edges.
func TestFailoverBounds(t *testing.T) {
	t.Parallel()
	for _, src := range []string{
		"failover: {probe: {interval: 100ms, timeout: 90ms, suspect_after: 1, down_after: 2, up_after: 1}}\n",
		"failover: {probe: {interval: 1m, timeout: 54s, suspect_after: 99, down_after: 100, up_after: 100}}\n",
		"failover: {return: {hold: 0s, ramp: 0s, max_hold: 0s}, restart_grace: 0s}\n",
		"failover: {return: {hold: 1h, ramp: 1h, max_hold: 1h}, restart_grace: 1h}\n",
		"failover: {load: {sessions_low: 0, sessions_high: 0, idle_low: 0, idle_full: 0}}\n",
		"failover: {load: {sessions_low: 99, sessions_high: 100, idle_low: 1, idle_full: 0}}\n",
	} {
		if _, err := Parse("p.yaml", []byte(src)); err != nil {
			t.Errorf("%s%v", src, err)
		}
	}
}
