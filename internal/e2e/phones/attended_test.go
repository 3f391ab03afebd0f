package phones_test

import (
	"fmt"
	"strings"
	"testing"

	"pbxmesh/fixtures/softphone"
)

// TestScenarioAttendedTransfer has Linphones that are called ask a third one and join it with
// their caller (REFER with Replaces, RFC 5589 7), and send a caller on without asking. Where
// the three phones are makes no difference.
func TestScenarioAttendedTransfer(t *testing.T) {
	if realBinary() == "" {
		t.Skip("SKIPPED, NOT TESTED: simulated switches take no REFER")
	}
	m := newMesh(t, options{net: 150, nodes: 3, plan: matrixPlan})
	meter, err := softphone.NewMeter()
	must(t, err)
	t.Cleanup(meter.Close)
	places := [][3]string{
		{"buffalo", "buffalo", "buffalo"},
		{"buffalo", "london", "singapore"},
		{"buffalo", "london", "buffalo"},
		{"buffalo", "london", "london"},
		{"buffalo", "buffalo", "london"},
	}
	transports := []string{"udp", "tcp"}
	got := map[string][]string{}
	for _, p := range places {
		for _, transport := range transports {
			d := &trio{t: t, meter: meter}
			for i, phone := range []**softphone.Phone{&d.caller, &d.callee, &d.third} {
				*phone = m.registered(t, p[i], softphone.Config{
					Kind: softphone.Linphone, Registrar: m.nodes[p[i]].listens(transport), Transport: transport, MaxCalls: 2,
				})
			}
			where := fmt.Sprintf("%s calls %s, who asks %s, by %s", p[0], p[1], p[2], transport)
			got[where] = []string{d.attended(), d.blind()}
			t.Logf("%s: attended: %s; blind: %s", where, got[where][0], got[where][1])
			for _, phone := range []*softphone.Phone{d.caller, d.callee, d.third} {
				must(t, phone.Close())
			}
		}
	}
	const joined = "202, told 200, the third is shown %s, both heard, ended together"
	for where, is := range got {
		for i, want := range []string{fmt.Sprintf(joined, "the callee"), fmt.Sprintf(joined, "the caller")} {
			if is[i] != want {
				t.Errorf("%s: %s, want %s", where, is[i], want)
			}
		}
	}
}

// trio is a caller, who is called, and whom that one sends the caller to.
type trio struct {
	t                     *testing.T
	meter                 *softphone.Meter
	caller, callee, third *softphone.Phone
}

// connect has one phone call another one, and both hear.
func (d *trio) connect(from, to *softphone.Phone) {
	d.t.Helper()
	must(d.t, from.Call(to.User()))
	_, err := to.WaitRinging(bounded(d.t), 1)
	must(d.t, err)
	must(d.t, to.Answer())
	d.talk(from, to)
}

// talk waits until each phone's last call is answered, and both hear.
func (d *trio) talk(phones ...*softphone.Phone) {
	d.t.Helper()
	for _, p := range phones {
		_, err := p.WaitAnswered(bounded(d.t))
		must(d.t, err)
	}
	for _, p := range phones {
		must(d.t, d.meter.WaitHeard(bounded(d.t), p, 10))
	}
}

func (d *trio) forget() {
	for _, p := range []*softphone.Phone{d.caller, d.callee, d.third} {
		p.Forget()
	}
}

func (d *trio) attended() string {
	d.t.Helper()
	d.forget()
	d.connect(d.caller, d.callee)
	must(d.t, d.callee.Hold(true))
	_, err := d.callee.WaitCall(bounded(d.t), "its hold", func(c softphone.Call) bool { return c.Mine != "sendrecv" })
	must(d.t, err)
	d.connect(d.callee, d.third)
	must(d.t, d.callee.TransferAttended())
	out := d.joined()
	for _, m := range d.callee.Trace().Requests("REFER", true) {
		if !strings.Contains(m.Header("Refer-To"), "Replaces=") {
			d.t.Errorf("the transfer replaces no call: Refer-To: %s", m.Header("Refer-To"))
		}
	}
	return out
}

func (d *trio) blind() string {
	d.t.Helper()
	d.forget()
	d.connect(d.caller, d.callee)
	must(d.t, d.callee.Transfer(d.third.User()))
	_, err := d.third.WaitRinging(bounded(d.t), 1)
	must(d.t, err)
	must(d.t, d.third.Answer())
	return d.joined()
}

// joined tells what became of the transfer: the answer to REFER, what NOTIFY told of it, and
// whether the two talk that remain.
func (d *trio) joined() string {
	d.t.Helper()
	must(d.t, d.callee.Wait(bounded(d.t), "the end of its calls", func(t softphone.Trace) bool { return len(t.Live()) == 0 }))
	answer, told := 0, "nothing"
	for _, m := range d.callee.Trace() {
		switch {
		case m.Method() == "REFER" && m.Status() > 0 && !m.Sent:
			answer = m.Status()
		case m.Method() == "NOTIFY" && m.Status() == 0 && !m.Sent && strings.HasPrefix(m.Body, "SIP/2.0 "):
			told, _, _ = strings.Cut(strings.TrimPrefix(m.Body, "SIP/2.0 "), " ")
		}
	}
	d.talk(d.caller, d.third)
	shown := "somebody else"
	for _, c := range d.third.Trace().Calls() {
		switch {
		case strings.Contains(c.Peer, d.caller.User()+"@"):
			shown = "the caller"
		case strings.Contains(c.Peer, d.callee.User()+"@"):
			shown = "the callee"
		}
	}
	for _, p := range []*softphone.Phone{d.caller, d.third} {
		if live := p.Trace().Live(); len(live) != 1 {
			return fmt.Sprintf("%s has %d calls: %+v", p, len(live), live)
		}
	}
	must(d.t, d.caller.HangupAll(bounded(d.t)))
	_, err := d.third.WaitEnded(bounded(d.t))
	must(d.t, err)
	return fmt.Sprintf("%d, told %s, the third is shown %s, both heard, ended together", answer, told, shown)
}
