package drain

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pbxmesh"
	"pbxmesh/internal/esl"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is the event socket of a switch with a table of registrations behind it,
// which is the Directory as well.
type scripted struct {
	t  testing.TB
	ln net.Listener
	wg sync.WaitGroup

	mu       sync.Mutex
	rows     []*pbxmesh.Registration
	other    []*pbxmesh.Registration // on another node
	channels string
	reply    string // to commands about phones
	conns    map[net.Conn]struct{}
	log      []string // of these
}

func newScripted(t testing.TB, rows ...*pbxmesh.Registration) *scripted {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{t: t, ln: ln, rows: rows, channels: `{"row_count":0}`, reply: "+OK\n", conns: map[net.Conn]struct{}{}}
	s.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.set(func() { s.conns[c] = struct{}{} })
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		s.drop()
		s.wg.Wait()
	})
	return s
}

func (s *scripted) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// drop cuts the connections.
func (s *scripted) drop() {
	s.set(func() {
		for c := range s.conns {
			c.Close()
			delete(s.conns, c)
		}
	})
}

func (s *scripted) serve(c net.Conn) {
	defer c.Close()
	fmt.Fprint(c, "Content-Type: auth/request\n\n")
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		api, isAPI := strings.CutPrefix(strings.TrimSpace(line), "api ")
		switch {
		case strings.TrimSpace(line) == "":
		case !isAPI:
			fmt.Fprint(c, "Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
		default:
			body := s.answer(api)
			fmt.Fprintf(c, "Content-Type: api/response\nContent-Length: %d\n\n%s", len(body), body)
		}
	}
}

func (s *scripted) answer(command string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if command == "show channels as json" {
		return s.channels
	}
	s.log = append(s.log, command)
	if id, ok := strings.CutPrefix(command, "sofia profile internal flush_inbound_reg "); ok && strings.HasPrefix(s.reply, "+OK") {
		s.rows = slices.DeleteFunc(s.rows, func(r *pbxmesh.Registration) bool { return r.CallID == id })
	}
	return s.reply
}

// begins tells of a channel.
func (s *scripted) begins(name string) {
	event := "Event-Name: CHANNEL_CREATE\nChannel-Name: " + strings.ReplaceAll(name, "/", "%2F") + "\n\n"
	s.set(func() {
		for c := range s.conns {
			fmt.Fprintf(c, "Content-Length: %d\nContent-Type: text/event-plain\n\n%s", len(event), event)
		}
	})
}

func (s *scripted) commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// WalkNode implements Directory.
func (s *scripted) WalkNode(node pbxmesh.NodeID, yield func(*pbxmesh.Registration) bool) {
	s.mu.Lock()
	rows := slices.Clone(s.rows)
	s.mu.Unlock()
	for _, r := range rows {
		if r.Node == node && !yield(r) {
			return
		}
	}
}

// Lookup implements Directory.
func (s *scripted) Lookup(aor pbxmesh.AOR) []*pbxmesh.Registration {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*pbxmesh.Registration
	for _, r := range slices.Concat(s.rows, s.other) {
		if r.AOR == aor {
			out = append(out, r)
		}
	}
	return out
}

// watched is a Drainer that runs, and what it says last.
type watched struct {
	*Drainer
	t    testing.TB
	mu   sync.Mutex
	last Progress
	said int
}

func runDrainer(t testing.TB, s *scripted, method Method) *watched {
	t.Helper()
	w := &watched{t: t}
	w.Drainer = New(Options{
		Node: "london", ESL: esl.Config{Address: s.ln.Addr().String(), Password: "ClueCon"}, Directory: s,
		Settings:   Settings{Method: method, Grace: time.Hour, Again: time.Hour},
		TakesCalls: func(node pbxmesh.NodeID) bool { return node != "singapore" },
		Pace:       func() (int, string) { return 100, "" },
		OnProgress: func(p Progress) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.last = p
			w.said++
		},
		Now: func() time.Time { return start.Add(time.Since(began)) },
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return w
}

// began anchors the clock of registrations in ours.
var began = time.Now()

func (w *watched) progress() Progress {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// eventually polls; only a failing test waits long.
func (w *watched) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			w.t.Fatalf("still not so: %s; %+v", what, w.progress())
		}
		<-tick.C
	}
}

func TestDrainerTellsAndSeesThemGo(t *testing.T) {
	t.Parallel()
	phones := []*pbxmesh.Registration{device(t, 1, time.Hour), device(t, 2, time.Hour), device(t, 3, time.Hour)}
	phones[2].CallID = "reboot" // no command may name it
	s := newScripted(t, slices.Clone(phones)...)
	s.channels = `{"row_count":1,"rows":[{"uuid":"a","name":"sofia/internal/1002@pbx.test","call_uuid":"a"}]}`
	w := runDrainer(t, s, MethodCheckSync)
	w.Arrived(phones[0]) // nothing is wanted yet: not kept
	w.Want(4)
	w.eventually("the phone that is idle is told", func() bool { p := w.progress(); return p.Told == 1 && p.InCall == 1 && p.Calls == 1 })
	if got := s.commands(); !slices.Equal(got, []string{"sofia profile internal check_sync call-1"}) {
		t.Errorf("sent %q", got)
	}
	if p := w.progress(); p.Node != "london" || p.Turn != 4 || p.Registrations != 3 || p.Total != 3 || p.Pace != 100 || p.Err != "" || p.Moved != 0 {
		t.Errorf("progress %+v", p)
	}
	there := *phones[0]
	there.Node, there.CallID = "buffalo", "call-new"
	s.set(func() { s.other = append(s.other, &there) })
	w.Arrived(&there)
	w.eventually("the row that is left goes", func() bool { p := w.progress(); return p.Moved == 1 && p.Registrations == 2 })
	s.set(func() { s.channels = `{"row_count":0}` })
	w.eventually("the phone that talked is told", func() bool { return w.progress().Told == 2 })
	if got := s.commands(); !slices.Equal(got, []string{
		"sofia profile internal check_sync call-1", "sofia profile internal flush_inbound_reg call-1", "sofia profile internal check_sync call-2",
	}) {
		t.Errorf("sent %q", got)
	}
}

