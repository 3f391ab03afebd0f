package feed

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
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

// waitLong bounds what tests wait for; only a failing test waits that long.
const waitLong = 20 * time.Second

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(waitLong)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: still not so after %v", what, waitLong)
		}
		time.Sleep(time.Millisecond)
	}
}

// row is a registration of the scripted switch.
type row struct {
	user, contact, call, agent, host, status string
	expsecs                                  int
}

// scripted is a switch's event socket with just enough behind it: a table that
// answers snapshots, and events that tests fire.
type scripted struct {
	t  testing.TB
	ln net.Listener
	wg sync.WaitGroup

	mu       sync.Mutex
	core     string // "" answers global_getvar with nothing
	rows     map[string][]row
	raw      map[string]string // profile: answer instead of rows
	conns    map[net.Conn]bool // true: subscribed
	log      []string
	before   func(profile string) // runs before a snapshot is answered, unlocked
	accepted int
}

func newScripted(t testing.TB) *scripted {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{t: t, ln: ln, core: "core-1", rows: map[string][]row{"internal": nil}, raw: map[string]string{}, conns: map[net.Conn]bool{}}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns[c] = false
			s.accepted++
			s.mu.Unlock()
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				s.serve(c)
				c.Close()
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
			}()
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		s.drop()
		s.wg.Wait()
	})
	return s
}

// drop cuts all connections.
func (s *scripted) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

func (s *scripted) serve(c net.Conn) {
	r := bufio.NewReader(c)
	fmt.Fprint(c, "Content-Type: auth/request\n\n")
	for {
		var lines []string
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\n" {
				break
			}
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
		s.answer(c, lines[0])
	}
}

func (s *scripted) answer(c net.Conn, command string) {
	api, isAPI := strings.CutPrefix(command, "api ")
	words := strings.Fields(api)
	profile, user := "", ""
	if strings.HasPrefix(api, "sofia xmlstatus profile ") {
		profile = words[3]
		if words[4] == "user" {
			user = words[5]
		}
		s.mu.Lock()
		before := s.before
		s.mu.Unlock()
		if before != nil {
			before(profile)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, command)
	var body string
	switch {
	case !isAPI:
		if strings.HasPrefix(command, "event ") {
			s.conns[c] = true
		}
		fmt.Fprint(c, "Content-Type: command/reply\nReply-Text: +OK accepted\n\n")
		return
	case api == "global_getvar core_uuid":
		body = s.core
	case api == "hostname":
		body = "vm"
	case api == "switchname":
		body = "buffalo"
	case profile != "":
		body = s.xml(profile, user)
	default:
		body = "-ERR " + words[0] + " Command not found!\n"
	}
	fmt.Fprintf(c, "Content-Type: api/response\nContent-Length: %d\n\n%s", len(body), body)
}

// xml answers as recorded: contact and agent are escaped and nothing else is. user is
// user@host, "" for all. s.mu is held.
func (s *scripted) xml(profile, user string) string {
	if raw, ok := s.raw[profile]; ok && user == "" {
		return raw
	}
	rows, ok := s.rows[profile]
	if !ok {
		return "Invalid Profile!\n"
	}
	var b strings.Builder
	b.WriteString("<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>\n<profile>\n  <registrations>\n")
	esc := strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;")
	for _, r := range rows {
		if user != "" && r.user != user {
			continue
		}
		fmt.Fprintf(&b, "    <registration>\n        <call-id>%s</call-id>\n        <user>%s</user>\n        <contact>%s</contact>\n        <agent>%s</agent>\n"+
			"        <status>%s(unknown) exp(2026-11-22 15:59:07) expsecs(%d)</status>\n        <host>%s</host>\n        <network-ip>127.0.4.1</network-ip>\n"+
			"        <network-port>5062</network-port>\n    </registration>\n",
			r.call, r.user, esc.Replace(`"" <`+r.contact+`>`), esc.Replace(cmpOr(r.agent, "unknown")), cmpOr(r.status, "Registered(UDP)"), r.expsecs, cmpOr(r.host, "buffalo"))
	}
	b.WriteString("  </registrations>\n</profile>\n")
	return b.String()
}

func cmpOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (s *scripted) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// fire sends events, each a header block, to all subscribers.
func (s *scripted) fire(events ...string) {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "Content-Length: %d\nContent-Type: text/event-plain\n\n%s", len(e), e)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, subscribed := range s.conns {
		if subscribed {
			_, _ = c.Write([]byte(b.String()))
		}
	}
}

