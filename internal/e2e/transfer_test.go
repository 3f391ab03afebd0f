package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
)

// TestScenarioTransferSocket: what the callee of a call between nodes makes of it, where
// the dialplan asks the daemon for every call (the socket application).
func TestScenarioTransferSocket(t *testing.T) {
	if realBinary() == "" {
		t.Skipf("set %s to a freeswitch binary: the simulated switch takes no REFER and follows no 302", realswitch.EnvBinary)
	}
	c := newCluster(t, "")
	c.transferToNobody(c.transfers("london", ""), "london", "not-registered")
}

// TestScenarioTransferXMLCurl: the same where mod_xml_curl asks it. The node has no mesh
// context of its own.
func TestScenarioTransferXMLCurl(t *testing.T) {
	c := httpCluster(t, flavour{options: xmlCurl, acl: true}, "london")
	c.eventually("buffalo lets the others in", func() bool {
		return strings.TrimSpace(c.api(c.nodes["buffalo"], "acl "+hosts["london"]+" mesh")) == "true" &&
			strings.TrimSpace(c.api(c.nodes["buffalo"], "acl "+hosts["singapore"]+" mesh")) == "true"
	})
	c.transferToNobody(c.transfers("buffalo", ""), "buffalo", "routed") // "not found" sets nothing
}

// TestScenarioTransferCurl: the same where the dialplan calls ${curl(...)}.
func TestScenarioTransferCurl(t *testing.T) {
	c := httpCluster(t, flavour{options: onlyCurl}, "london")
	c.transferToNobody(c.transfers("buffalo", ""), "buffalo", "failed")
}

// TestScenarioTransferStock: the same where nothing of ours is in the dialplan. A phone
// that redirects is the one way on that a REFER does not show.
func TestScenarioTransferStock(t *testing.T) {
	if realBinary() == "" {
		t.Skipf("set %s to a freeswitch binary: the simulated switch takes no REFER and follows no 302", realswitch.EnvBinary)
	}
	c := newCluster(t, "", stockRoutes...)
	c.transfers("london", "u")
}

// desk are the phones of a story: the callee's node is at, the caller is on another
// one, and who is dialled by the callee is everywhere.
type desk struct {
	caller, callee *phone.Phone
	targets        map[string]*phone.Phone // by node
}

func (c *cluster) desk(at string) desk {
	c.t.Helper()
	var others []string
	for name := range c.nodes {
		if name != at {
			others = append(others, name)
		}
	}
	slices.Sort(others)
	d := desk{
		caller:  c.registered("1071", "127.0.151.1", others[0]),
		callee:  c.registered("1072", "127.0.151.2", at),
		targets: map[string]*phone.Phone{},
	}
	for i, name := range append(others, at) {
		d.targets[name] = c.registered(fmt.Sprint(1073+i), fmt.Sprintf("127.0.151.%d", 3+i), name)
	}
	for _, p := range append([]*phone.Phone{d.caller, d.callee}, d.target("")...) {
		c.taught(p.User(), true)
	}
	return d
}

// target returns every phone that may be dialled but that of a node.
func (d desk) target(not string) (out []*phone.Phone) {
	for name, p := range d.targets {
		if name != not {
			out = append(out, p)
		}
	}
	return out
}

// transfers has the callee, a phone of at, hand a call that came over the mesh to a user
// of the third node, of the caller's own and of the callee's: without a word, after one,
// and by a forward in the phone. Whom it is for rings once, nobody else rings, and the
// two who are left talk to each other. prefix is what the dialplan wants in front.
func (c *cluster) transfers(at, prefix string) desk {
	c.t.Helper()
	d := c.desk(at)
	for _, to := range []string{"buffalo", "london", "singapore"} {
		for _, how := range []string{"REFER", "REFER with Replaces", "302"} {
			c.t.Run(fmt.Sprintf("%s to %s", how, to), func(t *testing.T) {
				outer := c.t
				c.t = t
				defer func() { c.t = outer }()
				c.transfer(d, at, to, how, prefix)
			})
		}
	}
	return d
}

