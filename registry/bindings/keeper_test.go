package bindings

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pbxmesh"
	"pbxmesh/internal/esl"
	"pbxmesh/internal/sofia"
)

// mesh is everything that a Keeper looks at, of one phone: the registry, the nodes, and
// the switch of london behind an event socket.
type mesh struct {
	t *testing.T

	mu      sync.Mutex
	regs    []*pbxmesh.Registration
	nodes   pbxmesh.Mesh
	sent    []string // commands and events, in order
	event   map[string]string
	rows    bool // the switch lists the row
	callID  string
	contact string
	agent   string
	refuses bool // the switch takes nothing out
	fails   error
	profile string // of the native hook
	meshRow string // what sofia_contact finds there
	settled int
	written int // times that Restored was called
	dials   int
	put     []pbxmesh.Registration
	back    []pbxmesh.Registration
	conn    *conn
	keeper  *Keeper
}

type conn struct {
	m    *mesh
	cfg  esl.Config
	done chan struct{}
}

const switchContact = `"Desk" <sip:1001@192.168.1.7:5060;fs_nat=yes;fs_path=sip%3A1001%40203.0.113.9%3A5060>`

// escaped is how the switch writes a contact in its lists.
var escaped = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;")

var aor, _ = pbxmesh.NewAOR("1001", "pbx.test")

// reg is the phone's registration on node; Since counts seconds.
func reg(node pbxmesh.NodeID, since pbxmesh.Stamp) *pbxmesh.Registration {
	return &pbxmesh.Registration{
		AOR: aor, Node: node, CallID: "7f3a-" + string(node), Contact: "sip:1001@192.168.1.7:5060;fs_nat=yes;fs_path=sip:1001@203.0.113.9:5060",
		Profile: "internal", Source: netip.MustParseAddrPort("203.0.113.9:5060"), Transport: "udp", UserAgent: "Desk 5.1",
		Expires: time.Now().Add(10 * time.Minute), Since: pbxmesh.StampOf(time.Now()) + 1000*since,
	}
}

// play runs f in virtual time on a mesh whose Keeper is connected.
func play(t *testing.T, f func(*mesh), change ...func(*mesh)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &mesh{t: t, rows: true, nodes: pbxmesh.Mesh{Nodes: map[pbxmesh.NodeID]pbxmesh.Node{}, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}}
		for _, id := range []pbxmesh.NodeID{"london", "buffalo", "singapore"} {
			m.nodes.Nodes[id] = pbxmesh.Node{ID: id, Mesh: netip.MustParseAddrPort("192.0.2.1:5090")}
			m.nodes.States[id] = pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}
		}
		for _, c := range change {
			c(m)
		}
		m.keeper = New(Options{
			Local: "london", Directory: m, Nodes: m, Sink: m, Profile: m.profile,
			Settled:  func(pbxmesh.AOR) { m.mu.Lock(); m.settled++; m.mu.Unlock() },
			Restored: func() { m.mu.Lock(); m.written++; m.mu.Unlock() },
			Dial: func(_ context.Context, cfg esl.Config) (Conn, error) {
				m.mu.Lock()
				defer m.mu.Unlock()
				m.dials++
				m.conn = &conn{m: m, cfg: cfg, done: make(chan struct{})}
				return m.conn, nil
			},
		})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = m.keeper.Run(ctx) }()
		synctest.Wait()
		f(m)
		cancel()
		<-done
	})
}

func (m *mesh) Lookup(pbxmesh.AOR) []*pbxmesh.Registration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.regs
}

func (m *mesh) WalkNode(node pbxmesh.NodeID, yield func(*pbxmesh.Registration) bool) {
	for _, r := range m.Lookup(aor) {
		if r.Node == node && !yield(r) {
			return
		}
	}
}

func (m *mesh) Mesh() *pbxmesh.Mesh {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := pbxmesh.Mesh{Nodes: m.nodes.Nodes, States: map[pbxmesh.NodeID]pbxmesh.NodeState{}}
	for id, s := range m.nodes.States {
		n.States[id] = s
	}
	return &n
}

