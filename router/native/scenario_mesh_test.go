package native

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
	"pbxmesh/internal/esl"
)

const tenant = "a.test"

// meshNode is a real switch with this package beside it.
type meshNode struct {
	*realNode
	id    pbxmesh.NodeID
	rows  *Rows
	lamps *Lamps
	boxes *Mailboxes
	stop  func()
}

// meshOf starts real nodes with users 1001 to 1009 of the tenant, joined by one
// world and one exchange.
func meshOf(t *testing.T, names ...string) (*world, []*meshNode) {
	t.Helper()
	return meshWith(t, names)
}

// meshWith is meshOf with options of the switches, and the user Alice.
func meshWith(t *testing.T, names []string, opts ...realswitch.Option) (*world, []*meshNode) {
	t.Helper()
	w, x := newWorld(), NewMemory()
	users := []fixtures.User{{Name: "Alice", Domain: tenant, Password: "secret"}}
	for i := 1; i <= 9; i++ {
		users = append(users, fixtures.User{Name: fmt.Sprintf("100%d", i), Domain: tenant, Password: "secret"})
	}
	var nodes []*meshNode
	for i, name := range names {
		n := &meshNode{realNode: startRealWith(t, name, fmt.Sprintf("127.0.8%d.1", i+1), users, opts...), id: pbxmesh.NodeID(name)}
		nodes = append(nodes, n)
		w.setNode(n.id, n.Mesh(), pbxmesh.ObservedUp, pbxmesh.WantedInService)
	}
	for _, n := range nodes {
		n.rows = NewRows(RowsOptions{ESL: n.esl(), Local: n.id, Directory: w, Nodes: w, Logger: testLog(t)})
		n.lamps = NewLamps(LampsOptions{ESL: n.esl(), Local: n.id, Directory: w, Nodes: w, Exchange: x, Logger: testLog(t)})
		n.boxes = NewMailboxes(MailboxesOptions{ESL: n.esl(), Local: n.id, Directory: w, Exchange: x, Logger: testLog(t)})
		stopRows, stopLamps, stopBoxes := start(t, n.rows.Run), start(t, n.lamps.Run), start(t, n.boxes.Run)
		n.stop = func() { stopRows(); stopLamps(); stopBoxes() }
		n.rows.Resync()
		eventually(t, 5*time.Second, func() string {
			if !n.rows.Stats().Ready || !n.lamps.Stats().Connected || !n.boxes.Stats().Connected {
				return "not connected"
			}
			return ""
		})
	}
	return w, nodes
}

// phoneAt registers a phone of the tenant and tells the mesh.
func phoneAt(t *testing.T, w *world, nodes []*meshNode, n *meshNode, user, ip string) *phone.Phone {
	t.Helper()
	p, err := phone.New(phone.Config{User: user, Domain: tenant, Password: "secret", Local: netip.MustParseAddr(ip), Registrar: n.SIP()})
	if err != nil {
		t.Fatal(err)
	}
	p.Start()
	t.Cleanup(func() { _ = p.Close() })
	if err := p.Register(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, n.Log())
	}
	aor := mustAOR(t, user+"@"+tenant)
	w.register(aor, n.id, time.Hour)
	for _, o := range nodes {
		where := strings.Replace(n.Mesh().String(), ":", "%3A", 1)
		if o == n {
			where = p.Addr().String()
		}
		o.rows.Changed(aor)
		eventually(t, 5*time.Second, func() string {
			if got := o.api("sofia_contact */" + aor.String()); !strings.Contains(got, where) {
				return got
			}
			return ""
		})
	}
	return p
}

