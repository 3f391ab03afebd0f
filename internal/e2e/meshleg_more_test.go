package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pbxmesh/fixtures"
	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/realswitch"
)

// privateRoute dials as FusionPBX's *67 does.
var privateRoute = fixtures.Route{Prefix: "p", Bridge: "{sip_h_Privacy=id}user/$1@" + domain}

// nearAndFar are two callees of one kind, on the caller's node and on another.
func (c *cluster) nearAndFar(first int, subnet string, change func(*phone.Config)) (caller *phone.Phone, callees []*phone.Phone) {
	c.t.Helper()
	user := func(n int) string { return fmt.Sprint(first + n) }
	caller = c.audioPhone(user(0), subnet+".1", "buffalo", change)
	callees = []*phone.Phone{c.audioPhone(user(1), subnet+".2", "buffalo", change), c.audioPhone(user(2), subnet+".3", "london", change)}
	c.taught(user(2), true)
	return caller, callees
}

// meshMedia has a callee speak before it answers, refuse the caller's video, and both
// ends hold and take back.
func meshMedia(t *testing.T, c *cluster) {
	a, callees := c.nearAndFar(1050, "127.0.131", withCodecs(phone.Opus, phone.PCMU))
	video := c.audioPhone("1053", "127.0.131.4", "buffalo", func(cfg *phone.Config) {
		cfg.Codecs, cfg.Video = []phone.Codec{phone.Opus, phone.PCMU}, true
	})
	for _, b := range callees {
		b.SetBehaviour(phone.EarlyMedia())
		for _, from := range []*phone.Phone{a, video} {
			seen := len(b.Incoming())
			out, err := from.Call(c.ctx(), "u"+b.User())
			if err != nil {
				t.Fatal(err)
			}
			in, err := b.WaitIncoming(c.ctx(), seen+1)
			if err != nil {
				t.Fatal(err)
			}
			go b.Talk(c.ctx())
			if info, err := out.Wait(c.ctx(), func(i phone.CallInfo) bool { return len(i.RemoteSDP) > 0 }); err != nil || info.State == phone.Answered {
				t.Errorf("%s: no early media: %v, %v", b.User(), info.State, err)
			} else if err := from.WaitHeard(c.ctx(), codecNamed(from.Codec()), 5); err != nil {
				t.Errorf("%s: the caller hears nothing before the answer: %v", b.User(), err)
			}
			if err := in.Answer(); err != nil {
				t.Fatal(err)
			}
			if _, err := out.WaitAnswered(c.ctx()); err != nil {
				t.Fatalf("%s: %v", b.User(), err)
			}
			go from.Talk(c.ctx())
			for _, call := range []*phone.Call{out, in} {
				if err := call.Hold(c.ctx()); err != nil {
					t.Errorf("%s: hold: %v", b.User(), err)
				}
				if err := call.Reinvite(c.ctx()); err != nil {
					t.Errorf("%s: back from hold: %v", b.User(), err)
				}
			}
			for _, p := range []*phone.Phone{from, b} {
				if err := p.WaitHeard(c.ctx(), codecNamed(p.Codec()), 5); err != nil {
					t.Errorf("%s: after the hold: %v", b.User(), err)
				}
			}
			c.hangup(in, out)
		}
	}
}