func (m *mesh) Put(r pbxmesh.Registration)     { m.put = append(m.put, r) }
func (m *mesh) PutBack(r pbxmesh.Registration) { m.back = append(m.back, r) }

func (c *conn) API(_ context.Context, command string) (string, error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.sent = append(c.m.sent, command)
	switch {
	case c.m.fails != nil:
		return "", c.m.fails
	case command == "hostname":
		return "lon1", nil
	case strings.HasPrefix(command, "global_getvar"):
		return "192.0.2.2\n", nil
	case strings.HasPrefix(command, "sofia xmlstatus"):
		row := func(callID, user, contact string) string {
			return fmt.Sprintf("<registration>\n<call-id>%s</call-id>\n<user>%s</user>\n<contact>%s</contact>\n<agent>%s</agent>\n"+
				"<network-ip>203.0.113.9</network-ip>\n<network-port>5060</network-port>\n<sip-auth-user>1001</sip-auth-user>\n"+
				"<sip-auth-realm>pbx.test</sip-auth-realm>\n<mwi-account>100@pbx.test</mwi-account>\n</registration>\n", callID, user, escaped.Replace(contact), cmp.Or(c.m.agent, "Desk 5.1"))
		}
		list := row("other", "1001@pbx.test", switchContact) + row("7f3a-london", "1002@pbx.test", switchContact)
		if c.m.rows {
			list += row(cmp.Or(c.m.callID, "7f3a-london"), "1001@PBX.test", cmp.Or(c.m.contact, switchContact))
		}
		return "<profile>\n<registrations>\n" + list + "</registrations>\n</profile>\n", nil
	case strings.HasPrefix(command, "sofia_contact"):
		return cmp.Or(c.m.meshRow, "error/user_not_registered"), nil
	case strings.Contains(command, "flush_inbound_reg") && c.m.refuses:
		return "Invalid Profile [internal]", nil
	case strings.Contains(command, "flush_inbound_reg"):
		return "+OK flushing all registrations matching specified call_id\n", nil
	}
	return "-ERR", nil
}

func (c *conn) Subscribe(context.Context, []string, []string) error { return nil }

func (c *conn) SendEvent(_ context.Context, name string, headers []esl.Header, _ []byte) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	event := map[string]string{}
	for _, h := range headers {
		if strings.ContainsAny(h.Value, "\t\r\n") {
			return fmt.Errorf("%w: %q", esl.ErrInvalidCommand, h.Value)
		}
		event[h.Name] = h.Value
	}
	c.m.sent, c.m.event = append(c.m.sent, "event "+name), event
	return nil
}
func (c *conn) Done() <-chan struct{} { return c.done }
func (c *conn) Err() error            { return nil }
func (c *conn) Close() error          { return nil }

// now sets what is registered, tells the Keeper, and returns what it sent for it.
func (m *mesh) now(regs ...*pbxmesh.Registration) []string {
	m.mu.Lock()
	m.regs, m.sent = regs, nil
	m.mu.Unlock()
	m.keeper.Changed(aor)
	return m.did()
}

// node changes a node's state, and returns what the Keeper sent for it.
func (m *mesh) node(id pbxmesh.NodeID, s pbxmesh.NodeState) []string {
	m.mu.Lock()
	m.nodes.States[id], m.sent = s, nil
	m.mu.Unlock()
	m.keeper.NodesChanged()
	return m.did()
}

// did returns what the switch was told until every step has been taken.
func (m *mesh) did() []string {
	time.Sleep(outAfter)
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sent
}

const (
	reads   = "sofia xmlstatus profile internal reg 192.168.1.7:5060"
	flushes = "sofia profile internal flush_inbound_reg 7f3a-london"
	writes  = "event CUSTOM"
)

func (m *mesh) want(what string, got []string, want ...string) {
	m.t.Helper()
	if !slices.Equal(got, want) {
		m.t.Errorf("%s: the switch was told %q, want %q", what, got, want)
	}
}

var down = pbxmesh.NodeState{Observed: pbxmesh.ObservedDown}