func (c *cluster) transfer(d desk, at, to, how, prefix string) {
	c.t.Helper()
	c.idle()
	target := d.targets[to]
	rang, others := len(target.Incoming()), 0
	for _, p := range d.target(to) {
		others += len(p.Incoming())
	}
	uri := "sip:" + prefix + target.User() + "@" + domain
	var out, last *phone.Call
	if how == "302" {
		d.callee.SetBehaviour(phone.Redirect(uri))
		defer d.callee.SetBehaviour(phone.AutoAnswer(0))
		out, last = c.callAs(d.caller, target, prefix+d.callee.User())
	} else {
		var in, word *phone.Call
		out, in = c.callAs(d.caller, d.callee, prefix+d.callee.User())
		calls := 1
		if how != "REFER" {
			word, _ = c.callAs(d.callee, target, prefix+target.User())
			calls = 2
		}
		c.eventually("the calls are joined", func() bool { return len(c.joined(c.nodes[at])) == calls })
		if err := in.Refer(c.ctx(), uri, word); err != nil {
			c.t.Fatal(err)
		}
		var err error
		if last, err = target.WaitIncoming(c.ctx(), rang+1); err != nil {
			c.t.Fatalf("whom the call is for does not ring: %v (%v)", err, in.Info().Transfer)
		}
		if _, err := last.WaitAnswered(c.ctx()); err != nil {
			c.t.Fatal(err)
		}
		if _, err := in.WaitEnded(c.ctx()); err != nil {
			c.t.Errorf("who transferred is still in the call: %v", err)
		}
	}
	if got := last.Source(); got != c.nodes[to].sw.SIP() {
		c.t.Errorf("the INVITE came from %s, want %s's %s", got, to, c.nodes[to].sw.SIP())
	}
	c.eventually("the two who are left are connected", func() bool {
		calls := c.joined(c.nodes[at])
		return len(calls) == 1 && strings.HasPrefix(calls[0][0], "sofia/mesh/") &&
			strings.HasPrefix(calls[0][1], "sofia/mesh/") == (to != at)
	})
	c.hangup(out, last)
	c.idle()
	if n := len(target.Incoming()); n != rang+1 {
		c.t.Errorf("whom the call is for rang %d times", n-rang)
	}
	for _, p := range d.target(to) {
		others -= len(p.Incoming())
	}
	if others != 0 {
		c.t.Errorf("phones that nobody called rang %d times", -others)
	}
}

// idle waits until no switch has a call.
func (c *cluster) idle() {
	c.t.Helper()
	for name, n := range c.nodes {
		c.eventually(name+" has no call", func() bool {
			return strings.Contains(c.api(n, "show channels as json"), `"row_count": 0`)
		})
	}
}

// transferToNobody: the dialplan of the callee's switch takes the call that is
// transferred to a user who is nowhere, and is told why.
func (c *cluster) transferToNobody(d desk, at, result string) {
	c.t.Helper()
	out, in := c.callAs(d.caller, d.callee, d.callee.User())
	leg := c.meshLeg(at)
	c.eventually("the call is joined", func() bool { return len(c.joined(c.nodes[at])) == 1 })
	if err := in.Refer(c.ctx(), "sip:1099@"+domain, nil); err != nil {
		c.t.Fatal(err)
	}
	if _, err := in.WaitEnded(c.ctx()); err != nil {
		c.t.Fatalf("who transferred is still in the call: %v", err)
	}
	var got string
	c.eventually("the dialplan has the call", func() bool {
		for line := range strings.Lines(c.api(c.nodes[at], "show channels")) {
			if strings.HasPrefix(line, leg) && strings.Contains(line, ",park,") {
				got = strings.TrimSpace(c.api(c.nodes[at], "uuid_getvar "+leg+" pbxmesh_result"))
				return true
			}
		}
		return false
	})
	if got != result {
		c.t.Errorf("the dialplan is told %q, want %q", got, result)
	}
	if info := out.Info(); info.State != phone.Answered {
		c.t.Errorf("the caller is no longer in the call: %+v", info)
	}
	ctx, stop := context.WithTimeout(c.ctx(), soon)
	defer stop()
	if err := out.Hangup(ctx); err != nil {
		c.t.Error(err)
	}
	c.idle()
}