// meshFax has each end of a call go over to T.38, as fax machines do when they have heard one
// another. A switch passes that on when its variables say so, for calls between nodes as
// for others; else it refuses, and the fax goes on as audio.
func meshFax(t *testing.T, c *cluster) {
	caller, callees := c.nearAndFar(1090, "127.0.139", func(cfg *phone.Config) {
		cfg.Codecs, cfg.Fax = []phone.Codec{phone.PCMU}, true
	})
	set := func(value string) {
		for _, n := range c.nodes {
			for _, name := range []string{"fax_enable_t38", "t38_passthru"} {
				if _, err := n.sw.(*realswitch.Switch).API(c.ctx(), "global_setvar "+name+"="+value); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	defer set("false")
	for _, passes := range []bool{false, true} {
		set(fmt.Sprint(passes))
		for _, callee := range callees {
			for _, first := range []string{"callee", "caller"} {
				out, in := c.callAs(caller, callee, "u"+callee.User())
				ctx, stop := context.WithTimeout(c.ctx(), soon/2)
				for _, p := range []*phone.Phone{caller, callee} {
					go p.Talk(ctx)
				}
				for _, p := range []*phone.Phone{caller, callee} {
					if err := p.WaitHeard(ctx, phone.PCMU, 10); err != nil {
						t.Errorf("%s hears nothing: %v", p.User(), err)
					}
				}
				stop()
				by, with := in, out
				if first == "caller" {
					by, with = out, in
				}
				err := by.Fax(c.ctx())
				if (err == nil) != passes {
					t.Errorf("%s, passed on %v, by the %s: %v", callee.User(), passes, first, err)
				}
				if err == nil {
					if _, err := with.Wait(c.ctx(), func(i phone.CallInfo) bool { return i.Fax }); err != nil {
						t.Errorf("%s, by the %s: the other side does not go over to T.38", callee.User(), first)
					}
				} else if err := by.Reinvite(c.ctx()); err != nil {
					t.Errorf("%s, by the %s: on as audio: %v", callee.User(), first, err)
				}
				t.Logf("%s, passed on %v, by the %s: %v", callee.User(), passes, first, err)
				c.hangup(in, out)
			}
		}
	}
}

// meshPrivacy: what the callee's phone is told of a caller who hides.
func meshPrivacy(t *testing.T, c *cluster) {
	a, callees := c.nearAndFar(1055, "127.0.132", withCodecs(phone.PCMU))
	var got []string
	for _, b := range callees {
		b.SetBehaviour(phone.AutoAnswer(0))
		out, in := c.callAs(a, b, "p"+b.User())
		got = append(got, in.Invite().Get("Privacy"))
		c.hangup(out, in)
		out, in = c.callAs(a, b, "u"+b.User())
		if open := in.Invite().Get("Privacy"); open != "" {
			t.Errorf("%s: a caller who hides nothing has Privacy: %s", b.User(), open)
		}
		c.hangup(out, in)
	}
	if got[0] != "id" || got[1] != got[0] {
		t.Errorf("Privacy on one node %q, across %q", got[0], got[1])
	}
}

// meshCallReturn: *69 and pickup look where a switch's own dialplan writes.
func meshCallReturn(t *testing.T, c *cluster) {
	a, callees := c.nearAndFar(1058, "127.0.133", withCodecs(phone.PCMU))
	b := callees[1]
	out, in := c.callAs(a, b, "u"+b.User())
	if got := strings.TrimSpace(c.api(c.nodes["london"], "hash select/"+domain+"-call_return/"+b.User())); got != a.User() {
		t.Errorf("*69 would dial %q, want %s", got, a.User())
	}
	if got := strings.TrimSpace(c.api(c.nodes["london"], "hash select/"+domain+"-last_dial_ext/"+b.User())); got != c.meshLeg("london") {
		t.Errorf("pickup would take %q, want %s", got, c.meshLeg("london"))
	}
	c.hangup(out, in)
}

// meshLeg returns the UUID of the one call that came to a node over the mesh. The table
// of channels follows the calls a little later.
func (c *cluster) meshLeg(at string) (uuid string) {
	c.t.Helper()
	c.eventually(at+" shows its call", func() bool {
		for line := range strings.Lines(c.api(c.nodes[at], "show channels")) {
			if f := strings.Split(line, ","); len(f) > 4 && f[1] == "inbound" && strings.HasPrefix(f[4], "sofia/mesh/") {
				uuid = f[0]
			}
		}
		return uuid != ""
	})
	return uuid
}

// meshRecords: the node of the callee writes no record of a call that came over the
// mesh, until the callee transfers it: then it is a call of that node.
func meshRecords(t *testing.T, c *cluster) {
	a, callees := c.nearAndFar(1061, "127.0.134", withCodecs(phone.PCMU))
	b := callees[1]
	target := c.audioPhone("1064", "127.0.134.4", "singapore", withCodecs(phone.PCMU))
	c.taught("1064", true)
	out, in := c.callAs(a, b, "u"+b.User())
	leg := c.meshLeg("london")
	get := func(name string) string {
		return strings.TrimSpace(c.api(c.nodes["london"], "uuid_getvar "+leg+" "+name))
	}
	if got := get("process_cdr"); got != "false" {
		t.Errorf("before the transfer process_cdr is %q", got)
	}
	c.eventually("the call is joined", func() bool { return len(c.joined(c.nodes["london"])) == 1 })
	if err := in.Refer(c.ctx(), "sip:u1064@"+domain, nil); err != nil {
		t.Fatal(err)
	}
	last, err := target.WaitIncoming(c.ctx(), 1)
	if err != nil {
		t.Fatalf("transferred to a user of another node, who does not ring: %v", err)
	}
	if _, err := last.WaitAnswered(c.ctx()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"process_cdr": "_undef_", "sip_exclude_contact": "_undef_", "pbxmesh_transferred": "true"} {
		if got := get(name); got != want {
			t.Errorf("after the transfer %s is %q, want %s", name, got, want)
		}
	}
	c.eventually("the two are connected", func() bool { return len(c.joined(c.nodes["london"])) == 1 })
	c.hangup(out, last)
}

// meshStopped: a profile that is stopped, as by an operator's mistake, makes FreeSWITCH
// ask all profiles. The call must not go back into the mesh.
func meshStopped(t *testing.T, c *cluster) {
	a := c.audioPhone("1066", "127.0.135.1", "buffalo", withCodecs(phone.PCMU))
	_ = c.audioPhone("1067", "127.0.135.2", "london", withCodecs(phone.PCMU))
	far := c.audioPhone("1067", "127.0.135.3", "singapore", withCodecs(phone.PCMU))
	far.SetBehaviour(phone.RingForever())
	c.eventually("buffalo's switch finds 1067 on both", func() bool {
		return strings.Count(c.api(c.nodes["buffalo"], "sofia_contact */1067@"+domain), "sofia/mesh/") == 2
	})
	london := c.nodes["london"]
	c.eventually("london's profile is old enough to be stopped", func() bool {
		return strings.Contains(c.api(london, "sofia profile internal stop"), "stopping")
	})
	c.eventually("london asks all profiles", func() bool {
		return strings.Contains(c.api(london, "sofia_contact internal/1067@"+domain), "sofia/mesh/")
	})
	out, err := a.Call(c.ctx(), "u1067")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := far.WaitIncoming(c.ctx(), 1); err != nil {
		t.Fatal(err)
	}
	c.eventually("london has told buffalo that nobody is there", func() bool {
		// Buffalo keeps the leg that failed until the other one ends, unless it knew before
		// the call that london is down.
		log := london.sw.(interface{ Log() string }).Log()
		return strings.Contains(log, "Close Channel sofia/mesh/1066@"+domain) ||
			strings.Count(c.api(c.nodes["buffalo"], "show channels"), "sofia/mesh/") == 1
	})
	if n := len(far.Incoming()); n != 1 {
		t.Errorf("singapore's phone got %d INVITEs: london sent the call back into the mesh", n)
	}
	if n := strings.Count(c.api(london, "show channels"), "sofia/mesh/"); n != 0 {
		t.Errorf("london still has %d calls in the mesh", n)
	}
	if err := out.Cancel(c.ctx()); err != nil {
		t.Error(err)
	}
}

// older takes out of a mesh profile what fsconf did not write once.
func older(mesh realswitch.MeshConfig) realswitch.MeshConfig {
	var kept []string
	for line := range strings.Lines(mesh.Profile) {
		if !strings.Contains(line, "late-negotiation") && !strings.Contains(line, "dtmf-type") && !strings.Contains(line, "session-") &&
			!strings.Contains(line, "enable-timer") && !strings.Contains(line, "update-refresher") {
			kept = append(kept, line)
		}
	}
	mesh.Profile = strings.Join(kept, "")
	return mesh
}

// pair boots switches without daemons, each dialling the others by number: 7 and the
// last digit of the town's address. old says which have the older profile.
func pair(t *testing.T, old ...bool) (*cluster, []*node) {
	t.Helper()
	if realBinary() == "" {
		t.Skip("only a real switch has media")
	}
	c := &cluster{t: t, real: true, nodes: map[string]*node{}}
	var nodes []*node
	var users []fixtures.User
	for i := range 30 {
		users = append(users, fixtures.User{Name: fmt.Sprint(1000 + i), Domain: domain, Password: password(fmt.Sprint(1000 + i))})
	}
	for i, isOld := range old {
		n := &node{name: []string{"buffalo", "london", "singapore"}[i]}
		// Where the mesh profile of each is, is known before any of them starts.
		fc := fixtures.Config{Name: n.name, Host: netip.MustParseAddr(hosts[n.name]), Users: users}
		for j, other := range nodes {
			fc.Routes = append(fc.Routes, fixtures.Route{Prefix: fmt.Sprint(7 + j), Bridge: "sofia/mesh/sip:$1@" + domain + ";fs_path=sip%3A" + strings.Replace(other.sw.Mesh().String(), ":", "%3A", 1)})
		}
		sw, err := realswitch.New(fc, realBinary(), realswitch.WithMesh(func(mesh netip.AddrPort) realswitch.MeshConfig {
			if isOld {
				return older(writtenByFSConf(mesh))
			}
			return writtenByFSConf(mesh)
		}))
		if err != nil {
			t.Fatal(err)
		}
		n.sw = sw
		t.Cleanup(func() { n.close(t) })
		if err := sw.Start(); err != nil {
			t.Fatal(err)
		}
		c.nodes[n.name] = n
		nodes = append(nodes, n)
	}
	return c, nodes
}

// TestScenarioMeshLegUpgrade: digits cross while only one of two nodes has the present
// profile, whichever called.
func TestScenarioMeshLegUpgrade(t *testing.T) {
	t.Parallel()
	for name, old := range map[string][]bool{"caller's node is older": {false, true}, "callee's node is older": {true, false}} {
		t.Run(name, func(t *testing.T) {
			c, _ := pair(t, old...)
			all := withCodecs(phone.Opus, phone.G722, phone.PCMU, phone.PCMA)
			callee := c.audioPhone("1011", "127.0.141.1", "buffalo", all)
			caller := c.audioPhone("1012", "127.0.141.2", "london", all)
			if said := c.talkTo(caller, callee, "71011"); strings.Contains(said, "!") || !strings.HasPrefix(said, "opus/") {
				t.Error(said)
			}
		})
	}
}

// TestScenarioMeshNodeDies: who called a phone of a node that dies is told within a minute, who
// was called from there within 90 s; a call between living nodes goes on, held and without a
// single packet.
func TestScenarioMeshNodeDies(t *testing.T) {
	t.Parallel()
	c, nodes := pair(t, false, false, false)
	silent := func(*phone.Config) {}
	type party struct {
		what    string
		out, in *phone.Call
	}
	var dying, living []party
	n := 0
	// london dies, beside callers and callees of the others.
	for _, way := range []struct{ from, to, prefix string }{{"singapore", "london", "8"}, {"london", "buffalo", "7"}, {"singapore", "buffalo", "7"}} {
		for _, what := range []string{"silent", "held by the caller", "held by the callee"} {
			n++
			callee := c.audioPhone(fmt.Sprint(1000+n), fmt.Sprintf("127.0.142.%d", n), way.to, silent)
			caller := c.audioPhone(fmt.Sprint(1010+n), fmt.Sprintf("127.0.143.%d", n), way.from, silent)
			out, in := c.callAs(caller, callee, way.prefix+callee.User())
			what := what + ", from " + way.from
			switch what, _, _ := strings.Cut(what, ","); what {
			case "held by the caller":
				if err := out.Hold(c.ctx()); err != nil {
					t.Fatal(err)
				}
			case "held by the callee":
				if err := in.Hold(c.ctx()); err != nil {
					t.Fatal(err)
				}
			}
			switch "london" {
			case way.to:
				dying = append(dying, party{what, out, nil})
			case way.from:
				dying = append(dying, party{what, nil, in})
			default:
				living = append(living, party{what, out, in})
			}
		}
	}
	if err := nodes[1].sw.Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for _, p := range dying {
		wait, stop := contextFor(2 * time.Minute)
		left, limit := p.out, time.Minute
		if left == nil { // the caller's switch would have asked for a sign; the callee's waits for one
			left, limit = p.in, 90*time.Second
		}
		if _, err := left.WaitEnded(wait); err != nil {
			t.Errorf("%s: who is left was never told: %v", p.what, err)
		}
		stop()
		t.Logf("%s: who is left was told %s after the node's death", p.what, time.Since(began).Round(time.Second))
		c.atMost(p.what+": who is left is told", time.Since(began), limit)
	}
	// Longer than a session may live without a sign.
	wait, stop := contextFor(100*time.Second - time.Since(began))
	<-wait.Done()
	stop()
	for _, p := range living {
		for _, call := range []*phone.Call{p.out, p.in} {
			if info := call.Info(); info.State != phone.Answered {
				t.Errorf("%s: a call between living nodes ended: %+v", p.what, info)
			}
		}
		c.hangup(p.out, p.in)
	}
}