func TestPhoneMovedIsTakenOut(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		m.want("registered here", m.now(here))
		if m.keeper.Taken(here) || m.settled != 0 {
			t.Error("taken before it has moved")
		}
		m.want("moved", m.now(here, there), reads, flushes)
		if !m.keeper.Taken(here) || m.settled != 1 {
			t.Errorf("it is out: taken %v, told %d times", m.keeper.Taken(here), m.settled)
		}
		m.want("once only", m.now(here, there))
		m.want("gone", m.now(there))
		m.want("came back: it is the newest", m.now(reg("london", 2), there))
		if s := m.keeper.Stats(); s.Aside != 0 || s.TakenOut != 1 {
			t.Errorf("stats %+v", s)
		}
		m.want("moved again", m.now(reg("london", 2), reg("buffalo", 3)), reads, flushes)
		m.want("another device stays", m.now(reg("london", 0), func() *pbxmesh.Registration {
			r := reg("buffalo", 9)
			r.Contact = "sip:1001@192.168.1.8:5060"
			return r
		}()))
	})
}

// TestRowsGoHandInHand holds the order in which the switch hears of a phone that moved: our
// row stays while other nodes still call it, and leaves when the row to the new node is there.
func TestRowsGoHandInHand(t *testing.T) {
	t.Parallel()
	const asks = "sofia_contact mesh/1001@pbx.test"
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		m.mu.Lock()
		m.regs, m.sent = []*pbxmesh.Registration{here, there}, nil
		m.mu.Unlock()
		m.keeper.Changed(aor)
		time.Sleep(rowsAfter - time.Millisecond)
		synctest.Wait()
		if len(m.sent) != 0 || m.keeper.Taken(here) {
			t.Errorf("too early: %q, taken %v", m.sent, m.keeper.Taken(here))
		}
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if !slices.Equal(m.sent, []string{reads}) || !m.keeper.Taken(here) || m.settled != 1 {
			t.Errorf("the native hook may write now: %q, taken %v, told %d times", m.sent, m.keeper.Taken(here), m.settled)
		}
		time.Sleep(10 * pollEvery)
		synctest.Wait()
		if slices.Contains(m.sent, flushes) || !slices.Contains(m.sent, asks) {
			t.Errorf("the other row is not there yet: %q", m.sent)
		}
		m.mu.Lock()
		m.meshRow = "sofia/mesh/sip:1001@pbx.test;fs_path=sip:192.0.2.1:5090"
		m.mu.Unlock()
		time.Sleep(pollEvery)
		synctest.Wait()
		if m.sent[len(m.sent)-1] != flushes {
			t.Errorf("the other row is there: %q", m.sent)
		}
	}, func(m *mesh) { m.profile = "mesh" })
	play(t, func(m *mesh) {
		if got := m.now(reg("london", 0), reg("buffalo", 1)); got[len(got)-1] != flushes {
			t.Errorf("no row comes: %q", got)
		}
	}, func(m *mesh) { m.profile = "mesh" })
}

func TestPutBackWhenTheOtherNodeDies(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		m.now(here, there)
		m.want("suspect takes calls", m.node("buffalo", pbxmesh.NodeState{Observed: pbxmesh.ObservedSuspect}))
		m.want("not while the registry holds it", m.node("buffalo", down))
		m.node("buffalo", pbxmesh.NodeState{Observed: pbxmesh.ObservedUp})
		m.want("gone here", m.now(there))
		time.Sleep(90 * time.Second)
		m.want("down", m.node("buffalo", down), writes)
		for name, want := range map[string]string{
			"orig-event-subclass": "sofia::register", "orig-profile-name": "internal", "orig-from-user": "1001", "orig-from-host": "PBX.test",
			"orig-contact": switchContact, "orig-call-id": "7f3a-london", "orig-user-agent": "Desk 5.1", "orig-network-ip": "203.0.113.9",
			"orig-network-port": "5060", "orig-username": "1001", "orig-realm": "pbx.test", "orig-mwi-account": "100@pbx.test",
			"orig-expires": "507", "orig-FreeSWITCH-Hostname": "lon1", "orig-FreeSWITCH-IPv4": "192.0.2.2",
		} {
			if got := m.event[name]; got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		if len(m.back) != 1 || m.back[0] != *here || m.written != 1 {
			t.Errorf("published %+v, told %d times that a row was written", m.back, m.written)
		}
		m.want("once", m.now(here, there))
		m.want("the other one is back: newest counts", m.node("buffalo", pbxmesh.NodeState{Observed: pbxmesh.ObservedUp}), reads, flushes)
	})
}

