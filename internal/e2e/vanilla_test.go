package e2e_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"pbxmesh/fixtures/phone"
	"pbxmesh/fixtures/sipwire"
	"pbxmesh/registry/registrytest"
)

const (
	stockDomain   = "sip.example.com"
	stockPassword = "a-password-of-our-own"
)

// stockMesh is two nodes with FreeSWITCH's sample configuration.
type stockMesh struct {
	*cluster
	t               *testing.T
	buffalo, london *stockNode
}

func (m *stockMesh) nodes() []*stockNode { return []*stockNode{m.buffalo, m.london} }

// TestScenarioVanilla follows README.md on two nodes that have the configuration that
// FreeSWITCH comes with: first as it is, then with the change that doctor, the daemon's
// log and fsconf ask for.
func TestScenarioVanilla(t *testing.T) {
	_ = vanilla(t)
	redis := registrytest.StartRedis(t)
	m := &stockMesh{
		cluster: &cluster{t: t, real: true}, t: t,
		buffalo: newStockNode(t, "buffalo", "127.0.96.1", redis.URL()),
		london:  newStockNode(t, "london", "127.0.97.1", redis.URL()),
	}
	for i, n := range m.nodes() {
		other := m.nodes()[1-i]
		out, code := n.pbxmesh("fsconf", "-c", n.file, "--peer", other.name+"="+other.host.String(), "--write", filepath.Join(n.dir, "conf"))
		if code != 0 || !strings.Contains(out, "domain=$${local_ip_v4}") || !strings.Contains(out, "--domain "+stockDomain) {
			t.Fatalf("%s: fsconf does not offer the change (exit code %d):\n%s", n.name, code, out)
		}
	}
	m.start()
	t.Cleanup(func() {
		for _, n := range m.nodes() {
			n.kill()
			if t.Failed() {
				t.Logf("daemon %s:\n%s\nswitch:\n%s", n.name, n.said(), n.log(150))
			}
			n.stop()
		}
	})
	for i, s := range []struct {
		name string
		run  func(*stockMesh)
	}{
		{"the domain is the node's own address", stockOwnDomain},
		{"the domain is changed", stockChangeDomain},
		{"calls", stockCalls},
		{"*69", stockCallReturn},
		{"privacy", stockPrivacy},
		{"transfers", stockTransfers},
		{"transfer by digits", stockDigitTransfer},
	} {
		if !t.Run(s.name, func(t *testing.T) {
			m.t, m.cluster.t = t, t
			for _, n := range m.nodes() {
				n.t = t
				if n.conn != nil && i >= 2 {
					n.run("hupall") // of a story that failed
				}
			}
			s.run(m)
		}) && i < 2 {
			break // no node finds anybody
		}
	}
	m.t, m.cluster.t = t, t
}

func (m *stockMesh) start() {
	m.t.Helper()
	for _, n := range m.nodes() {
		n.start()
		n.serve()
	}
}

// doctor returns what doctor says on a node about its domain, "" when that is well, and
// its exit code.
func (n *stockNode) doctor() (domain string, code int) {
	n.t.Helper()
	out, code := n.pbxmesh("doctor", "-c", n.file)
	for line := range strings.Lines(out) { // what is wrong, and further down what to do
		if strings.Contains(line, "domain of internal") {
			domain += line
		}
	}
	return domain, code
}

// stockOwnDomain: nobody is found, and everything that an operator looks at says why.
func stockOwnDomain(m *stockMesh) {
	for i, n := range m.nodes() {
		p := n.phone("1018", n.host.String(), fmt.Sprintf("127.0.98.%d", 1+i))
		m.eventually("the daemon of "+n.name+" says what is wrong", func() bool {
			return strings.Contains(n.said(), "register with an address for a domain") && strings.Contains(n.said(), "fsconf --domain")
		})
		m.eventually("doctor on "+n.name+" says what is wrong", func() bool {
			domain, _ := n.doctor()
			return strings.Contains(domain, "force-register-db-domain is "+n.host.String()) && strings.Contains(domain, "fsconf --domain "+stockDomain) &&
				strings.Contains(domain, `data="domain=`+stockDomain+`"`)
		})
		domain, _ := n.doctor()
		m.t.Logf("%s: %s", n.name, domain)
		// Its domain is about to change.
		if err := p.Unregister(m.ctx(), phone.KeepCallID); err != nil {
			m.t.Error(err)
		}
	}
}