// A row on another node is that of a phone that moved there only when it is the later
// one, on a node that takes calls. What a phone left behind when it came here is not.
func TestDrainerKnowsWhereAPhoneCameFrom(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		node  pbxmesh.NodeID
		later time.Duration // than the row here
		gone  bool
	}{
		{"it moved there", "buffalo", time.Minute, true},
		{"it came from there", "buffalo", -time.Minute, false},
		{"which one is later is not known", "buffalo", time.Second, false},
		{"that node is down", "singapore", time.Minute, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			phone := device(t, 1, time.Hour)
			witness, moved := device(t, 2, time.Hour), device(t, 2, 2*time.Hour)
			moved.Node = "buffalo"
			there := *phone
			there.Node, there.Expires = tc.node, phone.Expires.Add(tc.later)
			s := newScripted(t, phone, witness)
			s.other = []*pbxmesh.Registration{&there, moved}
			w := runDrainer(t, s, MethodWait) // tells nobody: what goes has moved
			w.Want(1)
			// The witness's row goes in the same step as that of the phone would.
			w.eventually("the row of who moved goes", func() bool {
				return slices.Contains(s.commands(), "sofia profile internal flush_inbound_reg call-2")
			})
			w.eventually("it was looked at again", func() bool { p := w.progress(); return p.Registrations < 2 && p.Flushed > 0 })
			if gone := slices.Contains(s.commands(), "sofia profile internal flush_inbound_reg call-1"); gone != tc.gone {
				t.Errorf("row taken out: %v; sent %q", gone, s.commands())
			}
		})
	}
}

func TestDrainerFlushesAndStops(t *testing.T) {
	t.Parallel()
	s := newScripted(t, device(t, 1, time.Hour), device(t, 2, -time.Hour)) // the second one ran out
	w := runDrainer(t, s, MethodFlush)
	w.Want(1)
	w.eventually("empty", func() bool { p := w.progress(); return p.Done() && p.Flushed == 1 })
	w.Want(0)
	late := device(t, 5, time.Hour)
	s.set(func() { s.rows = append(s.rows, late) })
	w.mu.Lock()
	said := w.said
	w.mu.Unlock()
	// A new drain counts from the start, which shows that the old one is over.
	w.Want(2)
	w.eventually("the second drain is done", func() bool { p := w.progress(); return p.Turn == 2 && p.Done() })
	if p := w.progress(); p.Flushed != 1 || p.Total != 1 {
		t.Errorf("the second drain counts %+v", p)
	}
	if w.said <= said || len(s.commands()) != 2 {
		t.Errorf("sent %q", s.commands())
	}
}

// A switch that does not do what it is told, or is away, is asked again, and the
// progress says so meanwhile.
func TestDrainerSaysWhatHoldsItUp(t *testing.T) {
	t.Parallel()
	s := newScripted(t, device(t, 1, time.Hour))
	s.reply = "Invalid Profile!\n"
	w := runDrainer(t, s, MethodFlush)
	w.Want(1)
	w.eventually("it says what the switch answers", func() bool { return strings.Contains(w.progress().Err, `the switch says "Invalid Profile!"`) })
	if p := w.progress(); p.Flushed != 0 || p.Registrations != 1 {
		t.Errorf("a command that failed counts: %+v", p)
	}
	s.set(func() { s.channels = "no reply" })
	w.eventually("it says that nobody can be told who talks", func() bool {
		p := w.progress()
		return strings.Contains(p.Err, "no list of channels") && p.Calls == -1 && p.Pace == 0 && p.Pause != ""
	})
	s.set(func() { s.channels, s.reply = `{"row_count":0}`, "+OK\n" })
	s.drop()
	w.eventually("it connects again and goes on", func() bool { p := w.progress(); return p.Done() && p.Err == "" && p.Flushed == 1 })
}

// A call that begins between two lists is known from its event.
func TestDrainerHearsCallsBegin(t *testing.T) {
	t.Parallel()
	s := newScripted(t, device(t, 1, time.Hour))
	w := runDrainer(t, s, MethodWait)
	w.Want(1)
	w.eventually("the switch answers", func() bool { p := w.progress(); return p.Turn == 1 && p.Calls == 0 })
	s.begins("sofia/internal/1001@pbx.test")
	w.eventually("the phone is in a call", func() bool { return w.progress().InCall == 1 })
	if got := s.commands(); len(got) != 0 {
		t.Errorf("sent %q", got)
	}
}
