package e2e_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pbxmesh"
	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/internal/esl"
	"pbxmesh/registry/registrytest"
)

// stockRoutes are dialplans as operators write them without pbxmesh: an extension, the
// contacts by hand, and a ring group. The prefix says which.
var stockRoutes = []fixtures.Route{
	{Prefix: "u", Bridge: "user/$1@" + domain},
	{Prefix: "c", Bridge: "${sofia_contact(*/$1@" + domain + ")}"},
	{Prefix: "g", Bridge: "user/$1@" + domain + ",user/1049@" + domain},
}

// TestScenarioNative plays what switches do that were only taught where remote
// users are: nothing of ours is in the call path.
func TestScenarioNative(t *testing.T) {
	t.Parallel()
	c := newCluster(t, registrytest.StartRedis(t).URL(), stockRoutes...)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *cluster)
	}{
		{"stock dialling between all pairs", nativePairs},
		{"ring group over three nodes", nativeRingGroup},
		{"devices on two nodes ring both, once", nativeFork},
		{"unregistered remote user", nativeUnregistered},
		{"refusals are told with their cause", nativeRefusals},
		{"early media, hold", nativeMedia},
		{"transfers", nativeTransfers},
		{"post-dial delay", nativeDelay},
		{"lamps across nodes", nativeLamps},
		{"a late subscriber is shown the running call", nativeLateSubscriber},
		{"messages on another node", nativeMessages},
		{"daemon killed and back", nativeDaemonKilled},
		{"switch restarted", nativeSwitchRestarted},
		{"node lost in a call", nativeNodeLost},
	} {
		if !t.Run(s.name, func(t *testing.T) {
			outer := c.t
			c.t = t
			defer func() { c.t = outer }()
			s.run(t, c)
		}) {
			break
		}
	}
}

// taught waits until the switch of every living node finds user by sofia_contact,
// or finds nobody.
func (c *cluster) taught(user string, there bool) time.Duration {
	c.t.Helper()
	var worst time.Duration
	for name, n := range c.nodes {
		if n.killed {
			continue
		}
		worst = max(worst, c.eventually(fmt.Sprintf("%s's switch finds %s: %v", name, user, there), func() bool {
			return !strings.Contains(c.api(n, "sofia_contact */"+user+"@"+domain), "user_not_registered") == there
		}))
	}
	return worst
}

// api runs an API command on a switch of either kind.
func (c *cluster) api(n *node, command string) string {
	c.t.Helper()
	reply, err := switchAPI(n.sw, command)
	if err != nil {
		c.t.Fatalf("%s: api %s: %v", n.name, command, err)
	}
	return reply
}

func nativePairs(t *testing.T, c *cluster) {
	towns := []string{"buffalo", "london", "singapore"}
	phones := map[string]*phone.Phone{}
	for i, at := range towns {
		user := fmt.Sprint(1041 + i)
		phones[at] = c.registered(user, fmt.Sprintf("127.0.101.%d", 1+i), at)
		t.Logf("%s is in every switch %s after its registration was known", user, c.taught(user, true).Round(time.Millisecond))
	}
	for _, from := range towns {
		for _, to := range towns {
			if from == to {
				continue
			}
			for _, prefix := range []string{"u", "c"} {
				out, in := c.callAs(phones[from], phones[to], prefix+phones[to].User())
				if in.Source() != c.nodes[to].sw.SIP() {
					t.Errorf("%s to %s: the INVITE came from %s, want %s's %s", from, to, in.Source(), to, c.nodes[to].sw.SIP())
				}
				if user := in.From().URI.User; user != phones[from].User() {
					t.Errorf("%s to %s: caller id %q", from, to, user)
				}
				story := ""
				for _, h := range in.Custom() {
					if strings.EqualFold(h.Name, "X-Story") {
						story = h.Value
					}
				}
				if story != "pbxmesh" {
					t.Errorf("%s to %s: the X-Story header arrived as %q", from, to, story)
				}
				// Each end hangs up once.
				if prefix == "u" {
					c.hangup(out, in)
				} else {
					c.hangup(in, out)
				}
			}
		}
	}
	for _, at := range towns {
		c.eventually(at+" has no channel left", func() bool {
			return strings.Contains(c.api(c.nodes[at], "show channels as json"), `"row_count": 0`)
		})
	}
}