// stockChangeDomain does what they say, with the command that they name.
func stockChangeDomain(m *stockMesh) {
	for i, n := range m.nodes() {
		other := m.nodes()[1-i]
		conf := filepath.Join(n.dir, "conf")
		args := []string{"fsconf", "-c", n.file, "--peer", other.name + "=" + other.host.String(), "--domain", stockDomain}
		if out, code := n.pbxmesh(append(args, "--diff", conf)...); code != 1 || !strings.Contains(out, "+") || !strings.Contains(out, "domain="+stockDomain) {
			m.t.Errorf("--diff (exit code %d):\n%s", code, out)
		}
		if out, code := n.pbxmesh(append(args, "--write", conf)...); code != 0 {
			m.t.Fatalf("--write (exit code %d):\n%s", code, out)
		}
		if out, code := n.pbxmesh(append(args, "--diff", conf)...); code != 0 {
			m.t.Errorf("a second run would change something (exit code %d):\n%s", code, out)
		}
	}
	for _, n := range m.nodes() {
		n.kill()
		n.stop()
	}
	m.start()
	for _, n := range m.nodes() {
		m.eventually(n.name+" is well", func() bool {
			domain, code := n.doctor()
			return domain == "" && code == 0
		})
		if strings.Contains(n.said(), "register with an address") {
			m.t.Errorf("the daemon of %s still complains:\n%s", n.name, n.said())
		}
	}
}

// pair returns phones of two users, on buffalo and on london, whom both switches find.
func (m *stockMesh) pair(first int) (a, b *phone.Phone) {
	m.t.Helper()
	a = m.buffalo.phone(fmt.Sprint(first), stockDomain, fmt.Sprintf("127.0.99.%d", first-1000+1))
	b = m.london.phone(fmt.Sprint(first+1), stockDomain, fmt.Sprintf("127.0.99.%d", first-1000+2))
	for _, n := range m.nodes() {
		for _, p := range []*phone.Phone{a, b} {
			m.found(n, p.User())
		}
	}
	return a, b
}

func (m *stockMesh) found(n *stockNode, user string) {
	m.t.Helper()
	m.eventually(n.name+" finds "+user, func() bool {
		return strings.HasPrefix(n.run("sofia_contact */"+user+"@"+stockDomain), "sofia/")
	})
}

// joined waits until a switch has n calls whose ends are connected.
func (m *stockMesh) joined(n *stockNode, calls int) {
	m.t.Helper()
	m.eventually(fmt.Sprintf("%s has %d calls", n.name, calls), func() bool {
		return strings.HasSuffix(n.run("show bridged_calls count"), fmt.Sprintf("%d total.", calls))
	})
}

