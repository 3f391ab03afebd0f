package drain

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
)

var start = time.Date(2026, 11, 26, 22, 0, 0, 0, time.UTC)

func device(t testing.TB, n int, expires time.Duration) *pbxmesh.Registration {
	t.Helper()
	aor, err := pbxmesh.NewAOR(fmt.Sprint(1000+n), "pbx.test")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), 5060)
	return &pbxmesh.Registration{
		AOR: aor, Node: "london", CallID: fmt.Sprintf("call-%d", n), Contact: "sip:" + aor.User() + "@" + addr.String(),
		Profile: "internal", Source: addr, UserAgent: "Phone 1", Expires: start.Add(expires),
	}
}

// world is a node that is drained and its phones, without any time passing by itself.
type world struct {
	t     *testing.T
	m     *Machine
	now   time.Time
	local []*pbxmesh.Registration
	busy  map[pbxmesh.AOR]bool
	other map[pbxmesh.AOR]*pbxmesh.Registration
	pace  int
}

func newWorld(t *testing.T, s Settings, pace int, local ...*pbxmesh.Registration) *world {
	return &world{t: t, m: NewMachine(start, s), now: start, local: local, busy: map[pbxmesh.AOR]bool{}, other: map[pbxmesh.AOR]*pbxmesh.Registration{}, pace: pace}
}

func (w *world) picture() Picture {
	return Picture{
		Local: slices.Clone(w.local), Calls: len(w.busy), Pace: w.pace,
		Busy: func(r *pbxmesh.Registration) bool { return w.busy[r.AOR] },
		Elsewhere: func(r *pbxmesh.Registration) bool {
			o := w.other[r.AOR]
			return o != nil && pbxmesh.SameDevice(r, o)
		},
	}
}

// step goes on by d and returns what is done, as "tell 1001" and "flush 1001".
func (w *world) step(d time.Duration) []string {
	w.now = w.now.Add(d)
	out := []string{}
	for _, a := range w.m.Step(w.now, w.picture()) {
		verb := "tell "
		if a.Kind == Flush {
			if verb = "flush "; a.Again {
				verb = "flush again "
			}
			w.local = slices.DeleteFunc(w.local, func(r *pbxmesh.Registration) bool { return r.ID() == a.Reg.ID() })
		}
		out = append(out, verb+a.Reg.AOR.User())
	}
	return out
}

// arrives registers reg's device elsewhere.
func (w *world) arrives(reg *pbxmesh.Registration, change func(*pbxmesh.Registration)) {
	there := *reg
	there.Node, there.CallID = "buffalo", reg.CallID+"-new"
	if change != nil {
		change(&there)
	}
	w.other[reg.AOR] = &there
	w.m.Arrived(w.now, &there)
}

func (w *world) want(got []string, want ...string) {
	w.t.Helper()
	if !slices.Equal(got, append([]string{}, want...)) {
		w.t.Errorf("%s: did %v, want %v", w.now.Sub(start), got, want)
	}
}

var checkSync = Settings{Method: MethodCheckSync, Grace: time.Minute, Again: 30 * time.Second}