func nativeRingGroup(t *testing.T, c *cluster) {
	a := c.registered("1044", "127.0.102.1", "buffalo")
	b := c.registered("1045", "127.0.102.2", "london")
	g := c.registered("1049", "127.0.102.3", "singapore")
	c.taught("1045", true)
	c.taught("1049", true)
	b.SetBehaviour(phone.RingForever())
	g.SetBehaviour(phone.AutoAnswer(300 * time.Millisecond))
	out, in := c.callAs(a, g, "g1045")
	loser, err := b.WaitIncoming(c.ctx(), 1)
	if err != nil {
		t.Fatalf("london did not ring: %v", err)
	}
	if info, err := loser.WaitEnded(c.ctx()); err != nil || info.Cancel == nil {
		t.Errorf("london got no CANCEL: %+v, %v", info, err)
	}
	c.hangup(out, in)
}

func nativeFork(t *testing.T, c *cluster) {
	a := c.registered("1046", "127.0.103.1", "london")
	near := c.registered("1047", "127.0.103.2", "london")
	far := c.phone("1047", "127.0.103.3", "singapore")
	if err := far.Register(c.ctx()); err != nil {
		t.Fatal(err)
	}
	c.everywhere("1047", "london", "singapore")
	c.eventually("london's switch finds 1047 here and there", func() bool {
		return strings.Count(c.api(c.nodes["london"], "sofia_contact */1047@"+domain), "sofia/") == 2
	})
	near.SetBehaviour(phone.RingForever())
	far.SetBehaviour(phone.AutoAnswer(300 * time.Millisecond))
	out, in := c.callAs(a, far, "u1047")
	loser, err := near.WaitIncoming(c.ctx(), 1)
	if err != nil {
		t.Fatalf("the near device did not ring: %v", err)
	}
	if info, err := loser.WaitEnded(c.ctx()); err != nil || info.Cancel == nil {
		t.Errorf("the near device got no CANCEL: %+v, %v", info, err)
	}
	c.hangup(out, in)
	if n := len(near.Incoming()) + len(far.Incoming()); n != 2 {
		t.Errorf("%d INVITEs at two devices: one of them rang twice", n)
	}
}

func nativeUnregistered(t *testing.T, c *cluster) {
	a := c.registered("1048", "127.0.104.1", "buffalo")
	b := c.registered("1050", "127.0.104.2", "singapore")
	c.taught("1050", true)
	if err := b.Unregister(c.ctx(), phone.KeepCallID); err != nil {
		t.Fatal(err)
	}
	c.taught("1050", false)
	_, _, took := c.dialplan(a, "u1050")
	c.atMost("the next dialplan action", took, time.Second)
	// The phone is gone without a word, so the row is still there: the far node says
	// 480, and the dialplan goes on as quickly.
	g := c.registered("1051", "127.0.104.3", "singapore")
	c.taught("1051", true)
	g.SetBehaviour(phone.Refuse(480))
	_, _, took = c.dialplan(a, "u1051")
	c.atMost("the next dialplan action", took, time.Second)
	t.Logf("the dialplan went on after %s", took.Round(time.Millisecond))
}

// nativeRefusals compares what a dialplan is told of a refusal by a phone of the same
// switch and of another node: continue_on_fail may list causes.
func nativeRefusals(t *testing.T, c *cluster) {
	a := c.registered("1083", "127.0.112.1", "buffalo")
	near, far := c.registered("1084", "127.0.112.2", "buffalo"), c.registered("1085", "127.0.112.3", "london")
	c.taught("1085", true)
	for code, want := range map[int]string{480: "NO_USER_RESPONSE", 486: "USER_BUSY", 503: "NORMAL_TEMPORARY_FAILURE", 603: "CALL_REJECTED"} {
		for _, p := range []*phone.Phone{near, far} {
			p.SetBehaviour(phone.Refuse(code))
			out, err := a.Call(c.ctx(), "u"+p.User())
			if err != nil {
				t.Fatal(err)
			}
			info, err := out.WaitAnswered(c.ctx())
			if err != nil {
				t.Fatalf("%s refuses with %d: the dialplan did not go on: %v", p.User(), code, err)
			}
			if got := info.Header("X-Cause"); got != want {
				t.Errorf("%s refuses with %d: the dialplan is told %s, want %s", p.User(), code, got, want)
			}
			if err := out.Hangup(c.ctx()); err != nil {
				t.Error(err)
			}
		}
	}
}

