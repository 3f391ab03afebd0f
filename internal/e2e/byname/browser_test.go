package byname_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pbxmesh/fixtures/browser"
	"pbxmesh/fixtures/phone"
)

// newBrowser starts a Chromium that knows our name servers only, or skips.
func newBrowser(m *mesh) *browser.Browser {
	m.t.Helper()
	if why := browser.Missing(); why != "" {
		m.t.Skipf("SKIPPED, NO BROWSER PHONE WAS TESTED: %s", why)
	}
	var log bytes.Buffer
	b, err := browser.Start(m.ctx(), browser.Options{NameServers: nameServers, Log: &log})
	if err != nil {
		m.t.Fatalf("%v\n%s", err, log.String())
	}
	m.t.Cleanup(func() {
		if err := b.Close(); err != nil {
			m.t.Error(err)
		}
	})
	return b
}

// tab opens a phone that connects to a name of the zone, and waits until it is registered
// and known everywhere on a node.
func (m *mesh) tab(b *browser.Browser, user, name, at string) *browser.Phone {
	m.t.Helper()
	p, err := b.Phone(m.ctx(), browser.Config{
		User: user, Domain: zone, Password: password(user), URL: fmt.Sprintf("wss://%s:%d", name, wssPort),
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = p.Close(context.Background()) })
	if _, err := p.WaitRegistered(m.ctx(), 1); err != nil {
		m.t.Fatal(err)
	}
	m.everywhere(user, at)
	return p
}

// TestScenarioBrowser plays what a browser's user does, with JsSIP in Chromium: one browser
// that knows the zone's name and is led to london, and one that connects to singapore by
// the node's own name.
func TestScenarioBrowser(t *testing.T) {
	m := newMesh(t)
	b := newBrowser(m)
	near := m.tab(b, "1001", zone, "london")
	far := m.tab(b, "1002", "singapore."+zone, "singapore")
	for _, s := range []struct {
		name string
		run  func(m *mesh, near, far *browser.Phone)
	}{
		{"calls and sound both ways", browserCalls},
		{"hold from both sides", browserHolds},
		{"digits both ways", browserDigits},
		{"refused, busy, cancelled", browserRefuses},
		{"early media", browserEarlyMedia},
		{"transfers", browserTransfers},
	} {
		t.Run(s.name, func(t *testing.T) {
			outer := m.t
			m.t = t
			defer func() { m.t = outer }()
			s.run(m, near, far)
		})
	}
}

// seen is how many calls came in at a phone so far.
func seen(p *browser.Phone) int {
	n := 0
	for _, e := range p.Events() {
		if e.Name == "incoming" {
			n++
		}
	}
	return n
}

// ring has one browser call another one, which rings.
func (m *mesh) ring(from, to *browser.Phone) (out, in *browser.Call) {
	m.t.Helper()
	rung := seen(to)
	out, err := from.Call(m.ctx(), to.User())
	if err != nil {
		m.t.Fatal(err)
	}
	if in, err = to.WaitIncoming(m.ctx(), rung+1); err != nil {
		m.t.Fatal(err)
	}
	if in.From() != from.User() {
		m.t.Errorf("%s is shown %q as the caller, want %s", to.User(), in.From(), from.User())
	}
	return out, in
}