// TestOtherNodeDiesBeforeTheRegistryHeard: the row is out, the registry still holds it, and
// the node where the phone is now dies.
func TestOtherNodeDiesBeforeTheRegistryHeard(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		m.now(here, there)
		m.want("the registry holds it", m.node("buffalo", down))
		m.want("and not any more", m.now(there), writes)
	})
}

// TestHeardIsNotFound: a registration that was heard of and is older goes, whatever expires
// later.
func TestHeardIsNotFound(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		here.Expires = there.Expires.Add(time.Hour)
		m.want("moved", m.now(here, there), reads, flushes)
		if len(m.put) > 0 {
			t.Errorf("published %+v", m.put)
		}
	})
}

func TestPutBackWhenTheOtherEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		then func(m *mesh)
		want []string
	}{
		"it ends":                      {func(*mesh) {}, []string{writes}},
		"the phone unregistered here":  {func(m *mesh) { m.unregister("7f3a-london", "") }, nil},
		"with another Call-ID":         {func(m *mesh) { m.unregister("x", "<sip:1001@192.168.1.7:5060>") }, nil},
		"another device unregistered":  {func(m *mesh) { m.unregister("x", "<sip:1001@192.168.1.7:50601>") }, []string{writes}},
		"its own time is over":         {func(*mesh) { time.Sleep(10 * time.Minute) }, nil},
		"it has a newer one elsewhere": {func(m *mesh) { m.now(reg("singapore", 2)) }, nil},
		"it is back, another Call-ID":  {func(m *mesh) { m.now(changed(reg("london", 2), "new", "Desk 5.1"), reg("buffalo", 1)) }, nil},
		"it is back, updated":          {func(m *mesh) { m.now(changed(reg("london", 2), "7f3a-london", "Desk 6"), reg("buffalo", 1)) }, nil},
		"this node is drained":         {func(m *mesh) { m.node("london", pbxmesh.NodeState{Wanted: pbxmesh.WantedDraining}) }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			play(t, func(m *mesh) {
				m.now(reg("london", 0), reg("buffalo", 1))
				m.now(reg("buffalo", 1))
				c.then(m)
				m.want("then the other one ends", m.now(slices.DeleteFunc(slices.Clone(m.regs), func(r *pbxmesh.Registration) bool { return r.Node == "buffalo" })...), c.want...)
			})
		})
	}
}

func changed(r *pbxmesh.Registration, callID, agent string) *pbxmesh.Registration {
	r.CallID, r.UserAgent = callID, agent
	return r
}

// TestFoldedHeaders: a phone whose name has a tab or a folded line is written back, and a
// row that no event can hold keeps nobody else waiting.
func TestFoldedHeaders(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		m.now(reg("london", 0), reg("buffalo", 1))
		m.now(reg("buffalo", 1))
		m.want("back", m.now(), writes)
		if got := m.event["orig-user-agent"]; strings.Join(strings.Fields(got), " ") != "caf\xe9 5.1 beta" || m.dials != 1 {
			t.Errorf("written as %q, %d connections", got, m.dials)
		}
	}, func(m *mesh) { m.agent = "caf\xe9\t5.1\r\n    beta" })
	play(t, func(m *mesh) {
		m.now(reg("london", 0), reg("buffalo", 1))
		m.now(reg("buffalo", 1))
		m.want("nothing to write", m.now())
		if s := m.keeper.Stats(); s.Aside != 0 || s.PutBack != 0 || len(m.back) != 0 || m.dials != 1 {
			t.Errorf("%+v, published %+v, %d connections", s, m.back, m.dials)
		}
	}, func(m *mesh) { m.contact = "\"a\tb\" <sip:1001@192.168.1.7:5060>" })
}