// TestMachineEdges walks every edge of the state chart.
func TestMachineEdges(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		settings Settings
		run      func(*world, *pbxmesh.Registration)
	}{
		{"here, told, moved, row flushed", checkSync, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(time.Second), "tell 1001")
			w.want(w.step(time.Second))
			w.arrives(r, nil)
			w.want(w.step(50*time.Millisecond), "flush 1001")
			w.want(w.step(time.Second))
		}},
		{"told, moved after a restart to another port", checkSync, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(time.Second), "tell 1001")
			w.now = w.now.Add(40 * time.Second)
			w.arrives(r, func(n *pbxmesh.Registration) { n.Contact = "sip:1001@192.0.0.1:1024" })
			w.want(w.step(50*time.Millisecond), "flush 1001")
		}},
		{"another phone of the user elsewhere is not this one", checkSync, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(time.Second), "tell 1001")
			w.arrives(r, func(n *pbxmesh.Registration) { n.Source = netip.MustParseAddrPort("203.0.113.1:5060") })
			w.want(w.step(time.Second))
		}},
		{"told, grace over", checkSync, func(w *world, _ *pbxmesh.Registration) {
			w.want(w.step(time.Second), "tell 1001")
			w.want(w.step(59 * time.Second))
			w.want(w.step(time.Second), "flush 1001")
		}},
		{"told, registered here again, told again no sooner than allowed", checkSync, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(time.Second), "tell 1001")
			again := *r
			again.Expires = again.Expires.Add(20 * time.Second)
			w.local[0] = &again
			w.want(w.step(20 * time.Second))
			w.want(w.step(9 * time.Second))
			w.want(w.step(time.Second), "tell 1001")
			if p := w.m.Progress(); p.Returned != 1 {
				w.t.Errorf("returned %d", p.Returned)
			}
		}},
		{"flushed, came back, flushed again no sooner than allowed", Settings{Method: MethodFlush, Grace: time.Minute, Again: 30 * time.Second}, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(time.Second), "flush 1001")
			w.want(w.step(5 * time.Second))
			again := *r
			again.Expires = again.Expires.Add(time.Minute)
			w.local = append(w.local, &again)
			w.want(w.step(time.Second))
			w.want(w.step(23 * time.Second))
			w.want(w.step(time.Second), "flush 1001")
		}},
		{"flushed, and the row is still there", Settings{Method: MethodFlush, Grace: time.Minute, Again: 30 * time.Second}, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(time.Second), "flush 1001")
			w.local = append(w.local, r)
			w.want(w.step(time.Second))
			w.want(w.step(2*time.Second), "flush again 1001")
		}},
		{"in a call: left alone until it ends", checkSync, func(w *world, r *pbxmesh.Registration) {
			w.busy[r.AOR] = true
			w.want(w.step(10 * time.Minute))
			delete(w.busy, r.AOR)
			w.want(w.step(time.Second), "tell 1001")
			w.busy[r.AOR] = true
			w.want(w.step(2 * time.Minute)) // grace over, but it talks
			w.arrives(r, nil)
			w.want(w.step(time.Second)) // not even the row that is left
			delete(w.busy, r.AOR)
			w.want(w.step(time.Second), "flush 1001")
		}},
		{"who is in a call is not known: nobody is touched", checkSync, func(w *world, _ *pbxmesh.Registration) {
			pic := w.picture()
			pic.Busy = nil
			if got := w.m.Step(w.now.Add(time.Second), pic); len(got) > 0 {
				w.t.Errorf("did %v", got)
			}
		}},
		{"nobody is told before old answers have run out", Settings{Method: MethodCheckSync, After: 30 * time.Second, Grace: time.Minute, Again: time.Minute}, func(w *world, _ *pbxmesh.Registration) {
			w.want(w.step(29 * time.Second))
			if p := w.m.Progress(); p.Pause == "" {
				w.t.Error("it does not say why nobody is told")
			}
			w.want(w.step(time.Second), "tell 1001")
			if p := w.m.Progress(); p.Pause != "" {
				w.t.Errorf("it still says %q", p.Pause)
			}
		}},
		{"wait: nobody is told, what is left behind goes", Settings{Method: MethodWait, Grace: time.Minute, Again: time.Minute}, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(10 * time.Minute))
			w.arrives(r, nil)
			w.want(w.step(time.Second), "flush 1001")
		}},
		{"paused: nobody is told, what is left behind goes", checkSync, func(w *world, r *pbxmesh.Registration) {
			w.pace = 0
			w.want(w.step(time.Minute))
			w.arrives(r, nil)
			w.want(w.step(time.Second), "flush 1001")
		}},
		{"a command that failed is not done", checkSync, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(time.Second), "tell 1001")
			w.m.Failed(Action{Kind: Tell, Reg: r})
			w.want(w.step(time.Second), "tell 1001")
			if p := w.m.Progress(); p.Told != 1 {
				w.t.Errorf("told %d", p.Told)
			}
		}},
		{"what no command can name is left alone", checkSync, func(w *world, r *pbxmesh.Registration) {
			w.want(w.step(time.Second), "tell 1001")
			w.m.Skip(Action{Kind: Tell, Reg: r})
			w.want(w.step(time.Hour))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := device(t, 1, time.Hour)
			tc.run(newWorld(t, tc.settings, 10, r), r)
		})
	}
}