// connect is ring, answered, with sound both ways.
func (m *mesh) connect(from, to *browser.Phone) (out, in *browser.Call) {
	m.t.Helper()
	began := time.Now()
	out, in = m.ring(from, to)
	if err := in.Answer(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	for _, c := range []*browser.Call{out, in} {
		if _, err := c.WaitConfirmed(m.ctx()); err != nil {
			m.t.Fatal(err)
		}
	}
	m.t.Logf("%s calls %s: answered after %s", from.User(), to.User(), time.Since(began).Round(time.Millisecond))
	m.bridged()
	m.hears(out, from.User())
	m.hears(in, to.User())
	return out, in
}

// hears waits until new sound comes in at a call, and until packets go out.
func (m *mesh) hears(c *browser.Call, user string) {
	m.t.Helper()
	before, err := c.Audio(m.ctx())
	if err != nil {
		m.t.Fatal(err)
	}
	var now browser.Audio
	m.eventually(user+" sends and hears", func() bool {
		if now, err = c.Audio(m.ctx()); err != nil {
			m.t.Fatal(err)
		}
		return now.Sent-before.Sent > 25 && now.Received-before.Received > 25 && now.Energy > before.Energy+1e-4
	})
	m.t.Logf("%s hears %s: %d packets more, energy %.4f more", user, now.Codec, now.Received-before.Received, now.Energy-before.Energy)
}

// end hangs up at one end and waits for both.
func (m *mesh) end(at, other *browser.Call) {
	m.t.Helper()
	if err := at.HangUp(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	for _, c := range []*browser.Call{at, other} {
		if _, err := c.WaitEnded(m.ctx()); err != nil {
			m.t.Fatal(err)
		}
	}
}

func browserCalls(m *mesh, near, far *browser.Phone) {
	for _, r := range m.bindings(m.nodes["buffalo"].app, near.User()) {
		if r.Transport != "wss" {
			m.t.Errorf("buffalo knows %s by %q, want wss: %+v", near.User(), r.Transport, r)
		}
	}
	out, in := m.connect(near, far)
	m.end(in, out) // the callee hangs up
	out, in = m.connect(far, near)
	m.end(out, in) // the caller does

	// And with a phone that is none of a browser, over UDP on the third node.
	ours := m.ours("1003", "buffalo")
	ours.SetBehaviour(phone.AutoAnswer(0))
	out, err := near.Call(m.ctx(), "1003")
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := out.WaitConfirmed(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	got, err := ours.WaitIncoming(m.ctx(), 1)
	if err != nil {
		m.t.Fatal(err)
	}
	m.bridged()
	if err := got.Hangup(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	if _, err := out.WaitEnded(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	rung := seen(near)
	back, err := ours.Call(m.ctx(), near.User())
	if err != nil {
		m.t.Fatal(err)
	}
	in, err = near.WaitIncoming(m.ctx(), rung+1)
	if err == nil {
		err = in.Answer(m.ctx())
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := back.WaitAnswered(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	m.bridged()
	if err := back.Hangup(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	if _, err := in.WaitEnded(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
}

func browserHolds(m *mesh, near, far *browser.Phone) {
	out, in := m.connect(near, far)
	for _, side := range []struct {
		name string
		call *browser.Call
	}{{"caller", out}, {"callee", in}} {
		if err := side.call.Hold(m.ctx()); err != nil {
			m.t.Fatalf("%s holds: %v", side.name, err)
		}
		// A switch plays music, or nothing, to the other one; the call stays.
		if err := side.call.Resume(m.ctx()); err != nil {
			m.t.Fatalf("%s resumes: %v", side.name, err)
		}
		m.hears(out, "the caller, after the "+side.name+" held,")
		m.hears(in, "the callee, after the "+side.name+" held,")
	}
	m.end(out, in)
}

func browserDigits(m *mesh, near, far *browser.Phone) {
	out, in := m.connect(near, far)
	for _, way := range []struct {
		what     string
		from, to *browser.Call
		digits   string
	}{{"from the caller", out, in, "159#"}, {"from the callee", in, out, "260*"}} {
		// They are told by their sound, in which a busy machine leaves gaps: the sequence has to
		// arrive whole, once in three.
		m.digits(way.what, way.from, way.to, way.digits)
	}
	m.end(out, in)
}

func (m *mesh) digits(what string, from, to *browser.Call, digits string) {
	m.t.Helper()
	for range 3 {
		before := to.Digits()
		if err := from.Dial(m.ctx(), digits); err != nil {
			m.t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(m.ctx(), 10*time.Second)
		err := to.WaitDigits(ctx, before+digits)
		cancel()
		if err == nil {
			return
		}
		m.t.Logf("%s: %v", what, err)
	}
	m.t.Fatalf("%s: the digits %s did not arrive", what, digits)
}

func browserRefuses(m *mesh, near, far *browser.Phone) {
	// The dialplan goes on where the callee says no, and names the cause.
	for code, cause := range map[int]string{486: "USER_BUSY", 603: "CALL_REJECTED"} {
		out, in := m.ring(near, far)
		if err := in.Refuse(m.ctx(), code); err != nil {
			m.t.Fatal(err)
		}
		if _, err := out.WaitConfirmed(m.ctx()); err != nil {
			m.t.Fatal(err)
		}
		if got := answeredWith(near, "X-Cause"); got != cause {
			m.t.Errorf("refused with %d: the caller's dialplan goes on with %q, want %s", code, got, cause)
		}
		m.end(out, out)
	}
	out, in := m.ring(near, far)
	if _, err := out.WaitProgress(m.ctx(), 180); err != nil {
		m.t.Fatal(err)
	}
	if err := out.HangUp(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	e, err := in.WaitEnded(m.ctx())
	if err != nil {
		m.t.Fatal(err)
	}
	if e.Text != "remote: Canceled" {
		m.t.Errorf("the callee heard %q of the caller who gave up, want a CANCEL", e.Text)
	}
}

// answeredWith returns a header of the newest 200 OK to an INVITE.
func answeredWith(p *browser.Phone, header string) string {
	value := ""
	for _, f := range p.Frames() {
		if f.Sent || !strings.HasPrefix(f.Text, "SIP/2.0 200 ") || !strings.HasSuffix(browser.Header(f.Text, "CSeq"), " INVITE") {
			continue
		}
		value = browser.Header(f.Text, header)
	}
	return value
}

// browserEarlyMedia has a callee on another node speak before it answers.
func browserEarlyMedia(m *mesh, near, _ *browser.Phone) {
	callee := m.ours("1004", "buffalo")
	callee.SetBehaviour(phone.EarlyMedia())
	out, err := near.Call(m.ctx(), "1004")
	if err != nil {
		m.t.Fatal(err)
	}
	in, err := callee.WaitIncoming(m.ctx(), 1)
	if err != nil {
		m.t.Fatal(err)
	}
	m.speak(in)
	if _, err := out.WaitProgress(m.ctx(), 183); err != nil {
		m.t.Fatal(err)
	}
	m.eventually("the caller hears early media", func() bool {
		a, err := out.Audio(m.ctx())
		return err == nil && a.Received > 25 && a.Energy > 1e-3
	})
	if err := in.Answer(); err != nil {
		m.t.Fatal(err)
	}
	if _, err := out.WaitConfirmed(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	m.hears(out, "the caller, after the answer,")
	m.end(out, out)
}

// speak sends loud PCMU to the switch that called, until the test ends.
func (m *mesh) speak(in *phone.Call) {
	m.t.Helper()
	var addr netip.Addr
	port := 0
	for line := range strings.Lines(string(in.Invite().Body)) {
		if rest, ok := strings.CutPrefix(line, "c=IN IP4 "); ok {
			addr, _ = netip.ParseAddr(strings.TrimSpace(rest))
		}
		_, _ = fmt.Sscanf(line, "m=audio %d", &port)
	}
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(port))))
	if err != nil {
		m.t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	m.t.Cleanup(func() { close(stop); <-done; _ = conn.Close() })
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		packet := append([]byte{0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, bytes.Repeat([]byte{0x00, 0x00, 0x80, 0x80}, 40)...)
		for n := 0; ; n++ {
			packet[2], packet[3] = byte(n>>8), byte(n)
			at := n * 160
			packet[4], packet[5], packet[6], packet[7] = byte(at>>24), byte(at>>16), byte(at>>8), byte(at)
			_, _ = conn.Write(packet) // a refusal only says that the call has ended
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
}

// browserTransfers has a browser send its caller on, blindly and after asking.
func browserTransfers(m *mesh, near, far *browser.Phone) {
	// A switch offers the third what the call speaks, and nothing else.
	third := m.ours("1005", "buffalo", phone.Opus)
	third.SetBehaviour(phone.AutoAnswer(0))
	out, in := m.connect(near, far)
	if err := in.Transfer(m.ctx(), "1005"); err != nil {
		m.t.Fatal(err)
	}
	got, err := third.WaitIncoming(m.ctx(), 1)
	if err != nil {
		m.t.Fatalf("blind transfer: %v", err)
	}
	if _, err := in.WaitEnded(m.ctx()); err != nil {
		m.t.Fatalf("blind transfer: %v", err)
	}
	m.bridged()
	if user := got.From().URI.User; user != near.User() {
		m.t.Errorf("blind transfer: 1005 is shown %q, want the caller %s", user, near.User())
	}
	m.end(out, out)
	if _, err := got.WaitEnded(m.ctx()); err != nil {
		m.t.Fatal(err)
	}

	// Attended, by the caller: it asks the third first.
	out, in = m.connect(near, far)
	if err := out.Hold(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	ask, err := near.Call(m.ctx(), "1005")
	if err != nil {
		m.t.Fatal(err)
	}
	if _, err := ask.WaitConfirmed(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	if got, err = third.WaitIncoming(m.ctx(), 2); err != nil {
		m.t.Fatal(err)
	}
	m.bridged()
	if err := out.TransferTo(m.ctx(), "1005", ask); err != nil {
		m.t.Fatal(err)
	}
	for _, c := range []*browser.Call{out, ask} {
		if _, err := c.WaitEnded(m.ctx()); err != nil {
			m.t.Fatalf("attended transfer: %v", err)
		}
	}
	if info := got.Info(); !info.EndedAt.IsZero() {
		m.t.Error("attended transfer: the third was hung up")
	}
	m.end(in, in)
	if _, err := got.WaitEnded(m.ctx()); err != nil {
		m.t.Fatalf("attended transfer: the third was not joined with the callee: %v", err)
	}
}