// TestRowOfLastSecond: a row that is written back has an end, however near.
func TestRowOfLastSecond(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		m.now(reg("london", 0), reg("buffalo", 1))
		m.now(reg("buffalo", 1))
		left := 10*time.Minute - 2*outAfter
		time.Sleep(left - time.Second/2)
		m.mu.Lock()
		m.regs, m.sent = nil, nil
		m.mu.Unlock()
		m.keeper.Changed(aor)
		synctest.Wait()
		if got := m.event["orig-expires"]; got != "1" {
			t.Errorf("half a second is left, written with %q (0 never ends)", got)
		}
	})
}

// TestNothingAsideOfADrainedNode: what leaves a node that is being emptied stays out.
func TestNothingAsideOfADrainedNode(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		m.node("london", pbxmesh.NodeState{Observed: pbxmesh.ObservedUp, Wanted: pbxmesh.WantedDraining})
		m.want("moved", m.now(reg("london", 0), reg("buffalo", 1)), reads, flushes)
		if s := m.keeper.Stats(); s.Aside != 0 || s.TakenOut != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestSwitchRefuses: a switch that takes nothing out is asked once, and what waits for it
// waits no more.
func TestSwitchRefuses(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		m.want("moved", m.now(here, there), reads, flushes)
		m.want("once", m.now(here, there))
		if s := m.keeper.Stats(); s.Unsafe != 1 || s.Aside+int(s.TakenOut) != 0 || !m.keeper.Taken(here) || m.dials != 1 {
			t.Errorf("%+v, taken %v, %d connections", s, m.keeper.Taken(here), m.dials)
		}
	}, func(m *mesh) { m.refuses = true })
}

func (m *mesh) unregister(callID, contact string) {
	m.conn.cfg.OnEvent(esl.ParseEvent("Event-Name: CUSTOM\nEvent-Subclass: sofia::unregister\nfrom-user: 1001\nfrom-host: pbx.test\n" +
		"call-id: " + callID + "\ncontact: " + contact + "\n\n"))
}

func TestNothingSafeToSay(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here := reg("london", 0)
		here.CallID = "pbx.test"
		m.want("a Call-ID that is a domain", m.now(here, reg("buffalo", 1)), reads)
		if s := m.keeper.Stats(); !m.keeper.Taken(here) || s.Unsafe != 1 || s.Aside+int(s.TakenOut) != 0 {
			t.Errorf("nobody may wait for it: taken %v, %+v", m.keeper.Taken(here), s)
		}
		m.want("tried once", m.now(here, reg("buffalo", 1)))
	})
	play(t, func(m *mesh) {
		m.want("no row: nothing to put aside", m.now(reg("london", 0), reg("buffalo", 1)), reads, flushes)
		if s := m.keeper.Stats(); s.Aside != 0 || s.TakenOut != 1 {
			t.Errorf("%+v", s)
		}
	}, func(m *mesh) { m.rows = false })
}

// TestCameWhileNobodyListened: a registration that was found expires later than the one
// that was heard of, so the phone came here since.
func TestCameWhileNobodyListened(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		here.Since, here.Expires = pbxmesh.StampFound, there.Expires.Add(time.Minute)
		m.want("found", m.now(here, there))
		if len(m.put) != 1 || m.put[0].Since <= pbxmesh.StampFound || m.put[0].CallID != here.CallID {
			t.Errorf("published %+v", m.put)
		}
		here.Expires = there.Expires.Add(-time.Minute)
		m.want("an old one, of a switch that came back", m.now(here, there), reads, flushes)
	})
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		here.Since, here.Expires = pbxmesh.StampFound, there.Expires.Add(time.Second)
		m.want("a second is the clocks' doing", m.now(here, there), reads, flushes)
	})
}