// dialStock has the caller's switch ring the caller and then the callee, the stock
// way: user/callee@domain.
func (n *meshNode) dialStock(caller, callee string) {
	n.t.Helper()
	n.api(fmt.Sprintf("bgapi originate {origination_caller_id_number=%s,origination_caller_id_name=Desk}user/%s@%s bridge:user/%s@%s inline",
		caller, caller, tenant, callee, tenant))
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestScenarioStockDialling rings a user with phones on two nodes through
// user/..., once each, and cancels the loser.
func TestScenarioStockDialling(t *testing.T) {
	w, nodes := meshOf(t, "buffalo", "london", "singapore")
	buffalo, lon, sing := nodes[0], nodes[1], nodes[2]
	caller := phoneAt(t, w, nodes, buffalo, "1001", "127.0.85.1")
	desk := phoneAt(t, w, nodes, lon, "1002", "127.0.85.2")
	mobile := phoneAt(t, w, nodes, sing, "1002", "127.0.85.3")
	desk.SetBehaviour(phone.RingForever())
	mobile.SetBehaviour(phone.AutoAnswer(500 * time.Millisecond))

	buffalo.dialStock("1001", "1002")
	mine, err := caller.WaitIncoming(within(t, 5*time.Second), 1)
	if err != nil {
		t.Fatal(err)
	}
	won, err := mobile.WaitIncoming(within(t, 5*time.Second), 1)
	if err != nil {
		t.Fatalf("singapore's phone does not ring: %v", err)
	}
	lost, err := desk.WaitIncoming(within(t, 5*time.Second), 1)
	if err != nil {
		t.Fatalf("london's phone does not ring: %v", err)
	}
	if _, err := won.WaitAnswered(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	info, err := lost.WaitEnded(within(t, 5*time.Second))
	if err != nil || info.Cancel == nil {
		t.Errorf("the loser was not cancelled: %+v, %v", info, err)
	}
	if err := mine.Hangup(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := won.WaitEnded(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		eventually(t, 5*time.Second, func() string {
			if got := n.api("show channels count"); !strings.HasPrefix(strings.TrimSpace(got), "0 total") {
				return n.Name() + ": " + got
			}
			return ""
		})
	}
	if n := len(desk.Incoming()) + len(mobile.Incoming()); n != 2 {
		t.Errorf("%d calls reached two phones", n)
	}
}

// element returns the text of the first <name> in a document, "" without one.
func element(doc, name string) string {
	_, rest, _ := strings.Cut(doc, "<"+name+">")
	text, _, ok := strings.Cut(rest, "</"+name+">")
	if !ok {
		return ""
	}
	return text
}

// dialogState reads the state of a dialog-info NOTIFY; "" when it lists no dialog.
func dialogState(n phone.Notify) string { return element(n.Body, "state") }

// waitLamp waits for a NOTIFY with the state that came after the first n.
func waitLamp(t *testing.T, s *phone.Subscription, after int, state string, d time.Duration) phone.Notify {
	t.Helper()
	var got phone.Notify
	eventually(t, d, func() string {
		var seen []string
		for i, n := range s.Notifies() {
			seen = append(seen, dialogState(n))
			if i >= after && dialogState(n) == state {
				got = n
				return ""
			}
		}
		return fmt.Sprintf("no %s, the lamp went %q", state, seen)
	})
	return got
}

// TestScenarioLamps watches a user of another node through a call, from before it,
// from within it, and through the death of the node.
func TestScenarioLamps(t *testing.T) {
	w, nodes := meshOf(t, "buffalo", "london")
	buffalo, lon := nodes[0], nodes[1]
	watcher := phoneAt(t, w, nodes, buffalo, "1001", "127.0.86.1")
	there := phoneAt(t, w, nodes, lon, "1004", "127.0.86.4")
	callee := phoneAt(t, w, nodes, lon, "1002", "127.0.86.2")
	caller := phoneAt(t, w, nodes, lon, "1003", "127.0.86.3")
	callee.SetBehaviour(phone.RingForever())
	here, err := watcher.Subscribe(t.Context(), phone.EventDialog, "1002")
	if err != nil {
		t.Fatal(err)
	}
	local, err := there.Subscribe(t.Context(), phone.EventDialog, "1002")
	if err != nil {
		t.Fatal(err)
	}
	call := func(n int) *phone.Call { // the n-th that reaches the callee
		before := len(caller.Incoming())
		lon.dialStock("1003", "1002")
		if _, err := caller.WaitIncoming(within(t, 5*time.Second), before+1); err != nil {
			t.Fatal(err)
		}
		c, err := callee.WaitIncoming(within(t, 5*time.Second), n)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	compare := func(state string, after int) {
		t.Helper()
		far, near := waitLamp(t, here, after, state, 5*time.Second), waitLamp(t, local, 0, state, 5*time.Second)
		lag := far.At.Sub(near.At)
		t.Logf("%s: %s later than on the callee's own node", state, lag)
		if lag > 500*time.Millisecond {
			t.Errorf("%s came %s late", state, lag)
		}
	}
	c := call(1)
	compare("early", 0)
	if err := c.Answer(); err != nil {
		t.Fatal(err)
	}
	compare("confirmed", 0)

	late, err := watcher.Subscribe(t.Context(), phone.EventDialog, "1002")
	if err != nil {
		t.Fatal(err)
	}
	waitLamp(t, late, 0, "confirmed", 2*time.Second)
	eventually(t, 2*time.Second, func() string {
		if all := late.Notifies(); dialogState(all[len(all)-1]) != "confirmed" {
			return "a late subscriber's last word is not the running call"
		}
		return ""
	})

	if err := c.Hangup(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	compare("terminated", 0)

	t.Log("a call between the nodes, watched on the caller's")
	seen := len(here.Notifies())
	callee.SetBehaviour(phone.AutoAnswer(200 * time.Millisecond))
	buffalo.dialStock("1001", "1002")
	waitLamp(t, here, seen, "confirmed", 5*time.Second)
	c, err = callee.WaitIncoming(within(t, 5*time.Second), 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitAnswered(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	seen = len(here.Notifies())
	if err := c.Hangup(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	waitLamp(t, here, seen, "terminated", 5*time.Second)

	t.Log("a daemon that missed the call learns of it from the switch's channels")
	lon.stop()
	seen = len(here.Notifies())
	c = call(3)
	if _, err := c.WaitAnswered(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	lon.lamps = NewLamps(lon.lamps.opts)
	start(t, lon.lamps.Run)
	waitLamp(t, here, seen, "confirmed", 5*time.Second)

	t.Log("the node dies during the call")
	seen = len(here.Notifies())
	if err := lon.Kill(); err != nil {
		t.Fatal(err)
	}
	w.setNode("london", lon.Mesh(), pbxmesh.ObservedDown, pbxmesh.WantedInService)
	for _, n := range nodes {
		n.rows.NodesChanged()
		n.lamps.NodesChanged()
	}
	began := time.Now()
	waitLamp(t, here, seen, "terminated", 30*time.Second)
	t.Log("lamp out after", time.Since(began))
}

// TestScenarioMessages lights and clears the message lamp of a phone for a mailbox
// on another node, and for one on its own node with injected rows around.
func TestScenarioMessages(t *testing.T) {
	w, nodes := meshOf(t, "buffalo", "london")
	buffalo, lon := nodes[0], nodes[1]
	p := phoneAt(t, w, nodes, buffalo, "1001", "127.0.87.1")
	phoneAt(t, w, nodes, lon, "1002", "127.0.87.2") // a row of the domain on buffalo's mesh profile
	s, err := p.Subscribe(t.Context(), phone.EventMessages, "1001")
	if err != nil {
		t.Fatal(err)
	}
	report := func(n *meshNode, waiting, counts, profile string) {
		t.Helper()
		h := []esl.Header{{Name: "MWI-Messages-Waiting", Value: waiting}, {Name: "MWI-Message-Account", Value: "1001@" + tenant}, {Name: "MWI-Voice-Message", Value: counts}}
		if profile != "" {
			h = append(h, esl.Header{Name: "sofia-profile", Value: profile})
		}
		if err := n.conn.SendEvent(t.Context(), "MESSAGE_WAITING", h, nil); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what, waiting, counts string) {
		t.Helper()
		took := eventually(t, 5*time.Second, func() string {
			all := s.Notifies()
			if len(all) == 0 {
				return "no NOTIFY"
			}
			body := all[len(all)-1].Body
			if !strings.Contains(body, "Messages-Waiting: "+waiting) || !strings.Contains(body, "Voice-Message: "+counts) {
				return body
			}
			return ""
		})
		t.Log(what, took)
	}
	report(lon, "yes", "2/1 (0/0)", "")
	expect("lit from london", "yes", "2/1 (0/0)")
	report(buffalo, "yes", "1/0 (0/0)", "")
	expect("and from buffalo", "yes", "3/1 (0/0)")
	report(lon, "no", "0/0 (0/0)", "")
	expect("london's read", "yes", "1/0 (0/0)")
	report(buffalo, "no", "0/0 (0/0)", "")
	expect("cleared", "no", "0/0 (0/0)")

	// No loop: one more change costs one publication and one event, whatever went
	// before it.
	sent := func() []uint64 {
		here, there := buffalo.boxes.Stats(), lon.boxes.Stats()
		if there.Sent > 8 {
			t.Errorf("london's phones were told %d times of 6 changes", there.Sent)
		}
		return []uint64{here.Sent, here.Told.Published, there.Told.Published}
	}
	// A phone may have its NOTIFY before the event that made it is counted.
	counted := func(want ...uint64) {
		t.Helper()
		eventually(t, 5*time.Second, func() string {
			if got := sent(); !slices.Equal(got, want) {
				return fmt.Sprintf("sent and published are %v, want %v", got, want)
			}
			return ""
		})
	}
	counted(4, 2, 2)
	report(buffalo, "no", "0/0 (0/0)", "internal")
	report(lon, "yes", "7/0 (0/0)", "")
	expect("once more from london", "yes", "7/0 (0/0)")
	counted(5, 2, 3)
	report(lon, "no", "0/0 (0/0)", "") // the same again, with all that was to come of it before
	expect("and read", "no", "0/0 (0/0)")
	counted(6, 2, 4)
}
