package phones_test

import (
	"slices"
	"testing"
	"time"

	"pbxmesh/fixtures/softphone"
)

// TestPhonesFailover kills a node: a phone that is registered there finds another one by
// its own look-ups, and is called. It is baresip: over UDP, Linphone waits 32 s for the
// dead node before it asks again, and simulated switches have no TCP.
func TestPhonesFailover(t *testing.T) {
	t.Parallel()
	m := newMesh(t, options{net: 143, nodes: 2})
	// It refreshes at 90 % of the interval.
	p := m.registered(t, "buffalo", softphone.Config{Kind: softphone.Baresip, Expires: 5 * time.Second})
	other := m.registered(t, "london", softphone.Config{Kind: softphone.Linphone})
	killed := time.Now()
	must(t, m.nodes["buffalo"].sw.Kill())
	must(t, p.Wait(bounded(t), "a registration at london", func(tr softphone.Trace) bool {
		return tr.Registrar() == m.nodes["london"].sw.SIP()
	}))
	t.Logf("registered at london %s after the kill", time.Since(killed).Round(100*time.Millisecond))
	must(t, other.Call(p.User()))
	_, err := p.WaitRinging(bounded(t), 1)
	must(t, err)
	must(t, p.Answer())
	_, err = other.WaitAnswered(bounded(t))
	must(t, err)
	must(t, other.HangupAll(bounded(t)))
	if n := len(p.Trace().Calls()); n != 1 {
		t.Errorf("%d calls rang the phone, want 1", n)
	}
}

// TestScenarioPreferredTransport has phones that were told nothing but the zone's name take
// the transport that NAPTR prefers. Linphone asks for no NAPTR record, and takes UDP.
func TestScenarioPreferredTransport(t *testing.T) {
	if realBinary() == "" {
		t.Skip("simulated switches have no TCP")
	}
	t.Parallel()
	for _, tt := range []struct {
		net    byte
		prefer []string
		want   map[softphone.Kind]string
	}{
		{146, []string{}, map[softphone.Kind]string{softphone.Baresip: "UDP", softphone.Linphone: "UDP"}},
		{147, []string{"tcp"}, map[softphone.Kind]string{softphone.Baresip: "TCP", softphone.Linphone: "UDP"}},
	} {
		m := newMesh(t, options{net: tt.net, nodes: 1, naptr: tt.prefer})
		for kind, want := range tt.want {
			p := m.phone(t, "buffalo", softphone.Config{Kind: kind})
			m.eventually(p.String()+" is registered", func() bool { return slices.Equal(m.where(m.nodes["buffalo"], p.User()), []string{"buffalo"}) })
			got := via(p.Trace().Requests("REGISTER", true))
			t.Logf("prefer %v: %s registers by %s", tt.prefer, kind, got)
			if got != want {
				t.Errorf("prefer %v: %s registers by %s, want %s", tt.prefer, kind, got, want)
			}
		}
	}
}