func TestConnectionLost(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		m.mu.Lock()
		m.fails = errors.New("broken")
		m.mu.Unlock()
		m.regs = []*pbxmesh.Registration{here, there}
		m.keeper.Changed(aor)
		time.Sleep(rowsAfter)
		synctest.Wait()
		if !m.keeper.Taken(here) || m.settled == 0 {
			t.Error("rows wait for a switch that is not there")
		}
		m.mu.Lock()
		m.fails, m.sent = nil, nil
		m.mu.Unlock()
		time.Sleep(time.Second)
		if got := m.did(); !slices.Contains(got, flushes) {
			t.Errorf("not tried again: %q", got)
		}
	})
}

// rowsOf answers every question with one list.
type rowsOf struct {
	Conn
	list  string
	asked *string
}

func (r rowsOf) API(_ context.Context, command string) (string, error) {
	*r.asked = command
	return "<profile>\n  <registrations>\n" + r.list + "  </registrations>\n</profile>", nil
}

// TestReadRow: the row of a registration is found whatever the phone sent, and is what the
// switch has, byte for byte.
func TestReadRow(t *testing.T) {
	t.Parallel()
	type entry struct{ callID, user, contact string }
	list := func(rows ...entry) (out string) {
		for _, r := range rows {
			out += "    <registration>\n        <call-id>" + r.callID + "</call-id>\n        <user>" + r.user + "</user>\n        <contact>" + escaped.Replace(r.contact) + "</contact>\n    </registration>\n"
		}
		return out
	}
	const plain = `"" <sip:1001@192.168.1.7:5060>`
	long := `"" <sip:1001@192.168.1.7:5060;x=` + strings.Repeat("&", 450) + ">"
	for name, c := range map[string]struct {
		callID, uri string // as published
		rows        []entry
		want        entry
		filter      string // of the contact
	}{
		"percent in the Call-ID":     {"A<@h", "sip:1001@192.168.1.7:5060", []entry{{"%41%3C@h", "1001@pbx.test", plain}}, entry{"%41%3C@h", "1001@pbx.test", plain}, "192.168.1.7:5060"},
		"percent that stays":         {"%4a%zz@h", "sip:1001@192.168.1.7:5060", []entry{{"%4a%zz@h", "1001@pbx.test", plain}}, entry{"%4a%zz@h", "1001@pbx.test", plain}, "192.168.1.7:5060"},
		"markup in the Call-ID":      {"x</call-id>y@h", "sip:1001@192.168.1.7:5060", []entry{{"x</call-id>y@h", "1001@pbx.test", plain}}, entry{"x</call-id>y@h", "1001@pbx.test", plain}, "192.168.1.7:5060"},
		"an entity in the Call-ID":   {"&amp;@h", "sip:1001@192.168.1.7:5060", []entry{{"&@h", "1001@pbx.test", "x"}, {"&amp;@h", "1001@pbx.test", plain}}, entry{"&amp;@h", "1001@pbx.test", plain}, "192.168.1.7:5060"},
		"a row in another's Call-ID": {"i", "sip:1001@192.168.1.7:5060", []entry{{"</registration>", "1001@pbx.test", plain}, {"i", "1001@pbx.test", plain}}, entry{"i", "1001@pbx.test", plain}, "192.168.1.7:5060"},
		"percent in the user": {
			"i", "sip:+1001@192.168.1.7:5060", []entry{{"i", "1001@pbx.test", `"" <sip:%2B1001@192.168.1.7:5060>`}},
			entry{"i", "1001@pbx.test", `"" <sip:%2B1001@192.168.1.7:5060>`}, "192.168.1.7:5060",
		},
		"a user with parameters": {
			"i", "sip:1001;x=y@192.168.1.7:5060;ob", []entry{{"i", "1001@pbx.test", `"" <sip:1001;x=y@192.168.1.7:5060;ob>`}},
			entry{"i", "1001@pbx.test", `"" <sip:1001;x=y@192.168.1.7:5060;ob>`}, "192.168.1.7:5060",
		},
		"no user, and a path": {
			"i", "sip:192.168.1.7:5060;fs_path=sip:edge@192.0.2.7", []entry{{"i", "1001@pbx.test", `"" <sip:192.168.1.7:5060;fs_path=sip%3Aedge%40192.0.2.7>`}},
			entry{"i", "1001@pbx.test", `"" <sip:192.168.1.7:5060;fs_path=sip%3Aedge%40192.0.2.7>`}, "192.168.1.7:5060",
		},
		"IPv6":                        {"i", "sip:1001@[2001:db8::9]:5070", []entry{{"i", "1001@pbx.test", `"" <sip:1001@[2001:db8::9]:5070>`}}, entry{"i", "1001@pbx.test", `"" <sip:1001@[2001:db8::9]:5070>`}, "[2001:db8::9]:5070"},
		"a name that is a pattern":    {"i", "sip:1001@my_phone", []entry{{"i", "1001@pbx.test", `"" <sip:1001@my_phone>`}}, entry{"i", "1001@pbx.test", `"" <sip:1001@my_phone>`}, ""},
		"another user's Call-ID":      {"i", "sip:1001@192.168.1.7:5060", []entry{{"i", "1002@pbx.test", plain}}, entry{}, "192.168.1.7:5060"},
		"as the phone spelled it":     {"i", "sip:1001@192.168.1.7:5060", []entry{{"i", "1001@PBX.test", plain}}, entry{"i", "1001@PBX.test", plain}, "192.168.1.7:5060"},
		"its old port beside it":      {"i", "sip:1001@192.168.1.7:5060", []entry{{"i", "1001@pbx.test", plain}, {"i", "1001@pbx.test", `"" <sip:1001@192.168.1.7:50601>`}}, entry{"i", "1001@pbx.test", plain}, "192.168.1.7:5060"},
		"its new port behind the old": {"i", "sip:1001@192.168.1.7:5060", []entry{{"i", "1001@pbx.test", `"" <sip:1001@192.168.1.7:5>`}, {"i", "1001@pbx.test", plain}}, entry{"i", "1001@pbx.test", plain}, "192.168.1.7:5060"},
		"a contact that is cut short": {"i", "sip:1001@192.168.1.7:5060;x=" + strings.Repeat("&", 450), []entry{{"i", "1001@pbx.test", long}}, entry{}, "192.168.1.7:5060"},
		"none":                        {"i", "sip:1001@192.168.1.7:5060", nil, entry{}, "192.168.1.7:5060"},
	} {
		r, asked := reg("london", 0), ""
		r.CallID, r.Contact = c.callID, c.uri
		got, err := readRow(t.Context(), rowsOf{list: list(c.rows...), asked: &asked}, r)
		if (err != nil) != (c.want == entry{}) || err != nil && !errors.Is(err, sofia.ErrNoRow) || (entry{got.CallID, got.User, got.Contact}) != c.want {
			t.Errorf("%s: got %q %q %q, %v", name, got.CallID, got.User, got.Contact, err)
		}
		if want := strings.TrimSpace("sofia xmlstatus profile internal reg " + c.filter); asked != want {
			t.Errorf("%s: asked %q, want %q", name, asked, want)
		}
	}
}

// TestEncodedCallID: the switch is told of a row by the Call-ID that it has, and the row
// is written back with it.
func TestEncodedCallID(t *testing.T) {
	t.Parallel()
	play(t, func(m *mesh) {
		here, there := reg("london", 0), reg("buffalo", 1)
		here.CallID, here.Contact = "A7f3a@h", "sip:a_b@192.168.1.7:5060"
		there.Contact = here.Contact
		m.want("moved", m.now(here, there), reads, "sofia profile internal flush_inbound_reg %417f3a@h")
		m.now(there)
		m.unregister("x", "") // another phone's connection ends
		m.want("back", m.now(), writes)
		if got := m.event["orig-call-id"]; got != "%417f3a@h" || len(m.back) != 1 || m.back[0].CallID != here.CallID {
			t.Errorf("written as %q, published %+v", got, m.back)
		}
	}, func(m *mesh) { m.callID = "%417f3a@h" })
}