func (s *scripted) count(command string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.log {
		if strings.HasPrefix(c, command) {
			n++
		}
	}
	return n
}

// custom builds an event; pairs are header and value, encoded as the switch does.
func custom(core string, seq uint64, subclass string, pairs ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Event-Subclass: %s\nEvent-Name: CUSTOM\nCore-UUID: %s\nFreeSWITCH-Hostname: buffalo\nEvent-Sequence: %d\nprofile-name: internal\n",
		switchEncoding(subclass), core, seq)
	for i := 0; i < len(pairs); i += 2 {
		fmt.Fprintf(&b, "%s: %s\n", pairs[i], switchEncoding(pairs[i+1]))
	}
	return b.String() + "\n"
}

func (f fact) event(core string) string {
	if f.gone {
		return custom(core, f.seq, "sofia::unregister", "from-user", f.user, "from-host", "pbx.test", "contact", `"" <`+f.contact+`>`, "call-id", f.call, "expires", "0")
	}
	return custom(core, f.seq, "sofia::register", "from-user", f.user, "from-host", "pbx.test", "contact", `"" <`+f.contact+`>`, "call-id", f.call,
		"expires", "120", "network-ip", "127.0.4.1", "network-port", "5062", "status", "Registered(UDP)", "user-agent", "unknown")
}

func heartbeat(core string, seq uint64) string {
	return fmt.Sprintf("Event-Name: HEARTBEAT\nCore-UUID: %s\nEvent-Sequence: %d\nFreeSWITCH-Version: 1.11.1-release~64bit\nSession-Count: 3\nMax-Sessions: 2000\nIdle-CPU: 96.533333\n\n", core, seq)
}

// lockedBooks is a Sink for the real feed.
type lockedBooks struct {
	mu sync.Mutex
	b  *books
}

func (l *lockedBooks) Reset(epoch string, regs []pbxmesh.Registration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset(epoch, regs)
}

func (l *lockedBooks) Put(r pbxmesh.Registration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Put(r)
}

func (l *lockedBooks) Remove(id pbxmesh.RegistrationID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Remove(id)
}

func (l *lockedBooks) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.list()
}

func (l *lockedBooks) resets() (int, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.resets, l.b.epoch
}

func (l *lockedBooks) regs() []pbxmesh.Registration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(maps.Values(l.b.regs), func(a, b pbxmesh.Registration) int { return strings.Compare(a.CallID, b.CallID) })
}

// startFeed runs a feed against s until the test ends.
func startFeed(t testing.TB, s *scripted, change func(*Options)) (*Feed, *lockedBooks) {
	t.Helper()
	sink := &lockedBooks{b: newBooks()}
	opts := Options{
		ESL:         esl.Config{Address: s.ln.Addr().String(), Password: "secret"},
		Node:        "buffalo",
		Profiles:    []string{"internal"},
		Sink:        sink,
		SnapshotGap: time.Millisecond,
		MinBackoff:  time.Millisecond,
		MaxBackoff:  5 * time.Millisecond,
	}
	if change != nil {
		change(&opts)
	}
	f := New(opts)
	t.Cleanup(runFeed(t, f))
	return f, sink
}

// runFeed starts f and returns what stops it.
func runFeed(t testing.TB, f *Feed) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if f.Status().Connected {
			t.Error("connected after Run")
		}
	}
}

// expectRegs waits until the Sink holds exactly these.
func expectRegs(t testing.TB, what string, sink *lockedBooks, want ...string) {
	t.Helper()
	slices.Sort(want)
	var got []string
	deadline := time.Now().Add(waitLong)
	for {
		if got = sink.list(); slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %q, want %q", what, got, want)
		}
		time.Sleep(time.Millisecond)
	}
}

func connected(t testing.TB, f *Feed) {
	t.Helper()
	eventually(t, "connected", func() bool { return f.Status().Connected })
}

func recorded(t testing.TB, name string) []string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for e := range strings.SplitSeq(string(b), "\n--\n") {
		if strings.TrimSpace(e) != "" {
			out = append(out, e+"\n")
		}
	}
	return out
}