// nativeMedia has a callee on another node speak before it answers, and both ends put
// each other on hold.
func nativeMedia(t *testing.T, c *cluster) {
	a, b := c.registered("1089", "127.0.114.1", "buffalo"), c.registered("1090", "127.0.114.2", "london")
	c.taught("1090", true)
	b.SetBehaviour(phone.EarlyMedia())
	out, err := a.Call(c.ctx(), "u1090")
	if err != nil {
		t.Fatal(err)
	}
	if info, err := out.Wait(c.ctx(), func(i phone.CallInfo) bool { return i.State >= phone.Ringing }); err != nil || !slices.Contains(info.Provisional, 183) || len(info.RemoteSDP) == 0 {
		t.Errorf("the caller hears nothing before the answer: %v, %v", info.Provisional, err)
	}
	in, err := b.WaitIncoming(c.ctx(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Answer(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.WaitAnswered(c.ctx()); err != nil {
		t.Fatal(err)
	}
	for _, call := range []*phone.Call{out, in} {
		if err := call.Hold(c.ctx()); err != nil {
			t.Errorf("hold: %v", err)
		}
		if err := call.Reinvite(c.ctx()); err != nil {
			t.Errorf("back from hold: %v", err)
		}
	}
	c.hangup(in, out)
}

// nativeTransfers has either end of a call between two nodes transfer it to a third
// node, without a word and after one.
func nativeTransfers(t *testing.T, c *cluster) {
	if !c.real {
		t.Skip("the simulated switch takes no REFER")
	}
	a := c.registered("1086", "127.0.113.1", "buffalo")
	b := c.registered("1087", "127.0.113.2", "london")
	target := c.registered("1088", "127.0.113.3", "singapore")
	for _, user := range []string{"1086", "1087", "1088"} {
		c.taught(user, true)
	}
	at := map[*phone.Phone]*node{a: c.nodes["buffalo"], b: c.nodes["london"]}
	for _, by := range []string{"caller", "callee"} {
		for _, attended := range []bool{false, true} {
			what := fmt.Sprintf("by the %s, attended %v", by, attended)
			for _, n := range at {
				c.eventually(what+": the call before is over", func() bool { return len(c.joined(n)) == 0 })
			}
			out, in := c.callAs(a, b, "u1087")
			who, mine, other := a, out, in
			if by == "callee" {
				who, mine, other = b, in, out
			}
			rang := len(target.Incoming())
			var word *phone.Call
			if attended {
				word, _ = c.callAs(who, target, "u1088")
			}
			calls := 1
			if attended {
				calls = 2
			}
			c.eventually(what+": the calls are joined", func() bool { return len(c.joined(at[who])) == calls })
			if err := mine.Refer(c.ctx(), "sip:u1088@"+domain, word); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			last, err := target.WaitIncoming(c.ctx(), rang+1)
			if err != nil {
				t.Fatalf("%s: the target does not ring: %v (%v)", what, err, mine.Info().Transfer)
			}
			if _, err := last.WaitAnswered(c.ctx()); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			for _, call := range []*phone.Call{mine, word} {
				if call == nil {
					continue
				}
				if _, err := call.WaitEnded(c.ctx()); err != nil {
					t.Errorf("%s: the one who transferred is still in the call: %v", what, err)
				}
			}
			// Who is left are connected: one hangs up, and the other hears of it. A real
			// switch that is told before it has joined the two forgets the other.
			c.eventually(what+": the two are connected", func() bool {
				calls := c.joined(at[who])
				return len(calls) == 1 && strings.HasPrefix(calls[0][0], "sofia/mesh/") && strings.HasPrefix(calls[0][1], "sofia/mesh/")
			})
			c.hangup(other, last)
		}
	}
}

// joined returns the calls of a real switch whose two channels are joined, as the
// names of both. A phone knows of its answer a moment earlier, and a switch that is
// asked for a transfer in that moment agrees and does nothing.
func (c *cluster) joined(n *node) [][2]string {
	c.t.Helper()
	var list struct {
		Rows []struct {
			A string `json:"name"`
			B string `json:"b_name"`
		} `json:"rows"`
	}
	if err := json.Unmarshal([]byte(c.api(n, "show bridged_calls as json")), &list); err != nil {
		c.t.Fatal(err)
	}
	var out [][2]string
	for _, r := range list.Rows {
		out = append(out, [2]string{r.A, r.B})
	}
	return out
}

// nativeDelay prints how long a caller waits for the first ring, to a phone of the
// same switch and to one of another node, in turn.
func nativeDelay(t *testing.T, c *cluster) {
	a := c.registered("1080", "127.0.111.1", "buffalo")
	near, far := c.registered("1081", "127.0.111.2", "buffalo"), c.registered("1082", "127.0.111.3", "london")
	c.taught("1082", true)
	waits := map[*phone.Phone][]time.Duration{}
	for range 15 {
		for _, p := range []*phone.Phone{near, far} {
			p.SetBehaviour(phone.RingForever())
			call, err := a.Call(c.ctx(), "u"+p.User())
			if err != nil {
				t.Fatal(err)
			}
			info, err := call.Wait(c.ctx(), func(i phone.CallInfo) bool { return i.State >= phone.Ringing })
			if err != nil || info.RingingAt.IsZero() {
				t.Fatalf("no ring from %s: %+v, %v", p.User(), info, err)
			}
			waits[p] = append(waits[p], info.RingingAt.Sub(info.StartedAt))
			if err := call.Cancel(c.ctx()); err != nil {
				t.Fatal(err)
			}
		}
	}
	median := func(p *phone.Phone) time.Duration {
		slices.Sort(waits[p])
		return waits[p][len(waits[p])/2].Round(100 * time.Microsecond)
	}
	t.Logf("first ring of 15 calls each, median: local %s, another node %s", median(near), median(far))
}

// dialog is a NOTIFY of the dialog package that shows one of states.
func dialog(states ...string) func(phone.Notify) bool {
	return func(n phone.Notify) bool {
		for _, s := range states {
			if strings.Contains(n.Body, "<state>"+s+"</state>") {
				return true
			}
		}
		return false
	}
}

func nativeLamps(t *testing.T, c *cluster) {
	watcher := c.registered("1052", "127.0.105.1", "buffalo")
	home := c.registered("1053", "127.0.105.2", "london")
	caller := c.registered("1054", "127.0.105.3", "london")
	callee := c.registered("1055", "127.0.105.4", "london")
	far, err := watcher.Subscribe(c.ctx(), phone.EventDialog, "1055")
	if err != nil {
		t.Fatal(err)
	}
	near, err := home.Subscribe(c.ctx(), phone.EventDialog, "1055")
	if err != nil {
		t.Fatal(err)
	}
	callee.SetBehaviour(phone.RingForever())
	out, err := caller.Call(c.ctx(), "u1055")
	if err != nil {
		t.Fatal(err)
	}
	show := func(states ...string) {
		t.Helper()
		here, err := near.WaitNotify(c.ctx(), dialog(states...))
		if err != nil {
			t.Fatalf("london's own lamp never showed %v: %v", states, err)
		}
		there, err := far.WaitNotify(c.ctx(), dialog(states...))
		if err != nil {
			t.Fatalf("buffalo's lamp never showed %v: %v", states, err)
		}
		t.Logf("%s at buffalo %s after london", states[0], there.At.Sub(here.At).Round(time.Millisecond))
		c.atMost("buffalo's lamp follows", there.At.Sub(here.At), 500*time.Millisecond)
	}
	show("early")
	in, err := callee.WaitIncoming(c.ctx(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := in.Answer(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.WaitAnswered(c.ctx()); err != nil {
		t.Fatal(err)
	}
	show("confirmed")
	c.hangup(out, in)
	show("terminated")
}

func nativeLateSubscriber(t *testing.T, c *cluster) {
	watcher := c.registered("1056", "127.0.106.1", "buffalo")
	a, b := c.registered("1057", "127.0.106.2", "london"), c.registered("1058", "127.0.106.3", "london")
	out, in := c.callAs(a, b, "u1058")
	s, err := watcher.Subscribe(c.ctx(), phone.EventDialog, "1058")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.WaitNotify(c.ctx(), dialog("confirmed")); err != nil {
		t.Errorf("a late subscriber is not shown the running call: %v", err)
	}
	c.hangup(out, in)
	if _, err := s.WaitNotify(c.ctx(), dialog("terminated")); err != nil {
		t.Errorf("its end is not shown: %v", err)
	}
}

// nativeMessages leaves a message on a node where the user has no phone.
func nativeMessages(t *testing.T, c *cluster) {
	p := c.registered("1059", "127.0.110.1", "buffalo")
	s, err := p.Subscribe(c.ctx(), phone.EventMessages, "1059")
	if err != nil {
		t.Fatal(err)
	}
	address, password := c.nodes["london"].sw.EventSocket()
	conn, err := esl.Dial(c.ctx(), esl.Config{Address: address, Password: password})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, step := range []struct{ waiting, count string }{{"yes", "2/1 (0/0)"}, {"no", "0/3 (0/0)"}} {
		began := time.Now()
		if err := conn.SendEvent(c.ctx(), "MESSAGE_WAITING", []esl.Header{
			{Name: "MWI-Messages-Waiting", Value: step.waiting},
			{Name: "MWI-Message-Account", Value: "sip:1059@" + domain},
			{Name: "MWI-Voice-Message", Value: step.count},
		}, nil); err != nil {
			t.Fatal(err)
		}
		if _, err := s.WaitNotify(c.ctx(), func(n phone.Notify) bool {
			return n.At.After(began) && strings.Contains(n.Body, "Messages-Waiting: "+step.waiting)
		}); err != nil {
			t.Fatalf("the phone on buffalo was never told %q: %v", step.waiting, err)
		}
		t.Logf("messages waiting: %s, told on buffalo after %s", step.waiting, time.Since(began).Round(time.Millisecond))
	}
}

func nativeDaemonKilled(t *testing.T, c *cluster) {
	a, b := c.registered("1070", "127.0.107.1", "buffalo"), c.registered("1071", "127.0.107.2", "london")
	c.taught("1071", true)
	buffalo := c.nodes["buffalo"]
	out, in := c.callAs(a, b, "u1071")
	buffalo.app.Kill()
	if err := out.Reinvite(c.ctx()); err != nil {
		t.Errorf("the daemon's death ended a call: %v", err)
	}
	c.hangup(out, in)
	out, in = c.callAs(a, b, "u1071") // a new call to a user already known
	c.hangup(out, in)
	if err := b.Unregister(c.ctx(), phone.KeepCallID); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.startDaemon(buffalo)
	c.taught("1071", false)
	took := time.Since(began)
	t.Logf("the daemon's return repaired the switch after %s", took.Round(time.Millisecond))
	c.atMost("the switch is repaired", took, 5*time.Second)
}

func nativeSwitchRestarted(t *testing.T, c *cluster) {
	_ = c.registered("1072", "127.0.108.1", "london")
	c.taught("1072", true)
	buffalo := c.nodes["buffalo"]
	if err := buffalo.sw.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := buffalo.sw.Start(); err != nil {
		t.Fatal(err)
	}
	took := c.taught("1072", true)
	t.Logf("all rows were back %s after the switch", took.Round(time.Millisecond))
	c.atMost("rows are back", took, 10*time.Second)
	c.eventually("london sees buffalo up again", func() bool {
		return c.nodes["london"].app.Mesh().State("buffalo").Effective() == pbxmesh.EffectiveUp
	})
}

func nativeNodeLost(t *testing.T, c *cluster) {
	watcher := c.registered("1073", "127.0.109.1", "buffalo")
	a, b := c.registered("1074", "127.0.109.2", "london"), c.registered("1075", "127.0.109.3", "london")
	s, err := watcher.Subscribe(c.ctx(), phone.EventDialog, "1075")
	if err != nil {
		t.Fatal(err)
	}
	c.taught("1075", true)
	_, _ = c.callAs(a, b, "u1075")
	if _, err := s.WaitNotify(c.ctx(), dialog("confirmed")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.kill("london")
	_, _, took := c.dialplan(watcher, "u1075")
	c.atMost("a call to the lost node goes on", took, 5*time.Second)
	if _, err := s.WaitNotify(c.ctx(), dialog("terminated")); err != nil {
		t.Errorf("the lamp of a call on a dead node sticks: %v", err)
	}
	t.Logf("the lamp was out %s after the node's death", time.Since(began).Round(time.Millisecond))
	c.taught("1075", false)
	t.Logf("its rows were gone %s after its death", time.Since(began).Round(time.Millisecond))
}