// TestMachineOrder: who would stay longest is told first, and a phone that already
// waits for its flush comes before those that were not told.
func TestMachineOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t, checkSync, 1, device(t, 1, time.Minute), device(t, 2, time.Hour))
	w.want(w.step(time.Second), "tell 1002")
	w.busy[w.local[0].AOR] = true
	w.want(w.step(61*time.Second), "flush 1002")
}

// TestMachinePace plays phones that answer late, never, or by themselves, and looks at
// every second of what the others receive.
func TestMachinePace(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name    string
		pace    int
		delay   func(n int) time.Duration // from being told to registering elsewhere; < 0 never
		lag     time.Duration             // until we see it
		natural int                       // every natural-th phone leaves by itself, one a second
		within  time.Duration
	}{
		{"at once", 20, func(int) time.Duration { return 0 }, 0, 0, 12 * time.Second},
		{"seen late", 20, func(int) time.Duration { return 10 * time.Millisecond }, 800 * time.Millisecond, 0, 24 * time.Second},
		{"in volleys", 50, func(n int) time.Duration { return time.Duration(n%10) * 250 * time.Millisecond }, 100 * time.Millisecond, 0, 30 * time.Second},
		{"a stall and all at once", 50, func(n int) time.Duration { return time.Duration(30-n%30) * 90 * time.Millisecond }, 0, 0, 40 * time.Second},
		{"one a second", 1, func(int) time.Duration { return 100 * time.Millisecond }, 0, 0, time.Minute},
		{"half never", 50, func(n int) time.Duration { return time.Duration(n%2*-1) * time.Second }, 0, 0, 2 * time.Minute},
		{"some by themselves", 20, func(int) time.Duration { return 50 * time.Millisecond }, 50 * time.Millisecond, 5, 30 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			phones := 20 + 10*tc.pace
			w := newWorld(t, checkSync, tc.pace)
			for n := range phones {
				w.local = append(w.local, device(t, n, time.Hour))
			}
			type event struct {
				at   time.Duration
				reg  *pbxmesh.Registration
				seen bool
			}
			var events []event
			var arrivals []time.Duration
			for n, r := range w.local {
				if tc.natural > 0 && n%tc.natural == 0 {
					events = append(events, event{time.Duration(n/tc.natural) * time.Second, r, false})
				}
			}
			gone := map[pbxmesh.AOR]bool{}
			const tick = 20 * time.Millisecond
			at := time.Duration(0)
			for ; len(w.local) > 0 && at < time.Hour; at += tick {
				w.now = start.Add(at)
				for i := 0; i < len(events); i++ {
					e := events[i]
					if e.at > at {
						continue
					}
					events = slices.Delete(events, i, i+1)
					i--
					if e.seen {
						w.arrives(e.reg, nil)
					} else if !gone[e.reg.AOR] {
						gone[e.reg.AOR] = true
						arrivals = append(arrivals, at)
						events = append(events, event{at + tc.lag, e.reg, true})
					}
				}
				pic := w.picture()
				for _, a := range w.m.Step(w.now, pic) {
					if a.Kind == Flush {
						w.local = slices.DeleteFunc(w.local, func(r *pbxmesh.Registration) bool { return r.ID() == a.Reg.ID() })
						continue
					}
					var n int
					_, _ = fmt.Sscanf(a.Reg.CallID, "call-%d", &n)
					if d := tc.delay(n); d >= 0 {
						events = append(events, event{at + d, a.Reg, false})
					}
				}
			}
			if len(w.local) > 0 || at > tc.within {
				t.Errorf("%d left after %s, %s are allowed", len(w.local), at, tc.within)
			}
			slices.Sort(arrivals)
			worst := 0
			for i := range arrivals {
				n := 0
				for j := i; j < len(arrivals) && arrivals[j]-arrivals[i] < time.Second; j++ {
					n++
				}
				worst = max(worst, n)
			}
			if worst > tc.pace {
				t.Errorf("%d registrations within one second, the pace is %d", worst, tc.pace)
			}
			t.Logf("%d phones in %s, at most %d in any second of a pace of %d", phones, at, worst, tc.pace)
		})
	}
}

