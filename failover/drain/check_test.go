package drain

import (
	"slices"
	"testing"

	"pbxmesh"
)

// full is a node that takes phones, with registrations of capacity and channels of
// max-sessions.
func full(node pbxmesh.NodeID, registrations, capacity, sessions, most int) Load {
	return Load{Node: node, TakesPhones: true, Registrations: registrations, Capacity: capacity, Sessions: sessions, MaxSessions: most}
}

// closed is a node that takes no phones.
func closed(l Load, leaving bool) Load {
	l.TakesPhones, l.Leaving = false, leaving
	return l
}

func TestCheck(t *testing.T) {
	t.Parallel()
	london := full("london", 100, 200, 10, 100)
	for _, tc := range []struct {
		name     string
		loads    []Load
		refused  []string
		warnings []string
	}{
		{"room", []Load{london, full("buffalo", 0, 200, 0, 100)}, nil, nil},
		{"just enough", []Load{london, full("buffalo", 100, 200, 90, 100)}, nil, nil},
		{"the sum counts", []Load{full("buffalo", 150, 200, 95, 100), london, full("paris", 50, 100, 95, 100)}, nil, nil},
		{
			"one registration too many",
			[]Load{london, full("buffalo", 101, 200, 0, 100)},
			[]string{"london holds 100 registrations, and the others have room for 99 (node.capacity)"}, nil,
		},
		{
			"one channel too many",
			[]Load{london, full("buffalo", 0, 200, 91, 100)},
			[]string{"london carries 10 channels, and the others have room for 9 (max-sessions)"}, nil,
		},
		{
			"both",
			[]Load{london, full("buffalo", 200, 200, 100, 100)},
			[]string{
				"london holds 100 registrations, and the others have room for 0 (node.capacity)",
				"london carries 10 channels, and the others have room for 0 (max-sessions)",
			}, nil,
		},
		{
			"a node over its capacity takes no room from another",
			[]Load{london, full("buffalo", 300, 200, 200, 100), full("paris", 100, 200, 0, 10)}, nil, nil,
		},
		{"the only node", []Load{london}, []string{"no other node would take phones"}, nil},
		{"nothing known", nil, nil, nil},
		{
			"the others are down or out",
			[]Load{london, closed(full("buffalo", 0, 1000, 0, 1000), false)},
			[]string{"no other node would take phones"}, nil,
		},
		{
			"capacity not known",
			[]Load{london, full("buffalo", 50, 0, 0, 100), full("paris", 50, 60, 0, 100)}, nil,
			[]string{"how many registrations buffalo can hold is not known: set node.capacity there"},
		},
		{
			"max-sessions not known",
			[]Load{full("london", 1, 0, 0, 0), full("buffalo", 0, 100, 0, 0), full("paris", 0, 100, 0, 50)}, nil,
			[]string{"how many calls buffalo, london can carry is not known: no heartbeat of the switch yet"},
		},
		{
			"many not known",
			[]Load{london, full("a", 0, 0, 0, 99), full("b", 0, 0, 0, 99), full("c", 0, 0, 0, 99), full("d", 0, 0, 0, 99), full("e", 0, 0, 0, 99), full("f", 0, 0, 0, 99), full("g", 0, 0, 0, 99)},
			nil,
			[]string{"how many registrations a, b, c, d, e and 2 more can hold is not known: set node.capacity there"},
		},
		{
			"capacity not known, and no channel is free",
			[]Load{london, full("buffalo", 0, 0, 100, 100)},
			[]string{"london carries 10 channels, and the others have room for 0 (max-sessions)"},
			[]string{"how many registrations buffalo can hold is not known: set node.capacity there"},
		},
		{
			"takes no phones already",
			[]Load{closed(london, true), full("buffalo", 200, 200, 100, 100)}, nil, nil,
		},
		{
			"a drained node has no room, and its phones are still to come",
			[]Load{london, closed(full("paris", 20, 1000, 0, 1000), true), full("buffalo", 90, 200, 0, 100)},
			[]string{"london holds 100 registrations and paris, being drained, 20 more, and the others have room for 110 (node.capacity)"}, nil,
		},
		{
			"and its calls",
			[]Load{london, closed(full("paris", 0, 1000, 95, 1000), true), full("buffalo", 0, 200, 0, 100)},
			[]string{"london carries 10 channels and paris, being drained, 95 more, and the others have room for 100 (max-sessions)"}, nil,
		},
		{
			"a drained node that is empty",
			[]Load{london, closed(full("paris", 0, 1000, 0, 1000), true), full("buffalo", 90, 200, 0, 100)}, nil, nil,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			v := Check("london", tc.loads)
			if !slices.Equal(v.Refused, tc.refused) {
				t.Errorf("refused %q, want %q", v.Refused, tc.refused)
			}
			if !slices.Equal(v.Warnings, tc.warnings) {
				t.Errorf("warnings %q, want %q", v.Warnings, tc.warnings)
			}
		})
	}
}

func TestPace(t *testing.T) {
	t.Parallel()
	london := full("london", 100, 90000, 0, 0)
	for _, tc := range []struct {
		name       string
		loads      []Load
		configured int
		force      bool
		pace       int
		why        string
	}{
		{"a three-hundredth of the capacity", []Load{london, full("buffalo", 0, 6000, 0, 0)}, 0, false, 20, ""},
		{"the sum of all", []Load{london, full("buffalo", 0, 6000, 0, 0), full("paris", 0, 3000, 0, 0)}, 0, false, 30, ""},
		{"10 when it is not known", []Load{london, full("buffalo", 0, 6000, 0, 0), full("paris", 0, 0, 0, 0)}, 0, false, 30, ""},
		{"5 at least", []Load{london, full("buffalo", 0, 100, 0, 0)}, 0, false, 5, ""},
		{"100 at most", []Load{london, full("buffalo", 0, 90000, 0, 0)}, 0, false, 100, ""},
		{"configured", []Load{london, full("buffalo", 0, 100, 0, 0)}, 400, false, 400, ""},
		{"nobody there", []Load{london}, 400, true, 0, "no other node takes phones"},
		{"nobody open", []Load{london, closed(full("buffalo", 0, 100, 0, 0), false)}, 400, true, 0, "no other node takes phones"},
		{"full", []Load{london, full("buffalo", 100, 100, 0, 0)}, 400, false, 0, "no other node has room (node.capacity)"},
		{"full and forced", []Load{london, full("buffalo", 100, 100, 0, 0)}, 0, true, 5, ""},
		{"one may have room", []Load{london, full("buffalo", 100, 100, 0, 0), full("paris", 100, 0, 0, 0)}, 0, false, 10, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			if pace, why := Pace("london", tc.loads, tc.configured, tc.force); pace != tc.pace || why != tc.why {
				t.Errorf("%d, %q; want %d, %q", pace, why, tc.pace, tc.why)
			}
		})
	}
}