func (m *stockMesh) dial(from *phone.Phone, number string, extra ...sipwire.Header) *phone.Call {
	m.t.Helper()
	out, err := from.Call(m.ctx(), number, extra...)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// rings waits for a phone's next call, the seen+1st.
func (m *stockMesh) rings(to *phone.Phone, seen int) *phone.Call {
	m.t.Helper()
	in, err := to.WaitIncoming(m.ctx(), seen+1)
	if err != nil {
		m.t.Fatalf("%s does not ring: %v", to.User(), err)
	}
	return in
}

// talk places a call that to answers.
func (m *stockMesh) talk(from, to *phone.Phone, number string, extra ...sipwire.Header) (out, in *phone.Call) {
	m.t.Helper()
	seen := len(to.Incoming())
	out = m.dial(from, number, extra...)
	in = m.rings(to, seen)
	for _, call := range []*phone.Call{out, in} {
		if _, err := call.WaitAnswered(m.ctx()); err != nil {
			m.t.Fatalf("%s calls %s: %v", from.User(), number, err)
		}
	}
	return out, in
}

func stockCalls(m *stockMesh) {
	a, b := m.pair(1000)
	for _, d := range [][2]*phone.Phone{{a, b}, {b, a}} {
		out, in := m.talk(d[0], d[1], d[1].User())
		ctx, stop := context.WithTimeout(m.ctx(), soon)
		go d[0].Talk(ctx)
		go d[1].Talk(ctx)
		for _, p := range d {
			if err := p.WaitHeard(ctx, phone.PCMU, 5); err != nil {
				m.t.Errorf("%s hears nothing: %v", p.User(), err)
			}
		}
		stop()
		if got := in.From().URI; got.User != d[0].User() || got.Host != stockDomain {
			m.t.Errorf("%s is shown %s@%s", d[1].User(), got.User, got.Host)
		}
		m.hangup(out, in)
		if n := len(d[1].Incoming()); n != 1 {
			m.t.Errorf("%s rang %d times", d[1].User(), n)
		}
	}
}

// stockCallReturn: *69 dials who called last, from whichever node.
func stockCallReturn(m *stockMesh) {
	a, b := m.pair(1002)
	near := m.london.phone("1004", stockDomain, "127.0.99.50")
	m.found(m.london, "1004")
	out, in := m.talk(near, b, b.User()) // a call of the same switch, before
	m.hangup(out, in)
	out, in = m.talk(a, b, b.User())
	m.hangup(out, in)
	out, in = m.talk(b, a, "*69")
	m.hangup(out, in)
	if n := len(near.Incoming()); n != 0 {
		m.t.Errorf("*69 rang the caller before the last %d times", n)
	}
}

// stockPrivacy: the callee's phone on another node is told of a caller who hides as much
// as one on the same node.
func stockPrivacy(m *stockMesh) {
	a, far := m.pair(1005)
	near := m.buffalo.phone("1007", stockDomain, "127.0.99.51")
	m.found(m.buffalo, "1007")
	var told []string
	for _, hides := range []bool{false, true} {
		for _, p := range []*phone.Phone{near, far} {
			var extra []sipwire.Header
			if hides {
				extra = append(extra, sipwire.Header{Name: "Privacy", Value: "id"})
			}
			out, in := m.talk(a, p, p.User(), extra...)
			invite := in.Invite()
			said := fmt.Sprintf("hides %v: Privacy %q, From %q", hides, invite.Get("Privacy"), in.From().Display+" "+in.From().URI.User)
			for _, name := range []string{"privacy=", "screen="} {
				_, value, _ := strings.Cut(invite.Get("Remote-Party-ID"), name)
				value, _, _ = strings.Cut(value, ";")
				said += " " + name + value
			}
			told = append(told, said)
			m.hangup(out, in)
		}
	}
	for i := 0; i < len(told); i += 2 {
		if told[i] != told[i+1] {
			m.t.Errorf("on one node  %s\nacross nodes %s", told[i], told[i+1])
		}
		m.t.Log(told[i])
	}
	if told[0][len("hides false"):] == told[2][len("hides true"):] {
		m.t.Error("the switch did not notice that the caller hides")
	}
}

// stockTransfers: the callee hands the call to a user of the caller's node, of its own and
// back; without a word and after one.
func stockTransfers(m *stockMesh) {
	a, b := m.pair(1008)
	away := m.buffalo.phone("1010", stockDomain, "127.0.99.52")
	home := m.london.phone("1011", stockDomain, "127.0.99.53")
	m.found(m.london, "1010")
	for _, target := range []*phone.Phone{away, home} {
		for _, attended := range []bool{false, true} {
			what := fmt.Sprintf("to %s, attended %v", target.User(), attended)
			m.joined(m.london, 0)
			rang := len(target.Incoming())
			out, in := m.talk(a, b, b.User())
			var word *phone.Call
			calls := 1
			if attended {
				word, _ = m.talk(b, target, target.User())
				calls = 2
			}
			m.joined(m.london, calls)
			if err := in.Refer(m.ctx(), "sip:"+target.User()+"@"+stockDomain, word); err != nil {
				m.t.Fatalf("%s: %v", what, err)
			}
			last := m.rings(target, rang)
			if _, err := in.WaitEnded(m.ctx()); err != nil {
				m.t.Errorf("%s: who transferred is still in the call: %v", what, err)
			}
			if _, err := last.WaitAnswered(m.ctx()); err != nil {
				m.t.Fatalf("%s: %v", what, err)
			}
			m.joined(m.london, 1)
			m.hangup(out, last)
			if n := len(target.Incoming()) - rang; n != 1 {
				m.t.Errorf("%s: it rang %d times", what, n)
			}
		}
	}
}

// stockDigitTransfer: the callee, on another node, presses *1 and a number (dx).
func stockDigitTransfer(m *stockMesh) {
	a, b := m.pair(1012)
	target := m.london.phone("1014", stockDomain, "127.0.99.54")
	m.found(m.buffalo, "1014")
	out, in := m.talk(a, b, b.User())
	m.joined(m.london, 1)
	m.joined(m.buffalo, 1)
	ctx, stop := context.WithTimeout(m.ctx(), soon)
	defer stop()
	go a.Talk(ctx)
	go b.Talk(ctx)
	if err := b.WaitHeard(ctx, phone.PCMU, 5); err != nil {
		m.t.Fatal(err)
	}
	if !b.Press(ctx, "*1") {
		m.t.Fatal("no telephone-event")
	}
	m.eventually("the dialplan asks where to", func() bool {
		return strings.Contains(m.buffalo.run("show channels"), ",read,")
	})
	if !b.Press(ctx, "1014#") {
		m.t.Fatal("no telephone-event")
	}
	last := m.rings(target, 0)
	if _, err := last.WaitAnswered(m.ctx()); err != nil {
		m.t.Fatal(err)
	}
	if _, err := in.WaitEnded(m.ctx()); err != nil {
		m.t.Errorf("who transferred is still in the call: %v", err)
	}
	m.joined(m.buffalo, 1)
	m.hangup(out, last)
}