func TestProgress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, checkSync, 10)
	for n := range 100 {
		w.local = append(w.local, device(t, n, time.Hour))
	}
	w.step(time.Second)
	if p := w.m.Progress(); p.Total != 100 || p.Registrations != 100 || p.LeftSeconds != -1 || p.Done() {
		t.Errorf("at the start: %+v", p)
	}
	for range 10 {
		w.local = w.local[5:]
		w.step(time.Second)
	}
	p := w.m.Progress()
	if p.Registrations != 50 || p.LeftSeconds != 10 {
		t.Errorf("5 leave a second and 50 are left: %+v", p)
	}
	p.Node = "london"
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if q, err := DecodeProgress("london", text); err != nil || q != p {
		t.Errorf("read again: %+v, %v", q, err)
	}
	for _, bad := range []string{"", "[]", `{"node":"buffalo"}`, `{"node":"london","registrations":-1}`, `{"node":"london","error":"\u001b[2J"}`} {
		if _, err := DecodeProgress("london", bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	w.local, w.busy = nil, map[pbxmesh.AOR]bool{}
	w.step(time.Second)
	if p := w.m.Progress(); !p.Done() || p.LeftSeconds != 0 {
		t.Errorf("empty: %+v", p)
	}
}

// Whatever a switch answers, its trouble can be shared, and shown on a terminal.
func TestProgressCarriesTrouble(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ text, want string }{
		"short":              {"the switch is away", "the switch is away"},
		"long":               {strings.Repeat("x", 300), strings.Repeat("x", 256)},
		"cut between runes":  {strings.Repeat("x", 255) + "é", strings.Repeat("x", 255)},
		"an escape":          {"\x1b[2J", `"\x1b[2J"`},
		"no UTF-8":           {strings.Repeat("\xff", 300), `"` + strings.Repeat(`\xff`, 200) + `"`},
		"what JSON escapes":  {strings.Repeat("<", 256), strings.Repeat("<", 256)},
		"nothing but quotes": {strings.Repeat(`"`, 256), strings.Repeat(`"`, 256)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := Progress{
				Node: "london", Turn: 1 << 53, Method: MethodCheckSync, Started: start, Updated: start, Registrations: 1e7, InCall: 1e7,
				Calls: 1e7, Total: 1e7, Moved: 1e7, Told: 1e7, Flushed: 1e7, Returned: 1e7, Pace: MaxPace, Pause: tc.text, LeftSeconds: 1e7, Err: tc.text,
			}
			text, err := p.Encode()
			if err != nil {
				t.Fatal(err)
			}
			got, err := DecodeProgress("london", text)
			if err != nil || got.Err != tc.want || got.Pause != tc.want {
				t.Errorf("%d bytes are read as %q, %q, %v", len(text), got.Err, got.Pause, err)
			}
		})
	}
	if _, err := DecodeProgress("london", strings.Repeat(" ", maxProgressLen+1)); !errors.Is(err, pbxmesh.ErrInvalidRecord) || !strings.Contains(err.Error(), "at most 4096 are allowed") {
		t.Errorf("a progress without end: %v", err)
	}
}

// FuzzDecodeProgress: what is accepted is about the node that was asked for, and can be
// shown on a terminal and shared again.
func FuzzDecodeProgress(f *testing.F) {
	p := Progress{Node: "london", Method: MethodCheckSync, Started: start, Updated: start, LeftSeconds: -1, Calls: -1}
	text, err := p.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add("london", text)
	f.Add("london", `{"node":"london","started":"0000-01-01T00:00:00+23:59"}`)
	f.Fuzz(func(t *testing.T, node, text string) {
		p, err := DecodeProgress(node, text)
		if err != nil {
			if !errors.Is(err, pbxmesh.ErrInvalidRecord) {
				t.Fatal(err)
			}
			return
		}
		if string(p.Node) != node || !printable(p.Err+p.Pause+string(p.Method)) || p.Registrations < 0 || p.Calls < -1 || p.LeftSeconds < -1 {
			t.Fatalf("accepted %+v", p)
		}
	})
}
